"""The drift report's pages, where the database has no time for long ones."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import pytest

from functions.clients.supabase import DatabaseBusy, Supabase
from functions.metering import drift_pages
from functions.metering.drift import Totals
from functions.metering.drift_pages import DriftOfKey, DriftQuery, page_of_drift, totals_of
from functions.metering.store import KeyDay

DAY = date(2026, 11, 20)
NOW_SECONDS = 1_800_000_000.0
KEYS = [f"{number:064x}" for number in range(20)]


async def test_a_page_that_takes_too_long_is_shorter_and_every_key_is_seen_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most_rows = 5

    async def report(_: Supabase, day: date, *, after_key: str | None, key_rows: int) -> list[KeyDay]:
        assert day == DAY
        if key_rows > most_rows:
            raise DatabaseBusy("57014")
        return [row_of(key) for key in KEYS if after_key is None or key > after_key][:key_rows]

    monkeypatch.setattr(drift_pages, "report_drift", report)
    database = cast(Supabase, cast(Any, None))
    seen: list[str] = []
    query = DriftQuery(day=DAY, limit=16)
    for _ in KEYS:
        page = await page_of_drift(database, query, NOW_SECONDS)
        seen += [key.key_hash for key in page.keys]
        if page.next_cursor is None:
            break
        query = DriftQuery(cursor=page.next_cursor, limit=16)
    assert seen == KEYS
    most_rows = 1
    with pytest.raises(DatabaseBusy):
        await page_of_drift(database, DriftQuery(day=DAY, limit=16), NOW_SECONDS)


def test_a_sum_of_nothing_is_written_as_0() -> None:
    none, half = Decimal("0E-20"), Decimal("0.500")
    row = KeyDay(KEYS[0], UUID(int=1), none, none, half, none, half, "unknown")
    written = DriftOfKey.model_validate(row, from_attributes=True).model_dump(mode="json")
    assert [written[f"{name}_micros"] for name in ("ledger", "openrouter", "difference")] == ["0", "0.5", "0.5"]
    totals = Totals()
    totals.add([row])
    in_all = totals_of(totals).model_dump(mode="json")
    assert (in_all["byok_micros"], in_all["unknown_micros"]) == ("0", "0.5")


def row_of(key_hash: str) -> KeyDay:
    """A key about which nothing is odd."""
    none = Decimal(0)
    return KeyDay(key_hash, UUID(int=1), none, none, none, none, none, None)
