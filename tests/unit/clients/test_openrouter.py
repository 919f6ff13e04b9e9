"""OpenRouter's answers, each to its named error; and nothing that makes a key is ever sent twice.

What a server answers is made up here on purpose: the simulator answers as the real one does, and this is about proxies
in between, cut lines and wrong shapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.clients.openrouter import (
    AccountEmpty,
    CreatedKey,
    KeyNotFound,
    LimitNotTaken,
    ManagementKeyForbidden,
    ManagementKeyRejected,
    OpenRouter,
    OpenRouterAnswerInvalid,
    OpenRouterAnswerLate,
    OpenRouterAnswerLost,
    OpenRouterError,
    OpenRouterFault,
    OpenRouterLimited,
    OpenRouterPage,
    OpenRouterRefused,
    OpenRouterUnreachable,
)
from functions.clients.outside import build_clients
from functions.kit.settings import Settings
from tests.support.environment import COMPLETE, settings

HASH = "ab" * 32
SECRET = "sk-or-v1-" + "cd" * 32
CREATED: dict[str, Any] = {
    "data": {"hash": HASH, "name": "doorkey-app-1", "label": "sk-or-v1-cdc...dcd", "limit": 5.25},
    "key": SECRET,
}
WORKSPACE = "7d1c0b3e-3f0e-4f3c-9f6f-3a7a0f4e8a55"


class Server:
    """Answers every request the same way, and keeps them."""

    def __init__(self, answer: httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]) -> None:
        self.answer = answer
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(request) if callable(self.answer) else self.answer

    def client(self, found: Settings | None = None) -> OpenRouter:
        return build_clients(found or settings(), httpx.MockTransport(self)).openrouter


ACTS: dict[str, Callable[[OpenRouter], Any]] = {
    "create": lambda client: client.create_key("doorkey-app-1", 5_000_000),
    "limit": lambda client: client.update_key(HASH, limit_micros=1, is_enabled=True),
    "delete": lambda client: client.delete_key(HASH),
    "credits": lambda client: client.read_credits(),
}
ERROR_BODY = json.dumps({"error": {"code": 0, "message": "somebody@example.com"}})
BODIES = {
    "json": (ERROR_BODY, "application/json"),
    "html": ("<html>somebody@example.com</html>", "text/html"),
    "empty": ("", "application/json"),
    "wrong": ("[1, 2]", "application/json"),
    "broken": ("{", "application/json"),
}


async def error_of(answer: httpx.Response | Exception, act: str) -> OpenRouterError:
    server = Server(answer)
    with pytest.raises(OpenRouterError) as caught:
        await ACTS[act](server.client())
    assert len(server.requests) == 1
    assert "@" not in f"{caught.value} {caught.value.private}"
    return caught.value


@pytest.mark.parametrize("act", sorted(ACTS))
@pytest.mark.parametrize("body", sorted(BODIES))
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *((status, OpenRouterRefused) for status in (400, 409, 422)),
        (401, ManagementKeyRejected),
        (402, AccountEmpty),
        (429, OpenRouterLimited),
        *((status, OpenRouterAnswerInvalid) for status in (202, 204, 301, 307)),
        *((status, OpenRouterFault) for status in (500, 502, 503, 504, 520, 524, 529)),
    ],
)
async def test_every_status_has_its_name_whatever_the_body(
    act: str, body: str, status: int, expected: type[OpenRouterError]
) -> None:
    content, content_type = BODIES[body]
    error = await error_of(httpx.Response(status, content=content, headers={"content-type": content_type}), act)
    is_unknown = issubclass(expected, OpenRouterAnswerLost)
    assert type(error) is (OpenRouterPage if is_unknown and body == "html" else expected)
    assert error.is_outcome_unknown == is_unknown


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        ("create", ManagementKeyForbidden), ("credits", ManagementKeyForbidden),
        ("limit", OpenRouterRefused), ("delete", OpenRouterRefused),
    ],
)  # fmt: skip
async def test_a_403_is_everybodys_where_nothing_is_about_one_key(act: str, expected: type[OpenRouterError]) -> None:
    error = await error_of(httpx.Response(403, content=ERROR_BODY), act)
    assert type(error) is expected
    assert error.is_everybodys == (expected is ManagementKeyForbidden)


@pytest.mark.parametrize(
    ("status", "body", "expected", "detail"),
    [
        (201, "html", OpenRouterPage, "POST keys: 201, but a web page"),
        (201, "broken", OpenRouterAnswerInvalid, "POST keys: 201, but no JSON"),
        (201, "json", OpenRouterAnswerInvalid, "POST keys: 201, but without a key"),
        (200, "html", OpenRouterPage, "POST keys: 200, a web page"),
        (502, "html", OpenRouterPage, "POST keys: 502, a web page"),
        (502, "json", OpenRouterFault, "POST keys: 502, a fault of its own"),
        (200, "json", OpenRouterAnswerInvalid, "POST keys: 200, not 201"),
        (307, "empty", OpenRouterAnswerInvalid, "POST keys: 307, not 201"),
    ],
)
async def test_a_lost_answer_says_in_which_way(
    status: int, body: str, expected: type[OpenRouterError], detail: str
) -> None:
    content, content_type = BODIES[body]
    answer = httpx.Response(status, content=content, headers={"content-type": content_type})
    error = await error_of(answer, "create")
    assert (type(error), error.private) == (expected, detail)


async def test_a_key_that_is_not_there_is_said_so_and_counts_as_deleted() -> None:
    gone = httpx.Response(404, content=ERROR_BODY)
    assert type(await error_of(gone, "limit")) is KeyNotFound
    assert type(await error_of(gone, "create")) is OpenRouterRefused
    await Server(gone).client().delete_key(HASH)


@pytest.mark.parametrize("act", sorted(ACTS))
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpx.ConnectError("x"), OpenRouterUnreachable), (httpx.ConnectTimeout("x"), OpenRouterUnreachable),
        (httpx.PoolTimeout("x"), OpenRouterUnreachable),
        (httpx.ReadTimeout("x"), OpenRouterAnswerLate), (httpx.WriteTimeout("x"), OpenRouterAnswerLate),
        (httpx.ReadError("x"), OpenRouterAnswerLost), (httpx.WriteError("x"), OpenRouterAnswerLost),
        (httpx.CloseError("x"), OpenRouterAnswerLost), (httpx.RemoteProtocolError("x"), OpenRouterAnswerLost),
        (httpx.ProxyError("x"), OpenRouterAnswerLost), (httpx.DecodingError("x"), OpenRouterAnswerLost),
    ],
)  # fmt: skip
async def test_a_broken_line_is_named_by_its_side_and_never_tried_again(
    act: str, error: Exception, expected: type[OpenRouterError]
) -> None:
    found = await error_of(error, act)
    assert type(found) is expected
    assert found.is_outcome_unknown == issubclass(expected, OpenRouterAnswerLost)


def created(**changes: Any) -> dict[str, Any]:
    return {**CREATED, **changes}


@pytest.mark.parametrize(
    "body",
    [
        "", "{", "null", "[]", "5", "[" * 100_000, '"text"', "{}",
        *(json.dumps(found) for found in (
            created(key=None), created(key=""), created(key=5), created(data=None), created(data=[]), created(data="x"),
            created(data={"name": "n"}), created(data={"hash": HASH}), created(data={"hash": "short", "name": "n"}),
            created(data={"hash": HASH.upper(), "name": "n"}), created(data={"hash": None, "name": "n"}),
            {"data": CREATED["data"]}, {"key": SECRET},
        )),
    ],
)  # fmt: skip
async def test_a_201_that_is_no_key_leaves_it_open_whether_one_was_made(body: str) -> None:
    error = await error_of(httpx.Response(201, content=body), "create")
    assert type(error) is OpenRouterAnswerInvalid
    assert error.is_outcome_unknown
    assert SECRET not in str(error)


async def test_a_key_is_asked_for_as_openrouter_documents_it() -> None:
    server = Server(httpx.Response(201, json=CREATED))
    key = await server.client().create_key("doorkey-app-1", 5_250_001)
    assert key == CreatedKey(HASH, "doorkey-app-1", "sk-or-v1-cdc...dcd", 5_250_000, SECRET)
    assert SECRET not in repr(key)
    (request,) = server.requests
    assert (request.method, str(request.url)) == ("POST", COMPLETE["OPENROUTER_BASE_URL"] + "/keys")
    assert request.headers["authorization"] == f"Bearer {COMPLETE['OPENROUTER_MANAGEMENT_KEY']}"
    assert json.loads(request.content) == {"name": "doorkey-app-1", "limit": 5.250001, "include_byok_in_limit": False}


async def test_a_workspace_goes_along_when_it_is_set() -> None:
    server = Server(httpx.Response(201, json=CREATED))
    await server.client(settings(OPENROUTER_WORKSPACE_ID=WORKSPACE)).create_key("doorkey-app-1", None)
    body = json.loads(server.requests[0].content)
    assert body["workspace_id"] == WORKSPACE
    assert body["limit"] is None


@given(micros=st.integers(0, 4_000_000_000_000_000))
async def test_no_micro_dollar_of_a_limit_is_lost_in_json(micros: int) -> None:
    server = Server(httpx.Response(200, json={"data": {"limit": micros / 1_000_000, "disabled": False, "usage": 0}}))
    await server.client().update_key(HASH, limit_micros=micros, is_enabled=True)
    assert round(json.loads(server.requests[0].content)["limit"] * 1_000_000) == micros


@pytest.mark.parametrize(
    "data",
    [
        {"limit": None, "disabled": False, "usage": 0},
        {"limit": 5.0, "disabled": False, "usage": 0},
        {"limit": 4.0, "disabled": True, "usage": 0},
        {"limit": 4.0, "disabled": False},
        {"limit": 4.0, "disabled": False, "usage": "much"},
        {},
        None,
    ],
)
async def test_another_limit_or_switch_than_asked_for_is_never_taken_for_done(data: Any) -> None:
    error = await error_of_update(httpx.Response(200, json={"data": data}))
    assert type(error) in (LimitNotTaken, OpenRouterAnswerInvalid)


@pytest.mark.parametrize(
    ("usage", "micros"),
    [
        ("0", "0"),
        ("1e-7", "0.1"),
        ("1.25", "1250000"),
        ("0.12345678901234567890123", "123456.78901234567890123"),
        ("-1", "0"),
    ],
)
async def test_what_a_key_has_spent_is_taken_as_it_is_written(usage: str, micros: str) -> None:
    server = Server(httpx.Response(200, content=f'{{"data": {{"limit": 4.0, "disabled": false, "usage": {usage}}}}}'))
    assert await server.client().update_key(HASH, limit_micros=4_000_000, is_enabled=True) == Decimal(micros)


async def error_of_update(answer: httpx.Response) -> OpenRouterError:
    with pytest.raises(OpenRouterError) as caught:
        await Server(answer).client().update_key(HASH, limit_micros=4_000_000, is_enabled=True)
    return caught.value


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None), ({"retry-after": "30"}, 30.0), ({"retry-after": " 1.5 "}, 1.5), ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-1"}, None), ({"retry-after": "nan"}, None), ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None), ({"retry-after": ""}, None),
        ({"retry-after": "Fri, 20 Nov 2026 12:00:30 GMT", "date": "Fri, 20 Nov 2026 12:00:00 GMT"}, 30.0),
        ({"retry-after": "Fri, 20 Nov 2026 11:00:00 GMT", "date": "Fri, 20 Nov 2026 12:00:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 20 Nov 2026 12:00:30 GMT"}, None),
        ({"retry-after": "Fri, 20 Nov 2026 12:00:30 GMT", "date": "yesterday"}, None),
        ({"retry-after": "Fri, 20 Nov 2026 12:00:30", "date": "Fri, 20 Nov 2026 12:00:00 GMT"}, None),
        ({"retry-after": "Fri, 20 Nov 2026 12:00:30 -99999999999999", "date": "Fri, 20 Nov 2026 12:00:00 GMT"}, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_seconds_or_a_date_or_nothing(
    headers: dict[str, str], seconds: float, status: int
) -> None:
    error = await error_of(httpx.Response(status, headers=headers), "create")
    assert error.retry_after_seconds == seconds


@given(text=st.text(st.characters(codec="ascii", min_codepoint=32)))
async def test_any_retry_after_is_seconds_or_nothing(text: str) -> None:
    response = httpx.Response(429, headers={"retry-after": text, "date": "Fri, 20 Nov 2026 12:00:00 GMT"})
    seconds = (await error_of(response, "create")).retry_after_seconds
    assert seconds is None or seconds >= 0


async def test_a_redirect_does_not_take_the_management_key_elsewhere() -> None:
    elsewhere = httpx.Response(307, headers={"location": "https://elsewhere.example/keys"})
    assert type(await error_of(elsewhere, "create")) is OpenRouterAnswerInvalid
