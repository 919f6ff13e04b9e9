"""Plans as operators keep them: seen, set and added, noted; what was charged stays, and the keys' limits follow."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import psycopg
import pytest

from tests.database.test_edits import lines
from tests.support.credit_doors import Credits
from tests.support.databases import Database, Row
from tests.support.doors import Doors, refused
from tests.support.verification import differences

WELCOME = 10_000
USERS_PER_SWEEP = 100

# Another value for every column that an operator edits, as it is sent.
EDITS: dict[str, tuple[str, Any]] = {
    "name": ('Begin {here}, "quoted"', 'Begin {here}, "quoted"'),
    "price_micros": ("25000001", 25_000_001),
    "period_days": ("31", 31),
    "credits_per_period_micros": ("1000000000000", 10**12),
    "monthly_cap_micros": ("1", 1),
    "welcome_credits_micros": ("7", 7),
    "welcome_credits_days": ("36500", 36_500),
    "markup": ("999.999999", 999.999999),
    "charges_by": ("tokens", "tokens"),
    "token_price_micros_per_1k": ("3", 3),
    "is_uncapped": ("true", True),
    "requests_per_minute": ("5", 5),
    "requests_per_day": ("6", 6),
    "allowed_models": ('["a/model", "b,{\\"}"]', ["a/model", 'b,{"}']),
    "features": ('{"support": "mail"}', {"support": "mail"}),
    "is_active": ("false", False),
}


async def set_plan(database: Database, plan_id: str | None, *, is_new: object = False, **values: str | None) -> Row:
    return await set_columns(database, plan_id, list(values), list(values.values()), is_new=is_new)


async def set_columns(database: Database, plan_id: object, names: object, values: object, *, is_new: object) -> Row:
    async with database.acting_as("service_role") as connection:
        rows = await connection.execute(
            "select public.set_plan(%s, %s, %s::text[], %s::text[], 'operator:ada', 'r') as edit",
            (plan_id, is_new, names, values),
        )
        (row,) = await rows.fetchall()
    edit: Row = row["edit"]
    return edit


async def listed(database: Database, after: str | None = None, rows: int = 1_000) -> list[Row]:
    async with database.acting_as("service_role") as connection:
        found = await connection.execute("select public.list_plans(%s, %s) as plan", (after, rows))
        return [row["plan"] for row in await found.fetchall()]


async def plan(database: Database, plan_id: str) -> Row:
    (row,) = await database.rows("select to_jsonb(p) as plan from public.plans as p where id = %s", (plan_id,))
    found: Row = row["plan"]
    return found


async def ready(database: Database, plan_id: str = "trial") -> uuid.UUID:
    """Somebody on this plan, with a key."""
    user_id = await database.insert_user()
    await Doors(database).make_ready(user_id)
    await database.run("update public.credit_accounts set plan_id = %s where user_id = %s", (plan_id, user_id))
    return user_id


async def heal(database: Database, users: int = USERS_PER_SWEEP) -> int:
    """What a sweep does that looks at so many users; how many keys are to be set right."""
    return int(await database.value("select healed from doorkey.start_sweep(%s)", (users,)))


@pytest.fixture
async def credits_(database: Database) -> Credits:
    await database.run("update public.plans set welcome_credits_micros = %s, monthly_cap_micros = null", (WELCOME,))
    return Credits(database)


# -- the doors --------------------------------------------------------------------------------------------------------


async def test_every_column_is_set_by_itself_and_noted_with_who_before_and_after(database: Database) -> None:
    columns = await database.rows(
        "select attname as name from pg_attribute where attrelid = 'public.plans'::regclass and attnum > 0"
    )
    assert {column["name"] for column in columns} - {"id", "created_at", "updated_at"} == EDITS.keys()
    for name, (sent, stored) in EDITS.items():
        # One that goes with each of them.
        await set_plan(
            database, "fitting", is_new=True, name="Fitting", period_days="30", token_price_micros_per_1k="1"
        )
        before = await plan(database, "fitting")
        edit = await set_plan(database, "fitting", **{name: sent})
        after = await plan(database, "fitting")
        assert {key for key in after if after[key] != before[key]} == {name, "updated_at"}
        assert after[name] == stored
        (edit_before, edit_after) = ({**edit["before"], "updated_at": ""}, {**edit["after"], "updated_at": ""})
        assert (edit_before, edit_after) == ({**before, "updated_at": ""}, {**after, "updated_at": ""})
        *_, line = await lines(database, "plan")
        assert (line["actor"], line["action"]) == ("operator:ada", "plan.edited")
        assert (line["before"][name], line["after"][name]) == (before[name], stored)
        await database.run("delete from public.plans where id = 'fitting'")
    assert await database.value("select distinct request_id from doorkey.audit_log where action = 'plan.edited'") == "r"


async def test_what_is_not_said_stays_and_the_same_again_leaves_no_line(database: Database) -> None:
    await set_plan(database, "starter", monthly_cap_micros="5", requests_per_day="7")
    await set_plan(database, "starter", price_micros="25000000", requests_per_day=None)
    noted = len(await lines(database, "plan"))
    edit = await set_plan(database, "starter", price_micros="25000000", monthly_cap_micros="5")
    assert edit["before"] == edit["after"]
    assert len(await lines(database, "plan")) == noted == 2
    now = await plan(database, "starter")
    assert (now["price_micros"], now["monthly_cap_micros"], now["requests_per_day"]) == (25_000_000, 5, None)
    assert (now["name"], now["credits_per_period_micros"]) == ("Starter", 20_000_000)


async def test_a_plan_is_added_once_with_what_a_plan_has_by_itself(database: Database) -> None:
    given = {"name": "Annual", "period_days": "365", "credits_per_period_micros": "240000000"}
    assert (await set_plan(database, "annual", is_new=True, **given))["before"] is None
    # The answer was lost: the same again is no error, and nothing is done.
    again = await set_plan(database, "annual", is_new=True, **given)
    assert again["before"] == again["after"]
    with refused("PT409", "plan_exists"):
        await set_plan(database, "annual", is_new=True, **{**given, "period_days": "364"})
    added = await plan(database, "annual")
    assert (added["markup"], added["charges_by"], added["is_active"], added["features"]) == (1, "cost", True, {})
    assert (added["period_days"], added["price_micros"]) == (365, 0)
    (line,) = await lines(database, "plan")
    assert (line["actor"], line["action"], line["before"]) == ("operator:ada", "plan.added", None)
    with refused("PT404", "unknown_plan"):
        await set_plan(database, "monthly", name="Monthly")


async def test_of_many_who_add_a_plan_at_once_one_does(database: Database) -> None:
    outcomes = await asyncio.gather(
        *(set_plan(database, "annual", is_new=True, name=f"Annual {n}") for n in range(6)), return_exceptions=True
    )
    refusals = [outcome for outcome in outcomes if isinstance(outcome, psycopg.Error)]
    assert [refusal.diag.message_primary for refusal in refusals] == ["plan_exists"] * 5
    assert len(await lines(database, "plan")) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {name: value}
        for name in ("price_micros", "credits_per_period_micros", "monthly_cap_micros", "welcome_credits_micros")
        for value in ("-1", "NaN", "Infinity", "1e30", "0.5", "1000000000001", "9" * 30, "", "ten")
    ]
    + [{"token_price_micros_per_1k": value} for value in ("0", "-1", "NaN", "1e30", "0.5", "1000000000001")]
    + [{"markup": value} for value in ("0", "0.999999", "-1", "NaN", "1e30", "1000", "1.0000001", "999.9999999", None)]
    + [{"period_days": value} for value in ("0", "-1", "367", "1.5", "1e30", None)]
    + [{"welcome_credits_days": value} for value in ("0", "-1", "36501", "9999999999")]
    + [{name: value} for name in ("requests_per_minute", "requests_per_day") for value in ("0", "-1", "9999999999")]
    + [{"name": value} for value in (None, "", " ", "n" * 201)]
    + [{"allowed_models": value} for value in ("[]", "[null]", "a/model", '{"a": 1}')]
    + [{"features": value} for value in ("[]", "7", "null", "{", None)]
    + [{"is_active": value} for value in ("maybe", None)]
    + [{"charges_by": value} for value in ("luck", None)]
    + [
        {"monthly_cap_micros": "0"},
        {"monthly_cap_micros": "1", "is_uncapped": "true"},
        {"charges_by": "tokens", "token_price_micros_per_1k": None},
        {"id": "other"},
        {"created_at": "2026-01-01"},
        {"no_such_column": "1"},
        {"name = '', markup": "2"},
        {},
    ],
    ids=lambda wrong: json.dumps(wrong)[:60],
)
async def test_what_makes_no_plan_is_refused_in_a_word_and_nothing_is_written(
    database: Database, wrong: dict[str, str | None]
) -> None:
    before = await plan(database, "starter")
    for is_new, plan_id in ((False, "starter"), (True, "another")):
        if is_new and "period_days" in wrong and wrong["period_days"] is None:
            continue  # A plan without periods is one.
        given = {"requests_per_day": "5", **({"name": "Another"} if is_new else {}), **wrong} if wrong else {}
        if is_new and wrong.get("token_price_micros_per_1k", "") is None:
            given["charges_by"] = "tokens"
        with refused("PT422", "plan_invalid"):
            await set_plan(database, plan_id, is_new=is_new, **given)
    assert await plan(database, "starter") == before
    assert await database.value("select count(*) from public.plans where id = 'another'") == 0
    assert await lines(database, "plan") == []


async def test_a_plan_has_a_name_and_as_many_values_as_columns(database: Database) -> None:
    for plan_id in ("Big", "", "a b", "1st", "a" * 64, None):
        with refused("PT422", "plan_invalid"):
            await set_plan(database, plan_id, is_new=True, name="A plan")
    for names, values in (
        (["name"], []),
        (["name", "requests_per_day"], ["A plan"]),
        (["name"], ["A plan", "1"]),
        ([None], ["1"]),
        (None, None),
        (["name"], None),
    ):
        with refused("PT422", "plan_invalid"):
            await set_columns(database, "starter", names, values, is_new=False)
    assert (await plan(database, "starter"))["name"] == "Starter"


async def test_the_plan_that_new_users_come_to_is_not_closed(database: Database) -> None:
    with refused("PT409", "plan_is_default"):
        await set_plan(database, "trial", is_active="false", price_micros="1")
    assert (await plan(database, "trial"))["price_micros"] == 0
    await database.run("update doorkey.settings set default_plan_id = 'starter'")
    await set_plan(database, "trial", is_active="false")
    # Closed by somebody with SQL, it may still be edited.
    await database.run("update doorkey.settings set default_plan_id = 'trial'")
    assert (await set_plan(database, "trial", price_micros="1"))["after"]["price_micros"] == 1


async def test_plans_are_listed_page_by_page_with_who_is_on_them_closed_ones_too(database: Database) -> None:
    await set_plan(database, "starter", is_active="false", markup="1.25")
    for plan_id in ("trial", "starter", "starter"):
        await ready(database, plan_id)
    pages = [await listed(database, after, 2) for after in (None, "professional", "trial")]
    found = [row for page in pages for row in page]
    assert [(row["id"], row["accounts"], row["is_default"]) for row in found] == [
        ("enterprise", 0, False),
        ("professional", 0, False),
        ("starter", 2, False),
        ("trial", 1, True),
    ]
    assert {key: value for key, value in found[2].items() if key not in ("accounts", "is_default")} == await plan(
        database, "starter"
    )
    assert (await set_plan(database, "starter", price_micros="1"))["accounts"] == 2


# -- what comes of it -------------------------------------------------------------------------------------------------


async def test_what_was_charged_stays_and_the_next_call_has_the_new_price(credits_: Credits) -> None:
    user_id = await ready(credits_.database)
    for cost in (10, 20):
        await credits_.settle((await credits_.reserve(user_id, 100))["hold_id"], cost)
    under_way = (await credits_.reserve(user_id, 100))["hold_id"]
    history = "select * from public.credit_transactions where user_id = %s order by id"
    charged, account = await credits_.database.rows(history, (user_id,)), await credits_.account(user_id)

    await set_plan(credits_.database, "trial", markup="1.5")
    assert await credits_.database.rows(history, (user_id,)) == charged
    assert await credits_.account(user_id) == account
    assert (await credits_.settle(under_way, 10))["charged_micros"] == 15
    await set_plan(credits_.database, "trial", charges_by="tokens", token_price_micros_per_1k="2000")
    hold_id = (await credits_.reserve(user_id, 100))["hold_id"]
    assert (await credits_.settle(hold_id, 10, tokens=7))["charged_micros"] == 14
    assert (await credits_.account(user_id))["available_micros"] == WELCOME - 30 - 15 - 14
    assert (await credits_.database.rows(history, (user_id,)))[: len(charged)] == charged
    assert await differences(credits_.database) == []


async def test_what_was_charged_unseen_is_given_back_at_the_price_that_it_had(credits_: Credits) -> None:
    user_id = await ready(credits_.database)
    await set_plan(credits_.database, "trial", markup="1.5")
    await credits_.database.run(
        "select doorkey.post_unheld_cost(p.user_id, p.key_hash, current_date, 100, 'unseen:1', 'r')"
        "  from doorkey.provisioning as p where p.user_id = %s",
        (user_id,),
    )
    assert (await credits_.account(user_id))["available_micros"] == WELCOME - 150
    await set_plan(credits_.database, "trial", markup="3")
    await credits_.database.run(
        "select doorkey.return_unseen(p.user_id, p.key_hash, 60, 'r')"
        "  from doorkey.provisioning as p where p.user_id = %s",
        (user_id,),
    )
    assert (await credits_.account(user_id))["available_micros"] == WELCOME - 150 + 90
    assert await differences(credits_.database) == []


async def test_a_plan_that_loses_or_gets_its_limit_under_open_calls_keeps_the_books_right(credits_: Credits) -> None:
    user_id = await ready(credits_.database)
    for is_uncapped in ("true", "false", "true"):
        under_way = (await credits_.reserve(user_id, 100))["hold_id"]
        await set_plan(credits_.database, "trial", is_uncapped=is_uncapped)
        await credits_.settle(under_way, 10)
        assert await differences(credits_.database) == []
    account = await credits_.account(user_id)
    assert (account["available_micros"], account["held_micros"], account["receivable_micros"]) == (WELCOME - 10, 0, 20)


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        ({"markup": "2"}, 30 + (WELCOME - 30) // 2),
        ({"monthly_cap_micros": "100", "period_days": "30"}, 100),
        ({"is_uncapped": "true"}, None),
    ],
    ids=["markup", "cap", "uncapped"],
)
async def test_the_limits_of_everybody_on_the_plan_follow_with_the_sweep_and_of_nobody_else(
    credits_: Credits, change: dict[str, str], limit: int | None
) -> None:
    database, doors = credits_.database, Doors(credits_.database)
    users = [await ready(database) for _ in range(3)]
    other = await ready(database, "starter")
    await database.run("update public.credit_accounts set period_started_at = now(), period_ends_at = now() + '1 day'")
    for user_id in (*users, other):
        await credits_.settle((await credits_.reserve(user_id, 100))["hold_id"], 30)
    assert await heal(database) == 0

    # The change itself touches no key: there may be more of them than a statement can serve.
    rows = "select * from doorkey.provisioning order by user_id"
    before = await database.rows(rows)
    edit = await set_plan(database, "trial", **change)
    assert await database.rows(rows) == before
    assert (edit["accounts"], edit["users"]) == (3, 4)

    assert await heal(database) == 3
    for user_id in users:
        claim = await doors.claimed(user_id)
        assert (claim["action"], claim["limit_micros"], claim["is_uncapped"]) == ("update", limit, limit is None)
        assert await doors.finish_key_update(claim) == "ready"
    assert await doors.state(other) == "ready"
    assert await heal(database) == 0


async def test_a_crowd_whose_limits_change_does_not_pile_up_before_everybody_else(credits_: Credits) -> None:
    database, doors = credits_.database, Doors(credits_.database)
    users = {await ready(database) for _ in range(5)}
    await set_plan(database, "trial", markup="2")
    seen: set[uuid.UUID] = set()
    for expected in (2, 2, 1):
        assert await heal(database, 2) == expected
        rows = await database.rows("select user_id from doorkey.provisioning where state = 'due'")
        waiting = {row["user_id"] for row in rows}
        assert (len(waiting), waiting & seen) == (expected, set())
        seen |= waiting
        # As long as nobody was served, the walk goes no further, and begins no other one.
        if expected == 2:
            assert await heal(database, 2) == 0
        for user_id in waiting:
            assert await doors.finish_key_update(await doors.claimed(user_id)) == "ready"
    assert seen == users
    # Who waits for a first key holds up nobody's limit: a brake may keep them for hours.
    for _ in range(3):
        await database.insert_user()
    await set_plan(database, "trial", markup="3")
    healed = 0
    for _ in range(3):
        healed += await heal(database, 3)
        for user_id in users:
            if await doors.state(user_id) == "due":
                await doors.finish_key_update(await doors.claimed(user_id))
    assert healed == len(users)


@pytest.mark.parametrize(
    "change",
    [
        {"price_micros": "1", "credits_per_period_micros": "1", "period_days": "31"},
        {"welcome_credits_micros": "1", "name": "Another"},
        {"charges_by": "tokens", "token_price_micros_per_1k": "7"},
    ],
    ids=["allowance", "welcome", "tokens"],
)
async def test_what_moves_no_limit_wants_nothing_at_openrouter(credits_: Credits, change: dict[str, str]) -> None:
    user_id = await ready(credits_.database)
    account = await credits_.account(user_id)
    await set_plan(credits_.database, "trial", **change)
    assert await heal(credits_.database) == 0
    assert await credits_.account(user_id) == account


async def test_a_change_waits_for_nobody_who_spends_and_nobody_comes_to_wait(credits_: Credits) -> None:
    database = credits_.database
    user_id = await ready(database)
    async with database.connect(autocommit=False) as spending:
        await spending.execute("select from public.credit_accounts where user_id = %s for update", (user_id,))
        await spending.execute("select from doorkey.provisioning where user_id = %s for update", (user_id,))
        await asyncio.wait_for(set_plan(database, "trial", markup="2"), 10)
    async with database.connect(autocommit=False) as editing:
        await editing.execute("select doorkey.set_plan('trial', false, '{markup}', '{3}', 'operator:ada', 'r')")
        # Neither who comes to the plan, nor who spends on it.
        await asyncio.wait_for(ready(database), 10)
        await asyncio.wait_for(credits_.reserve(user_id, 1), 10)
