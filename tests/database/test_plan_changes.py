"""Plans are rows that an operator edits, and a user goes from one to another: at once, or when their period ends."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from tests.support.databases import Database
from tests.support.doors import refused
from tests.support.periods import CREDIT, Periods

SEEDED = {
    # What the period brings and the welcome, in credits; its days; the price of 1,000 tokens in micro-dollars.
    "trial": (0, 5, None, 1_000, False),
    "starter": (20, 0, 30, 2_000, False),
    "professional": (60, 0, 30, 5_000, False),
    "enterprise": (0, 0, 30, 10_000, True),
}
MICROS = 1_000_000


# -- rows -------------------------------------------------------------------------------------------------------------


async def test_the_plans_to_begin_with(database: Database) -> None:
    plans = await database.rows("select * from public.plans")
    assert {
        plan["id"]: (
            plan["credits_per_period_micros"] / MICROS,
            plan["welcome_credits_micros"] / MICROS,
            plan["period_days"],
            plan["token_price_micros_per_1k"],
            plan["is_uncapped"],
        )
        for plan in plans
    } == SEEDED
    for plan in plans:
        assert plan["charges_by"] == "cost"
        assert plan["features"] == {}
        assert [
            plan[name] for name in ("monthly_cap_micros", "requests_per_minute", "requests_per_day", "allowed_models")
        ] == [None] * 4


async def test_every_edit_of_a_plan_leaves_who_what_before_and_after(database: Database) -> None:
    await database.run("delete from doorkey.audit_log")
    await database.run("update public.plans set markup = 1.2, name = 'Start' where id = 'starter'", role="postgres")
    await database.run("update public.plans set name = 'Start' where id = 'starter'", role="postgres")
    await database.run("insert into public.plans (id, name) values ('starter', 'Again') on conflict do nothing")
    await database.run("insert into public.plans (id, name) values ('short', 'Short')")
    await database.run("delete from public.plans where id = 'short'")
    edited, added, removed = await database.rows("select actor, action, detail from doorkey.audit_log order by id")
    assert (edited["actor"], edited["action"]) == ("postgres", "plan.edited")
    before, after = edited["detail"]["before"], edited["detail"]["after"]
    assert {name: (before[name], after[name]) for name in after if after[name] != before[name]} == {
        "markup": (1, 1.2),
        "name": ("Starter", "Start"),
    }
    assert (added["action"], added["detail"]["before"], added["detail"]["after"]["id"]) == ("plan.added", None, "short")
    assert (removed["action"], removed["detail"]["after"]) == ("plan.removed", None)
    assert await database.value("select updated_at > created_at from public.plans where id = 'starter'")


@pytest.mark.parametrize(
    "value",
    [
        "period_days = 0",
        "period_days = 367",
        "period_days = null",
        "credits_per_period_micros = -1",
        "credits_per_period_micros = 1000000000001",
        "monthly_cap_micros = 0",
        "monthly_cap_micros = 1, is_uncapped = true",
        "markup = 0.99",
        "charges_by = 'luck'",
        "token_price_micros_per_1k = 0",
        "charges_by = 'tokens', token_price_micros_per_1k = null",
        "markup = 0.9",
        "markup = 'NaN'",
        "requests_per_minute = 0",
        "requests_per_day = -1",
        "allowed_models = '{}'",
        "allowed_models = array['a/model', null]",
        "features = '[]'",
    ],
)
async def test_a_plan_that_makes_no_sense_cannot_be_stored(database: Database, value: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        await database.run(f"update public.plans set {value} where id = 'starter'")


# -- changes ----------------------------------------------------------------------------------------------------------

# The clock runs on while a test does: a second is worth that much of the largest allowance.
A_MINUTE = 60 * CREDIT * 60 // (30 * 86_400)


@pytest.fixture
async def periods(database: Database) -> AsyncIterator[Periods]:
    """Plans and periods, where nobody is greeted with credits. In the end all money adds up."""
    await database.run("update public.plans set welcome_credits_micros = 0")
    yield Periods(database)
    assert await Periods(database).credits.broken_rules() == []


async def spendable(periods: Periods, user_id: uuid.UUID) -> int:
    """What the user may spend, the key's limit having followed."""
    await periods.follow(user_id)
    available, held, leaving, owed = await periods.balances(user_id)
    assert (leaving, owed) == (0, 0)
    assert await periods.credits.limit(user_id) == sum(
        [available, held, *[-amount for kind, amount in await periods.ledger(user_id) if kind == "usage"]]
    )
    return available + held


def about(micros: int, wanted: int) -> bool:
    """Whether it is that much, but for the minute that a test may take."""
    return wanted - A_MINUTE <= micros <= wanted


async def test_who_comes_to_a_plan_with_periods_begins_one_with_its_whole_allowance(periods: Periods) -> None:
    user_id = await periods.subscriber("starter")
    assert await spendable(periods, user_id) == 20 * CREDIT
    assert await periods.ledger(user_id) == [("renewal", 20 * CREDIT)]


async def test_up_at_once_brings_the_difference_for_the_days_that_are_left(periods: Periods) -> None:
    user_id = await periods.subscriber("starter")
    await periods.spend(user_id, 5 * CREDIT)
    await periods.pass_days(15, user_id)
    before = await periods.account(user_id)
    answer = await periods.change(user_id, "professional")
    assert (answer["new_plan_id"], answer["period_ends_at"]) == ("professional", before["period_ends_at"])
    assert about(await spendable(periods, user_id), 35 * CREDIT)
    kind, amount = (await periods.ledger(user_id))[-1]
    assert kind == "adjustment"
    assert about(amount, 20 * CREDIT)
    # The next period is whole.
    await periods.pass_days(15, user_id)
    assert await periods.renew() == 1
    assert await spendable(periods, user_id) == 60 * CREDIT
    assert len(await periods.lots(user_id)) == 1


async def test_down_at_once_takes_back_what_the_days_that_are_left_would_have_brought(periods: Periods) -> None:
    user_id = await periods.subscriber("professional")
    await periods.grant(user_id, 7 * CREDIT)
    await periods.pass_days(15, user_id)
    await periods.change(user_id, "starter")
    _, _, leaving, _ = await periods.balances(user_id)
    assert about(leaving, 20 * CREDIT)
    left = await spendable(periods, user_id)
    assert 47 * CREDIT <= left <= 47 * CREDIT + A_MINUTE
    kind, amount = (await periods.ledger(user_id))[-1]
    assert (kind, amount) == ("adjustment", left - 67 * CREDIT)


async def test_down_takes_nothing_that_was_paid_for_or_is_held(periods: Periods) -> None:
    user_id = await periods.subscriber("professional")
    await periods.grant(user_id, 7 * CREDIT)
    await periods.spend(user_id, 30 * CREDIT)
    await periods.credits.reserve(user_id, 25 * CREDIT)
    await periods.change(user_id, "starter")
    assert await spendable(periods, user_id) == 32 * CREDIT
    assert [lot["remaining_micros"] for lot in await periods.lots(user_id)] == [25 * CREDIT, 7 * CREDIT]


async def test_going_down_and_up_again_wins_nothing(periods: Periods) -> None:
    user_id = await periods.subscriber("professional")
    for _ in range(3):
        # 60 credits in all, in the first round; none but crumbs in the others.
        await periods.follow(user_id)
        rest = (await periods.balances(user_id))[0]
        if rest:
            await periods.spend(user_id, rest)
        for plan in ("trial", "starter", "professional"):
            await periods.change(user_id, plan)
    given = sum(amount for kind, amount in await periods.ledger(user_id) if kind != "usage")
    assert given <= 60 * CREDIT


async def test_at_period_end_the_renewal_takes_the_change_up(periods: Periods) -> None:
    user_id = await periods.subscriber("professional")
    answer = await periods.change(user_id, "starter", "period_end")
    account = await periods.account(user_id)
    assert (account["plan_id"], account["pending_plan_id"]) == ("professional", "starter")
    assert answer["effective_at"] == account["period_ends_at"]
    assert await spendable(periods, user_id) == 60 * CREDIT
    await periods.pass_days(30, user_id)
    assert await periods.renew() == 1
    account = await periods.account(user_id)
    assert (account["plan_id"], account["pending_plan_id"]) == ("starter", None)
    assert (account["available_micros"], account["leaving_micros"]) == (20 * CREDIT, 60 * CREDIT)
    assert await spendable(periods, user_id) == 20 * CREDIT
    assert (await periods.ledger(user_id))[-2:] == [("renewal", 20 * CREDIT), ("expiry", -60 * CREDIT)]
    _, asked, done = await periods.audit("plan.changed", user_id)
    assert (asked["actor"], done["actor"]) == ("an operator", "sweep")
    assert (done["detail"]["before"], done["detail"]["after"]) == ({"plan_id": "professional"}, {"plan_id": "starter"})


async def test_at_period_end_to_a_plan_without_periods_the_last_one_ends(periods: Periods) -> None:
    user_id = await periods.subscriber("starter")
    await periods.change(user_id, "trial", "period_end")
    await periods.pass_days(30, user_id)
    assert await periods.renew() == 1
    account = await periods.account(user_id)
    assert (account["plan_id"], account["period_ends_at"]) == ("trial", None)
    assert await spendable(periods, user_id) == 0
    assert await periods.renew() == 0


async def test_the_plan_one_is_on_calls_a_change_off_and_another_replaces_it(periods: Periods) -> None:
    user_id = await periods.subscriber("professional")
    await periods.change(user_id, "starter", "period_end")
    await periods.change(user_id, "trial", "period_end")
    assert (await periods.account(user_id))["pending_plan_id"] == "trial"
    await periods.change(user_id, "professional", "period_end")
    assert (await periods.account(user_id))["pending_plan_id"] is None
    await periods.change(user_id, "starter", "period_end")
    await periods.change(user_id, "enterprise")
    account = await periods.account(user_id)
    assert (account["plan_id"], account["pending_plan_id"]) == ("enterprise", None)


async def test_to_the_plan_without_cap_and_back_what_was_used_there_is_receivable(periods: Periods) -> None:
    user_id = await periods.subscriber("starter")
    await periods.grant(user_id, 7 * CREDIT)
    await periods.change(user_id, "enterprise")
    claim = await periods.doors.claimed(user_id)
    assert (claim["limit_micros"], claim["is_uncapped"]) == (None, True)
    await periods.doors.finish_key_update(claim)
    await periods.follow(user_id)
    await periods.spend(user_id, 500 * CREDIT)
    account = await periods.account(user_id)
    assert (account["receivable_micros"], account["debt_micros"]) == (500 * CREDIT, 0)
    # Its allowance is none; what was paid for stays.
    assert 7 * CREDIT <= account["available_micros"] <= 7 * CREDIT + A_MINUTE
    await periods.change(user_id, "starter")
    await periods.follow(user_id)
    account = await periods.account(user_id)
    assert (account["receivable_micros"], account["leaving_micros"]) == (500 * CREDIT, 0)
    assert about(account["available_micros"], 27 * CREDIT)
    (key,) = await periods.doors.keys(user_id)
    assert key["limit_micros"] == 500 * CREDIT + account["available_micros"]


async def test_a_period_that_is_over_is_renewed_before_the_plan_changes(periods: Periods) -> None:
    user_id = await periods.subscriber("starter")
    await periods.spend(user_id, 5 * CREDIT)
    await periods.pass_days(30, user_id)
    await periods.change(user_id, "professional")
    assert about(await spendable(periods, user_id), 60 * CREDIT)
    account = await periods.account(user_id)
    assert (account["period_number"], account["is_running"]) == (2, True)
    assert await periods.renew() == 0


async def test_a_repeated_change_answers_as_the_first_and_other_content_is_refused(periods: Periods) -> None:
    user_id, other = await periods.subscriber("starter"), await periods.subscriber("starter")
    first = await periods.change(user_id, "professional", key="k")
    ledger, lines = await periods.ledger(user_id), await periods.audit("plan.changed", user_id)
    assert await periods.change(user_id, "professional", key="k", actor="somebody else") == first
    assert (await periods.ledger(user_id), await periods.audit("plan.changed", user_id)) == (ledger, lines)
    for plan, when, reason in (
        ("trial", "now", "Asked for it"),
        ("professional", "period_end", "Asked for it"),
        ("professional", "now", "Another"),
    ):
        with refused("PT409", "idempotency_conflict"):
            await periods.change(user_id, plan, when, key="k", reason=reason)
    # A key is a user's own.
    assert (await periods.change(other, "trial", key="k"))["new_plan_id"] == "trial"


async def test_every_change_is_noted_with_what_was_before_and_after(periods: Periods) -> None:
    user_id = await periods.subscriber("starter")
    await periods.change(user_id, "professional", actor="operator 7", reason="Won a prize")
    line = (await periods.audit("plan.changed", user_id))[-1]
    detail = line["detail"]
    assert (line["actor"], line["request_id"], detail["reason"], detail["when"]) == (
        "operator 7",
        "r",
        "Won a prize",
        "now",
    )
    assert (detail["before"]["plan_id"], detail["before"]["available_micros"]) == ("starter", 20 * CREDIT)
    assert detail["after"]["plan_id"] == "professional"
    assert about(detail["after"]["available_micros"], 60 * CREDIT)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "an unknown plan": ({"plan_id": "golden"}, "PT404", "unknown_plan"),
    "no plan": ({"plan_id": None}, "PT404", "unknown_plan"),
    "the same plan": ({"plan_id": "starter"}, "PT409", "plan_unchanged"),
    "a plan that nobody comes to": ({"plan_id": "old"}, "PT409", "plan_inactive"),
    "some day": ({"takes_effect": "some day"}, "PT422", "posting_invalid"),
    "no time": ({"takes_effect": None}, "PT422", "posting_invalid"),
    "no key": ({"key": None}, "PT422", "idempotency_key_invalid"),
    "a long key": ({"key": "k" * 201}, "PT422", "idempotency_key_invalid"),
    "no reason": ({"reason": ""}, "PT422", "posting_invalid"),
    "nobody": ({"actor": None}, "PT422", "posting_invalid"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_makes_no_sense_is_refused_by_name_and_changes_nothing(periods: Periods, what: str) -> None:
    arguments, sqlstate, word = REFUSED[what]
    user_id = await periods.subscriber("starter")
    await periods.database.run("insert into public.plans (id, name, is_active) values ('old', 'Old', false)")
    before, row = await periods.account(user_id), await periods.doors.row(user_id)
    with refused(sqlstate, word):
        await periods.change(user_id, **{"plan_id": "professional", **arguments})
    assert (await periods.account(user_id), await periods.doors.row(user_id)) == (before, row)


async def test_who_is_unknown_gone_or_without_a_period_is_refused_by_name(periods: Periods) -> None:
    with refused("PT404", "profile_not_found"):
        await periods.change(uuid.uuid4(), "starter")
    user_id = await periods.database.insert_user()
    await periods.doors.make_ready(user_id)
    with refused("PT409", "no_period"):
        await periods.change(user_id, "starter", "period_end")
    await periods.database.run("delete from auth.users where id = %s", (user_id,))
    with refused("PT410", "user_gone"):
        await periods.change(user_id, "starter")
