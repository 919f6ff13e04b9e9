"""Verifying the ledger while it is written: what is posted between two pages, or is about to be, makes no difference.

The surprising thing is what this rests on: one user's transactions are numbered in the order in which they are
committed, because each posting has locked the account before its number is drawn.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest

from tests.database.test_verification import corrupt, use_unseen
from tests.support.credit_doors import Credits
from tests.support.databases import Database
from tests.support.doors import Doors, wait_until_blocked
from tests.support.periods import Periods
from tests.support.verification import NARROW, differences, pages

CALLS = 12
POSTED_MEANWHILE = 40

POSTINGS = ("a charge", "a grant", "a taking", "a return")
# What is no posting, and moves what is available all the same.
HOLDS = ("a hold", "a release")


@pytest.fixture
async def credit_doors(database: Database) -> Credits:
    await database.run("update public.plans set welcome_credits_micros = 1000, markup = 1.3")
    return Credits(database)


@pytest.fixture
async def user_id(credit_doors: Credits) -> uuid.UUID:
    """Somebody with some calls behind them, charged with fractions, and one before them."""
    user_id = await credit_doors.database.insert_user()
    await Doors(credit_doors.database).make_ready(user_id)
    for _ in range(CALLS):
        await credit_doors.settle((await credit_doors.reserve(user_id, 10))["hold_id"], Decimal("2.3"))
    return user_id


@pytest.fixture
async def hold_id(credit_doors: Credits, user_id: uuid.UUID) -> uuid.UUID:
    """The call that is open."""
    hold_id: uuid.UUID = (await credit_doors.reserve(user_id, 20))["hold_id"]
    return hold_id


async def post(doors: Credits, user_id: uuid.UUID, hold_id: uuid.UUID, posting: str) -> None:
    match posting:
        case "a hold":
            await doors.reserve(user_id, 5)
        case "a charge":
            await doors.settle(hold_id, Decimal("3.7"))
        case "a release":
            await doors.release(hold_id)
        case "a grant":
            await doors.post(user_id, 50, "purchase")
        case "a taking":
            await doors.post(user_id, -5)
        case _:
            await use_unseen(doors.database, user_id, "4.5", "1.25")


async def found_while(database: Database, do: Callable[[int], Awaitable[object]]) -> list[dict[str, Any]]:
    """What differs, with something done after each page."""
    found: list[dict[str, Any]] = []
    number = 0
    async for page in pages(database, *NARROW):
        found += page["differences"]
        await do(number)
        number += 1
    assert number > CALLS
    return found


@pytest.mark.parametrize("posting", [*POSTINGS, *HOLDS])
async def test_what_is_posted_between_two_pages_makes_no_difference(
    credit_doors: Credits, user_id: uuid.UUID, hold_id: uuid.UUID, posting: str
) -> None:
    async def do(number: int) -> None:
        if number == CALLS // 2:
            await post(credit_doors, user_id, hold_id, posting)

    assert await found_while(credit_doors.database, do) == []


async def test_what_is_corrupt_is_found_though_something_is_posted_after_every_page(
    credit_doors: Credits, user_id: uuid.UUID
) -> None:
    """And the figures are those of the moment at which the user's first transactions were read."""
    await corrupt(
        credit_doors.database,
        "update public.credit_accounts set available_micros = available_micros + 7, held_micros = 3",
    )
    before = await credit_doors.account(user_id)

    async def do(number: int) -> None:
        if number < POSTED_MEANWHILE:
            await credit_doors.reserve(user_id, 1)

    found = {row["what"]: row for row in await found_while(credit_doors.database, do)}
    assert set(found) == {"available", "held"}
    assert int(found["available"]["stored_micros"]) == before["available_micros"]
    assert int(found["available"]["computed_micros"]) == before["available_micros"] - 7


@pytest.mark.usefixtures("hold_id")
async def test_a_posting_that_is_under_way_when_a_user_is_begun_is_left_out(
    credit_doors: Credits, user_id: uuid.UUID
) -> None:
    """It has its number, another user has a higher one, and it is committed when the first page was read."""
    database = credit_doors.database
    async with database.connect(autocommit=False) as posting:
        await posting.execute(
            "select * from public.post_credits(%s, 'purchase', 5, 'p', 'r', 'a', null, 'r')", (user_id,)
        )
        # Whoever comes after it, at the end of their pages: it has the highest number of all.
        other = await database.insert_user()
        await Doors(database).make_ready(other)

        async def do(number: int) -> None:
            if number == 1:
                await posting.commit()

        assert await found_while(database, do) == []
    assert await differences(database, NARROW) == []


async def test_nothing_differs_while_many_post_at_once(credit_doors: Credits, user_id: uuid.UUID) -> None:
    others = [await credit_doors.database.insert_user() for _ in range(2)]
    for other in others:
        await Doors(credit_doors.database).make_ready(other)
    is_over = asyncio.Event()

    async def use(whose: uuid.UUID) -> int:
        calls = 0
        while not is_over.is_set() or calls < CALLS:
            hold = await credit_doors.reserve(whose, 3)
            await credit_doors.settle(hold["hold_id"], Decimal("0.7"))
            calls += 1
        return calls

    async def verify() -> None:
        try:
            for _ in range(3):
                assert await differences(credit_doors.database, (2, 7)) == []
        finally:
            is_over.set()

    async with asyncio.TaskGroup() as tasks:
        using = [tasks.create_task(use(whose)) for whose in (user_id, user_id, *others)]
        tasks.create_task(verify())
    assert min(task.result() for task in using) >= CALLS


@pytest.mark.parametrize("posting", POSTINGS)
async def test_a_posting_has_locked_the_account_before_its_number_is_drawn(
    credit_doors: Credits, user_id: uuid.UUID, hold_id: uuid.UUID, posting: str
) -> None:
    """Else a lower number could come to be seen later, behind the back of whoever has read the higher ones."""
    database = credit_doors.database
    drawn = "select last_value from public.credit_transactions_id_seq"
    before = await database.value(drawn)
    async with database.connect(autocommit=False) as holder:
        await holder.execute("select from public.credit_accounts where user_id = %s for no key update", (user_id,))
        waiting = asyncio.create_task(post(credit_doors, user_id, hold_id, posting))
        await wait_until_blocked(database, 1)
        assert await database.value(drawn) == before
        await holder.rollback()
    await waiting
    assert await database.value(drawn) > before


# -- periods ----------------------------------------------------------------------------------------------------------


async def verified_spending(periods: Periods, user_id: uuid.UUID, spent: int) -> None:
    assert (await periods.account(user_id))["period_spent_micros"] == spent
    for size in (NARROW, (100, 1000)):
        assert await differences(periods.database, size) == []


async def test_what_was_spent_in_a_period_is_known_after_every_way_to_begin_one(database: Database) -> None:
    periods = Periods(database)
    user_id = await periods.subscriber()
    await periods.spend(user_id, 3)
    await verified_spending(periods, user_id, 3)
    # Its time is over and no sweep came by: it counts as the old period's.
    await periods.pass_days(31, user_id)
    await periods.spend(user_id, 4)
    await verified_spending(periods, user_id, 7)
    assert await periods.renew() == 1
    await verified_spending(periods, user_id, 0)
    await periods.spend(user_id, 5)
    await verified_spending(periods, user_id, 5)
    # The plan's last period ends, and the next one is none.
    await periods.change(user_id, "trial", "period_end")
    await periods.pass_days(31, user_id)
    assert await periods.renew() == 1
    await verified_spending(periods, user_id, 0)
    # An allowance of nothing: nothing is posted when it is renewed.
    await database.run("update public.plans set credits_per_period_micros = 0 where id = 'professional'")
    await periods.change(user_id, "professional")
    await periods.grant(user_id, 100)
    await periods.spend(user_id, 6)
    await verified_spending(periods, user_id, 6)
    await periods.pass_days(31, user_id)
    before = await database.value("select count(*) from public.credit_transactions where type = 'renewal'")
    assert await periods.renew() == 1
    assert await database.value("select count(*) from public.credit_transactions where type = 'renewal'") == before
    await verified_spending(periods, user_id, 0)


async def test_a_renewal_between_two_pages_makes_no_difference(database: Database) -> None:
    periods = Periods(database)
    user_id = await periods.subscriber()
    for _ in range(CALLS):
        await periods.spend(user_id, 2)
    await periods.pass_days(31, user_id)

    async def do(number: int) -> None:
        if number == 2:
            assert await periods.renew() == 1
            await periods.spend(user_id, 1)

    assert await found_while(database, do) == []


async def test_a_remainder_is_known_whatever_calls_have_cost_by_whichever_price(credit_doors: Credits) -> None:
    """The plan's price changes, and so does the plan: what each call was to cost is kept with it."""
    database = credit_doors.database
    user_id = await database.insert_user()
    await Doors(database).make_ready(user_id)
    for markup in ("1.3", "1.37", "1.0333", "2"):
        await database.run("update public.plans set markup = %s", (Decimal(markup),))
        await credit_doors.settle((await credit_doors.reserve(user_id, 30))["hold_id"], Decimal("7.77"))
        await use_unseen(database, user_id, "3.3", "1.1")
    await database.run("update public.plans set charges_by = 'tokens', token_price_micros_per_1k = 1234")
    await credit_doors.settle((await credit_doors.reserve(user_id, 30))["hold_id"], Decimal("7.77"), tokens=5)
    assert (await credit_doors.account(user_id))["remainder_micros"] > 0
    assert await differences(database) == await differences(database, NARROW) == []
