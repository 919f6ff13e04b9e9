"""A price for tokens: charged to the fraction whatever the provider billed, and the key's limit stays what is left."""

from __future__ import annotations

import uuid
from decimal import Decimal
from fractions import Fraction

import pytest

from tests.support.credit_doors import Credits
from tests.support.databases import Database
from tests.support.doors import Doors, refused

CREDITS = 10_000
PRICE = 333
MARKUP = 2


@pytest.fixture
async def credit_doors(database: Database) -> Credits:
    await database.run(
        "update public.plans set welcome_credits_micros = %s, markup = %s, charges_by = 'tokens',"
        " token_price_micros_per_1k = %s",
        (CREDITS, MARKUP, PRICE),
    )
    return Credits(database)


@pytest.fixture
async def user_id(credit_doors: Credits) -> uuid.UUID:
    """Somebody with a key."""
    user_id = await credit_doors.database.insert_user()
    await Doors(credit_doors.database).make_ready(user_id)
    return user_id


async def call(credit_doors: Credits, user_id: uuid.UUID, cost: object, tokens: int | None) -> int:
    hold = await credit_doors.reserve(user_id, 100)
    return int((await credit_doors.settle(hold["hold_id"], cost, tokens=tokens))["charged_micros"])


async def test_tokens_are_charged_to_the_fraction_and_what_is_less_than_a_micro_dollar_is_carried(
    credit_doors: Credits, user_id: uuid.UUID
) -> None:
    tokens = [1, 2, 3, 999, 1000, 1001, 7777, 0]
    charged = sum([await call(credit_doors, user_id, Decimal("0.5"), number) for number in tokens])
    exact = Fraction(sum(tokens) * PRICE, 1000)
    assert charged == int(exact)
    account = await credit_doors.account(user_id)
    assert Fraction(account["remainder_micros"]) == exact - charged
    assert account["available_micros"] == CREDITS - charged
    (key,) = await Doors(credit_doors.database).keys(user_id)
    # What the provider billed is what the key has spent, whatever the user pays.
    assert key["cost_micros"] == Decimal("0.5") * len(tokens)


async def test_a_price_of_many_digits_is_not_rounded(credit_doors: Credits, user_id: uuid.UUID) -> None:
    await credit_doors.database.run("update public.plans set token_price_micros_per_1k = 999999999")
    assert await call(credit_doors, user_id, 0, 999_999_999) == 999_999_999 * 999_999_999 // 1000
    remainder = (await credit_doors.account(user_id))["remainder_micros"]
    assert Fraction(remainder) == Fraction(999_999_999 * 999_999_999 % 1000, 1000)


async def test_where_nobody_knows_the_tokens_or_the_plan_charges_by_cost_it_is_the_cost_that_counts(
    credit_doors: Credits, user_id: uuid.UUID
) -> None:
    assert await call(credit_doors, user_id, 100, None) == 100 * MARKUP
    await credit_doors.database.run("update public.plans set charges_by = 'cost'")
    assert await call(credit_doors, user_id, 100, 1_000_000) == 100 * MARKUP


async def test_a_settlement_is_not_repeated_with_other_tokens(credit_doors: Credits, user_id: uuid.UUID) -> None:
    hold_id = (await credit_doors.reserve(user_id, 100))["hold_id"]
    first = await credit_doors.settle(hold_id, 1, tokens=1000)
    assert await credit_doors.settle(hold_id, 1, tokens=1000) == first
    for tokens in (1001, None):
        with refused("PT409", "idempotency_conflict"):
            await credit_doors.settle(hold_id, 1, tokens=tokens)
    assert (await credit_doors.hold(hold_id))["tokens"] == 1000
    other = (await credit_doors.reserve(user_id, 100))["hold_id"]
    for tokens in (-1, 10**9 + 1):
        with refused("PT422", "amount_out_of_range"):
            await credit_doors.settle(other, 1, tokens=tokens)


async def test_a_price_above_the_cost_lowers_the_keys_limit(credit_doors: Credits, user_id: uuid.UUID) -> None:
    doors = Doors(credit_doors.database)
    # 3330 for what cost 10: of the 10000 there are 6670 left, and a key that has spent 10.
    assert await call(credit_doors, user_id, 10, 10_000) == 3330
    assert await credit_doors.limit(user_id) == 10 + (CREDITS - 3330) // MARKUP
    assert await doors.state(user_id) == "due"
    assert (await doors.claimed(user_id))["limit_micros"] == 10 + (CREDITS - 3330) // MARKUP


async def test_a_price_below_the_cost_wants_nothing_at_openrouter(credit_doors: Credits, user_id: uuid.UUID) -> None:
    doors = Doors(credit_doors.database)
    assert await call(credit_doors, user_id, 1000, 3000) == 999
    assert await credit_doors.limit(user_id) == 1000 + (CREDITS - 999) // MARKUP
    assert await doors.state(user_id) == "ready"
    # Nor does a price above the cost, while the key may still spend less than what is left.
    assert await call(credit_doors, user_id, 0, 300) == 99
    assert await doors.state(user_id) == "ready"
    # Charged by its cost, it never does.
    assert await call(credit_doors, user_id, 100, None) == 200
    assert await doors.state(user_id) == "ready"


async def test_a_row_that_is_worked_on_is_not_waited_for(credit_doors: Credits, user_id: uuid.UUID) -> None:
    async with credit_doors.database.connect(autocommit=False) as working:
        await working.execute("select from doorkey.provisioning where user_id = %s for update", (user_id,))
        assert await call(credit_doors, user_id, 10, 10_000) == 3330
        await working.rollback()
