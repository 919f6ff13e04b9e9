"""Lambda's events made plain: what is no request is said to be none, in one way."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.kit.errors import DoorkeyError, WebhookRefused
from functions.web.events import NotARequest, choose_request_id, problem, read_request


def event(**changes: Any) -> dict[str, Any]:
    return {
        "version": "2.0",
        "rawPath": "/webhooks/supabase",
        "headers": {"Content-Type": "application/json", "X-Request-Id": "caller-1"},
        "requestContext": {"http": {"method": "post", "path": "/webhooks/supabase", "sourceIp": "203.0.113.7"}},
        "body": "",
        "isBase64Encoded": False,
        **changes,
    }


@given(raw=st.binary())
def test_base64_bodies_arrive_byte_for_byte(raw: bytes) -> None:
    encoded = base64.b64encode(raw).decode()
    assert read_request(event(body=encoded, isBase64Encoded=True)).body == raw


@given(text=st.text())
def test_text_bodies_arrive_as_utf_8(text: str) -> None:
    assert read_request(event(body=text)).body == text.encode()


def test_names_of_headers_are_lower_case_and_the_method_is_not() -> None:
    request = read_request(event())
    assert request.headers["content-type"] == "application/json"
    assert request.method == "POST"
    assert request.request_id == "caller-1"


@pytest.mark.parametrize("body", [None, ""])
def test_no_body_is_an_empty_one(body: str | None) -> None:
    assert read_request(event(body=body, isBase64Encoded=True)).body == b""
    assert read_request(event(body=body, headers=None)).body == b""


@pytest.mark.parametrize(
    "garbage",
    [
        {}, [], None, "text", 5, {"Records": []},
        {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}},
        event(requestContext=None), event(requestContext={"http": None}), event(requestContext={"http": "POST"}),
        event(headers=["a"]), event(headers="text"),
        event(body="not base64!", isBase64Encoded=True), event(body="ü", isBase64Encoded=True),
        event(body={"a": 1}, isBase64Encoded=True), event(body=5, isBase64Encoded=True), event(body="\ud800"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_said_to_be_none(garbage: Any) -> None:
    with pytest.raises(NotARequest):
        read_request(garbage)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    garbage=st.one_of(
        json_values,
        st.fixed_dictionaries(
            {"rawPath": json_values, "requestContext": st.fixed_dictionaries({"http": json_values})},
            optional={"headers": json_values, "body": json_values, "isBase64Encoded": json_values},
        ),
        st.fixed_dictionaries(
            {
                "rawPath": json_values,
                "requestContext": st.just({"http": {"method": "POST"}}),
                "headers": st.dictionaries(st.text(st.characters()), json_values, max_size=3),
                "body": json_values,
                "isBase64Encoded": json_values,
            }
        ),
    )
)
def test_any_event_is_a_request_or_none(garbage: Any) -> None:
    try:
        request = read_request(garbage)
    except NotARequest:
        return
    assert isinstance(request.body, bytes)


@pytest.mark.parametrize("good", ["a", "A-b_c.9", "0" * 64, "7d1c0b3e-3f0e-4f3c-9f6f-3a7a0f4e8a55"])
def test_a_sane_request_id_is_kept(good: str) -> None:
    assert choose_request_id(good) == good


@given(
    hostile=st.one_of(
        st.none(), st.just(""), st.text(st.characters(), min_size=65), st.text(st.characters()).map("\n".__add__)
    )
)
def test_a_hostile_request_id_is_replaced(hostile: str | None) -> None:
    chosen = choose_request_id(hostile)
    assert chosen != hostile
    assert len(chosen) == 32
    assert chosen.isalnum()


@pytest.mark.parametrize(
    "hostile", ["a b", "a\n", "\x1b[31m", '"', "<script>", "ü", "a/b", "a" * 65, "$(reboot)", "\N{BLACK STAR}"]
)
def test_a_request_id_that_could_do_harm_is_replaced(hostile: str) -> None:
    assert choose_request_id(hostile) != hostile


def test_a_problem_says_nothing_of_what_only_the_log_may_see() -> None:
    answer = problem(WebhookRefused("no signature matches"), "request-1")
    assert answer["statusCode"] == 401
    assert answer["headers"]["content-type"] == "application/problem+json"
    assert answer["headers"]["x-request-id"] == "request-1"
    assert "signature matches" not in answer["body"]


def test_an_errors_headers_go_with_the_answer() -> None:
    answer = problem(DoorkeyError("", {"allow": "POST"}), "request-1")
    assert answer["headers"]["allow"] == "POST"
