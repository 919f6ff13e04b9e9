"""The drift report: ledger, receipts and OpenRouter side by side for a UTC day, gathered page after page, and added up.

The surprising thing: what is known of a day goes on changing. OpenRouter's part of it is read within the hour after it,
and receipts may come as late; until then a difference is `in_flight`, and `unread` if a reading is long overdue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal

from functions.clients.supabase import DatabaseBusy, Supabase
from functions.kit.errors import DayNotBegun
from functions.metering.store import KeyDay, report_drift

KEYS_PER_PAGE = 500
MAX_PAGES = 10_000
UNKNOWN = "unknown"


@dataclass
class Totals:
    """What some keys come to; amounts in micro-dollars.

    Attributes:
        keys: how many.
        ledger_micros, receipts_micros, openrouter_micros, byok_micros, difference_micros: as of a key, added up.
        unknown_micros: differences without a known cause, either way: one too many does not make up for one too few.
        causes: how many keys differ for each cause.
    """

    keys: int = 0
    ledger_micros: Decimal = Decimal(0)
    receipts_micros: Decimal = Decimal(0)
    openrouter_micros: Decimal = Decimal(0)
    byok_micros: Decimal = Decimal(0)
    difference_micros: Decimal = Decimal(0)
    unknown_micros: Decimal = Decimal(0)
    causes: Counter[str] = field(default_factory=Counter)

    @property
    def differing(self) -> int:
        """How many keys differ at all."""
        return self.causes.total()

    def add(self, keys: Iterable[KeyDay]) -> None:
        """Adds these."""
        for key in keys:
            self.keys += 1
            self.ledger_micros += key.ledger_micros
            self.receipts_micros += key.receipts_micros
            self.openrouter_micros += key.openrouter_micros
            self.byok_micros += key.byok_micros
            self.difference_micros += key.difference_micros
            if key.cause is not None:
                self.causes[key.cause] += 1
            if key.cause == UNKNOWN:
                self.unknown_micros += abs(key.difference_micros)


def choose_day(day: date | None, today: date) -> date:
    """The day that a report is of: the one that is asked for, or else yesterday.

    Args:
        day: None: not said.
        today: in UTC.

    Raises:
        DayNotBegun: nothing can be known of it.
    """
    if day is not None and day > today:
        raise DayNotBegun(day.isoformat())
    return today - timedelta(days=1) if day is None else day


async def read_pages(database: Supabase, day: date, after_key: str | None = None) -> AsyncGenerator[list[KeyDay], None]:
    """All keys about which anything is known on this day, by their hashes, page after page; the last may be empty.

    A page that takes the database too long is asked for again, half as long.

    Args:
        database: the Data API.
        day: in UTC.
        after_key: begins behind this key; None: with the first.

    Raises:
        SupabaseError: the database did not answer. It can be begun again at any time.
    """
    rows = KEYS_PER_PAGE
    for _ in range(MAX_PAGES):
        try:
            page = await report_drift(database, day, after_key=after_key, key_rows=rows)
        except DatabaseBusy:
            if rows == 1:
                raise
            rows //= 2
            continue
        yield page
        if len(page) < rows:
            return
        after_key = page[-1].key_hash
