"""Holds and keys: through which key a call goes, and what that key may spend for it."""

from __future__ import annotations

import uuid

import pytest

from tests.support.credit_doors import Credits
from tests.support.databases import Database, Row
from tests.support.doors import Doors, refused

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


async def work(doors: Doors, user_id: uuid.UUID) -> list[tuple[str, int]]:
    """Does all that is due: what, and the limit."""
    done = []
    while (claim := await doors.claim(user_id)) is not None:
        finish = {
            "create": doors.finish,
            "update": doors.finish_key_update,
            "delete": doors.finish_key_deletion,
        }[claim["action"]]
        await finish(claim)
        done.append((claim["action"], claim["limit_micros"]))
    return done


async def end_grace(doors: Doors, user_id: uuid.UUID) -> None:
    await doors.database.run("update public.openrouter_user_keys set retires_at = now() where retires_at is not null")
    await doors.database.run("update doorkey.provisioning set revisit_at = now() where user_id = %s", (user_id,))


async def limits(doors: Doors, user_id: uuid.UUID) -> list[int]:
    return [key["limit_micros"] for key in await doors.keys(user_id) if key["status"] != "deleted"]


async def test_a_call_goes_through_the_key_in_use_and_no_other(
    doors: Doors, credit_doors: Credits, user_id: uuid.UUID
) -> None:
    (old,) = await doors.keys(user_id)
    assert (await credit_doors.reserve(user_id, through=old["key_hash"]))["bound_key_hash"] == old["key_hash"]
    await doors.rotate(user_id)
    await work(doors, user_id)
    with refused("PT409", "key_replaced"):
        await credit_doors.reserve(user_id, through=old["key_hash"])
    assert (await credit_doors.reserve(user_id))["bound_key_hash"] == (await doors.keys(user_id))[1]["key_hash"]


async def test_without_a_usable_key_nothing_is_held(doors: Doors, credit_doors: Credits, user_id: uuid.UUID) -> None:
    keyless = await doors.database.insert_user()
    await doors.claimed(keyless)
    with refused("PT404", "no_key"):
        await credit_doors.reserve(keyless)
    await doors.database.run(
        "update auth.users set banned_until = now() + interval '1 day' where id = %s",
        (user_id,),
        role="supabase_auth_admin",
    )
    # Before OpenRouter has heard of it, and after.
    for _ in range(2):
        with refused("PT403", "key_disabled"):
            await credit_doors.reserve(user_id)
        await work(doors, user_id)
    await doors.database.run("update auth.users set banned_until = null", role="supabase_auth_admin")
    with refused("PT403", "key_disabled"):
        await credit_doors.reserve(user_id)
    await work(doors, user_id)
    await credit_doors.reserve(user_id)


async def test_holding_settling_and_releasing_ask_for_nothing_at_openrouter(
    doors: Doors, credit_doors: Credits, user_id: uuid.UUID
) -> None:
    before: Row | None = await doors.row(user_id)
    holds = [(await credit_doors.reserve(user_id, 300))["hold_id"] for _ in range(3)]
    for end in (
        credit_doors.settle(holds[0], 200),
        credit_doors.release(holds[1]),
        # More than there is: the user owes 100, and the key has spent more than its limit already.
        credit_doors.settle(holds[2], 900),
    ):
        await end
        assert await credit_doors.limit(user_id) == CREDITS
    assert await credit_doors.balances(user_id) == (0, 0, 100)
    assert await doors.row(user_id) == before
    # A grant raises it by what is left of it when the debt is paid.
    await doors.grant(user_id, 400, "g")
    assert await work(doors, user_id) == [("update", 1400)]


async def test_a_key_that_retires_keeps_what_its_own_open_holds_keep(
    doors: Doors, credit_doors: Credits, user_id: uuid.UUID
) -> None:
    first, second = [(await credit_doors.reserve(user_id, amount))["hold_id"] for amount in (300, 200)]
    await doors.rotate(user_id)
    assert await work(doors, user_id) == [("create", 0), ("update", 500), ("update", 500)]
    await credit_doors.reserve(user_id, 400)
    assert await doors.claim(user_id) is None  # the new key's hold is nothing to the old one
    # What the first did not need goes over to the new key; the second is still kept for the old one.
    await credit_doors.settle(first, 100)
    assert await work(doors, user_id) == [("update", 300), ("update", 700)]
    await credit_doors.settle(second, 200)
    assert await work(doors, user_id) == []
    assert await limits(doors, user_id) == [300, 700]


@pytest.mark.parametrize("ending", ["release", "expire"])
async def test_what_a_retiring_key_did_not_need_is_the_other_ones(
    doors: Doors, credit_doors: Credits, user_id: uuid.UUID, ending: str
) -> None:
    hold_id = (await credit_doors.reserve(user_id, 300))["hold_id"]
    await doors.rotate(user_id)
    await work(doors, user_id)
    if ending == "release":
        await credit_doors.release(hold_id)
    else:
        await credit_doors.let_expire(hold_id)
        await credit_doors.expire()
    assert await doors.state(user_id) == "due"
    assert await work(doors, user_id) == [("update", 0), ("update", CREDITS)]


async def test_a_key_is_deleted_with_nothing_left_and_its_calls_are_still_paid_by_its_holds(
    doors: Doors, credit_doors: Credits, user_id: uuid.UUID
) -> None:
    hold_id = (await credit_doors.reserve(user_id, 300))["hold_id"]
    await doors.rotate(user_id)
    await work(doors, user_id)
    await end_grace(doors, user_id)
    # Its last word on what it spent comes with a limit of nothing; its open call may still be billed.
    assert await work(doors, user_id) == [("update", 0), ("delete", 0)]
    assert await limits(doors, user_id) == [700]
    await credit_doors.settle(hold_id, 250)
    assert await work(doors, user_id) == [("update", 750)]
    assert await credit_doors.balances(user_id) == (750, 0, 0)
    assert await credit_doors.broken_rules() == []


async def test_on_a_plan_without_cap_nothing_is_held_and_every_call_is_billed(
    doors: Doors, credit_doors: Credits, user_id: uuid.UUID
) -> None:
    capped = (await credit_doors.reserve(user_id, 600))["hold_id"]
    await doors.database.run("update public.plans set is_uncapped = true")
    hold = await credit_doors.reserve(user_id, 10**12)
    assert hold["available_after_micros"] == 400
    assert await credit_doors.balances(user_id) == (400, 600, 0)
    assert await credit_doors.settle(hold["hold_id"], 70) == {"charged_micros": 70, "owed_micros": 0}
    # One that was held while there was a cap is given back whole.
    await credit_doors.settle(capped, 30)
    assert await credit_doors.balances(user_id) == (CREDITS, 0, 0)
    assert (await credit_doors.account(user_id))["receivable_micros"] == 100
    released, late = [await credit_doors.reserve(user_id, 5000) for _ in range(2)]
    assert await credit_doors.release(released["hold_id"]) == "released"
    await doors.database.run("update public.plans set is_uncapped = false")
    # And one that held nothing is charged like any other.
    assert await credit_doors.settle(late["hold_id"], 1200) == {"charged_micros": 1200, "owed_micros": 200}
    assert await credit_doors.broken_rules() == []


async def test_who_is_gone_is_still_charged(doors: Doors, credit_doors: Credits, user_id: uuid.UUID) -> None:
    hold_id = (await credit_doors.reserve(user_id, 300))["hold_id"]
    await doors.database.run("delete from auth.users where id = %s", (user_id,), role="supabase_auth_admin")
    await work(doors, user_id)
    assert await doors.state(user_id) == "gone"
    await credit_doors.settle(hold_id, 100)
    assert await credit_doors.balances(user_id) == (900, 0, 0)
    assert await doors.state(user_id) == "gone"
    with refused("PT404", "no_key"):
        await credit_doors.reserve(user_id)
