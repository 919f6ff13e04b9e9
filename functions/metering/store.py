"""The whole SQL vocabulary of metering."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

from functions.clients.openrouter import KeyUsage
from functions.clients.supabase import Rpc, Supabase
from functions.metering.pages import Cursor

BEGIN_USAGE_SYNC = Rpc("begin_usage_sync", ("every_seconds",), "service_role")
RECORD_USAGE = Rpc(
    "record_usage",
    (
        *("round", "read_offset", "next_offset", "next_anchor", "next_is_second_look", "key_hashes", "usage_micros"),
        *("byok_micros", "daily_micros", "limit_micros", "disabled_hashes", "read_at", "request_id"),
    ),
    "service_role",
    is_exact=True,
)
_AMOUNTS = ("ledger_micros", "receipts_micros", "openrouter_micros", "byok_micros", "difference_micros")
REPORT_DRIFT = Rpc("report_drift", ("day", "after_key", "key_rows"), "service_role", is_exact=True)
LIST_LAST_WORDS = Rpc("list_last_words", ("key_rows",), "service_role")
RECORD_LAST_WORD = Rpc(
    "record_last_word", ("key_hash", "since", "usage_micros", "request_id"), "service_role", is_exact=True
)


@dataclass(frozen=True)
class KeyDay:
    """One key on one UTC day, as ledger, receipts and OpenRouter have it: provider's cost in micro-dollars, exact.

    Attributes:
        key_hash: which key.
        user_id: whose.
        ledger_micros: what was charged to it: receipts, and what was seen without one.
        receipts_micros: what its settled calls cost.
        openrouter_micros: what OpenRouter says it spent.
        byok_micros: what OpenRouter says it spent at providers through keys of the account's own.
        difference_micros: OpenRouter less ledger.
        cause: of the difference, or of that between receipts and ledger: in_flight, unread, unseen, byok or unknown;
            None: all three agree.
    """

    key_hash: str
    user_id: UUID
    ledger_micros: Decimal
    receipts_micros: Decimal
    openrouter_micros: Decimal
    byok_micros: Decimal
    difference_micros: Decimal
    cause: str | None


@dataclass(frozen=True)
class SyncCursor:
    """Where a round of the usage sync has come."""

    round: int
    at: Cursor


@dataclass(frozen=True)
class RecordedPage:
    """What came of a page of usage.

    Attributes:
        counts: by what the sweep's line calls them.
        cursor: where to go on; None: the round is over.
    """

    counts: Mapping[str, int]
    cursor: SyncCursor | None


async def begin_usage_sync(database: Supabase, *, every_seconds: int) -> SyncCursor | None:
    """Where the usage sync is to go on; a round begins so many seconds after the last one. None: nothing to do."""
    for row in await database.call(BEGIN_USAGE_SYNC, {"every_seconds": every_seconds}):
        return SyncCursor(row["round"], Cursor(row["page_offset"], row["anchor"], row["is_second_look"]))
    return None


async def record_usage(
    database: Supabase,
    page: Sequence[KeyUsage],
    *,
    cursor: SyncCursor,
    after: Cursor | None,
    read_at: datetime,
    request_id: str,
) -> RecordedPage:
    """Hands a page over: what OpenRouter billed beyond the receipts is charged to each key's owner. Repeatable.

    Args:
        database: the Data API.
        page: as OpenRouter gave it.
        cursor: where it was read.
        after: where to go on; None: it was the last.
        read_at: when it was asked for.
        request_id: for the ledger.
    """
    (row,) = await database.call(
        RECORD_USAGE,
        {
            "round": cursor.round,
            "read_offset": cursor.at.offset,
            "next_offset": None if after is None else after.offset,
            "next_anchor": None if after is None else after.anchor,
            "next_is_second_look": after is not None and after.is_second_look,
            "key_hashes": [key.key_hash for key in page],
            # As text, like every cost.
            "usage_micros": [format(key.usage_micros, "f") for key in page],
            "byok_micros": [format(key.byok_micros, "f") for key in page],
            "daily_micros": [format(key.daily_micros, "f") for key in page],
            "limit_micros": [None if key.limit_micros is None else str(key.limit_micros) for key in page],
            "disabled_hashes": [key.key_hash for key in page if not key.is_enabled],
            "read_at": read_at.isoformat(),
            "request_id": request_id,
        },
    )
    counts = {
        "usage_keys": row["counted"],
        "usage_unseen_micros": math.ceil(Decimal(row["unseen_micros"])),
        "usage_returned_micros": math.ceil(Decimal(row["returned_micros"])),
        "usage_busy": row["busy"],
        "usage_odd": row["odd"],
        "limits_healed": row["limits_healed"],
    }
    at = Cursor(row["page_offset"], row["anchor"], row["is_second_look"])
    return RecordedPage(counts, None if row["is_finished"] else SyncCursor(cursor.round, at))


async def list_last_words(database: Supabase, *, key_rows: int) -> list[str]:
    """The deleted keys that OpenRouter is to be asked about once more, by their hashes; 1 to 1000."""
    return [str(name) for name in await database.call(LIST_LAST_WORDS, {"key_rows": key_rows})]


async def record_last_word(
    database: Supabase, key_hash: str, *, since: date, usage_micros: Decimal, request_id: str
) -> Decimal | None:
    """Hands over what a deleted key spent on all days from this one on that are over. Repeatable.

    Returns:
        What was charged to its owner, negative what was given back; None: another call has the account, and the sync
        looks at it again.
    """
    moved = await database.call(
        RECORD_LAST_WORD,
        {
            "key_hash": key_hash,
            "since": since.isoformat(),
            "usage_micros": format(usage_micros, "f"),
            "request_id": request_id,
        },
    )
    return None if moved is None else Decimal(moved)


async def report_drift(database: Supabase, day: date, *, after_key: str | None, key_rows: int) -> list[KeyDay]:
    """A page of the keys about which anything is known on this day, by their hashes; 1 to 1000."""
    rows = await database.call(REPORT_DRIFT, {"day": day.isoformat(), "after_key": after_key, "key_rows": key_rows})
    return [
        KeyDay(
            key_hash=row["key_hash"],
            user_id=UUID(row["user_id"]),
            cause=row["cause"],
            **{name: Decimal(row[name]) for name in _AMOUNTS},
        )
        for row in rows
    ]
