"""Verifies the ledger: every balance, hold, lot and debt recomputed from the entries, page after page.

The surprising thing: nothing is mended. What differs is a fault of ours, and both figures are wanted to find it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from functions.clients.supabase import DatabaseBusy, Rpc, Supabase
from functions.credits import store

USERS_PER_PAGE = 200
TRANSACTIONS_PER_PAGE = 10_000
HOLDS_PER_PAGE = 10_000
MAX_PAGES = 1_000_000


@dataclass(frozen=True)
class Difference:
    """One figure that is not what the entries say.

    Attributes:
        user_id: whose.
        transaction_id: of the transaction that is wrong in itself; None: it is about the user's account.
        what: which figure.
        stored_micros: as it stands; None: there is none.
        computed_micros: as it must be; None: there must be none.
    """

    user_id: UUID
    transaction_id: int | None
    what: str
    stored_micros: Decimal | None
    computed_micros: Decimal | None


@dataclass(frozen=True)
class Page:
    """Some users, or a part of one, verified; or some receipts.

    Attributes:
        users: how many were finished.
        all_users: how many there are; None: said with the first page only.
        transactions: how many were added up.
        receipts: how many holds were looked at from their side.
        unfinished: whose transactions go on on the next page; None: nobody's.
        different: how many figures differ.
        differences: those, up to a bound.
    """

    users: int
    all_users: int | None
    transactions: int
    receipts: int
    unfinished: UUID | None
    different: int
    differences: tuple[Difference, ...]


async def verify(database: Supabase) -> AsyncIterator[Page]:
    """Verifies everybody, page after page: all transactions, and then all receipts from the other side.

    A page that takes the database too long is asked for again, half as long.

    Raises:
        SupabaseError: the database did not answer. It can be begun again at any time: nothing is changed.
    """
    start: dict[str, Any] = {"after_user": None, "after_transaction": None, "carried": None}
    sizes = {"user_rows": USERS_PER_PAGE, "transaction_rows": TRANSACTIONS_PER_PAGE}
    async for page in _pages(database, store.VERIFY, start, sizes):
        yield page
    start = {"after_user": None, "after_key": None}
    async for page in _pages(database, store.VERIFY_RECEIPTS, start, {"hold_rows": HOLDS_PER_PAGE}):
        yield page


async def _pages(database: Supabase, rpc: Rpc, start: dict[str, Any], sizes: dict[str, int]) -> AsyncIterator[Page]:
    """From the start to where the door says that nothing follows; where it goes on, the door says too."""
    after = start
    for _ in range(MAX_PAGES):
        try:
            answer = await database.call(rpc, {**after, **sizes})
        except DatabaseBusy:
            if max(sizes.values()) == 1:
                raise
            sizes = {name: max(rows // 2, 1) for name, rows in sizes.items()}
            continue
        after = answer["next"]
        yield _page(answer)
        if after is None:
            return
    raise RuntimeError(f"the ledger has more than {MAX_PAGES} pages")


def _page(answer: dict[str, Any]) -> Page:
    follows = answer["next"] or {}
    return Page(
        users=answer.get("users", 0),
        all_users=answer.get("all_users"),
        transactions=answer.get("transactions", 0),
        receipts=answer.get("receipts", 0),
        unfinished=UUID(follows["after_user"]) if follows.get("carried") else None,
        different=answer["different"],
        differences=tuple(
            Difference(
                UUID(found["user_id"]),
                found["transaction_id"],
                found["what"],
                _micros(found["stored_micros"]),
                _micros(found["computed_micros"]),
            )
            for found in answer["differences"]
        ),
    )


def _micros(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)
