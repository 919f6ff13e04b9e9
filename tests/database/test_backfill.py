"""Users from before the installation: who is enrolled, when, and that nothing is done twice.

They are inserted by the thousand, without our triggers: as they were before those came.
"""

from __future__ import annotations

import asyncio
import uuid

import pytest

from functions.provisioning.sweeping import USERS_PER_SWEEP
from tests.support.databases import Database, Row
from tests.support.doors import Doors, refused, wait_until_blocked

OLD_USERS = 1_000
MANY_OLD_USERS = 200_000
# A quarter of what hosted Supabase gives to a caller with the service's key.
STATEMENT_TIMEOUT_MS = 2_000
MAX_CALLS = 300

PREVIEW = "select * from public.preview_backfill(%s, null, %s, %s, %s)"
BACKFILL = "select * from public.backfill_users(%s, %s, null, null, %s, %s, 'r')"


@pytest.fixture
def doors(database: Database) -> Doors:
    """All that a worker may do."""
    return Doors(database)


async def insert_old(database: Database, how_many: int, **columns: str) -> list[uuid.UUID]:
    """Users from before, confirmed unless `columns`, in SQL, say otherwise."""
    values = {
        "email_confirmed_at": "now()",
        "created_at": "'2020-01-01'::timestamptz + n * interval '1 min'",
        **columns,
    }
    async with database.connect(autocommit=False) as connection:
        await connection.execute("set local session_replication_role = replica")
        found = await connection.execute(
            f"insert into auth.users (id, email, {', '.join(values)})"
            f" select gen_random_uuid(), gen_random_uuid() || '@example.com', {', '.join(values.values())}"
            f" from generate_series(1, {how_many}) as n returning id"
        )
        return sorted(row["id"] for row in await found.fetchall())


async def preview(database: Database, since: str | None = None, before: str | None = None, users: int = 5000) -> Row:
    """All pages of a dry run, added up."""
    total: Row = {}
    after = None
    async with database.acting_as("service_role") as connection:
        for _ in range(MAX_CALLS):
            (page,) = await (await connection.execute(PREVIEW, (after, since, before, users))).fetchall()
            after = page.pop("next_after")
            total = {name: total.get(name, 0) + count for name, count in page.items()}
            if after is None:
                return total
    raise AssertionError("the pages never end")


async def backfill(
    database: Database, *, users: int = 100, per_hour: int = 250, user_id: uuid.UUID | None = None
) -> list[Row]:
    """All batches of a backfill."""
    batches: list[Row] = []
    async with database.acting_as("service_role") as connection:
        for _ in range(MAX_CALLS):
            after = batches[-1]["next_after"] if batches else None
            batches += await (await connection.execute(BACKFILL, (after, user_id, users, per_hour))).fetchall()
            if batches[-1]["next_after"] is None:
                return batches
    raise AssertionError("the batches never end")


async def progress(database: Database) -> Row:
    """How all backfills stand."""
    async with database.acting_as("service_role") as connection:
        (row,) = await (await connection.execute("select * from public.get_backfill_progress()")).fetchall()
        return row


async def enrolled(database: Database) -> list[uuid.UUID]:
    """Whom backfills enrolled, by id."""
    rows = await database.rows("select user_id from doorkey.provisioning where backfill_at is not null order by 1")
    return [row["user_id"] for row in rows]


async def make_due_now(database: Database) -> None:
    """Lets the time pass that the moments are spread over."""
    await database.run("update doorkey.provisioning set due_at = now() - interval '1 h' where state = 'due'")


async def listed(database: Database, rows: int = 1000) -> list[uuid.UUID]:
    """Whom a sweep would work on."""
    async with database.acting_as("service_role") as connection:
        found = await connection.execute("select * from public.list_due_provisioning(%s) as user_id", (rows,))
        return [row["user_id"] for row in await found.fetchall()]


async def test_a_thousand_old_users_are_enrolled_once_and_a_dry_run_changes_nothing(database: Database) -> None:
    old = await insert_old(database, OLD_USERS)
    counted = {"confirmed": OLD_USERS, "unconfirmed": 0, "anonymous": 0, "left_out": 0, "due": OLD_USERS}
    assert await preview(database) == counted
    assert await preview(database, users=300) == counted
    assert await enrolled(database) == []
    batches = await backfill(database, users=300)
    assert [batch["due"] for batch in batches] == [300, 300, 300, 100]
    assert await enrolled(database) == old
    assert await preview(database) == dict.fromkeys(counted, 0)
    assert [batch["due"] for batch in await backfill(database)] == [0]
    # As after a signup: the copy for people says that a key is on its way.
    shown = (
        "select count(*) from public.profiles where openrouter_provisioning_status = 'pending' and email is not null"
    )
    assert await database.value(shown) == OLD_USERS
    lines = await database.rows("select actor, detail from doorkey.audit_log where action = 'users.backfilled'")
    assert [(line["actor"], line["detail"]["due"]) for line in lines] == [
        ("operator", due) for due in (300, 300, 300, 100)
    ]


@pytest.mark.parametrize(
    ("provision_on", "provision_anonymous", "due", "waiting"),
    [
        ("confirmed", False, 3, 9),
        ("confirmed", True, 3, 9),
        ("created", False, 7, 5),
        ("created", True, 12, 0),
        ("manual", True, 0, 12),
    ],
)
async def test_the_rules_of_a_signup_hold(
    database: Database, provision_on: str, provision_anonymous: bool, due: int, waiting: int
) -> None:
    await database.run(
        "update doorkey.settings set provision_on = %s, provision_anonymous = %s", (provision_on, provision_anonymous)
    )
    await insert_old(database, 2)
    await insert_old(database, 1, email_confirmed_at="null", phone_confirmed_at="now()")
    await insert_old(database, 4, email_confirmed_at="null")
    await insert_old(database, 5, email_confirmed_at="null", is_anonymous="true")
    banned = await insert_old(database, 6, banned_until="now() + interval '1 day'")
    deleted = await insert_old(database, 7, deleted_at="now()")
    await insert_old(database, 1, created_at="null")
    counted = await preview(database)
    assert counted == {"confirmed": 3, "unconfirmed": 4, "anonymous": 5, "left_out": 13, "due": due}
    (batch,) = await backfill(database)
    assert (batch["due"], batch["waiting"]) == (due, waiting)
    assert not {*banned, *deleted} & {*await enrolled(database)}
    # Whoever signs up now under the same settings begins in the same state.
    states = {True: "due", False: "waiting"}
    assert await Doors(database).state(await database.insert_user(confirmed=False)) == states[provision_on == "created"]


async def test_a_ban_that_is_over_is_no_ban(database: Database) -> None:
    (user_id,) = await insert_old(database, 1, banned_until="now() - interval '1 s'")
    await backfill(database)
    assert await enrolled(database) == [user_id]


async def test_only_those_of_the_window_or_the_one_user_are_meant(database: Database) -> None:
    # One a minute, from a minute after the hour.
    old = await insert_old(database, 10)
    window = await preview(database, "2020-01-01 00:03+00", "2020-01-01 00:05+00")
    assert window["confirmed"] == 2
    await backfill(database, user_id=old[5])
    assert await enrolled(database) == [old[5]]
    new = await database.insert_user()
    await database.run("delete from doorkey.provisioning where user_id = %s", (new,))
    await backfill(database, user_id=new)
    assert await enrolled(database) == [old[5]]


async def test_moments_are_spread_so_that_the_rate_holds_over_batches_and_runs(database: Database) -> None:
    await insert_old(database, 30)
    await backfill(database, users=10, per_hour=360)
    await insert_old(database, 5)
    await backfill(database, per_hour=120)
    pauses = await database.rows(
        "select extract(epoch from due_at - lag(due_at) over (order by due_at))::int as s, backfill_at = due_at as same"
        " from doorkey.provisioning order by due_at"
    )
    assert [row["s"] for row in pauses[1:]] == [10] * 29 + [30] * 5
    assert all(row["same"] for row in pauses)
    assert 410 < (await progress(database))["ahead_seconds"] <= 29 * 10 + 5 * 30
    assert len(await listed(database)) <= 5


async def test_those_who_wait_take_up_no_moment(database: Database) -> None:
    await insert_old(database, 50, email_confirmed_at="null")
    await insert_old(database, 2)
    await backfill(database, per_hour=60)
    assert (await progress(database))["ahead_seconds"] <= 60


async def test_concurrent_backfills_enrol_each_user_once(database: Database) -> None:
    old = await insert_old(database, 200)
    runs = await asyncio.gather(*(backfill(database, users=20, per_hour=360) for _ in range(4)))
    assert sum(batch["due"] for batches in runs for batch in batches) == len(old)
    assert await enrolled(database) == old
    lines = "select sum((detail ->> 'due')::int) from doorkey.audit_log where action = 'users.backfilled'"
    assert await database.value(lines) == len(old)


async def test_two_backfills_of_different_users_share_one_rate(database: Database) -> None:
    first, second = await insert_old(database, 2)
    async with database.connect(autocommit=False) as connection:
        await connection.execute(BACKFILL, (None, first, 1, 360))
        other = asyncio.create_task(backfill(database, user_id=second, per_hour=360))
        await wait_until_blocked(database, 1)
        await connection.commit()
    await other
    pause = "select max(due_at) - min(due_at) from doorkey.provisioning"
    assert (await database.value(pause)).total_seconds() == 10


async def test_users_inserted_behind_the_cursor_are_found_by_the_next_run(database: Database) -> None:
    old = await insert_old(database, 40)
    async with database.acting_as("service_role") as connection:
        (first,) = await (await connection.execute(BACKFILL, (None, None, 20, 250))).fetchall()
        late = await insert_old(database, 40)
        new = [await database.insert_user() for _ in range(3)]
        await connection.execute(BACKFILL, (first["next_after"], None, 1000, 250))
    ahead = [user_id for user_id in late if user_id > first["next_after"]]
    assert await enrolled(database) == sorted([*old, *ahead])
    await backfill(database)
    assert await enrolled(database) == sorted([*old, *late])
    assert [await Doors(database).state(user_id) for user_id in new] == ["due"] * 3


async def test_an_old_user_who_waits_is_woken_by_their_confirmation(database: Database, doors: Doors) -> None:
    by_trigger, by_sweep, by_hint = await insert_old(database, 3, email_confirmed_at="null")
    confirm = "update auth.users set email_confirmed_at = now() where id = %s"
    await backfill(database)
    assert [await doors.state(user_id) for user_id in (by_trigger, by_sweep, by_hint)] == ["waiting"] * 3
    await database.run(confirm, (by_trigger,), role="supabase_auth_admin")
    assert await doors.state(by_trigger) == "due"
    await doors.make_ready(by_trigger)
    await database.run("alter table auth.users disable trigger zz_doorkey_user_updated")
    await database.run(confirm, (by_hint,), role="supabase_auth_admin")
    await doors.make_ready(by_hint)
    await database.run(confirm, (by_sweep,), role="supabase_auth_admin")
    async with database.acting_as("service_role") as connection:
        (begun,) = await (
            await connection.execute("select * from public.start_sweep(%s)", (USERS_PER_SWEEP,))
        ).fetchall()
    assert begun["enrolled"] == 1
    await doors.make_ready(by_sweep)
    assert (await progress(database))["ready"] == 3


async def test_an_old_user_gets_one_grant_and_their_profile_follows(database: Database, doors: Doors) -> None:
    (user_id,) = await insert_old(database, 1)
    await backfill(database)
    await doors.make_ready(user_id)
    await backfill(database)
    assert await database.value("select count(*) from public.credit_transactions") == 1
    assert await database.value("select openrouter_provisioning_status from public.profiles") == "active"
    assert (await progress(database))["ready"] == 1


async def test_a_signup_stands_before_the_crowd_and_the_crowd_leaves_a_tenth_of_the_hour(
    database: Database, doors: Doors
) -> None:
    await database.run("update doorkey.settings set max_keys_per_hour = 20")
    old = await insert_old(database, 30)
    await backfill(database, per_hour=18)
    # Nobody swept for hours.
    await make_due_now(database)
    signups = [await database.insert_user() for _ in range(3)]
    crowd = await listed(database)
    assert crowd[:3] == signups
    assert len(crowd) == 3 + 18
    assert (await listed(database, 2)) == signups[:2]
    for user_id in crowd[3:]:
        await doors.make_ready(user_id)
    assert await listed(database) == signups
    for user_id in signups[:2]:
        await doors.make_ready(user_id)
    # Whoever has their key is no crowd any more: another limit, a ban, is worked on at once.
    await database.run("select doorkey.want(%s)", (crowd[3],))
    assert await listed(database) == [signups[2], crowd[3]]
    await database.run("update doorkey.settings set max_keys_per_hour = null")
    assert len(await listed(database)) == 2 + len(old) - 18


@pytest.mark.parametrize("per_hour", [None, 0, 451, -1])
async def test_a_rate_that_leaves_nothing_to_signups_is_refused(database: Database, per_hour: int | None) -> None:
    await insert_old(database, 1)
    async with database.acting_as("service_role") as connection:
        with refused("PT422", "rate_out_of_range"):
            await connection.execute(BACKFILL, (None, None, 1, per_hour))
    assert await enrolled(database) == []
    assert (await progress(database))["max_per_hour"] == 450


@pytest.mark.parametrize("users", [None, 0, 5001])
async def test_every_call_is_bounded(database: Database, users: int | None) -> None:
    async with database.acting_as("service_role") as connection:
        for statement, parameters in ((PREVIEW, (None, None, None, users)), (BACKFILL, (None, None, users, 1))):
            with refused("PT422", "page_out_of_range"):
                await connection.execute(statement, parameters)


async def test_two_hundred_thousand_old_users_are_no_reason_to_run_out_of_time(database: Database) -> None:
    await insert_old(database, MANY_OLD_USERS)
    await database.run("update doorkey.settings set max_keys_per_hour = null")
    calls = 0
    after = None
    async with database.acting_as("service_role") as connection:
        await connection.execute(f"set statement_timeout = {STATEMENT_TIMEOUT_MS}")
        for _ in range(MAX_CALLS):
            (page,) = await (await connection.execute(PREVIEW, (after, None, None, 5000))).fetchall()
            assert page["confirmed"] in (0, 5000)
            calls, after = calls + 1, page["next_after"]
            if after is None:
                break
        # Everybody but the very last.
        await database.run(
            "insert into doorkey.provisioning (user_id, state, backfill_at) select id, 'waiting', now() from auth.users"
            " order by id limit %s", (MANY_OLD_USERS - 1500,),
        )  # fmt: skip
        counts = []
        for _ in range(MAX_CALLS):
            (batch,) = await (await connection.execute(BACKFILL, (after, None, 1000, 250))).fetchall()
            counts.append(batch["due"])
            after = batch["next_after"]
            if after is None:
                break
        await connection.execute("select * from public.get_backfill_progress()")
        (one,) = await (
            await connection.execute("select * from public.preview_backfill(null, %s, null, null, 1)", (uuid.uuid4(),))
        ).fetchall()
    assert calls == MANY_OLD_USERS // 5000 + 1
    # The walk over those who have a row goes page by page as well.
    assert counts[: MANY_OLD_USERS // 5000 - 1] == [0] * (MANY_OLD_USERS // 5000 - 1)
    assert sum(counts) == 1500
    assert one["next_after"] is None


async def test_a_locked_profiles_table_postpones_the_batch_and_another_trouble_costs_nobody_their_key(
    database: Database,
) -> None:
    old = await insert_old(database, 3)
    async with database.connect(autocommit=False) as holder:
        await holder.execute("lock table public.profiles in access exclusive mode")
        async with database.acting_as("service_role") as connection:
            with refused("PT409", "profiles_locked"):
                await connection.execute(BACKFILL, (None, None, 100, 250))
    assert await enrolled(database) == []
    await database.run(f"alter table public.profiles add constraint host_rule check (id <> '{old[1]}')")
    (batch,) = await backfill(database)
    assert (batch["due"], batch["unfilled_profiles"]) == (3, 1)
    assert await enrolled(database) == old
    notes = await database.rows("select user_id, detail from doorkey.audit_log where action = 'profile.not_filled'")
    assert notes == [{"user_id": old[1], "detail": {"sqlstate": "23514"}}]
