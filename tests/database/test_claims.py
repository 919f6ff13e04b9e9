"""Who may work on a user's key, and that nobody else can finish it."""

from __future__ import annotations

import asyncio

from tests.support.databases import Database


async def test_concurrent_claims_make_one_lease_and_one_grant(database: Database) -> None:
    user_id = await database.insert_user()

    async def claim() -> int:
        async with database.acting_as("service_role") as connection:
            rows = await (
                await connection.execute("select * from public.claim_provisioning(%s, 60, 'r')", (user_id,))
            ).fetchall()
            return len(rows)

    assert sum(await asyncio.gather(*(claim() for _ in range(32)))) == 1
    assert await database.value("select count(*) from public.credit_transactions where user_id = %s", (user_id,)) == 1
    assert (
        await database.value("select available_micros from public.credit_accounts where user_id = %s", (user_id,))
        == 5_000_000
    )
