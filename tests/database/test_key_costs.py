"""What each key was charged, exact: counted on the account while it is the one in use, and its own from then on.

The surprising thing: no call writes to the row of the key that it went through.
"""

from __future__ import annotations

import asyncio
import uuid
from decimal import Decimal

import pytest

from tests.support.credit_doors import Credits
from tests.support.databases import Database
from tests.support.doors import Doors, wait_until_blocked

CREDITS = 1000


@pytest.fixture
def doors(database: Database) -> Doors:
    return Doors(database)


@pytest.fixture
def credit_doors(database: Database) -> Credits:
    return Credits(database)


@pytest.fixture
async def user_id(doors: Doors) -> uuid.UUID:
    """Somebody with a key and credits."""
    await doors.database.run("update public.plans set welcome_credits_micros = %s", (CREDITS,))
    user_id = await doors.database.insert_user()
    await doors.make_ready(user_id)
    return user_id


async def costs(doors: Doors, user_id: uuid.UUID) -> list[Decimal]:
    """What each key was charged, the oldest first."""
    return [key["cost_micros"] for key in await doors.keys(user_id)]


async def leave(database: Database, user_id: uuid.UUID) -> None:
    await database.run("delete from auth.users where id = %s", (user_id,), role="supabase_auth_admin")


async def hold(credit_doors: Credits, user_id: uuid.UUID) -> uuid.UUID:
    hold_id: uuid.UUID = (await credit_doors.reserve(user_id, 10))["hold_id"]
    return hold_id


async def test_each_key_is_charged_its_own_calls_also_late_ones(
    doors: Doors, credit_doors: Credits, user_id: uuid.UUID
) -> None:
    soon, late = [await hold(credit_doors, user_id) for _ in range(2)]
    await credit_doors.settle(soon, Decimal("10.5"))
    (untouched,) = await doors.database.rows("select * from public.openrouter_user_keys where user_id = %s", (user_id,))
    assert untouched["charged_cost_micros"] == 0
    await doors.rotate(user_id)
    await doors.finish(await doors.claimed(user_id))
    assert await costs(doors, user_id) == [Decimal("10.5"), 0]
    await credit_doors.settle(late, Decimal("4.25"))
    await credit_doors.settle(await hold(credit_doors, user_id), 7)
    assert await costs(doors, user_id) == [Decimal("14.75"), 7]


async def test_a_key_that_is_deleted_keeps_what_it_was_charged(
    doors: Doors, credit_doors: Credits, user_id: uuid.UUID
) -> None:
    soon, late = [await hold(credit_doors, user_id) for _ in range(2)]
    await credit_doors.settle(soon, Decimal("10.5"))
    await leave(doors.database, user_id)
    await doors.finish_key_deletion(await doors.claimed(user_id))
    assert (await credit_doors.account(user_id))["key_cost_micros"] == 0
    assert await costs(doors, user_id) == [Decimal("10.5")]
    await credit_doors.settle(late, Decimal("4.25"))
    assert await costs(doors, user_id) == [Decimal("14.75")]


@pytest.mark.parametrize("first", ["settling", "deleting"])
async def test_a_call_that_is_charged_while_its_key_is_deleted_counts_once(
    doors: Doors, credit_doors: Credits, user_id: uuid.UUID, first: str
) -> None:
    hold_id = await hold(credit_doors, user_id)
    await leave(doors.database, user_id)
    claim = await doors.claimed(user_id)
    second: asyncio.Future[object]
    async with doors.database.connect(autocommit=False) as connection:
        if first == "settling":
            await connection.execute("select doorkey.settle_hold(null, %s, 10.5, null, 'p', 'm', 'g', 'r')", (hold_id,))
            second = asyncio.ensure_future(doors.finish_key_deletion(claim))
        else:
            await connection.execute(
                "select doorkey.finish_key_deletion(%s, %s, %s, 'r')", (user_id, claim["attempt"], claim["key_hash"])
            )
            second = asyncio.ensure_future(credit_doors.settle(hold_id, Decimal("10.5")))
        await wait_until_blocked(doors.database, 1)
        await connection.commit()
    await second
    assert await costs(doors, user_id) == [Decimal("10.5")]
    assert (await credit_doors.account(user_id))["key_cost_micros"] == 0
