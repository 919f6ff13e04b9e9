"""The hourly sync of each key's lifetime usage: what was billed beyond the receipts is charged to the key's owner.

The surprising thing: it decides nothing about money. A page is read and handed to the database as it is, in two round
trips; a round is spread over as many sweeps as it takes, and the database remembers where it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from functions.clients.openrouter import OpenRouter
from functions.clients.supabase import Supabase
from functions.kit.clock import Clock, system_clock
from functions.metering import pages, store

MAX_PAGES = 20


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
        recorded = await sync_page(openrouter, database, cursor, request_id=request_id, clock=clock)
        counts.update(recorded.counts)
        cursor = recorded.cursor
    return counts


async def sync_page(
    openrouter: OpenRouter,
    database: Supabase,
    cursor: store.SyncCursor,
    *,
    request_id: str,
    clock: Clock = system_clock,
) -> store.RecordedPage:
    """Reads one page and hands it over: two round trips.

    Raises:
        OpenRouterError, SupabaseError: it may have been recorded; the same page may be read again.
    """
    read_at = _now(clock)
    page = await openrouter.list_usage(cursor.at.offset)
    after = pages.next_cursor(cursor.at, [key.key_hash for key in page])
    return await store.record_usage(database, page, cursor=cursor, after=after, read_at=read_at, request_id=request_id)


def _now(clock: Clock) -> datetime:
    return datetime.fromtimestamp(clock(), UTC)
