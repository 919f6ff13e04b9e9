"""The last word of keys that are gone: what they spent after all, asked of OpenRouter on the day after, and charged.

The surprising thing: a key that is deleted is in no list, but its activity can be asked for by hash, for thirty days.
What a call cost may show there hours after it, so nobody is asked about a day before six hours of the next are over.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from functions.clients.openrouter import ACTIVITY_DAYS, KeyNotFound, OpenRouter, OpenRouterRefused
from functions.clients.supabase import Supabase
from functions.kit.clock import Clock, system_clock
from functions.metering import pages, store

MAX_KEYS = 20


async def hear_last_words(
    openrouter: OpenRouter,
    database: Supabase,
    *,
    request_id: str,
    is_time_left: Callable[[], bool],
    clock: Clock = system_clock,
) -> Mapping[str, int]:
    """Asks about some of the keys that are due; what came of it, counted. Repeatable: each is charged once.

    Raises:
        OpenRouterError, SupabaseError: the next sweep asks again, about this key too.
    """
    counts: Counter[str] = Counter()
    now = datetime.fromtimestamp(clock(), UTC)
    # Then nobody knows which days OpenRouter counts as over.
    if pages.is_near_midnight(now):
        return counts
    since = now.date() - timedelta(days=ACTIVITY_DAYS)
    for key_hash in await store.list_last_words(database, key_rows=MAX_KEYS):
        if not is_time_left():
            break
        try:
            spent = await openrouter.read_activity(key_hash)
        except (KeyNotFound, OpenRouterRefused):
            # It has nothing to tell of this one. Asked for ever, it would keep the others waiting.
            counts["last_words_refused"] += 1
            spent = {}
        moved = await store.record_last_word(
            database,
            key_hash,
            since=since,
            usage_micros=sum((micros for day, micros in spent.items() if day >= since), Decimal(0)),
            request_id=request_id,
        )
        counts["last_words"] += 1
        counts["last_words_micros"] += math.ceil(max(moved or Decimal(0), Decimal(0)))
    return counts
