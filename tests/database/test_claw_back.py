"""A welcome is taken back once, and only what the user has or has spent of it: never what expired, never twice."""

from __future__ import annotations

import uuid

import pytest

from tests.database.test_offers import PLAN_MICROS, arrive, call_once, switch
from tests.database.test_review import claw_back, review_of
from tests.support.credit_doors import Credits
from tests.support.databases import Database
from tests.support.doors import Doors, refused
from tests.support.periods import Periods

PAID_MICROS = 20_000_000


@pytest.fixture
async def welcomed(database: Database) -> uuid.UUID:
    """Somebody who was given their welcome at once, by a database that reviews."""
    await switch(database, reviews_mail=True)
    return await arrive(database)


async def let_welcome_expire(database: Database, user_id: uuid.UUID) -> None:
    await database.run(
        "update doorkey.credit_lots set expires_at = now() - interval '1 second' where user_id = %s", (user_id,)
    )
    assert await Periods(database).expire() == 1
    await Periods(database).follow(user_id)


async def welcome_of(database: Database, user_id: uuid.UUID) -> int:
    return int(
        await database.value(
            "select id from public.credit_transactions where idempotency_key = %s", (f"welcome:{user_id}",)
        )
    )


async def available_and_debt(database: Database, user_id: uuid.UUID) -> tuple[int, int]:
    account = await Credits(database).account(user_id)
    return account["available_micros"], account["debt_micros"]


async def test_what_expired_is_not_taken_out_of_what_was_paid_for(database: Database, welcomed: uuid.UUID) -> None:
    await let_welcome_expire(database, welcomed)
    await Credits(database).post(welcomed, PAID_MICROS, "purchase")
    assert await claw_back(database, welcomed) == 0
    assert await available_and_debt(database, welcomed) == (PAID_MICROS, 0)
    assert (await review_of(database, welcomed))[0] == "clawed_back"


async def test_what_expired_is_not_owed(database: Database, welcomed: uuid.UUID) -> None:
    await call_once(database, welcomed)
    await let_welcome_expire(database, welcomed)
    assert await claw_back(database, welcomed) == 100
    assert await available_and_debt(database, welcomed) == (0, 100)
    assert await Credits(database).broken_rules() == []


async def test_what_was_reversed_is_not_taken_back_again(database: Database, welcomed: uuid.UUID) -> None:
    await Credits(database).post(welcomed, PAID_MICROS, "purchase")
    await Credits(database).reverse(await welcome_of(database, welcomed))
    assert await claw_back(database, welcomed) == 0
    assert await available_and_debt(database, welcomed) == (PAID_MICROS, 0)


async def test_what_was_reversed_when_spent_is_not_owed_twice(database: Database, welcomed: uuid.UUID) -> None:
    hold = await Credits(database).reserve(welcomed, PLAN_MICROS)
    await Credits(database).settle(hold["hold_id"], PLAN_MICROS)
    await Credits(database).reverse(await welcome_of(database, welcomed))
    assert await claw_back(database, welcomed) == 0
    assert await available_and_debt(database, welcomed) == (0, PLAN_MICROS)


async def test_what_was_taken_back_is_not_reversed_again(database: Database, welcomed: uuid.UUID) -> None:
    hold = await Credits(database).reserve(welcomed, PLAN_MICROS)
    await Credits(database).settle(hold["hold_id"], PLAN_MICROS)
    assert await claw_back(database, welcomed) == PLAN_MICROS
    with refused("PT409", "already_reversed"):
        await Credits(database).reverse(await welcome_of(database, welcomed))
    assert await available_and_debt(database, welcomed) == (0, PLAN_MICROS)
    assert await Credits(database).broken_rules() == []


async def test_a_claw_back_leaves_the_key_no_more_than_what_was_paid_for(
    database: Database, welcomed: uuid.UUID
) -> None:
    await Credits(database).post(welcomed, PAID_MICROS, "purchase")
    assert await claw_back(database, welcomed) == PLAN_MICROS
    assert (await Doors(database).claimed(welcomed))["limit_micros"] == PAID_MICROS
