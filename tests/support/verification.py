"""Verifying the ledger as the command does, page after page, in a test's own database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from tests.support.databases import Database

# A page for all that a test has, and pages of which a user needs many.
WIDE, NARROW = (100, 1000), (1, 2)


async def pages(database: Database, users: object = 100, transactions: object = 1000) -> AsyncIterator[dict[str, Any]]:
    """One after the other, as the command asks for them."""
    after: dict[str, Any] | None = {"after_user": None, "after_transaction": None, "carried": None}
    while after is not None:
        page = await ask(
            database,
            "verify_ledger(%s, %s, %s, %s, %s)",
            *(after["after_user"], after["after_transaction"], after["carried"], users, transactions),
        )
        yield page
        after = page["next"]
    after = {"after_user": None, "after_key": None}
    while after is not None:
        page = await ask(database, "verify_receipts(%s, %s, %s)", after["after_user"], after["after_key"], transactions)
        yield page
        after = page["next"]


async def ask(database: Database, door: str, *arguments: object) -> dict[str, Any]:
    async with database.acting_as("service_role") as connection:
        answer = await (await connection.execute(f"select public.{door} as page", arguments)).fetchone()
    assert answer is not None
    page: dict[str, Any] = answer["page"]
    assert page["different"] == len(page["differences"])
    return page


async def differences(database: Database, size: tuple[int, int] = WIDE) -> list[dict[str, Any]]:
    """All that differ, with everybody's pages of this size."""
    return [found async for page in pages(database, *size) for found in page["differences"]]
