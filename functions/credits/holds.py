"""Holds whose time is over are given back, page after page, for the sweep.

The surprising thing: that a hold expires loses nothing. Its call can still be settled, and is charged in full.
"""

from __future__ import annotations

from collections.abc import Callable

from functions.clients.supabase import Supabase
from functions.credits import store

ROWS_PER_PAGE = 500
MAX_PAGES = 40


async def expire_holds(database: Supabase, *, request_id: str, is_time_left: Callable[[], bool]) -> int:
    """Gives back what is due, while there is time; how many holds.

    Raises:
        SupabaseError: the database did not answer; what was given back before stays so.
    """
    expired = 0
    for _ in range(MAX_PAGES):
        if not is_time_left():
            break
        page = await store.expire_holds(database, expired_rows=ROWS_PER_PAGE, request_id=request_id)
        expired += page
        # Less than a page: those are all, or the others are somebody's at this moment.
        if page < ROWS_PER_PAGE:
            break
    return expired
