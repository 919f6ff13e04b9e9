"""Promised credits whose time has come are given, for the sweep.

The surprising thing: one page a sweep, wherever the last one stopped. Many promises never come true.
"""

from __future__ import annotations

from collections.abc import Callable

from functions.clients.supabase import Supabase
from functions.offers import store

PROMISES_PER_SWEEP = 5_000


async def grant_promised_credits(database: Supabase, *, request_id: str, is_time_left: Callable[[], bool]) -> int:
    """Gives what has come true on the next page; how many.

    Raises:
        SupabaseError: the database did not answer. If it did the work nevertheless, that stays.
    """
    if not is_time_left():
        return 0
    return await store.grant_promised(database, promised_rows=PROMISES_PER_SWEEP, request_id=request_id)
