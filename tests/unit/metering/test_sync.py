"""A page that takes the database too long is recorded in part, and nothing is left out; figures come as they are."""

from __future__ import annotations

from decimal import Decimal
from typing import cast

import httpx
import pytest

from functions.clients.openrouter import KeyUsage, OpenRouter
from functions.clients.outside import build_clients
from functions.clients.supabase import DatabaseBusy, Supabase
from functions.metering import store
from functions.metering.pages import PAGE_KEYS, Cursor
from functions.metering.store import RecordedPage, SyncCursor
from functions.metering.sync import sync_page
from tests.support.environment import settings

KEYS = [KeyUsage(f"key-{number:03}", Decimal(1), Decimal(1), Decimal(0), None, True) for number in range(250)]


class Listed:
    """OpenRouter with those keys."""

    async def list_usage(self, offset: int) -> list[KeyUsage]:
        return KEYS[offset : offset + PAGE_KEYS]


class Slow:
    """A database that records so many keys in time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.asked: list[int] = []
        self.recorded: list[str] = []

    async def record(
        self, _: object, page: list[KeyUsage], *, cursor: SyncCursor, after: Cursor | None, **_more: object
    ) -> RecordedPage:
        self.asked.append(len(page))
        if len(page) > self.most:
            raise DatabaseBusy
        self.recorded += [key.key_hash for key in page]
        return RecordedPage({}, None if after is None else SyncCursor(cursor.round, after))


async def read_round(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "record_usage", slow.record)
    cursor: SyncCursor | None = SyncCursor(1, Cursor())
    for _ in KEYS:
        assert cursor is not None
        page = await sync_page(cast(OpenRouter, Listed()), cast(Supabase, None), cursor, request_id="r")
        cursor = page.cursor
        if cursor is None:
            return
    pytest.fail("the round does not end")


async def test_a_page_that_takes_too_long_is_recorded_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(30)
    await read_round(slow, monkeypatch)
    assert slow.asked[:4] == [100, 50, 25, 100]
    assert set(slow.recorded) == {key.key_hash for key in KEYS}


async def test_a_database_that_is_busy_with_few_keys_too_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(1)
    with pytest.raises(DatabaseBusy):
        await read_round(slow, monkeypatch)
    assert slow.asked == [100, 50, 25, 12]


async def test_a_figure_without_end_is_beyond_all_reason_and_keeps_no_other_from_being_read() -> None:
    listed = (
        '{"data": [{"hash": "a", "usage": 1e999999, "usage_daily": 0, "byok_usage": 0.5, "limit": 1e13,'
        ' "disabled": false},'
        ' {"hash": "b", "usage": 0, "usage_daily": 0, "byok_usage": 0, "limit": 5.0000010000000001, "disabled": true}]}'
    )
    transport = httpx.MockTransport(
        lambda _: httpx.Response(200, text=listed, headers={"content-type": "application/json"})
    )
    clients = build_clients(settings(), transport)
    async with clients.http:
        first, second = await clients.openrouter.list_usage(0)
    assert (first.usage_micros, first.byok_micros) == (Decimal(10**30), Decimal(500_000))
    assert first.limit_micros == 10**19
    # Rounded as in the answer to a change: else it would be set again every hour.
    assert second.limit_micros == 5_000_001
