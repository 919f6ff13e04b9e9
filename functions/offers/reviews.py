"""Held welcomes, page after page, however many there are.

The surprising thing: a page goes on behind a user, not behind a number of rows. Decided about meanwhile, they mark the
place all the same.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from uuid import UUID

from functions.clients.supabase import Supabase
from functions.offers.store import HeldWelcome, list_reviews

# Beyond so many rows the Data API cuts an answer.
PAGE_ROWS = 1_000


async def read_reviews(
    database: Supabase, *, rows: int, after_user: UUID | None = None, page_rows: int = PAGE_ROWS
) -> AsyncGenerator[list[HeldWelcome], None]:
    """Whose welcome is held, who waits longest first; the last page may be empty.

    Args:
        database: the Data API.
        rows: at most so many in all.
        after_user: begins behind this one; None: with who waits longest.
        page_rows: at most so many at once.

    Raises:
        ReviewNotFound: no welcome of `after_user` was ever looked at.
        SupabaseError: the database did not answer.
    """
    for begun in range(0, rows, page_rows):
        asked = min(page_rows, rows - begun)
        page = await list_reviews(database, after_user=after_user, review_rows=asked)
        yield page
        if len(page) < asked:
            return
        after_user = page[-1].user_id
