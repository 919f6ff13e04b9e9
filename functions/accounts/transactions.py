"""A person's transactions, page by page, newest first: for apps as JSON, for spreadsheets as CSV.

The surprising thing: the cursor is a place in time and not a number of rows, so page 1,000 costs what page 1 costs,
and a transaction that comes in between moves nobody's page.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from functions.accounts import store
from functions.accounts.moments import Moment, read_moment
from functions.clients.supabase import Supabase
from functions.kit.errors import CursorInvalid, SpanOutOfRange
from functions.web import csv_text
from functions.web.cursors import decode_cursor, encode_cursor
from functions.web.sessions import Session

MAX_ROWS = 200
DEFAULT_ROWS = 50
MAX_ID = 2**63 - 1
NEXT_CURSOR_HEADER = "x-next-cursor"
COLUMNS = ("id", "created_at", "type", "amount_micros", "reason", "provider", "model")

Type = Literal["purchase", "bonus", "refund", "adjustment", "usage", "expiry", "renewal"]


class TransactionQuery(BaseModel):
    """Which transactions, and how many of them at once."""

    model_config = ConfigDict(extra="ignore")

    cursor: str | None = Field(default=None, description="`next_cursor` of the page before; none: the newest.")
    limit: int = Field(default=DEFAULT_ROWS, ge=1, le=MAX_ROWS, description="Transactions on a page.")
    type: list[Type] = Field(default_factory=list, max_length=9, description="Only these; may be repeated.")
    since: Moment | None = Field(
        default=None, alias="from", description="From then on: a time with its zone, or a day (UTC)."
    )
    until: Moment | None = Field(default=None, alias="to", description="Before then; likewise.")
    format: Literal["json", "csv"] | None = Field(
        default=None, description="csv: as `Accept: text/csv`; the next cursor is in X-Next-Cursor then."
    )


class Transaction(BaseModel):
    """Something that happened to the caller's credits."""

    id: int
    type: Type
    amount_micros: int = Field(
        description="What it did to all that the caller has; 0: moved within it, as what is taken and has not left yet."
    )
    reason: str
    provider: str | None
    model: str | None
    created_at: Moment


class TransactionPage(BaseModel):
    """Transactions, newest first."""

    transactions: list[Transaction]
    next_cursor: str | None = Field(description="Asks for the next, older page; null: this is the last one.")


async def list_transactions(database: Supabase, session: Session, query: TransactionQuery) -> TransactionPage:
    """One page of the caller's own.

    Raises:
        CursorInvalid: it is none of ours.
        SpanOutOfRange: it ends before it begins.
    """
    if query.since is not None and query.until is not None and query.since >= query.until:
        raise SpanOutOfRange("ends before it begins")
    before_at, before_id = _place(query.cursor)
    rows = await store.list_my_transactions(
        database,
        session,
        types=sorted(set(query.type)) or None,
        since=query.since,
        until=query.until,
        before_at=before_at,
        before_id=before_id,
        # One more than is shown says whether there is another page.
        rows=query.limit + 1,
    )
    return page_of(rows, query.limit)


def page_of(rows: list[dict[str, Any]], limit: int) -> TransactionPage:
    """What of these rows is one page, and where it ends."""
    shown = [Transaction.model_validate(row) for row in rows[:limit]]
    is_last = len(rows) <= limit
    cursor = None if is_last else encode_cursor("transactions", shown[-1].created_at.isoformat(), shown[-1].id)
    return TransactionPage(transactions=shown, next_cursor=cursor)


def csv_of(page: TransactionPage) -> str:
    """The page for a spreadsheet."""
    return csv_text.write_csv(COLUMNS, (transaction.model_dump() for transaction in page.transactions))


def wants_csv(query: TransactionQuery, accept: str) -> bool:
    """Whether CSV is asked for: in the query, or else among what is accepted, and JSON is not."""
    if query.format is not None:
        return query.format == "csv"
    media = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return csv_text.MEDIA_TYPE in media and "application/json" not in media


def _place(cursor: str | None) -> tuple[str | None, int | None]:
    if cursor is None:
        return None, None
    at, number = decode_cursor(cursor, "transactions", str, int)
    try:
        moment = read_moment(at)
    except ValueError:
        raise CursorInvalid("no time") from None
    if not isinstance(number, int) or not 0 <= number <= MAX_ID:
        raise CursorInvalid("no place")
    return moment.isoformat(), number
