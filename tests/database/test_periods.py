"""Periods are renewed once each, whatever clocks and others do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.databases import Database
from tests.support.doors import refused
from tests.support.periods import CREDIT, Periods

DAY_SECONDS = 86_400
PERIOD_SECONDS = 30 * DAY_SECONDS
STARTER = 20 * CREDIT
SCHEDULERS = 6


@pytest.fixture
async def periods(database: Database) -> AsyncIterator[Periods]:
    """Plans and periods, where nobody is greeted with credits. In the end all money adds up."""
    await database.run("update public.plans set welcome_credits_micros = 0")
    yield Periods(database)
    assert await Periods(database).credits.broken_rules() == []


# -- renewal ----------------------------------------------------------------------------------------------------------


async def test_an_untouched_allowance_only_moves_its_period(periods: Periods) -> None:
    user_id = await periods.subscriber()
    await periods.grant(user_id, 3 * CREDIT)
    await periods.follow(user_id)
    await periods.pass_days(30, user_id)
    before, wish, ledger = (
        await periods.account(user_id),
        await periods.doors.row(user_id),
        await periods.ledger(user_id),
    )
    assert await periods.renew() == 1
    after = await periods.account(user_id)
    assert (after["period_started_at"], after["length_seconds"]) == (before["period_ends_at"], PERIOD_SECONDS)
    assert (after["is_running"], after["period_number"]) == (True, before["period_number"] + 1)
    assert await periods.ledger(user_id) == ledger
    assert await periods.doors.row(user_id) == wish
    allowance, purchase = await periods.lots(user_id)
    assert (allowance["expires_at"], allowance["remaining_micros"]) == (after["period_ends_at"], STARTER)
    assert (purchase["expires_at"], purchase["remaining_micros"]) == (None, 3 * CREDIT)
    assert (await periods.renew(), await periods.expire()) == (0, 0)


async def test_of_a_touched_allowance_the_rest_expires_and_a_new_one_comes(periods: Periods) -> None:
    user_id = await periods.subscriber()
    await periods.grant(user_id, 3 * CREDIT)
    await periods.spend(user_id, 5 * CREDIT)
    await periods.follow(user_id)
    await periods.pass_days(30, user_id)
    assert await periods.renew() == 1
    assert (await periods.ledger(user_id))[-2:] == [("renewal", STARTER), ("expiry", -15 * CREDIT)]
    assert await periods.balances(user_id) == (23 * CREDIT, 0, 0, 0)
    allowance, purchase = await periods.lots(user_id)
    assert (allowance["is_allowance"], allowance["remaining_micros"]) == (True, STARTER)
    assert allowance["expires_at"] == (await periods.account(user_id))["period_ends_at"]
    assert purchase["remaining_micros"] == 3 * CREDIT
    # Its limit follows: what the key was charged in its life, and what there is now.
    assert await periods.doors.state(user_id) == "due"
    claim = await periods.doors.claimed(user_id)
    assert claim["limit_micros"] == 28 * CREDIT
    await periods.doors.finish_key_update(claim)
    assert (await periods.renew(), await periods.expire()) == (0, 0)


@pytest.mark.parametrize("spent", [0, STARTER // 4, STARTER])
async def test_after_three_missed_periods_there_is_one_renewal_and_the_missed_are_named(
    periods: Periods, spent: int
) -> None:
    user_id = await periods.subscriber()
    if spent:
        await periods.spend(user_id, spent)
    await periods.pass_days(30 + 3 * 30 + 5, user_id)
    before = await periods.account(user_id)
    assert await periods.renew() == 1
    after = await periods.account(user_id)
    assert (after["period_started_at"] - before["period_ends_at"]).total_seconds() == 3 * PERIOD_SECONDS
    assert (after["length_seconds"], after["is_running"]) == (PERIOD_SECONDS, True)
    assert after["available_micros"] == STARTER
    renewals = [entry for entry in await periods.ledger(user_id) if entry[0] == "renewal"]
    assert len(renewals) == (2 if spent else 1)
    (line,) = await periods.audit("periods.skipped", user_id)
    assert line["detail"]["periods"] == 3
    assert await periods.renew() == 0


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize(
    "ended", ["2024-01-31", "2024-02-29 12:00", "2023-02-28", "2025-03-30 01:30", "2025-10-26 00:30"]
)
async def test_a_period_is_days_of_24_hours_over_leap_days_month_ends_and_summer_time(
    periods: Periods, zone: str, ended: str
) -> None:
    user_id = await periods.subscriber()
    await periods.database.run(f"alter database {periods.database.name} set timezone = '{zone}'")
    await periods.database.run(
        "update public.credit_accounts set period_ends_at = %s, period_started_at = %s::timestamptz - interval '720 h'",
        (ended, ended),
    )
    await periods.database.run("update doorkey.credit_lots set expires_at = %s", (ended,))
    before = await periods.account(user_id)
    assert await periods.renew() == 1
    after = await periods.account(user_id)
    # Not the difference of the two, which Python takes by the clock on the wall.
    passed = after["period_started_at"].timestamp() - before["period_ends_at"].timestamp()
    assert (after["length_seconds"], after["is_running"], passed % PERIOD_SECONDS) == (PERIOD_SECONDS, True, 0)


async def test_a_clock_that_was_years_ahead_and_came_back_brings_nothing_twice(periods: Periods) -> None:
    user_id = await periods.subscriber()
    # What a sweep left behind under that clock: the present period ends in ten days, and it is in the 37th after it.
    await periods.pass_days(20 - 37 * 30, user_id)
    before, ledger = await periods.account(user_id), await periods.ledger(user_id)
    assert await periods.renew() == 0
    after = await periods.account(user_id)
    moved = (before["period_started_at"] - after["period_started_at"]).total_seconds()
    assert (moved, after["length_seconds"]) == (36 * PERIOD_SECONDS, PERIOD_SECONDS)
    (allowance,) = await periods.lots(user_id)
    assert allowance["expires_at"] == after["period_ends_at"]
    assert await periods.ledger(user_id) == ledger
    # That one was granted early. The next comes when it ends.
    await periods.pass_days(11, user_id)
    assert await periods.renew() == 0
    await periods.spend(user_id, CREDIT)
    await periods.pass_days(30, user_id)
    assert await periods.renew() == 1
    assert (await periods.balances(user_id))[0] == STARTER


async def test_a_clock_that_goes_back_a_little_changes_nothing(periods: Periods) -> None:
    user_id = await periods.subscriber()
    await periods.pass_days(-10, user_id)
    before = await periods.account(user_id)
    assert await periods.renew() == 0
    assert await periods.account(user_id) == before


async def test_schedulers_at_once_renew_each_period_once(periods: Periods) -> None:
    users = [await periods.subscriber() for _ in range(12)]
    for user_id in users[::2]:
        await periods.spend(user_id, CREDIT)
    await periods.pass_days(30, *users)
    renewed = await asyncio.gather(*(periods.renew(5) for _ in range(SCHEDULERS)))
    while (rest := await periods.renew(5)) > 0:
        renewed.append(rest)
    assert sum(renewed) == len(users)
    for number, user_id in enumerate(users):
        types = [entry for entry in await periods.ledger(user_id) if entry[0] == "renewal"]
        assert len(types) == (1 if number % 2 else 2)
        assert (await periods.account(user_id))["period_number"] == 2


async def test_whoever_is_busy_is_left_to_the_next_sweep_and_nobody_waits(periods: Periods) -> None:
    busy, worked_on, free = [await periods.subscriber() for _ in range(3)]
    for user_id in (busy, worked_on, free):
        await periods.spend(user_id, CREDIT)
    await periods.pass_days(30, busy, worked_on, free)
    async with periods.database.connect(autocommit=False) as somebody:
        await somebody.execute("select from public.credit_accounts where user_id = %s for no key update", (busy,))
        await somebody.execute("select from doorkey.provisioning where user_id = %s for update", (worked_on,))
        async with asyncio.timeout(20):
            assert await periods.renew() == 1
    assert (await periods.account(free))["available_micros"] == STARTER
    assert await periods.renew() == 2


async def test_a_call_is_paid_with_the_allowance_that_it_began_with(periods: Periods) -> None:
    released, settled = [await periods.subscriber() for _ in range(2)]
    holds = {user_id: await periods.credits.reserve(user_id, 8 * CREDIT) for user_id in (released, settled)}
    for user_id in (released, settled):
        await periods.spend(user_id, CREDIT)
    await periods.pass_days(30, released, settled)
    assert await periods.renew() == 2
    for user_id, hold in holds.items():
        assert await periods.balances(user_id) == (STARTER, 8 * CREDIT, 0, 0)
        if user_id == released:
            await periods.credits.release(hold["hold_id"])
        else:
            assert await periods.expire() == 0
            await periods.credits.settle(hold["hold_id"], 5 * CREDIT)
            await periods.follow(user_id)
        assert await periods.expire() == 1
        await periods.follow(user_id)
    for user_id in holds:
        assert await periods.balances(user_id) == (STARTER, 0, 0, 0)
    assert (await periods.ledger(released))[-1] == ("expiry", -8 * CREDIT)
    assert (await periods.ledger(settled))[-1] == ("expiry", -3 * CREDIT)


async def test_an_allowance_pays_first_what_is_owed(periods: Periods) -> None:
    user_id = await periods.subscriber()
    hold = await periods.credits.reserve(user_id, STARTER)
    await periods.credits.settle(hold["hold_id"], 23 * CREDIT)
    await periods.pass_days(30, user_id)
    assert await periods.renew() == 1
    assert await periods.balances(user_id) == (17 * CREDIT, 0, 0, 0)


async def test_a_smaller_allowance_leaves_only_when_the_key_was_lowered(periods: Periods) -> None:
    user_id = await periods.subscriber()
    await periods.database.run("update public.plans set credits_per_period_micros = 5000000 where id = 'starter'")
    await periods.pass_days(30, user_id)
    assert await periods.renew() == 1
    assert await periods.balances(user_id) == (5 * CREDIT, 0, STARTER, 0)
    assert await periods.credits.limit(user_id) == 5 * CREDIT
    await periods.follow(user_id)
    assert await periods.balances(user_id) == (5 * CREDIT, 0, 0, 0)
    assert (await periods.ledger(user_id))[-2:] == [("renewal", 5 * CREDIT), ("expiry", -STARTER)]


async def test_what_the_new_allowance_makes_up_for_expires_in_one_posting(periods: Periods) -> None:
    user_id = await periods.subscriber()
    await periods.spend(user_id, 5 * CREDIT)
    await periods.pass_days(30, user_id)
    assert await periods.renew() == 1
    postings = await periods.database.rows(
        "select t.type, jsonb_object_agg(e.account, e.amount_micros) as entries from public.credit_transactions as t"
        " join doorkey.ledger_entries as e on e.transaction_id = t.id where t.actor = 'sweep'"
        " group by t.id order by t.id"
    )
    assert [(row["type"], row["entries"]) for row in postings] == [
        ("renewal", {"spendable": STARTER, "granted": -STARTER}),
        ("expiry", {"spendable": -15 * CREDIT, "expired": 15 * CREDIT}),
    ]
    # Nobody takes back what expired.
    allowance = await periods.database.value("select min(transaction_id) from doorkey.credit_lots")
    assert (await periods.credits.reverse(allowance))["available_after_micros"] == STARTER - 5 * CREDIT


@pytest.mark.parametrize("why", ["is worked on", "may yet be set", "is replaced", "has no limit"])
async def test_while_a_key_may_spend_more_than_anybody_knows_an_allowance_only_leaves(
    periods: Periods, why: str
) -> None:
    user_id = await periods.subscriber()
    await periods.spend(user_id, 5 * CREDIT)
    await periods.follow(user_id)
    if why == "is worked on":
        await periods.doors.wish(user_id)
        await periods.doors.claimed(user_id)
    elif why == "is replaced":
        await periods.doors.rotate(user_id)
        await periods.doors.finish(await periods.doors.claimed(user_id))
    else:
        change = "confirm_at = now() + interval '1 h'" if why == "may yet be set" else "limit_micros = null"
        await periods.database.run(f"update public.openrouter_user_keys set {change} where user_id = %s", (user_id,))
    await periods.pass_days(30, user_id)
    assert await periods.renew() == 1
    assert await periods.balances(user_id) == (STARTER, 0, 15 * CREDIT, 0)


async def test_nothing_is_renewed_for_whoever_is_gone(periods: Periods) -> None:
    user_id = await periods.subscriber()
    await periods.database.run("delete from auth.users where id = %s", (user_id,))
    claim = await periods.doors.claimed(user_id)
    assert await periods.doors.finish_key_deletion(claim) == "gone"
    await periods.pass_days(30, user_id)
    assert await periods.renew() == 1
    account = await periods.account(user_id)
    assert (account["period_ends_at"], account["available_micros"], account["leaving_micros"]) == (None, 0, 0)
    assert await periods.renew() == 0


async def test_a_new_user_on_a_plan_with_periods_begins_with_its_allowance(periods: Periods) -> None:
    await periods.database.run("update doorkey.settings set default_plan_id = 'starter'")
    user_id = await periods.database.insert_user()
    assert (await periods.doors.make_ready(user_id))["limit_micros"] == STARTER
    account = await periods.account(user_id)
    assert (account["length_seconds"], account["period_number"]) == (PERIOD_SECONDS, 1)
    assert await periods.doors.claim(user_id) is None


async def test_who_is_on_a_plan_that_comes_to_have_periods_begins_one(periods: Periods) -> None:
    user_id = await periods.subscriber("starter")
    trying = await periods.database.insert_user()
    await periods.doors.make_ready(trying)
    await periods.database.run(
        "update public.plans set period_days = 7, credits_per_period_micros = 1000000 where id = 'trial'"
    )
    assert await periods.renew() == 1
    account = await periods.account(trying)
    assert (account["available_micros"], account["length_seconds"]) == (CREDIT, 7 * DAY_SECONDS)
    assert (await periods.account(user_id))["period_number"] == 1
    assert await periods.renew() == 0


async def test_of_those_who_never_had_a_period_a_sweep_begins_so_many_whatever_their_plans(periods: Periods) -> None:
    plans = ("starter", "professional", "enterprise")
    users = [await periods.database.insert_user() for _ in range(2 * len(plans))]
    for user_id, plan_id in zip(users, 2 * plans, strict=True):
        await periods.doors.make_ready(user_id)
        await periods.database.run(
            "update public.credit_accounts set plan_id = %s where user_id = %s", (plan_id, user_id)
        )
    async with periods.database.connect(autocommit=False) as busy:
        await busy.execute("select from public.credit_accounts where user_id = %s for no key update", (users[0],))
        assert [await periods.renew(2) for _ in range(4)] == [2, 2, 1, 0]
    assert [await periods.renew(2) for _ in range(2)] == [1, 0]
    assert [(await periods.account(user_id))["period_number"] for user_id in users] == [1] * len(users)


async def test_a_sweep_does_so_many_at_a_time_the_longest_over_first(periods: Periods) -> None:
    users = [await periods.subscriber() for _ in range(5)]
    for number, user_id in enumerate(users):
        await periods.pass_days(30 + number, user_id)
    assert await periods.renew(2) == 2
    assert [(await periods.account(user_id))["is_running"] for user_id in users] == [False, False, False, True, True]
    assert [await periods.renew(2) for _ in range(3)] == [2, 1, 0]


@pytest.mark.parametrize("rows", [0, -1, 1001, None])
async def test_a_page_is_1_to_1000_rows(periods: Periods, rows: int | None) -> None:
    for do in (periods.renew, periods.expire):
        with refused("PT422", "page_out_of_range"):
            await do(rows)


# -- the cap ----------------------------------------------------------------------------------------------------------


async def test_a_cap_holds_for_whatever_a_user_owns_until_the_next_period(periods: Periods) -> None:
    await periods.database.run("update public.plans set monthly_cap_micros = 25000000 where id = 'starter'")
    user_id = await periods.subscriber()
    await periods.grant(user_id, 100 * CREDIT)
    await periods.follow(user_id)
    assert await periods.credits.limit(user_id) == 25 * CREDIT
    await periods.spend(user_id, 15 * CREDIT)
    assert await periods.credits.limit(user_id) == 25 * CREDIT
    hold = await periods.credits.reserve(user_id, 6 * CREDIT)
    with refused("PT402", "insufficient_credits"):
        await periods.credits.reserve(user_id, 4 * CREDIT + 1)
    await periods.credits.reserve(user_id, 4 * CREDIT)
    # It cost more than it held: it is charged, and the limit is what was charged.
    await periods.credits.settle(hold["hold_id"], 20 * CREDIT)
    assert (await periods.account(user_id))["period_spent_micros"] == 35 * CREDIT
    assert await periods.credits.limit(user_id) == 25 * CREDIT
    await periods.pass_days(30, user_id)
    assert await periods.renew() == 1
    assert (await periods.account(user_id))["period_spent_micros"] == 0
    assert (await periods.doors.claimed(user_id))["limit_micros"] == 35 * CREDIT + 25 * CREDIT


async def test_where_the_plan_has_a_cap_the_limit_rises_though_the_allowance_is_whole(periods: Periods) -> None:
    await periods.database.run(
        "update public.plans set monthly_cap_micros = 3000000, credits_per_period_micros = 0 where id = 'starter'"
    )
    user_id = await periods.subscriber()
    await periods.grant(user_id, 100 * CREDIT)
    await periods.follow(user_id)
    await periods.spend(user_id, CREDIT)
    await periods.pass_days(30, user_id)
    assert await periods.renew() == 1
    assert (await periods.doors.claimed(user_id))["limit_micros"] == CREDIT + 3 * CREDIT
