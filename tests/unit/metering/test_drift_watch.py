"""Yesterday is looked at once an hour, some pages a sweep, and what is unknown of it is said when all was read."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from functions.clients.supabase import DatabaseBusy
from functions.metering import drift
from functions.metering.drift import KEYS_PER_PAGE
from functions.metering.drift_watch import EVERY_SECONDS, PAGES_PER_SWEEP, DriftWatch
from functions.metering.store import KeyDay

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC).timestamp()
SWEEP_PAGES_KEYS = KEYS_PER_PAGE * PAGES_PER_SWEEP


class Stored:
    """A database with so many keys, each a thousandth of a micro-dollar off, and what it was asked."""

    def __init__(self) -> None:
        self.keys = 0
        self.asked: list[date] = []
        self.is_busy = False

    async def page(self, _: object, day: date, *, after_key: str | None, key_rows: int) -> list[KeyDay]:
        if self.is_busy:
            raise DatabaseBusy
        self.asked.append(day)
        first = 0 if after_key is None else int(after_key) + 1
        off = Decimal("0.001")
        return [
            KeyDay(f"{number:06}", uuid.UUID(int=number), off, off, Decimal(0), Decimal(0), -off, "unknown")
            for number in range(first, min(first + key_rows, self.keys))
        ]


class Moment:
    """A clock that a test sets."""

    now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Stored:
    stored = Stored()
    monkeypatch.setattr(drift, "report_drift", stored.page)
    return stored


@pytest.fixture
def moment() -> Moment:
    return Moment()


@pytest.fixture
def watch(moment: Moment) -> DriftWatch:
    return DriftWatch(None, moment)  # type: ignore[arg-type]


def always() -> bool:
    return True


async def test_nothing_unknown_is_said_too(stored: Stored, watch: DriftWatch) -> None:
    assert await watch.go_on(always) == {"drift_keys": 0, "drift_micros": 0}
    assert stored.asked == [date(2026, 3, 1)]


async def test_many_keys_take_several_sweeps_and_each_is_counted_once(stored: Stored, watch: DriftWatch) -> None:
    stored.keys = 2 * SWEEP_PAGES_KEYS + 1
    said = [await watch.go_on(always) for _ in range(3)]
    # 4.001 micro-dollars are more than four.
    assert said == [{}, {}, {"drift_keys": stored.keys, "drift_micros": 5}]
    assert len(stored.asked) == 2 * PAGES_PER_SWEEP + 1


async def test_it_looks_once_an_hour(stored: Stored, watch: DriftWatch, moment: Moment) -> None:
    assert await watch.go_on(always)
    moment.now += EVERY_SECONDS - 1
    assert await watch.go_on(always) == {}
    moment.now += 1
    assert await watch.go_on(always)
    assert len(stored.asked) == 2


async def test_without_time_nothing_is_read(stored: Stored, watch: DriftWatch) -> None:
    assert await watch.go_on(lambda: False) == {}
    assert stored.asked == []


async def test_after_a_failure_it_goes_on_where_it_was(stored: Stored, watch: DriftWatch) -> None:
    stored.keys = SWEEP_PAGES_KEYS + 1
    assert await watch.go_on(always) == {}
    stored.is_busy = True
    with pytest.raises(DatabaseBusy):
        await watch.go_on(always)
    stored.is_busy = False
    assert (await watch.go_on(always))["drift_keys"] == stored.keys


async def test_another_day_begins_anew(stored: Stored, watch: DriftWatch, moment: Moment) -> None:
    stored.keys = SWEEP_PAGES_KEYS + 1
    assert await watch.go_on(always) == {}
    moment.now += 86_400
    assert await watch.go_on(always) == {}
    assert (await watch.go_on(always))["drift_keys"] == stored.keys
    assert set(stored.asked) == {date(2026, 3, 1), date(2026, 3, 2)}
