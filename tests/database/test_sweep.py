"""What a sweep does inside the database: whom it enrols, whom it lists, what it forgets."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from tests.support.databases import Database, Row
from tests.support.doors import Doors, refused


@pytest.fixture
def doors(database: Database) -> Doors:
    """All that a worker may do."""
    return Doors(database)


async def start(database: Database, users: int = 100) -> Row:
    """Begins a sweep as service_role."""
    async with database.acting_as("service_role") as connection:
        (row,) = await (await connection.execute("select * from public.start_sweep(%s)", (users,))).fetchall()
        return row


async def due(database: Database, rows: int = 100) -> list[uuid.UUID]:
    """Who is due."""
    async with database.acting_as("service_role") as connection:
        found = await connection.execute("select * from public.list_due_provisioning(%s) as user_id", (rows,))
        return [row["user_id"] for row in await found.fetchall()]


async def forget(database: Database, *user_ids: uuid.UUID) -> None:
    """As if the trigger had never seen them."""
    await database.run("delete from doorkey.provisioning where user_id = any(%s)", (list(user_ids),))


async def test_the_walk_comes_round_to_everybody_page_by_page(database: Database) -> None:
    users = [await database.insert_user() for _ in range(7)]
    await forget(database, *users)
    assert [(await start(database, 3))["enrolled"] for _ in range(3)] == [3, 3, 1]
    assert set(await due(database)) == set(users)
    assert await database.value("select sweep_cursor from doorkey.settings") is None
    assert await database.value("select last_sweep_at > now() - interval '1 min' from doorkey.settings")
    await forget(database, users[0])
    assert (await start(database, 10))["enrolled"] == 1


async def test_whom_the_trigger_noted_comes_first(database: Database) -> None:
    users = sorted([await database.insert_user() for _ in range(5)])
    await forget(database, *users)
    await database.run("select doorkey.note_trouble('user.not_enrolled', %s, '42P01', null)", (users[4],))
    assert (await start(database, 1))["enrolled"] == 2
    assert set(await due(database)) == {users[0], users[4]}


async def test_who_failed_before_does_not_wait_behind_a_crowd_nor_does_the_crowd_behind_them(
    database: Database,
) -> None:
    crowd = [await database.insert_user() for _ in range(8)]
    await database.run("update doorkey.provisioning set due_at = now() - interval '1 hour'")
    failed = [await database.insert_user() for _ in range(3)]
    await database.run(
        "update doorkey.provisioning set failures = 1, due_at = now() - interval '1 s' where user_id = any(%s)",
        (failed,),
    )
    page = await due(database, 8)
    assert set(page[:2]) < set(failed)
    assert set(page[2:]) < set(crowd)
    assert sorted(await due(database)) == sorted([*crowd, *failed])


async def test_users_from_before_the_installation_and_deleted_ones_are_left_alone(database: Database) -> None:
    old = await database.insert_user(created_at="2020-01-01")
    deleted = await database.insert_user()
    await forget(database, deleted)
    await database.run("update auth.users set deleted_at = now() where id = %s", (deleted,))
    assert (await start(database))["enrolled"] == 0
    assert await database.value("select count(*) from doorkey.provisioning where user_id = %s", (old,)) == 0


async def test_somebody_confirmed_without_our_hearing_of_it_becomes_due(database: Database) -> None:
    user_id = await database.insert_user(confirmed=False)
    assert (await start(database))["enrolled"] == 0
    await database.run("alter table auth.users disable trigger zz_doorkey_user_updated")
    await database.run("update auth.users set email_confirmed_at = now() where id = %s", (user_id,))
    assert (await start(database))["enrolled"] == 1
    assert await due(database) == [user_id]


async def test_the_list_holds_due_left_and_revisited_rows_longest_waiting_first(
    database: Database, doors: Doors
) -> None:
    left, first, later, revisited, ready, dead = [await database.insert_user() for _ in range(6)]
    await doors.claimed(left)
    await doors.make_ready(revisited)
    await doors.make_ready(ready)
    await doors.defer(await doors.claimed(dead), gives_up=True)
    for user_id, column, ago in (
        (left, "lease_expires_at", "2 min"), (first, "due_at", "3 min"), (revisited, "revisit_at", "1 min")
    ):  # fmt: skip
        await database.run(
            f"update doorkey.provisioning set {column} = now() - interval '{ago}' where user_id = %s", (user_id,)
        )
    await database.run("update doorkey.provisioning set due_at = now() + interval '1 min' where user_id = %s", (later,))
    assert await due(database) == [first, left, revisited]
    assert await due(database, 2) == [first, left]
    begun = await start(database)
    assert 175 <= begun["oldest_due_seconds"] <= 190
    assert begun["dead"] == 1
    assert ready not in await due(database)


async def test_the_log_is_forgotten_after_its_days_a_thousand_lines_at_a_time(database: Database) -> None:
    await database.run(
        "insert into doorkey.audit_log (happened_at, actor, action)"
        " select now() - interval '400 days', 'test', 'test.done' from generate_series(1, 1200)"
    )
    await database.run("insert into doorkey.audit_log (actor, action) values ('test', 'test.done')")
    assert [(await start(database))["pruned"] for _ in range(3)] == [1000, 200, 0]
    assert await database.value("select count(*) from doorkey.audit_log where actor = 'test'") == 1


@pytest.mark.parametrize("users", [None, 0, 10_001])
async def test_a_sweep_looks_at_a_bounded_number_of_users(database: Database, users: int | None) -> None:
    async with database.acting_as("service_role") as connection:
        with refused("PT422", "page_out_of_range"):
            await connection.execute("select public.start_sweep(%s)", (users,))


async def test_keys_that_are_deleted_are_not_known(database: Database, doors: Doors) -> None:
    user_id = await database.insert_user()
    await doors.make_ready(user_id)
    (key,) = await database.rows("select key_hash from public.openrouter_user_keys")
    async with database.acting_as("service_role") as connection:

        async def known() -> list[str]:
            found = await connection.execute(
                "select kind from public.classify_keys(%s, %s, %s) order by key_hash desc",
                ([key["key_hash"], "0" * 64], [user_id, user_id], [1, 2]),
            )
            return [row["kind"] for row in await found.fetchall()]

        assert await known() == ["known", "foreign"]
        await database.run("delete from auth.users where id = %s", (user_id,))
        claim = await doors.claimed(user_id)
        assert claim["action"] == "delete"
        await connection.execute(
            "select public.finish_key_deletion(%s, %s, %s, 'r')", (user_id, claim["attempt"], key["key_hash"])
        )
        assert await known() == ["stray", "stray"]
    assert await doors.state(user_id) == "gone"


async def test_a_brake_that_is_off_or_not_reached_brakes_nobody(database: Database, doors: Doors) -> None:
    await doors.make_ready(await database.insert_user())
    assert (await start(database))["is_braked"] is False
    await database.run("update doorkey.settings set max_keys_per_hour = 1")
    assert (await start(database))["is_braked"] is True
    assert await doors.claim(await database.insert_user()) is None
    await database.run("update doorkey.settings set max_keys_per_hour = null")
    assert (await start(database))["is_braked"] is False


async def test_those_who_ask_at_once_do_not_overrun_the_hour(database: Database, doors: Doors) -> None:
    users = [await database.insert_user() for _ in range(16)]
    await database.run("update doorkey.settings set max_keys_per_hour = 3")
    claims = await asyncio.gather(*(doors.claim(user_id) for user_id in users))
    assert sum(claim is not None for claim in claims) == 3
    waiting = "select count(*) from doorkey.provisioning where state = 'due' and due_at > now() and attempt = 0"
    assert await database.value(waiting) == 13


# -- OpenRouter is away -----------------------------------------------------------------------------------------------


async def test_ten_failures_in_a_row_without_a_success_hold_the_queue(doors: Doors) -> None:
    users = [await doors.database.insert_user() for _ in range(12)]
    for user_id in users[:9]:
        await doors.defer(await doors.claimed(user_id), 60, is_outage=True)
    # One success, and it is not OpenRouter that is away.
    await doors.make_ready(users[9])
    await doors.database.run("update doorkey.provisioning set due_at = now() where state = 'due'")
    for user_id in users[:9]:
        await doors.defer(await doors.claimed(user_id), 60, is_outage=True)
    await doors.defer(await doors.claimed(users[10]), 60, is_outage=False)
    assert await doors.database.value("select held_reason from doorkey.settings") is None
    last = await doors.claimed(users[11])
    assert await doors.defer(last, 60, is_outage=True) == "due"
    row = await doors.row(users[11])
    assert row is not None
    assert (row["failures"], row["due_at"] <= row["updated_at"]) == (0, True)
    assert await doors.database.value("select held_reason from doorkey.settings") == "openrouter_refused"
    await doors.database.run("update doorkey.provisioning set due_at = now() where state = 'due'")
    assert await doors.claim(users[0]) is None


async def test_the_probe_that_succeeds_lets_everybody_go(doors: Doors) -> None:
    users = [await doors.database.insert_user() for _ in range(12)]
    for user_id in users[:10]:
        await doors.defer(await doors.claimed(user_id), is_outage=True)
    assert await doors.claim(users[10]) is None
    await doors.database.run("update doorkey.settings set held_until = now()")
    probe = await doors.claimed(users[10])
    assert await doors.claim(users[11]) is None
    await doors.finish(probe)
    assert await doors.claim(users[11]) is not None
    assert await doors.database.value("select outage_failures from doorkey.settings") == 0
