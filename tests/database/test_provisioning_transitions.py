"""Every move of a user's row: the legal ones, and that the others are refused or can't even be stored."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import psycopg
import pytest

from tests.support.databases import Connection, Database, Row
from tests.support.doors import LEASE_SECONDS, SEALED, Doors, key_hash, refused, wait_until_blocked


@pytest.fixture
def doors(database: Database) -> Doors:
    return Doors(database)


@pytest.fixture
async def user_id(database: Database) -> uuid.UUID:
    """Somebody who is due."""
    return await database.insert_user()


async def untouched(doors: Doors, user_id: uuid.UUID) -> tuple[Any, ...]:
    """Everything that a refused call must leave as it was."""
    return (
        await doors.row(user_id),
        await doors.keys(user_id),
        await doors.database.rows("select * from doorkey.sealed_secrets"),
        await doors.database.rows("select * from public.profiles where id = %s", (user_id,)),
        await doors.database.value("select count(*) from doorkey.audit_log"),
    )


async def delete_user(database: Database, user_id: uuid.UUID) -> None:
    await database.run("delete from auth.users where id = %s", (user_id,), role="supabase_auth_admin")


# -- claim ------------------------------------------------------------------------------------------------------------


async def test_a_claim_tells_all_that_the_work_needs(doors: Doors, user_id: uuid.UUID) -> None:
    assert await doors.claim(user_id) == {
        "user_id": user_id,
        "attempt": 1,
        "failures": 0,
        "action": "create",
        "key_hash": None,
        "limit_micros": 5_000_000,
        "is_uncapped": False,
        "is_enabled": True,
    }
    row = await doors.row(user_id)
    assert row is not None
    assert (row["state"], row["claimed"], row["wanted"]) == ("working", 1, 1)
    lease = (row["lease_expires_at"] - row["updated_at"]).total_seconds()
    assert lease == pytest.approx(LEASE_SECONDS)


async def test_what_is_leased_ready_dead_later_or_unknown_cannot_be_claimed(doors: Doors) -> None:
    leased, ready, dead, later = [await doors.database.insert_user() for _ in range(4)]
    await doors.claimed(leased)
    await doors.make_ready(ready)
    await doors.defer(await doors.claimed(dead), gives_up=True)
    await doors.defer(await doors.claimed(later), 600)
    for user_id in (leased, ready, dead, later, uuid.uuid4()):
        before = await untouched(doors, user_id)
        assert await doors.claim(user_id) is None
        assert await untouched(doors, user_id) == before


async def test_an_expired_lease_is_taken_over_with_the_next_number(doors: Doors, user_id: uuid.UUID) -> None:
    await doors.claimed(user_id)
    assert await doors.claim(user_id) is None
    await doors.expire_lease(user_id)
    assert (await doors.claimed(user_id))["attempt"] == 2


@pytest.mark.parametrize("lease_seconds", [None, 0, -1, 3601])
async def test_a_lease_lasts_a_second_to_an_hour(doors: Doors, user_id: uuid.UUID, lease_seconds: int | None) -> None:
    with refused("PT422", "lease_out_of_range"):
        await doors.claim(user_id, lease_seconds)
    assert await doors.state(user_id) == "due"


async def test_a_deleted_user_without_a_key_ends_gone_and_gets_no_credits(doors: Doors, user_id: uuid.UUID) -> None:
    await delete_user(doors.database, user_id)
    assert await doors.claim(user_id) is None
    assert await doors.state(user_id) == "gone"
    assert await doors.database.value("select count(*) from public.credit_accounts") == 0
    await doors.wish(user_id)
    assert (await doors.claim(user_id), await doors.state(user_id)) == (None, "gone")


# -- finish -----------------------------------------------------------------------------------------------------------


async def test_finishing_stores_key_secret_state_and_profile_together(doors: Doors, user_id: uuid.UUID) -> None:
    claim = await doors.claimed(user_id)
    assert await doors.finish(claim, "k") == "ready"
    row, (key,) = await doors.row(user_id), await doors.keys(user_id)
    assert row is not None
    assert (row["state"], row["key_hash"], row["lease_expires_at"], row["failures"]) == (
        "ready",
        key_hash("k"),
        None,
        0,
    )
    assert (key["key_hash"], key["limit_micros"], key["attempt"], key["status"]) == (
        key_hash("k"),
        5_000_000,
        1,
        "active",
    )
    (secret,) = await doors.database.rows("select key_hash, sealed_secret from doorkey.sealed_secrets")
    assert secret == {"key_hash": key_hash("k"), "sealed_secret": SEALED}
    (profile,) = await doors.database.rows("select * from public.profiles")
    shown = [profile[f"openrouter_{name}"] for name in ("provisioning_status", "key_name", "key_limit")]
    assert shown == ["active", "k", 5]


async def test_finishing_stores_nothing_when_one_part_cannot_be_stored(doors: Doors, user_id: uuid.UUID) -> None:
    claim = await doors.claimed(user_id)
    before = await untouched(doors, user_id)
    await doors.database.run("alter table doorkey.sealed_secrets add constraint no check (false)")
    with pytest.raises(psycopg.errors.CheckViolation):
        await doors.finish(claim)
    assert await untouched(doors, user_id) == before


async def test_late_worker_cannot_overwrite_the_winner(doors: Doors, user_id: uuid.UUID) -> None:
    late = await doors.claimed(user_id)
    await doors.expire_lease(user_id)
    winner = await doors.claimed(user_id)
    # While the winner is at work, and after.
    for is_finished in (False, True):
        if is_finished:
            await doors.finish(winner)
        before = await untouched(doors, user_id)
        with refused("PT409", "lease_lost"):
            await doors.finish(late)
        with refused("PT409", "lease_lost"):
            await doors.defer(late)
        assert await untouched(doors, user_id) == before


async def test_a_late_worker_whose_lease_nobody_took_may_still_finish(doors: Doors, user_id: uuid.UUID) -> None:
    claim = await doors.claimed(user_id)
    await doors.expire_lease(user_id)
    assert await doors.finish(claim) == "ready"


async def test_finishing_twice_gives_the_first_answer_and_changes_nothing(doors: Doors, user_id: uuid.UUID) -> None:
    claim = await doors.claimed(user_id)
    assert await doors.finish(claim) == "ready"
    before = await untouched(doors, user_id)
    assert await doors.finish(claim) == "ready"
    assert await untouched(doors, user_id) == before


async def test_a_finish_repeated_after_the_wish_changed_says_due_and_keeps_the_key(
    doors: Doors, user_id: uuid.UUID
) -> None:
    claim = await doors.make_ready(user_id)
    await doors.wish(user_id)
    assert await doors.finish(claim) == "due"
    await doors.claimed(user_id)
    assert await doors.finish(claim) == "working"
    assert len(await doors.keys(user_id)) == 1


async def test_a_finish_repeated_while_the_first_still_runs_is_not_told_to_undo(
    doors: Doors, user_id: uuid.UUID
) -> None:
    claim = await doors.claimed(user_id)
    async with doors.database.connect(autocommit=False) as other:
        # Holds the first call in the middle of its transaction.
        await other.execute("select from auth.users where id = %s for update", (user_id,))
        first = asyncio.create_task(doors.finish(claim))
        await wait_until_blocked(doors.database, 1)
        second = asyncio.create_task(doors.finish(claim))
        await wait_until_blocked(doors.database, 2)
        await other.rollback()
    assert list(await asyncio.gather(first, second)) == ["ready", "ready"]
    assert len(await doors.keys(user_id)) == 1


@pytest.mark.parametrize("is_finished", [False, True])
async def test_a_second_key_for_the_same_attempt_is_refused(
    doors: Doors, user_id: uuid.UUID, is_finished: bool
) -> None:
    claim = await doors.make_ready(user_id)
    if not is_finished:
        await doors.wish(user_id)
        claim = await doors.claimed(user_id)
    before = await untouched(doors, user_id)
    with pytest.raises(psycopg.Error) as caught:
        await doors.finish(claim, "another")
    # Over: undo it. Still at it: a fault of ours, to be looked at by somebody.
    assert caught.value.sqlstate == ("PT409" if is_finished else "P0001")
    assert await untouched(doors, user_id) == before


async def test_a_key_of_somebody_else_cannot_be_registered_again(doors: Doors, user_id: uuid.UUID) -> None:
    await doors.finish(await doors.claimed(user_id), "k")
    other = await doors.database.insert_user()
    claim = await doors.claimed(other)
    before = await untouched(doors, other)
    with pytest.raises(psycopg.errors.UniqueViolation):
        await doors.finish(claim, "k")
    assert await untouched(doors, other) == before


@pytest.mark.parametrize("how", ["delete", "soft"])
async def test_user_deleted_between_claim_and_finish_is_gone_and_nothing_is_stored(
    doors: Doors, user_id: uuid.UUID, how: str
) -> None:
    claim = await doors.claimed(user_id)
    if how == "delete":
        await delete_user(doors.database, user_id)
    else:
        await doors.database.run("update auth.users set deleted_at = now() where id = %s", (user_id,))
    before = await untouched(doors, user_id)
    with refused("PT410", "user_gone"):
        await doors.finish(claim)
    assert await untouched(doors, user_id) == before
    await doors.expire_lease(user_id)
    assert (await doors.claim(user_id), await doors.state(user_id)) == (None, "gone")


@pytest.mark.parametrize("does_deletion_happen", [True, False])
async def test_a_deletion_racing_a_finish_ends_with_a_known_key_or_user_gone(
    doors: Doors, user_id: uuid.UUID, does_deletion_happen: bool
) -> None:
    claim = await doors.claimed(user_id)
    async with doors.database.connect("supabase_auth_admin", autocommit=False) as auth:
        await auth.execute("delete from users where id = %s", (user_id,))
        finish = asyncio.create_task(doors.finish(claim))
        await wait_until_blocked(doors.database, 1)
        await (auth.commit() if does_deletion_happen else auth.rollback())
    if does_deletion_happen:
        with refused("PT410", "user_gone"):
            await finish
        assert await doors.keys(user_id) == []
    else:
        assert await finish == "ready"


async def test_a_deletion_waits_for_a_finish_that_came_first(doors: Doors, user_id: uuid.UUID) -> None:
    claim = await doors.claimed(user_id)
    async with doors.database.acting_as("service_role") as worker:
        async with worker.transaction():
            await finish_in(worker, claim)
            deletion = asyncio.create_task(delete_user(doors.database, user_id))
            await wait_until_blocked(doors.database, 1)
        await deletion
    assert [key["status"] for key in await doors.keys(user_id)] == ["active"]
    # The key is known, and so the deletion could ask for its removal.
    assert await doors.state(user_id) == "due"
    assert (await doors.claimed(user_id))["action"] == "delete"


async def finish_in(worker: Connection, claim: Row) -> None:
    name = f"{claim['user_id']}-{claim['attempt']}"
    await worker.execute(
        "select public.finish_provisioning(%s, %s, %s, %s, null, %s, %s, 'r')",
        (claim["user_id"], claim["attempt"], key_hash(name), name, claim["limit_micros"], SEALED),
    )


# -- the wish, and the key's limit ------------------------------------------------------------------------------------


async def test_a_wish_that_changes_during_the_work_is_due_again_with_the_new_limit(
    doors: Doors, user_id: uuid.UUID
) -> None:
    claim = await doors.claimed(user_id)
    await doors.grant(user_id, 2_000_000, "g1")
    assert await doors.state(user_id) == "working"
    assert await doors.finish(claim) == "due"
    update = await doors.claimed(user_id)
    assert (update["key_hash"], update["limit_micros"], update["attempt"]) == (
        (await doors.keys(user_id))[0]["key_hash"],
        7_000_000,
        2,
    )
    await doors.grant(user_id, 1, "g2")
    assert await doors.finish_key_update(update) == "due"
    update = await doors.claimed(user_id)
    assert update["limit_micros"] == 7_000_001
    assert await doors.finish_key_update(update) == "ready"
    assert (await doors.keys(user_id))[0]["limit_micros"] == 7_000_001


async def test_finish_key_update_is_fenced_and_repeatable(doors: Doors, user_id: uuid.UUID) -> None:
    await doors.make_ready(user_id)
    await doors.wish(user_id)
    late = await doors.claimed(user_id)
    await doors.expire_lease(user_id)
    winner = await doors.claimed(user_id)
    before = await untouched(doors, user_id)
    with refused("PT409", "lease_lost"):
        await doors.finish_key_update(late)
    with pytest.raises(psycopg.Error, match="another key"):
        await doors.finish_key_update(winner, key_hash("another"))
    assert await untouched(doors, user_id) == before
    assert await doors.finish_key_update(winner) == "ready"
    before = await untouched(doors, user_id)
    assert await doors.finish_key_update(winner) == "ready"
    with refused("PT409", "lease_lost"):
        await doors.finish_key_update(late)
    assert await untouched(doors, user_id) == before


async def test_a_wish_wakes_ready_and_dead_rows_and_leaves_the_others_where_they_are(doors: Doors) -> None:
    ready, dead, later, working, waiting = [await doors.database.insert_user(confirmed=i < 4) for i in range(5)]
    await doors.make_ready(ready)
    await doors.defer(await doors.claimed(dead), gives_up=True)
    await doors.defer(await doors.claimed(later), 600)
    await doors.claimed(working)
    expected = {ready: "due", dead: "due", later: "due", working: "working", waiting: "waiting"}
    for user_id, state in expected.items():
        await doors.wish(user_id)
        row = await doors.row(user_id)
        assert row is not None
        assert (row["state"], row["wanted"]) == (state, 2)
    assert await doors.claim(later) is None  # it still waits for its time
    assert (await doors.claimed(dead))["failures"] == 0
    assert (await doors.claimed(ready))["attempt"] == 2
    assert await doors.claim(waiting) is None


# -- defer ------------------------------------------------------------------------------------------------------------


async def test_a_deferred_row_is_due_after_its_delay_and_counts_the_failure(doors: Doors, user_id: uuid.UUID) -> None:
    assert await doors.defer(await doors.claimed(user_id), 600) == "due"
    row = await doors.row(user_id)
    assert row is not None
    assert (row["due_at"] - row["updated_at"]).total_seconds() == 600
    assert (row["failures"], row["last_error"], row["lease_expires_at"]) == (1, "openrouter_refused", None)
    await doors.database.run("update doorkey.provisioning set due_at = now()")
    again = await doors.claimed(user_id)
    assert (again["attempt"], again["failures"]) == (2, 1)
    await doors.finish(again)
    row = await doors.row(user_id)
    assert row is not None
    assert (row["failures"], row["last_error"]) == (0, None)


async def test_giving_up_is_visible_and_a_wish_revives(doors: Doors, user_id: uuid.UUID) -> None:
    assert await doors.defer(await doors.claimed(user_id), gives_up=True) == "dead"
    status = "select openrouter_provisioning_status from public.profiles"
    assert await doors.database.value(status) == "failed"
    await doors.wish(user_id)
    await doors.make_ready(user_id)
    assert await doors.database.value(status) == "active"


async def test_a_wish_that_comes_during_the_last_attempt_is_tried_afresh(doors: Doors, user_id: uuid.UUID) -> None:
    claim = await doors.claimed(user_id)
    await doors.wish(user_id)
    assert await doors.defer(claim, gives_up=True) == "due"
    row = await doors.row(user_id)
    assert row is not None
    assert row["failures"] == 0
    await doors.make_ready(user_id)


@pytest.mark.parametrize("delay_seconds", [None, -1, 86_401])
async def test_a_delay_lasts_nothing_to_a_day(doors: Doors, user_id: uuid.UUID, delay_seconds: int | None) -> None:
    claim = await doors.claimed(user_id)
    with refused("PT422", "delay_out_of_range"):
        await doors.defer(claim, delay_seconds)
    assert await doors.state(user_id) == "working"


@pytest.mark.parametrize("state", ["waiting", "due", "ready", "dead", "gone"])
async def test_only_a_working_row_can_be_finished_or_deferred(doors: Doors, state: str) -> None:
    user_id = await doors.database.insert_user(confirmed=state != "waiting")
    attempt = 0
    if state == "gone":
        await delete_user(doors.database, user_id)
        await doors.claim(user_id)
    if state == "ready":
        attempt = (await doors.make_ready(user_id))["attempt"]
    if state == "dead":
        claim = await doors.claimed(user_id)
        await doors.defer(claim, gives_up=True)
        attempt = claim["attempt"]
    assert await doors.state(user_id) == state
    claim = {"user_id": user_id, "attempt": attempt, "limit_micros": 1, "key_hash": key_hash("x")}
    before = await untouched(doors, user_id)
    for call in (doors.finish(claim, "x"), doors.finish_key_update(claim), doors.defer(claim)):
        with refused("PT409", "lease_lost"):
            await call
    assert await untouched(doors, user_id) == before
