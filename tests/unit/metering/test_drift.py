"""What is read of a day is added up without losing anything, and shown whole."""

from __future__ import annotations

import io
import uuid
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console, RenderableType

from functions.clients.supabase import DatabaseBusy
from functions.kit.errors import DayNotBegun
from functions.metering import drift
from functions.metering.drift import Totals, choose_day, read_pages
from functions.metering.store import KeyDay
from infra.cli.report_drift import sentence_of, table_of

DAY = date(2026, 3, 1)


def key(number: int = 0, difference: object = 0, cause: str | None = None, amount: object = 100) -> KeyDay:
    """A key for which the ledger has the amount, and OpenRouter that and the difference."""
    ledger, more = Decimal(str(amount)), Decimal(str(difference))
    return KeyDay(f"{number:064x}", uuid.UUID(int=number), ledger, ledger, ledger + more, Decimal(0), more, cause)


def total(*keys: KeyDay) -> Totals:
    totals = Totals()
    totals.add(keys)
    return totals


def drawn(*shown: RenderableType) -> str:
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    for thing in shown:
        console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_one_too_many_does_not_make_up_for_one_too_few() -> None:
    totals = total(key(1, "5.5", "unknown"), key(2, "-5.5", "unknown"), key(3, 7, "in_flight"), key(4))
    assert (totals.keys, totals.differing, totals.unknown_micros) == (4, 3, Decimal(11))
    amounts = (totals.ledger_micros, totals.openrouter_micros, totals.difference_micros)
    assert amounts == (Decimal(400), Decimal(407), Decimal(7))
    assert dict(totals.causes) == {"unknown": 2, "in_flight": 1}


def test_a_report_is_of_yesterday_and_never_of_a_day_to_come() -> None:
    assert choose_day(None, date(2026, 3, 1)) == date(2026, 2, 28)
    assert choose_day(date(2026, 3, 1), date(2026, 3, 1)) == date(2026, 3, 1)
    with pytest.raises(DayNotBegun):
        choose_day(date(2026, 3, 2), date(2026, 3, 1))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Keys of a database that is stood in for, how many it manages at once, and what it was asked for."""
    stored: dict[str, Any] = {"keys": [key(number) for number in range(1, 1202)], "most": 10_000, "asked": []}

    async def page(_: object, __: date, *, after_key: str | None, key_rows: int) -> list[KeyDay]:
        stored["asked"].append(key_rows)
        if key_rows > stored["most"]:
            raise DatabaseBusy
        return [found for found in stored["keys"] if found.key_hash > (after_key or "")][:key_rows]

    monkeypatch.setattr(drift, "report_drift", page)
    return stored


async def read_all() -> list[KeyDay]:
    return [found async for page in read_pages(None, DAY) for found in page]  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 1, 499, 500, 501, 1000, 1201])
async def test_every_key_is_read_once(known: dict[str, Any], count: int) -> None:
    known["keys"] = known["keys"][:count]
    assert await read_all() == known["keys"]


async def test_a_page_that_takes_too_long_is_asked_for_half_as_long(known: dict[str, Any]) -> None:
    known["most"] = 200
    assert await read_all() == known["keys"]
    assert known["asked"][:4] == [500, 250, 125, 125]
    known["most"] = 0
    with pytest.raises(DatabaseBusy):
        await read_all()


def test_the_table_is_whole_in_80_columns() -> None:
    worst = key(1, "-99999999.123", "unknown", "99999999.123")
    large = key(2, 0, None, "9999999999.5")
    shown = drawn(table_of(total(worst, large), [worst])).splitlines()
    headings, row, sums = shown[1], shown[3], shown[5]
    assert headings.split() == ["key", "ledger", "receipts", "OpenRouter", "difference", "cause"]
    assert row.split() == ["00000000", "99,999,999.123", "99,999,999.123", "0", "-99,999,999", "unknown"]
    assert sums.split() == ["all", "keys", *["10,099,999,999"] * 2, "10,000,000,000", "-99,999,999", "2"]
    assert len(shown) == 6


def test_the_sentence_says_what_it_comes_to() -> None:
    assert sentence_of(DAY, total()) == "No key was used on 2026-03-01, as far as is known."
    assert sentence_of(DAY, total(key())).startswith("Nothing differs on 2026-03-01: 1 key, each the same")
    named = total(key(1, 2, "in_flight"), key(2, 0, "unseen"), key(3))
    assert sentence_of(DAY, named).endswith(
        "2 of 3 keys differ on 2026-03-01, and every difference has its cause: 1 unseen, 1 in flight."
    )
    odd = total(key(1, "-0.5", "unknown"), key(2, 0, "unseen"))
    assert sentence_of(DAY, odd) == "1 of 2 keys differs on 2026-03-01 without a known cause, by 0.5 micro-dollars."
