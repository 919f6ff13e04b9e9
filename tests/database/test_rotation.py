"""One key takes another's place: in which order, and that nobody can spend more by it at any moment."""

from __future__ import annotations

import asyncio
import uuid

import psycopg
import pytest

from tests.support.databases import Database
from tests.support.doors import Doors, key_hash, refused, wait_until_blocked

CREDITS = 5_000_000


@pytest.fixture
def doors(database: Database) -> Doors:
    return Doors(database)


@pytest.fixture
async def user_id(doors: Doors) -> uuid.UUID:
    """Somebody with a key."""
    user_id = await doors.database.insert_user()
    await doors.make_ready(user_id)
    return user_id


async def step(doors: Doors, user_id: uuid.UUID) -> tuple[str, str, int | None, str]:
    """Does the next thing: what it was, with which key (by its attempt), the limit, and the state after it."""
    claim = await doors.claimed(user_id)
    attempts = {key["key_hash"]: f"key {key['attempt']}" for key in await doors.keys(user_id)}
    finish = {
        "create": doors.finish,
        "update": doors.finish_key_update,
        "delete": doors.finish_key_deletion,
    }[claim["action"]]
    state = await finish(claim)
    return claim["action"], attempts.get(claim["key_hash"], "a new one"), claim["limit_micros"], state


async def let_grace_end(doors: Doors, user_id: uuid.UUID) -> None:
    await doors.database.run(
        "update public.openrouter_user_keys set retires_at = now() where user_id = %s and retires_at > now()",
        (user_id,),
    )
    await doors.database.run("update doorkey.provisioning set revisit_at = now() where user_id = %s", (user_id,))


async def test_the_new_key_may_spend_only_what_the_old_one_no_longer_may(doors: Doors, user_id: uuid.UUID) -> None:
    assert await doors.rotate(user_id) == "due"
    assert await step(doors, user_id) == ("create", "a new one", 0, "due")
    assert await step(doors, user_id) == ("update", "key 1", 0, "due")
    assert await step(doors, user_id) == ("update", "key 2", CREDITS, "ready")
    assert await doors.claim(user_id) is None
    old, new = await doors.keys(user_id)
    assert (old["status"], new["status"], new["retires_at"]) == ("active", "active", None)
    assert (old["retires_at"] - new["created_at"]).total_seconds() == 3600
    (row,) = await doors.database.rows("select * from doorkey.provisioning")
    assert (row["key_hash"], row["revisit_at"], row["rotation_grace_seconds"]) == (
        new["key_hash"],
        old["retires_at"],
        None,
    )
    await let_grace_end(doors, user_id)
    # Its last word: what was billed within the grace is heard before nobody can ask any more.
    assert await step(doors, user_id) == ("update", "key 1", 0, "due")
    assert await step(doors, user_id) == ("delete", "key 1", 0, "ready")
    assert [key["status"] for key in await doors.keys(user_id)] == ["deleted", "active"]
    assert await doors.database.value("select count(*) from doorkey.sealed_secrets") == 1
    (profile,) = await doors.database.rows("select * from public.profiles")
    assert (profile["openrouter_provisioning_status"], profile["openrouter_key_name"]) == ("active", new["key_name"])


async def test_without_a_grace_period_the_old_key_goes_before_the_new_one_may_spend(
    doors: Doors, user_id: uuid.UUID
) -> None:
    await doors.rotate(user_id, 0)
    steps = [await step(doors, user_id) for _ in range(4)]
    assert steps == [
        ("create", "a new one", 0, "due"),
        ("update", "key 1", 0, "due"),
        ("delete", "key 1", 0, "due"),
        ("update", "key 2", CREDITS, "ready"),
    ]


async def test_rotating_again_ends_the_grace_of_the_one_before(doors: Doors, user_id: uuid.UUID) -> None:
    await doors.rotate(user_id)
    for _ in range(3):
        await step(doors, user_id)
    await doors.rotate(user_id)
    steps = [(await step(doors, user_id))[:2] for _ in range(3)]
    assert steps == [("update", "key 1"), ("delete", "key 1"), ("create", "a new one")]


async def test_asking_twice_before_it_is_done_makes_one_key_with_the_shorter_grace(
    doors: Doors, user_id: uuid.UUID
) -> None:
    await doors.rotate(user_id, 600)
    await doors.rotate(user_id, 60)
    await doors.rotate(user_id, 3600)
    await step(doors, user_id)
    old, new = await doors.keys(user_id)
    assert (old["retires_at"] - new["created_at"]).total_seconds() == 60


async def test_nobody_rotates_more_than_the_hour_allows(doors: Doors, user_id: uuid.UUID) -> None:
    for _ in range(4):
        await doors.rotate(user_id, 0)
        for _ in range(4):
            await step(doors, user_id)
    with pytest.raises(psycopg.Error, match="rotated_too_often") as caught:
        await doors.rotate(user_id)
    assert 0 < int(caught.value.diag.message_hint or "") <= 3600
    assert await doors.state(user_id) == "ready"
    await doors.database.run("update public.openrouter_user_keys set created_at = created_at - interval '1 hour'")
    assert await doors.rotate(user_id) == "due"


@pytest.mark.parametrize("grace_seconds", [-1, 604_801])
async def test_a_grace_period_has_bounds(doors: Doors, user_id: uuid.UUID, grace_seconds: int) -> None:
    with refused("PT422", "grace_out_of_range"):
        await doors.rotate(user_id, grace_seconds)
    assert await doors.state(user_id) == "ready"


async def test_who_has_no_key_or_is_banned_gets_no_other_one(doors: Doors, user_id: uuid.UUID) -> None:
    for nobody in (uuid.uuid4(), await doors.database.insert_user()):
        with refused("PT404", "no_key"):
            await doors.rotate(nobody)
    await doors.database.run(
        "update auth.users set banned_until = now() + interval '1 day' where id = %s",
        (user_id,),
        role="supabase_auth_admin",
    )
    with refused("PT403", "key_disabled"):
        await doors.rotate(user_id)


@pytest.mark.parametrize("leaving", ["banned", "deleted"])
async def test_who_is_banned_or_leaves_meanwhile_keeps_no_second_key(
    doors: Doors, user_id: uuid.UUID, leaving: str
) -> None:
    await doors.rotate(user_id)
    await step(doors, user_id)
    statement = {
        "banned": "update auth.users set banned_until = now() + interval '1 day' where id = %s",
        "deleted": "delete from auth.users where id = %s",
    }[leaving]
    await doors.database.run(statement, (user_id,), role="supabase_auth_admin")
    # Whoever may come back has what they spent counted first.
    expected = [("delete", "key 1"), ("update" if leaving == "banned" else "delete", "key 2")]
    expected = [("update", "key 1"), *expected] if leaving == "banned" else expected
    assert [(await step(doors, user_id))[:2] for _ in expected] == expected
    assert await doors.state(user_id) == ("ready" if leaving == "banned" else "gone")


async def test_the_brake_on_new_keys_does_not_hold_up_a_rotation(doors: Doors, user_id: uuid.UUID) -> None:
    await doors.database.run("update doorkey.settings set max_keys_per_hour = 1")
    await doors.rotate(user_id)
    assert (await step(doors, user_id))[0] == "create"
    assert await doors.database.value("select count(*) from doorkey.key_requests") == 1


async def test_a_rotation_that_lost_its_answer_is_made_by_the_next_attempt(doors: Doors, user_id: uuid.UUID) -> None:
    await doors.rotate(user_id)
    late = await doors.claimed(user_id)
    await doors.expire_lease(user_id)
    winner = await doors.claimed(user_id)
    assert await doors.finish(winner) == "due"
    assert await doors.finish(winner) == "due"  # its answer was lost too
    with refused("PT409", "lease_lost"):
        await doors.finish(late)
    assert [key["attempt"] for key in await doors.keys(user_id)] == [1, 3]


async def test_two_keys_in_use_and_two_that_retire_cannot_be_stored(doors: Doors, user_id: uuid.UUID) -> None:
    insert = (
        "insert into public.openrouter_user_keys (key_hash, user_id, key_name, attempt, retires_at)"
        " values (%s, %s, 'k', 9, {})"
    )
    with pytest.raises(psycopg.errors.UniqueViolation, match=r", in use\) already"):
        await doors.database.run(insert.format("null"), (key_hash("second"), user_id))
    await doors.database.run(insert.format("now()"), (key_hash("second"), user_id))
    with pytest.raises(psycopg.errors.UniqueViolation, match=r", retiring\) already"):
        await doors.database.run(insert.format("now()"), (key_hash("third"), user_id))


async def test_a_key_without_cap_is_capped_before_another_one_may_spend(doors: Doors) -> None:
    await doors.database.run("update public.plans set is_uncapped = true")
    user_id = await doors.database.insert_user()
    await doors.make_ready(user_id)
    await doors.rotate(user_id)
    await doors.database.run("update public.plans set is_uncapped = false")
    assert [await step(doors, user_id) for _ in range(3)] == [
        ("create", "a new one", 0, "due"),
        ("update", "key 1", 0, "due"),
        ("update", "key 2", CREDITS, "ready"),
    ]


async def test_a_key_without_cap_is_switched_off_and_has_its_last_word_before_it_is_deleted(doors: Doors) -> None:
    await doors.database.run("update public.plans set is_uncapped = true")
    user_id = await doors.database.insert_user()
    await doors.make_ready(user_id)
    await doors.rotate(user_id, 600)
    assert await step(doors, user_id) == ("create", "a new one", None, "ready")
    await let_grace_end(doors, user_id)
    claim = await doors.claimed(user_id)
    (old, _) = await doors.keys(user_id)
    assert (claim["action"], claim["key_hash"], claim["is_enabled"]) == ("update", old["key_hash"], False)
    assert await doors.finish_key_update(claim, usage_micros=9_001_000) == "due"
    assert await step(doors, user_id) == ("delete", "key 1", None, "ready")
    reported = await doors.database.value(
        "select reported_micros from doorkey.key_usage where key_hash = %s", (old["key_hash"],)
    )
    assert reported == 9_001_000


async def test_a_key_that_was_off_when_it_was_replaced_has_its_last_word_too(doors: Doors, user_id: uuid.UUID) -> None:
    await doors.database.run("update public.plans set is_uncapped = true")
    await doors.database.run("update public.openrouter_user_keys set status = 'disabled', limit_micros = null")
    await doors.rotate(user_id, 0)
    steps = [(await step(doors, user_id))[:2] for _ in range(3)]
    assert steps == [("create", "a new one"), ("update", "key 1"), ("delete", "key 1")]


async def test_a_capped_key_that_retires_stays_capped_on_a_plan_without_cap(doors: Doors, user_id: uuid.UUID) -> None:
    await doors.rotate(user_id)
    assert [(await step(doors, user_id))[:2] for _ in range(2)][-1] == ("update", "key 1")
    await doors.database.run("update public.plans set is_uncapped = true")
    await let_grace_end(doors, user_id)
    claims = [await step(doors, user_id) for _ in range(3)]
    assert claims == [
        ("update", "key 1", 0, "due"),
        ("delete", "key 1", 0, "due"),
        ("update", "key 2", None, "ready"),
    ]


async def test_a_recheck_beside_a_finish_waits_and_both_succeed(doors: Doors, user_id: uuid.UUID) -> None:
    await doors.wish(user_id)
    claim = await doors.claimed(user_id)
    async with (
        doors.database.connect(autocommit=False) as finishing,
        doors.database.connect(autocommit=False) as late,
    ):
        # As finish_key_update begins: the provisioning row, and then the key.
        await finishing.execute("select from doorkey.provisioning where user_id = %s for update", (user_id,))

        async def recheck() -> None:
            await late.execute("select public.recheck_key(%s, 'r')", (user_id,))
            await late.commit()

        rechecking = asyncio.create_task(recheck())
        await wait_until_blocked(doors.database, 1)
        await finishing.execute(
            "select public.finish_key_update(%s, %s, %s, %s, true, 0, 'r')",
            (user_id, claim["attempt"], claim["key_hash"], claim["limit_micros"]),
        )
        await finishing.commit()
        await rechecking
    assert await step(doors, user_id) == ("update", "key 1", CREDITS, "ready")


async def test_a_retiring_key_that_a_late_worker_raised_is_lowered_again(doors: Doors, user_id: uuid.UUID) -> None:
    await doors.wish(user_id)
    await doors.claimed(user_id)
    await doors.expire_lease(user_id)
    await doors.rotate(user_id)
    assert [(await step(doors, user_id))[:2] for _ in range(3)][-1] == ("update", "key 3")
    # The late one changed one of the keys, and says so. Nobody knows which.
    await doors.database.value("select public.recheck_key(%s, 'r')", (user_id,))
    assert await step(doors, user_id) == ("update", "key 1", 0, "due")
    assert await step(doors, user_id) == ("update", "key 3", CREDITS, "ready")
    assert await doors.claim(user_id) is None
