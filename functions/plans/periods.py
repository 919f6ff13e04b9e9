"""Periods that are over are renewed, and credits that have had their time expire: page after page, for the sweep.

The surprising thing: nobody's request does this. Who is away for months is renewed like everybody else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from functions.clients.supabase import Supabase
from functions.plans import store

# As many as a call takes; it has eight seconds, of which a page of touched allowances needs a small part.
ROWS_PER_PAGE = 1_000
MAX_PAGES = 80


async def renew_periods(database: Supabase, *, request_id: str, is_time_left: Callable[[], bool]) -> int:
    """Renews what is due, while there is time; how many periods.

    Raises:
        SupabaseError: the database did not answer; what was renewed before stays so.
    """

    async def renew_page() -> int:
        return await store.renew_periods(database, renewed_rows=ROWS_PER_PAGE, request_id=request_id)

    return await _page_after_page(renew_page, is_time_left)


async def expire_lots(database: Supabase, *, request_id: str, is_time_left: Callable[[], bool]) -> int:
    """Expires what has had its time, while there is time; of how many lots.

    Raises:
        SupabaseError: the database did not answer; what expired before stays so.
    """

    async def expire_page() -> int:
        return await store.expire_lots(database, expired_rows=ROWS_PER_PAGE, request_id=request_id)

    return await _page_after_page(expire_page, is_time_left)


async def _page_after_page(do_page: Callable[[], Awaitable[int]], is_time_left: Callable[[], bool]) -> int:
    done = 0
    for _ in range(MAX_PAGES):
        if not is_time_left():
            break
        page = await do_page()
        done += page
        # Less than a page: those are all, or the others are somebody's at this moment.
        if page < ROWS_PER_PAGE:
            break
    return done
