"""The drift report for programs, page by page. These models are its documentation.

The surprising thing: amounts are texts. They have fractions of a micro-dollar, which many a reader of JSON rounds.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field, PlainSerializer

from functions.clients.supabase import DatabaseBusy, Supabase
from functions.kit.amounts import plain
from functions.kit.errors import CursorInvalid
from functions.metering.drift import Totals, choose_day
from functions.metering.store import KeyDay, report_drift
from functions.web.cursors import decode_cursor, encode_cursor

MAX_ROWS = 500
DEFAULT_ROWS = 200

Exact = Annotated[Decimal, PlainSerializer(plain, return_type=str)]


class DriftQuery(BaseModel):
    """Which day, and how much of it at once."""

    day: date | None = Field(default=None, description="A UTC day; none: the cursor's, or else yesterday.")
    cursor: str | None = Field(default=None, description="`next_cursor` of the page before; none: the first.")
    limit: int = Field(default=DEFAULT_ROWS, ge=1, le=MAX_ROWS, description="Keys on a page.")


class DriftTotals(BaseModel):
    """What the keys of a page come to, in micro-dollars."""

    keys: int
    ledger_micros: Exact
    receipts_micros: Exact
    openrouter_micros: Exact
    byok_micros: Exact
    difference_micros: Exact
    unknown_micros: Exact = Field(description="Differences whose cause is `unknown`, either way, added up.")
    causes: dict[str, int] = Field(description="How many keys differ for each cause.")


class DriftOfKey(BaseModel):
    """One key on one day: the provider's cost in micro-dollars."""

    key_hash: str
    user_id: UUID
    ledger_micros: Exact = Field(description="What was charged for: receipts, and what was seen without one.")
    receipts_micros: Exact = Field(description="What its settled calls cost.")
    openrouter_micros: Exact = Field(description="What OpenRouter says it spent.")
    byok_micros: Exact = Field(description="What OpenRouter says it spent through the account's own provider keys.")
    difference_micros: Exact = Field(description="OpenRouter less ledger.")
    cause: Literal["in_flight", "unread", "unseen", "byok", "unknown"] | None = Field(
        description="Null: all three agree."
    )


class DriftPage(BaseModel):
    """Some keys of a day, by their hashes."""

    day: date
    totals: DriftTotals = Field(description="Of this page.")
    keys: list[DriftOfKey]
    next_cursor: str | None = Field(description="Asks for the next page; null: this is the last one.")


async def page_of_drift(database: Supabase, query: DriftQuery, now_seconds: float) -> DriftPage:
    """One page of the report.

    Raises:
        CursorInvalid: it is none of ours, or of another day.
        DayNotBegun: nothing can be known of that day.
        SupabaseError: the database did not answer.
    """
    cursor_day, after_key = _place(query.cursor)
    if query.day is not None and cursor_day not in (None, query.day):
        raise CursorInvalid("of another day")
    day = choose_day(query.day or cursor_day, datetime.fromtimestamp(now_seconds, UTC).date())
    # A page that takes the database too long is shorter, as the command's are.
    for limit in (query.limit >> halvings for halvings in range(query.limit.bit_length())):
        try:
            # One more than is shown says whether there is another page.
            rows = await report_drift(database, day, after_key=after_key, key_rows=limit + 1)
        except DatabaseBusy:
            if limit == 1:
                raise
        else:
            return _page_of(day, rows, limit)
    raise AssertionError("unreachable")


def totals_of(totals: Totals) -> DriftTotals:
    """As it is answered."""
    return DriftTotals.model_validate(totals, from_attributes=True)


def _page_of(day: date, rows: list[KeyDay], limit: int) -> DriftPage:
    shown = rows[:limit]
    totals = Totals()
    totals.add(shown)
    return DriftPage(
        day=day,
        totals=totals_of(totals),
        keys=[DriftOfKey.model_validate(row, from_attributes=True) for row in shown],
        next_cursor=encode_cursor("drift", day.isoformat(), shown[-1].key_hash) if len(rows) > limit else None,
    )


def _place(cursor: str | None) -> tuple[date | None, str | None]:
    if cursor is None:
        return None, None
    day, key_hash = decode_cursor(cursor, "drift", str, str)
    try:
        found = date.fromisoformat(str(day))
    except ValueError:
        raise CursorInvalid("no day") from None
    # No text of the database holds it.
    if "\0" in str(key_hash):
        raise CursorInvalid("no key")
    return found, str(key_hash)
