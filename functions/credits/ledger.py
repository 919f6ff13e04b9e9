"""Verifies the ledger: every balance, hold, lot and debt recomputed from the entries, page after page.

The surprising thing: nothing is mended. What differs is a fault of ours, and both figures are wanted to find it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

from functions.clients.supabase import DatabaseBusy, Supabase
from functions.credits import store

USERS_PER_PAGE = 200
MAX_PAGES = 100_000


@dataclass(frozen=True)
class Difference:
    """One figure that is not what the entries say.

    Attributes:
        user_id: whose.
        transaction_id: of the transaction that is wrong in itself; None: it is about the user's account.
        what: which figure.
        stored_micros: as it stands.
        computed_micros: as it must be.
    """

    user_id: UUID
    transaction_id: int | None
    what: str
    stored_micros: int
    computed_micros: int


@dataclass(frozen=True)
class Page:
    """Some users, verified at one moment.

    Attributes:
        users: how many.
        all_users: how many there are; None: said with the first page only.
        transactions: how many of theirs were added up.
        different: how many figures differ.
        differences: those, up to a bound.
    """

    users: int
    all_users: int | None
    transactions: int
    different: int
    differences: tuple[Difference, ...]


async def verify(database: Supabase) -> AsyncIterator[Page]:
    """Verifies everybody, page after page; one that takes the database too long is asked for again, half as long.

    Raises:
        SupabaseError: the database did not answer. It can be begun again at any time: nothing is changed.
    """
    last_user: str | None = None
    rows = USERS_PER_PAGE
    for _ in range(MAX_PAGES):
        try:
            page = await database.call(store.VERIFY, {"after_user": last_user, "user_rows": rows})
        except DatabaseBusy:
            if rows == 1:
                raise
            rows = rows // 2
            continue
        yield Page(
            users=page["users"],
            all_users=page["all_users"],
            transactions=page["transactions"],
            different=page["different"],
            differences=tuple(
                Difference(
                    UUID(found["user_id"]),
                    found["transaction_id"],
                    found["what"],
                    int(found["stored_micros"]),
                    int(found["computed_micros"]),
                )
                for found in page["differences"]
            ),
        )
        last_user = page["last_user"]
        if page["users"] < rows:
            return
