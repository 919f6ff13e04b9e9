"""What stands open when a period ends, and what was closed meanwhile: neither takes from the next one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.databases import Database
from tests.support.periods import CREDIT, Periods

STARTER = 20 * CREDIT


@pytest.fixture
async def periods(database: Database) -> AsyncIterator[Periods]:
    """Plans and periods, where nobody is greeted with credits. In the end all money adds up."""
    await database.run("update public.plans set welcome_credits_micros = 0")
    yield Periods(database)
    assert await Periods(database).credits.broken_rules() == []


@pytest.mark.parametrize("spent_before", [0, 1])
async def test_a_hold_over_the_border_is_paid_from_the_period_that_it_began_in(
    periods: Periods, spent_before: int
) -> None:
    user_id = await periods.subscriber()
    if spent_before:
        await periods.spend(user_id, spent_before)
    hold = await periods.credits.reserve(user_id, 15 * CREDIT, ttl_seconds=86_400)
    await periods.pass_days(30, user_id)
    assert await periods.renew() == 1
    await periods.credits.settle(hold["hold_id"], 15 * CREDIT)
    assert (await periods.account(user_id))["available_micros"] == STARTER


async def test_a_change_that_waits_does_not_come_to_a_plan_that_was_closed_meanwhile(periods: Periods) -> None:
    user_id = await periods.subscriber()
    await periods.change(user_id, "professional", "period_end")
    await periods.database.run("update public.plans set is_active = false where id = 'professional'")
    await periods.pass_days(30, user_id)
    assert await periods.renew() == 1
    account = await periods.account(user_id)
    assert (account["plan_id"], account["pending_plan_id"]) == ("starter", None)
    assert (account["available_micros"], account["period_number"]) == (STARTER, 2)
    notes = await periods.database.rows(
        "select detail from doorkey.audit_log where action = 'plan.change_dropped' and user_id = %s", (user_id,)
    )
    assert [note["detail"] for note in notes] == [{"plan_id": "professional", "reason": "plan_inactive"}]
