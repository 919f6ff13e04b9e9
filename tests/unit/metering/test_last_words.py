"""A key of which OpenRouter has nothing to tell keeps nobody waiting; a failure of its own is asked again."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from functions.clients.openrouter import OpenRouterFault
from functions.clients.outside import build_clients
from functions.metering.last_words import hear_last_words
from tests.support.environment import settings

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC).timestamp()
REFUSED, HEARD = "a" * 64, "b" * 64


class Outside:
    """The database with two keys that are due, and OpenRouter, which answers so for the first."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.recorded: list[tuple[str, str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/list_last_words"):
            return httpx.Response(200, json=[REFUSED, HEARD])
        if request.url.path.endswith("/record_last_word"):
            told: dict[str, Any] = json.loads(request.content)
            self.recorded.append((told["key_hash"], told["usage_micros"]))
            return httpx.Response(200, text="0.5")
        if request.url.params["api_key_hash"] == REFUSED:
            return httpx.Response(self.status, json={"error": {"code": self.status}})
        return httpx.Response(200, json={"data": [{"date": "2026-03-01 00:00:00", "usage": 0.0000005}]})

    async def hear(self) -> dict[str, int]:
        clients = build_clients(settings(), httpx.MockTransport(self))
        return dict(
            await hear_last_words(
                clients.openrouter, clients.supabase, request_id="r", is_time_left=lambda: True, clock=lambda: NOON
            )
        )


@pytest.mark.parametrize("status", [400, 404])
async def test_a_key_of_which_there_is_nothing_to_tell_keeps_nobody_waiting(status: int) -> None:
    outside = Outside(status)
    assert await outside.hear() == {"last_words": 2, "last_words_micros": 2, "last_words_refused": 1}
    assert [(name, float(micros)) for name, micros in outside.recorded] == [(REFUSED, 0.0), (HEARD, 0.5)]


async def test_a_failure_of_openrouters_own_is_asked_again() -> None:
    outside = Outside(500)
    with pytest.raises(OpenRouterFault):
        await outside.hear()
    assert outside.recorded == []
