"""Who may work on a user's key when many want to, and which states of a row can't be stored at all."""

from __future__ import annotations

import asyncio
import uuid

import psycopg
import pytest

from functions.provisioning.retry import MAX_FAILURES
from tests.support.databases import Database
from tests.support.doors import SEALED, Doors, key_hash

CLAIMS_AT_ONCE = 32
WORKERS = 8
USERS = 20


async def test_concurrent_claims_make_one_lease_and_one_grant(database: Database) -> None:
    user_id = await database.insert_user()
    claims = await asyncio.gather(*(Doors(database).claim(user_id) for _ in range(CLAIMS_AT_ONCE)))
    assert len([claim for claim in claims if claim]) == 1
    (grant,) = await database.rows("select user_id, amount_micros from public.credit_transactions")
    assert grant == {"user_id": user_id, "amount_micros": 5_000_000}
    assert await database.value("select available_micros from public.credit_accounts") == 5_000_000


async def test_concurrent_claims_of_an_expired_lease_make_one_takeover(database: Database) -> None:
    doors, user_id = Doors(database), await database.insert_user()
    await doors.claimed(user_id)
    await doors.expire_lease(user_id)
    claims = await asyncio.gather(*(doors.claim(user_id) for _ in range(CLAIMS_AT_ONCE)))
    assert [claim["attempt"] for claim in claims if claim] == [2]


async def test_whoever_takes_it_up_dying_every_time_is_one_failure_each_and_it_is_given_up(
    database: Database,
) -> None:
    """As often as the functions would try: the two have the same number."""
    doors, user_id = Doors(database), await database.insert_user()
    for number in range(1, MAX_FAILURES + 1):
        assert (await doors.claimed(user_id))["attempt"] == number
        await doors.expire_lease(user_id)
    assert await doors.claim(user_id) is None
    row = await doors.row(user_id)
    assert row is not None
    assert (row["state"], row["failures"], row["last_error"]) == ("dead", MAX_FAILURES, "lease_expired")


async def test_concurrent_claims_of_somebody_without_a_row_enrol_them_once(database: Database) -> None:
    doors, user_id = Doors(database), await database.insert_user()
    await database.run("delete from doorkey.provisioning")
    claims = await asyncio.gather(*(doors.claim(user_id) for _ in range(CLAIMS_AT_ONCE)))
    assert len([claim for claim in claims if claim]) == 1
    assert await database.value("select count(*) from public.credit_transactions") == 1


async def test_a_claim_does_not_wait_for_somebody_who_holds_the_row(database: Database) -> None:
    doors, user_id = Doors(database), await database.insert_user()
    async with database.connect(autocommit=False) as other:
        await other.execute("select from doorkey.provisioning where user_id = %s for update", (user_id,))
        assert await asyncio.wait_for(doors.claim(user_id), 5) is None
    assert await doors.claim(user_id) is not None


async def test_a_crowd_of_workers_makes_one_key_for_each_of_a_crowd_of_users(database: Database) -> None:
    doors = Doors(database)
    users = [await database.insert_user() for _ in range(USERS)]

    async def work(number: int) -> int:
        done = 0
        # Each in an order of their own.
        for user_id in users[number:] + users[:number]:
            claim = await doors.claim(user_id)
            if claim and await doors.finish(claim) == "ready":
                done += 1
        return done

    assert sum(await asyncio.gather(*(work(number) for number in range(WORKERS)))) == USERS
    rows = await database.rows("select user_id, count(*) from public.openrouter_user_keys group by 1")
    assert sorted(row["user_id"] for row in rows) == sorted(users)
    assert {row["count"] for row in rows} == {1}
    assert await database.value("select count(*) from doorkey.provisioning where state = 'ready'") == USERS


FORBIDDEN = {
    "working without a lease": "state = 'working', key_hash = null",
    "a lease without work": "lease_expires_at = now()",
    "ready without a key": "key_hash = null",
    "waiting with a key": "state = 'waiting'",
    "gone with a key": "state = 'gone'",
    "dead for no reason": "state = 'dead'",
    "no state": "state = null",
    "an unknown state": "state = 'asleep'",
    "a wish that was never made": "wanted = 0",
    "more claimed than wanted": "claimed = wanted + 1",
    "a negative attempt": "attempt = -1",
    "negative failures": "failures = -1",
    "an unknown key": f"key_hash = '{key_hash('unknown')}'",
    "no time to be due": "due_at = null",
}


@pytest.mark.parametrize("what", FORBIDDEN)
async def test_a_forbidden_state_of_provisioning_cannot_be_stored(database: Database, what: str) -> None:
    await Doors(database).make_ready(await database.insert_user())
    with pytest.raises((psycopg.IntegrityError, psycopg.errors.InvalidTextRepresentation)):
        await database.run(f"update doorkey.provisioning set {FORBIDDEN[what]}")


FORBIDDEN_KEYS = {
    "a hash that is none": "key_hash = 'abc'",
    "a hash in capitals": "key_hash = upper(key_hash)",
    "a limit below nothing": "limit_micros = -1",
    "an unknown status": "status = 'asleep'",
    "deleted at no time": "status = 'deleted'",
    "alive after its deletion": "deleted_at = now()",
    "of no attempt": "attempt = 0",
    "without a name": "key_name = ''",
    "of nobody": "user_id = null",
    "with a negative cost": "charged_cost_micros = -0.1",
}


@pytest.mark.parametrize("what", FORBIDDEN_KEYS)
async def test_a_forbidden_key_cannot_be_stored(database: Database, what: str) -> None:
    await Doors(database).make_ready(await database.insert_user())
    await database.run(
        "delete from doorkey.sealed_secrets; update doorkey.provisioning set state = 'due', key_hash = null"
    )
    with pytest.raises(psycopg.IntegrityError):
        await database.run(f"update public.openrouter_user_keys set {FORBIDDEN_KEYS[what]}")


@pytest.mark.parametrize("status", ["active", "disabled"])
async def test_two_live_keys_of_one_user_cannot_be_stored(database: Database, status: str) -> None:
    user_id = await database.insert_user()
    await Doors(database).make_ready(user_id)
    second = """insert into public.openrouter_user_keys (key_hash, user_id, key_name, attempt, status)
                values (%s, %s, 'k', 2, %s)"""
    with pytest.raises(psycopg.errors.UniqueViolation):
        await database.run(second, (key_hash("second"), user_id, status))
    await database.run("update public.openrouter_user_keys set status = 'deleted', deleted_at = now()")
    await database.run(second, (key_hash("second"), user_id, status))


@pytest.mark.parametrize(
    "sealed", ["sk-or-v1-plain", "v1.k1.", "v1.k1.AA=", "v1.k1.A A", "", f"{SEALED}\n", f"x{SEALED}"]
)
async def test_what_is_not_sealed_cannot_be_stored_as_a_secret(database: Database, sealed: str) -> None:
    await Doors(database).make_ready(await database.insert_user())
    with pytest.raises(psycopg.errors.CheckViolation):
        await database.run("update doorkey.sealed_secrets set sealed_secret = %s", (sealed,))


async def test_a_key_with_a_sealed_secret_or_in_use_cannot_be_forgotten(database: Database) -> None:
    await Doors(database).make_ready(await database.insert_user())
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        await database.run("delete from public.openrouter_user_keys")


async def test_there_is_one_row_of_settings(database: Database) -> None:
    for only_row in (True, False):
        with pytest.raises(psycopg.IntegrityError):
            await database.run("insert into doorkey.settings (only_row) values (%s)", (only_row,))


async def test_a_user_has_one_row_of_provisioning(database: Database) -> None:
    user_id: uuid.UUID = await database.insert_user()
    with pytest.raises(psycopg.errors.UniqueViolation):
        await database.run("insert into doorkey.provisioning (user_id, state) values (%s, 'due')", (user_id,))
