"""The hourly sync of each key's lifetime usage: what was billed beyond the receipts is charged to the key's owner.

The surprising thing: it decides nothing about money. A page is read and handed to the database as it is, in two round
trips; a round is spread over as many sweeps as it takes, and the database remembers where it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from functions.clients.openrouter import OpenRouter
from functions.clients.supabase import DatabaseBusy, Supabase
from functions.kit.clock import Clock, system_clock
from functions.metering import pages, store

MAX_PAGES = 20
# A page that takes the database too long is recorded in part: a half, a quarter, an eighth.
MAX_HALVINGS = 3


async def sync_usage(
    openrouter: OpenRouter,
    database: Supabase,
    *,
    request_id: str,
    is_time_left: Callable[[], bool],
    clock: Clock = system_clock,
) -> Mapping[str, int]:
    """Reads some pages of the present round, or begins the next one when it is time; what came of it, counted.

    Raises:
        OpenRouterError, SupabaseError: the next sweep goes on from the last page that was recorded.
    """
    counts: Counter[str] = Counter()
    if pages.is_near_midnight(_now(clock)):
        return counts
    cursor = await store.begin_usage_sync(database, every_seconds=pages.ROUND_SECONDS)
    for _ in range(MAX_PAGES):
        if cursor is None or not is_time_left():
            break
        recorded = await sync_page(
            openrouter, database, cursor, request_id=request_id, is_time_left=is_time_left, clock=clock
        )
        counts.update(recorded.counts)
        if recorded.cursor is None:
            counts["usage_rounds"] += 1
        cursor = recorded.cursor
    return counts


async def sync_page(
    openrouter: OpenRouter,
    database: Supabase,
    cursor: store.SyncCursor,
    *,
    request_id: str,
    is_time_left: Callable[[], bool] = lambda: True,
    clock: Clock = system_clock,
) -> store.RecordedPage:
    """Reads one page and hands it over: two round trips. If that takes the database too long, only its first keys.

    Raises:
        OpenRouterError, SupabaseError: it may have been recorded; the same page may be read again.
    """
    read_at = _now(clock)
    page = await openrouter.list_usage(cursor.at.offset)
    hashes = [key.key_hash for key in page]
    keys = len(page)
    for last in (False,) * MAX_HALVINGS + (True,):
        after = pages.next_cursor(cursor.at, hashes, keys)
        try:
            return await store.record_usage(
                database, page[:keys], cursor=cursor, after=after, read_at=read_at, request_id=request_id
            )
        except DatabaseBusy:
            # The next page begins with the last key of this one: it takes two to get on.
            if last or keys <= 2 or not is_time_left():
                raise
            keys = max(keys // 2, 2)
    raise AssertionError("the last try returns or raises")


def _now(clock: Clock) -> datetime:
    return datetime.fromtimestamp(clock(), UTC)
