"""Plans are rows that an operator edits, and a user goes from one to another: at once, or when their period ends."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.databases import Database

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
        "markup = 0.99",
        "charges_by = 'luck'",
        "token_price_micros_per_1k = 0",
        "charges_by = 'tokens', token_price_micros_per_1k = null",
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
