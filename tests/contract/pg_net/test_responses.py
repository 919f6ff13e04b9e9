"""What is written down about a request, whatever becomes of it (supabase.md 1.1, 1.3). One batch for all."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.pg_net.net import Net
from tests.contract.pg_net.sink import Sink

Responses = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def closed_port() -> Iterator[int]:
    """Bound, so that nobody else gets it, and never listening."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        yield deaf.getsockname()[1]


@pytest.fixture(scope="module")
async def responses(net: Net, sink: Sink, closed_port: int) -> Responses:
    urls = {
        "fine": sink.url("ok/fine"),
        "failed": sink.url("status/500/failed"),
        "refused_by_server": sink.url("status/429/refused_by_server"),
        "empty": sink.url("empty/empty"),
        "binary": sink.url("binary/binary"),
        "slammed": sink.url("slam/slammed"),
        "late": sink.url("hold/late"),
        "unreachable": f"http://127.0.0.1:{closed_port}/",
        "moved": sink.redirect(302, "moved", "/status/201/there"),
    }
    calls = [
        f"net.http_post('{url}', timeout_milliseconds => {300 if tag == 'late' else 5000}) as {tag}"
        for tag, url in urls.items()
    ]
    ids = (await net.rows(f"select {', '.join(calls)}"))[0]
    found = await net.responses(*ids.values())
    return {tag: found[ids[tag]] for tag in urls}


def test_an_answer_is_recorded_whole(responses: Responses) -> None:
    row = responses["fine"]
    assert (row["status_code"], row["content"]) == (200, '{"fine": true}')
    assert (row["content_type"], row["timed_out"], row["error_msg"]) == (
        "application/json",
        False,
        None,
    )
    # Names as the server spells them; of a repeated header the last one stays.
    assert row["headers"] == {
        "Content-Type": "application/json",
        "X-Tag": "fine",
        "X-Twice": "second",
        "Content-Length": "14",
        "Connection": "close",
    }


@pytest.mark.parametrize(("tag", "code"), [("failed", 500), ("refused_by_server", 429)])
def test_an_error_status_is_an_answer_like_any_other(responses: Responses, tag: str, code: int) -> None:
    row = responses[tag]
    assert (row["status_code"], row["timed_out"], row["error_msg"]) == (code, False, None)


def test_an_empty_answer_has_null_content(responses: Responses) -> None:
    assert (responses["empty"]["status_code"], responses["empty"]["content"]) == (200, None)


def test_content_ends_at_the_first_zero_byte(responses: Responses) -> None:
    assert responses["binary"]["content"] == "before"


def test_a_time_out_is_recorded_with_its_phases(responses: Responses) -> None:
    row = responses["late"]
    assert (row["timed_out"], row["status_code"], row["headers"], row["content"]) == (
        True,
        None,
        None,
        None,
    )
    phases = re.fullmatch(
        r"Timeout of 300 ms reached\. Total time: ([\d.]+) ms \(DNS time: ([\d.]+) ms,"
        r" TCP/SSL handshake time: ([\d.]+) ms, HTTP Request/Response time: ([\d.]+) ms\)",
        row["error_msg"],
    )
    assert phases
    total, dns, handshake, http = map(float, phases.groups())
    assert total >= 300
    # It was the server that was slow, and the sentence says so.
    assert dns + handshake < http <= total


def test_a_refused_connection_is_recorded(responses: Responses) -> None:
    row = responses["unreachable"]
    assert (row["timed_out"], row["status_code"], row["headers"]) == (False, None, None)
    assert "connect to server" in row["error_msg"]


def test_a_connection_closed_without_an_answer_is_recorded(responses: Responses) -> None:
    row = responses["slammed"]
    assert (row["timed_out"], row["status_code"]) == (False, None)
    assert row["error_msg"] == "Server returned nothing (no headers, no data)"


def test_after_a_redirect_the_status_is_the_last_and_the_headers_are_the_first(
    responses: Responses,
) -> None:
    row = responses["moved"]
    assert (row["status_code"], row["content"]) == (201, '{"fine": true}')
    assert (row["headers"]["X-Tag"], row["headers"]["Location"]) == ("moved", "/status/201/there")


def test_responses_of_a_batch_share_one_time(responses: Responses) -> None:
    assert len({row["created"] for row in responses.values()}) == 1


async def test_nothing_that_failed_is_tried_again(net: Net, sink: Sink, responses: Responses) -> None:
    later = await net.value(f"select net.http_get('{sink.url('ok/later')}')")
    assert (await net.responses(later))[later]["created"] > responses["late"]["created"]
    assert await net.queued() == 0
    for tag in ("failed", "refused_by_server", "slammed", "late"):
        assert len(sink.of(tag)) == 1
