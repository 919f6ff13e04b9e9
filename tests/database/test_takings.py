"""What is taken from a user: gone from the ledger only when no key can spend it any more, and owed if it is spent."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.credit_doors import Credits
from tests.support.databases import Database, Row
from tests.support.doors import Doors, refused

CREDITS = 1000
CROWD = 16
MARKUP = 2
MAX_MICROS = 10**12
LATER = datetime.now(UTC) + timedelta(days=3)


@pytest.fixture
async def credit_doors(database: Database) -> Credits:
    await database.run("update public.plans set welcome_credits_micros = %s, markup = %s", (CREDITS, MARKUP))
    return Credits(database)


@pytest.fixture
def doors(database: Database) -> Doors:
    return Doors(database)


@pytest.fixture
async def user_id(credit_doors: Credits, doors: Doors) -> uuid.UUID:
    """Somebody with a key."""
    user_id = await credit_doors.database.insert_user()
    await doors.make_ready(user_id)
    return user_id


async def leaving(credit_doors: Credits, user_id: uuid.UUID) -> int:
    return int((await credit_doors.account(user_id))["leaving_micros"])


async def entries(database: Database, transaction_id: int) -> dict[str, int]:
    rows = await database.rows(
        "select account, amount_micros from doorkey.ledger_entries where transaction_id = %s", (transaction_id,)
    )
    return {row["account"]: row["amount_micros"] for row in rows}


async def test_what_is_taken_is_posted_out_when_the_key_cannot_spend_it_any_more(
    credit_doors: Credits, doors: Doors, user_id: uuid.UUID
) -> None:
    posting = await credit_doors.post(user_id, -300)
    assert (posting["available_after_micros"], posting["owed_micros"]) == (CREDITS - 300, 0)
    assert await entries(credit_doors.database, posting["transaction_id"]) == {"spendable": -300, "leaving": 300}
    assert await leaving(credit_doors, user_id) == 300
    claim = await doors.claimed(user_id)
    assert claim["limit_micros"] == (CREDITS - 300) // MARKUP
    assert await leaving(credit_doors, user_id) == 300
    assert await doors.finish_key_update(claim) == "ready"
    assert await leaving(credit_doors, user_id) == 0
    (left,) = await credit_doors.database.rows(
        "select * from public.credit_transactions where type = 'adjustment' order by id desc limit 1"
    )
    assert (left["amount_micros"], left["reason"], left["actor"]) == (-300, "A reason", "an operator")
    assert await entries(credit_doors.database, left["id"]) == {"leaving": -300, "granted": 300}
    assert await credit_doors.broken_rules() == []


async def test_a_limit_from_before_the_taking_lets_nothing_leave(
    credit_doors: Credits, doors: Doors, user_id: uuid.UUID
) -> None:
    await credit_doors.post(user_id, 100)
    stale = await doors.claimed(user_id)
    await credit_doors.post(user_id, -300)
    assert await doors.finish_key_update(stale) == "due"
    assert await leaving(credit_doors, user_id) == 300
    await doors.finish_key_update(await doors.claimed(user_id))
    assert await leaving(credit_doors, user_id) == 0


async def test_while_a_first_key_is_being_made_nothing_leaves(credit_doors: Credits, doors: Doors) -> None:
    user_id = await credit_doors.database.insert_user()
    creating = await doors.claimed(user_id)
    await credit_doors.post(user_id, -300)
    assert await leaving(credit_doors, user_id) == 300
    assert await doors.finish(creating) == "due"
    assert await leaving(credit_doors, user_id) == 300
    await doors.finish_key_update(await doors.claimed(user_id))
    assert await leaving(credit_doors, user_id) == 0


async def test_while_a_worker_that_was_taken_over_may_act_late_nothing_leaves(
    credit_doors: Credits, doors: Doors, user_id: uuid.UUID
) -> None:
    await credit_doors.post(user_id, 100)
    await doors.claimed(user_id)
    await doors.expire_lease(user_id)
    await credit_doors.post(user_id, -300)
    await doors.finish_key_update(await doors.claimed(user_id))
    # The other one may yet have set the limit of before.
    assert await leaving(credit_doors, user_id) == 300
    await credit_doors.database.run(
        "update public.openrouter_user_keys set confirm_at = now() where user_id = %s", (user_id,)
    )
    await credit_doors.database.run("update doorkey.provisioning set revisit_at = now() where user_id = %s", (user_id,))
    await doors.finish_key_update(await doors.claimed(user_id))
    assert await leaving(credit_doors, user_id) == 0


async def test_nothing_leaves_while_a_key_that_retires_can_spend_it(
    credit_doors: Credits, doors: Doors, user_id: uuid.UUID
) -> None:
    await doors.rotate(user_id)
    await doors.finish(await doors.claimed(user_id))
    await credit_doors.post(user_id, -300)
    claim = await doors.claimed(user_id)
    assert claim["key_hash"] == (await doors.keys(user_id))[0]["key_hash"]
    assert await leaving(credit_doors, user_id) == 300
    await doors.finish_key_update(claim)
    assert await leaving(credit_doors, user_id) == 0


async def test_with_the_key_of_a_user_who_is_gone_goes_what_was_leaving(
    credit_doors: Credits, doors: Doors, user_id: uuid.UUID
) -> None:
    await credit_doors.post(user_id, -300)
    await credit_doors.database.run("delete from auth.users where id = %s", (user_id,))
    await doors.finish_key_deletion(await doors.claimed(user_id))
    assert await leaving(credit_doors, user_id) == 0


async def test_whose_first_key_came_to_nothing_and_who_is_gone_has_nothing_leaving(
    credit_doors: Credits, doors: Doors
) -> None:
    user_id = await credit_doors.database.insert_user()
    creating = await doors.claimed(user_id)
    await credit_doors.post(user_id, -300)
    await doors.defer(creating)
    await credit_doors.database.run("delete from auth.users where id = %s", (user_id,))
    assert await doors.claim(user_id) is None
    assert await leaving(credit_doors, user_id) == 0


async def test_without_a_key_or_without_a_cap_it_leaves_at_once(credit_doors: Credits, doors: Doors) -> None:
    keyless = await credit_doors.database.insert_user()
    await doors.defer(await doors.claimed(keyless))
    await credit_doors.post(keyless, -300)
    assert await leaving(credit_doors, keyless) == 0
    uncapped = await credit_doors.database.insert_user()
    await credit_doors.database.run("update public.plans set is_uncapped = true")
    await doors.make_ready(uncapped)
    await credit_doors.post(uncapped, -300)
    assert await leaving(credit_doors, uncapped) == 0
    await credit_doors.post(uncapped, -300)
    # No more: a key without a limit can spend it, whatever the plan says by now.
    await credit_doors.database.run("update public.plans set is_uncapped = false")
    await credit_doors.post(uncapped, -200)
    assert await leaving(credit_doors, uncapped) == 200
    assert await credit_doors.broken_rules() == []


@pytest.mark.parametrize(("type_", "owed"), [("refund", 400), ("adjustment", 400), ("bonus", 0)])
async def test_what_is_spent_already_is_owed_after_a_refund_and_forgone_else(
    credit_doors: Credits, user_id: uuid.UUID, type_: str, owed: int
) -> None:
    hold = await credit_doors.reserve(user_id, 400)
    posting = await credit_doors.post(user_id, -CREDITS, type_)
    assert (posting["available_after_micros"], posting["owed_micros"]) == (0, owed)
    assert await credit_doors.balances(user_id) == (0, 400, owed)
    # And what the call did not need pays it.
    await credit_doors.release(hold["hold_id"])
    assert await credit_doors.balances(user_id) == (400 - owed, 0, 0)
    assert await credit_doors.broken_rules() == []


async def test_credits_are_taken_in_the_order_in_which_they_would_be_spent(
    credit_doors: Credits, user_id: uuid.UUID
) -> None:
    await credit_doors.post(user_id, 50)
    await credit_doors.post(user_id, 70, expires_at=LATER)
    await credit_doors.post(user_id, -CREDITS - 80, "bonus")
    lots = await credit_doors.database.rows("select remaining_micros from doorkey.credit_lots order by id")
    assert [lot["remaining_micros"] for lot in lots] == [0, 40, 0]


async def test_what_expires_is_only_what_is_left_of_its_lot_and_nobody_owes_it(
    credit_doors: Credits, user_id: uuid.UUID
) -> None:
    database = credit_doors.database
    await credit_doors.post(user_id, 50)
    lot = await database.value("select min(id) from doorkey.credit_lots")
    await credit_doors.reserve(user_id, 200)

    async def expire(amount: int, key: str) -> Row:
        (row,) = await database.rows(
            "select * from doorkey.take_credits(%s, 'expiry', %s, %s, 'Expired', 'sweep', 'r', %s)",
            (user_id, amount, key, lot),
        )
        return row

    # All of it is in the lot, and of the two lots' 1050 only 850 are available.
    first = await expire(CREDITS, "x")
    assert (first["taken_micros"], first["owed_micros"]) == (850, 0)
    # Whoever takes needn't say it: the key's limit follows.
    await Doors(database).claimed(user_id)
    assert await expire(CREDITS, "x") == first
    with refused("PT409", "idempotency_conflict"):
        await expire(CREDITS - 1, "x")
    assert await credit_doors.balances(user_id) == (0, 200, 0)
    assert await credit_doors.broken_rules() == []


# -- together ---------------------------------------------------------------------------------------------------------


async def test_taking_settling_and_confirming_at_once_never_deadlock(
    credit_doors: Credits, doors: Doors, user_id: uuid.UUID
) -> None:
    for number in range(CROWD):
        hold = await credit_doors.reserve(user_id, 10)
        await credit_doors.post(user_id, -3)
        claim = await doors.claimed(user_id)
        work: list[Awaitable[object]] = [
            doors.finish_key_update(claim),
            credit_doors.settle(hold["hold_id"], 5),
            credit_doors.post(user_id, -1, key=f"p{number}"),
            credit_doors.post(user_id, 1),
        ]
        # A deadlock would be raised as 40P01.
        await asyncio.gather(*work)
        assert await credit_doors.broken_rules() == []
