"""What a person was charged, by day and model, page by page, the newest day first.

The surprising thing: a charge stands on the day on which it was posted. Calls that went past us are found by the sync,
up to an hour later, and have no model: OpenRouter says what a key spent, not on what.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from pydantic import BaseModel, Field

from functions.accounts import store
from functions.clients.supabase import Supabase
from functions.kit.errors import CursorInvalid, SpanOutOfRange
from functions.web.cursors import decode_cursor, encode_cursor
from functions.web.sessions import Session

MAX_ROWS = 200
MAX_DAYS = 92


class UsageQuery(BaseModel):
    """Which days, and how much of them at once."""

    cursor: str | None = Field(default=None, description="`next_cursor` of the page before; none: the last day.")
    limit: int = Field(default=MAX_ROWS, ge=1, le=MAX_ROWS, description="Lines on a page.")
    first_day: date | None = Field(
        default=None, alias="from", description="From that day on (UTC); none: its month's first."
    )
    last_day: date | None = Field(
        default=None, alias="to", description=f"That day too; none: today. At most {MAX_DAYS} days in all."
    )


class Usage(BaseModel):
    """What one model was used for on one day."""

    day: date = Field(description="When it was charged, in UTC.")
    model: str | None = Field(description="Null: calls straight to OpenRouter, which were found afterwards.")
    calls: int = Field(description="Charges: one for each call through us, one for each time that others were found.")
    charged_micros: int = Field(description="In micro-dollars, at the plan's price.")


class UsagePage(BaseModel):
    """Usage, the newest day first."""

    usage: list[Usage]
    first_day: date
    last_day: date
    next_cursor: str | None = Field(description="Asks for the next page; null: this is the last one.")


async def list_usage(database: Supabase, session: Session, query: UsageQuery, now_seconds: float) -> UsagePage:
    """One page of the caller's own.

    Raises:
        CursorInvalid: it is none of ours.
        SpanOutOfRange: it ends before it begins, or is too long.
    """
    last_day = query.last_day or datetime.fromtimestamp(now_seconds, UTC).date()
    first_day = query.first_day or last_day.replace(day=1)
    if not 0 <= (last_day - first_day).days < MAX_DAYS:
        raise SpanOutOfRange(f"{(last_day - first_day).days + 1} days")
    after_day, after_model = _place(query.cursor)
    rows = await store.get_my_usage(
        database,
        session,
        first_day=first_day,
        last_day=last_day,
        after_day=after_day,
        after_model=after_model,
        # One more than is shown says whether there is another page.
        rows=query.limit + 1,
    )
    return _page_of(rows, query.limit, first_day, last_day)


def _page_of(rows: list[dict[str, Any]], limit: int, first_day: date, last_day: date) -> UsagePage:
    shown = [Usage.model_validate(row) for row in rows[:limit]]
    cursor = None
    if len(rows) > limit:
        cursor = encode_cursor("usage", shown[-1].day.isoformat(), shown[-1].model or "")
    return UsagePage(usage=shown, first_day=first_day, last_day=last_day, next_cursor=cursor)


def _place(cursor: str | None) -> tuple[date | None, str | None]:
    if cursor is None:
        return None, None
    day, model = decode_cursor(cursor, "usage", str, str)
    try:
        found = date.fromisoformat(str(day))
    except ValueError:
        raise CursorInvalid("no day") from None
    # No text of the database holds it.
    if "\0" in str(model):
        raise CursorInvalid("no model")
    return found, str(model)
