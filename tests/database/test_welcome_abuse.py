"""Who tries for more than their welcome: by many at once, by an alias of their own, by bringing others when refused."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from tests.database.test_offers import BONUS_MICROS, PLAN_MICROS, arrive, available, code_of, sweep, switch
from tests.database.test_review import claw_back, release, review_of
from tests.support.databases import Database
from tests.support.doors import Doors, wait_until_blocked

# -- bringing others --------------------------------------------------------------------------------------------------


@pytest.fixture
async def doubted(database: Database) -> uuid.UUID:
    """Somebody whose own welcome is held, where bringing others is worth something."""
    await switch(database, reviews_mail=True, referral_bonus_micros=BONUS_MICROS)
    return await arrive(database, email="ada+again@example.com")


async def referrer_of(database: Database, user_id: uuid.UUID) -> uuid.UUID | None:
    value = await database.value("select referrer_id from doorkey.welcomes where user_id = %s", (user_id,))
    return value if value is None else uuid.UUID(str(value))


@pytest.mark.parametrize("decision", ["held", "refused", "clawed_back"])
async def test_whose_own_welcome_is_held_or_refused_brings_nobody(
    database: Database, doubted: uuid.UUID, decision: str
) -> None:
    if decision == "clawed_back":
        await release(database, doubted)
    if decision != "held":
        await claw_back(database, doubted)
    assert (await review_of(database, doubted))[0] == decision
    friend = await arrive(database, {"referral_code": await code_of(database, doubted)})
    assert await referrer_of(database, friend) is None
    assert (await sweep(database), await available(database, friend)) == (0, PLAN_MICROS)
    assert await available(database, doubted) == 0


async def test_whose_welcome_was_released_brings_others_like_anybody(database: Database, doubted: uuid.UUID) -> None:
    await release(database, doubted)
    await arrive(database, {"referral_code": await code_of(database, doubted)})
    assert (await sweep(database), await available(database, doubted)) == (1, PLAN_MICROS + BONUS_MICROS)


async def test_what_is_promised_for_bringing_others_goes_with_the_own_welcome(database: Database) -> None:
    await switch(database, referral_bonus_micros=BONUS_MICROS)
    referrer = await arrive(database)
    friends = [await arrive(database, {"referral_code": await code_of(database, referrer)}) for _ in range(2)]
    await claw_back(database, referrer)
    assert await database.value("select count(*) from doorkey.promised_credits") == 0
    assert (await sweep(database), await available(database, referrer)) == (0, 0)
    # Not what the others got themselves.
    assert [await available(database, friend) for friend in friends] == [PLAN_MICROS + BONUS_MICROS] * 2


async def test_who_is_doubted_after_bringing_somebody_is_paid_only_once_released(database: Database) -> None:
    await switch(database, referral_bonus_micros=BONUS_MICROS)
    referrer = await arrive(database)
    await arrive(database, {"referral_code": await code_of(database, referrer)})
    reasons = "update doorkey.welcomes set review = %s, review_reasons = '{same_person}' where user_id = %s"
    await database.run(reasons, ("held", referrer))
    assert (await sweep(database), await available(database, referrer)) == (0, PLAN_MICROS)
    await release(database, referrer)
    assert (await sweep(database), await available(database, referrer)) == (1, PLAN_MICROS + BONUS_MICROS)


@pytest.mark.parametrize("alias", ["ada+1@example.com", "ADA@example.com ", "Ada+x+y@Example.com"])
async def test_nobody_brings_an_alias_of_themselves(database: Database, alias: str) -> None:
    await switch(database, referral_bonus_micros=BONUS_MICROS)
    ada = await arrive(database, email="ada@example.com")
    again = await arrive(database, {"referral_code": await code_of(database, ada)}, email=alias)
    assert await referrer_of(database, again) is None
    assert [await sweep(database), await available(database, ada)] == [0, PLAN_MICROS]


# -- many at once from one range --------------------------------------------------------------------------------------


async def come_from(database: Database, address: str) -> uuid.UUID:
    user_id = await database.insert_user()
    await database.run(
        "insert into auth.sessions (id, user_id, ip, created_at, updated_at) values (%s, %s, %s, now(), now())",
        (uuid.uuid4(), user_id, address),
    )
    return user_id


async def test_the_next_one_from_a_range_waits_for_who_is_being_counted(database: Database) -> None:
    await switch(database, max_signups_per_range=1)
    first, second = [await come_from(database, f"203.0.113.{n}") for n in range(2)]
    stranger = await come_from(database, "203.0.114.1")
    async with database.connect(autocommit=False) as busy:
        await busy.execute("select doorkey.claim_provisioning(%s, 60, 'r')", (first,))
        waiting = asyncio.create_task(Doors(database).claimed(second))
        await wait_until_blocked(database, 1)
        # Nobody else waits: neither from elsewhere, nor from nowhere.
        for other in (stranger, await database.insert_user(), await database.insert_user()):
            assert (await Doors(database).claimed(other))["limit_micros"] == PLAN_MICROS
        await busy.commit()
        assert (await waiting)["limit_micros"] == 0
    assert (await review_of(database, second))[1] == ["address_range"]
