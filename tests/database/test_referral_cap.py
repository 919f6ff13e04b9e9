"""How often somebody is thanked for bringing others: only who was welcomed counts, and from then on."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter

import pytest

from tests.database.test_offers import BONUS_MICROS, PLAN_MICROS, arrive, available, code_of, sweep, switch
from tests.database.test_review import claw_back, release, review_of
from tests.database.test_welcome_anonymous import arrive_anonymous, convert
from tests.support.credit_doors import Credits
from tests.support.databases import Database
from tests.support.doors import Doors, wait_until_blocked

WITH_BONUS = PLAN_MICROS + BONUS_MICROS


@pytest.fixture
async def code(database: Database) -> str:
    """Of somebody who is thanked once; aliased mail is held."""
    await switch(database, referral_bonus_micros=BONUS_MICROS, max_referrals=1, reviews_mail=True)
    return await code_of(database, await arrive(database))


async def come(database: Database, code: str, email: str | None = None) -> uuid.UUID:
    return await arrive(database, {"referral_code": code}, email=email)


async def be_held(database: Database, code: str, people: int) -> list[uuid.UUID]:
    held = [await come(database, code, f"eve+{n}@example.com") for n in range(people)]
    assert [(await review_of(database, user_id))[0] for user_id in held] == ["held"] * people
    return held


async def thanked(database: Database, code: str) -> int:
    """How often their owner has been thanked, after a sweep."""
    await sweep(database)
    owner = await database.value("select user_id from public.credit_accounts where referral_code = %s", (code,))
    return (await available(database, owner) - PLAN_MICROS) // BONUS_MICROS


async def promises(database: Database) -> int:
    return int(await database.value("select count(*) from doorkey.promised_credits"))


async def test_strangers_who_are_held_use_up_nothing(database: Database, code: str) -> None:
    await be_held(database, code, 3)
    friend = await come(database, code)
    assert (await available(database, friend), await thanked(database, code)) == (WITH_BONUS, 1)


async def test_who_is_released_counts_from_then_on(database: Database, code: str) -> None:
    first, second = await be_held(database, code, 2)
    assert await release(database, first) == WITH_BONUS
    assert await available(database, await come(database, code)) == PLAN_MICROS
    # Nobody is left to be thanked for this one: the welcome is given, and nothing beside it.
    assert await release(database, second) == PLAN_MICROS
    assert await database.value("select referrer_id from doorkey.welcomes where user_id = %s", (second,)) is None
    assert (await thanked(database, code), await promises(database)) == (1, 0)
    assert await Credits(database).broken_rules() == []


async def test_a_cap_that_was_raised_meanwhile_is_what_a_release_looks_at(database: Database, code: str) -> None:
    await come(database, code)
    (held,) = await be_held(database, code, 1)
    await switch(database, max_referrals=2)
    assert await release(database, held) == WITH_BONUS
    assert await thanked(database, code) == 2


async def test_who_came_anonymously_counts_once_there_is_an_address(database: Database, code: str) -> None:
    people = [await arrive_anonymous(database, {"referral_code": code}) for _ in range(2)]
    for n, user_id in enumerate(people):
        await convert(database, user_id, f"{n}@example.com")
    assert [await available(database, user_id) for user_id in people] == [WITH_BONUS, PLAN_MICROS]
    assert (await thanked(database, code), await promises(database)) == (1, 0)


async def test_a_welcome_that_is_taken_back_counts_only_if_somebody_was_thanked_for_it(
    database: Database, code: str
) -> None:
    unpaid = await come(database, code)
    await claw_back(database, unpaid)
    paid = await come(database, code)
    assert (await available(database, paid), await thanked(database, code)) == (WITH_BONUS, 1)
    await claw_back(database, paid)
    assert await available(database, await come(database, code)) == PLAN_MICROS
    assert await thanked(database, code) == 1


@pytest.mark.parametrize("first", ["claim", "release"])
async def test_a_release_and_a_claim_wait_for_each_other(database: Database, code: str, first: str) -> None:
    (held,) = await be_held(database, code, 1)
    friend = await database.insert_user(metadata={"referral_code": code})
    calls = {
        "claim": ("select doorkey.claim_provisioning(%s, 60, 'r')", (friend,)),
        "release": ("select doorkey.release_welcome(%s, 'operator:ada', 'r')", (held,)),
    }
    (second,) = calls.keys() - {first}
    async with database.connect(autocommit=False) as busy:
        await busy.execute(*calls[first])
        waiting = asyncio.create_task(database.run(*calls[second]))
        await wait_until_blocked(database, 1)
        await busy.commit()
        await waiting
    by_call = {"claim": await available(database, friend), "release": await available(database, held)}
    assert (by_call[first], by_call[second]) == (WITH_BONUS, PLAN_MICROS)


async def test_the_cap_holds_whoever_is_claimed_and_released_and_swept_at_once(database: Database, code: str) -> None:
    await switch(database, max_referrals=3)
    held = await be_held(database, code, 5)
    people = [await database.insert_user(metadata={"referral_code": code}) for _ in range(5)]
    async with asyncio.timeout(60):
        await asyncio.gather(
            *(release(database, user_id) for user_id in held),
            *(Doors(database).make_ready(user_id) for user_id in people),
            *(sweep(database) for _ in range(3)),
        )
    got = Counter([await available(database, user_id) for user_id in held + people])
    assert got == {WITH_BONUS: 3, PLAN_MICROS: 7}
    assert (await thanked(database, code), await promises(database)) == (3, 0)
    assert await Credits(database).broken_rules() == []
