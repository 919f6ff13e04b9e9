"""Credits expire when they have had their time, unless a call that began before is paid with them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from tests.support.databases import Database
from tests.support.periods import CREDIT, Periods

SCHEDULERS = 6


@pytest.fixture
async def periods(database: Database) -> AsyncIterator[Periods]:
    """Plans and periods, where nobody is greeted with credits. In the end all money adds up."""
    await database.run("update public.plans set welcome_credits_micros = 0")
    yield Periods(database)
    assert await Periods(database).credits.broken_rules() == []


async def trial(periods: Periods) -> uuid.UUID:
    """Somebody who was greeted with five credits."""
    await periods.database.run(
        "update public.plans set welcome_credits_micros = 5000000, welcome_credits_days = 30 where id = 'trial'"
    )
    user_id = await periods.database.insert_user()
    await periods.doors.make_ready(user_id)
    return user_id


async def test_trial_credits_expire_after_30_days_and_leave_when_the_key_was_lowered(periods: Periods) -> None:
    user_id = await trial(periods)
    await periods.spend(user_id, 2 * CREDIT)
    await periods.grant(user_id, CREDIT)
    await periods.follow(user_id)
    await periods.pass_days(29, user_id)
    assert await periods.expire() == 0
    await periods.pass_days(1, user_id)
    assert await periods.expire() == 1
    assert await periods.balances(user_id) == (CREDIT, 0, 3 * CREDIT, 0)
    assert await periods.expire() == 0
    claim = await periods.doors.claimed(user_id)
    assert claim["limit_micros"] == 3 * CREDIT
    # Nobody knows yet whether OpenRouter took it.
    assert await periods.balances(user_id) == (CREDIT, 0, 3 * CREDIT, 0)
    assert await periods.doors.finish_key_update(claim) == "ready"
    assert await periods.balances(user_id) == (CREDIT, 0, 0, 0)
    assert (await periods.ledger(user_id))[-1] == ("expiry", -3 * CREDIT)


async def test_what_expires_while_somebody_works_on_the_key_leaves_after_they_finished_twice(periods: Periods) -> None:
    user_id = await trial(periods)
    await periods.doors.wish(user_id)
    claim = await periods.doors.claimed(user_id)
    await periods.pass_days(30, user_id)
    assert await periods.expire() == 1
    # They set what was right before.
    assert await periods.doors.finish_key_update(claim) == "due"
    assert await periods.balances(user_id) == (0, 0, 5 * CREDIT, 0)
    await periods.follow(user_id)
    assert await periods.balances(user_id) == (0, 0, 0, 0)


async def test_what_expires_where_there_is_no_key_leaves_at_once(periods: Periods) -> None:
    user_id = await trial(periods)
    await periods.database.run("delete from auth.users where id = %s", (user_id,))
    await periods.doors.finish_key_deletion(await periods.doors.claimed(user_id))
    await periods.pass_days(30, user_id)
    assert await periods.expire() == 1
    assert await periods.balances(user_id) == (0, 0, 0, 0)


async def test_what_a_hold_keeps_expires_when_it_is_closed(periods: Periods) -> None:
    user_id = await trial(periods)
    await periods.grant(user_id, CREDIT)
    hold = await periods.credits.reserve(user_id, 2 * CREDIT)
    await periods.pass_days(30, user_id)
    assert await periods.expire() == 1
    await periods.follow(user_id)
    assert await periods.balances(user_id) == (CREDIT, 2 * CREDIT, 0, 0)
    assert await periods.expire() == 0
    await periods.credits.settle(hold["hold_id"], CREDIT)
    # What the hold did not need is expired by now, and not what was paid for.
    assert await periods.expire() == 1
    await periods.follow(user_id)
    assert await periods.balances(user_id) == (CREDIT, 0, 0, 0)


async def test_lots_that_holds_keep_do_not_stand_in_the_way_of_others(periods: Periods) -> None:
    kept = [await trial(periods) for _ in range(3)]
    for user_id in kept:
        await periods.credits.reserve(user_id, 5 * CREDIT)
    other = await trial(periods)
    await periods.pass_days(32, *kept)
    await periods.pass_days(30, other)
    assert await periods.expire(2) == 1
    assert (await periods.account(other))["available_micros"] == 0


async def test_schedulers_at_once_expire_each_lot_once(periods: Periods) -> None:
    users = [await trial(periods) for _ in range(8)]
    await periods.pass_days(30, *users)
    expired = await asyncio.gather(*(periods.expire(3) for _ in range(SCHEDULERS)))
    while (rest := await periods.expire(3)) > 0:
        expired.append(rest)
    assert sum(expired) == len(users)
    for user_id in users:
        await periods.follow(user_id)
        assert (await periods.ledger(user_id))[-1] == ("expiry", -5 * CREDIT)
