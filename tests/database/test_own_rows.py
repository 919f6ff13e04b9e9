"""What somebody signed in can do with their own token by hand: see what is theirs, and change nothing of it.

The doors that want a proof are tried in test_own_doors.py, and who may use which object at all in test_doors.py. Here
is what people would try who want more than they have.
"""

from __future__ import annotations

import asyncio
import uuid

import psycopg
import pytest

from tests.database.declared_grants import TABLES
from tests.database.test_own_doors import state_of
from tests.support.credit_doors import Credits
from tests.support.databases import Database
from tests.support.doors import Doors, wait_until_blocked
from tests.support.environment import WEBHOOK_SECRET
from tests.support.own_doors import OwnDoors

HIDDEN = [table for table in TABLES if table.startswith("doorkey.")]
# With %(me)s and %(other)s: whose token it is, and somebody else.
TRIED = {
    "granting": "select doorkey.grant_credits(%(me)s, 'bonus', 1000, 'mine', 'mine', 'me', null, 'r')",
    "granting without a trace": "select doorkey.post_grant(%(me)s, 'bonus', 1, 'm', 'm', 'me', null, 1::smallint, 'r')",
    "the welcome once more": "select doorkey.welcome(%(me)s, 'me', 'r')",
    "a transaction": "insert into public.credit_transactions (user_id, type, amount_micros, spendable_micros,"
    " system_account, idempotency_key, reason, actor) values (%(me)s, 'bonus', 1, 1, 'granted', 'mine', 'mine', 'me')",
    "a lot": "update doorkey.credit_lots set remaining_micros = 1000000 where user_id = %(me)s",
    "an entry": "update public.credit_transactions set spendable_micros = 1000 where user_id = %(me)s",
    "an account": "insert into public.credit_accounts (user_id, plan_id) values (%(me)s, 'trial')",
    "the plan": "update public.credit_accounts set plan_id = 'unlimited' where user_id = %(me)s",
    "what the plan allows": "update public.plans set is_uncapped = true",
    "the balance": "update public.credit_accounts set available_micros = 1000000 where user_id = %(me)s",
    "the debt": "update public.credit_accounts set debt_micros = 0 where user_id = %(me)s",
    "the key's limit": "update public.openrouter_user_keys set limit_micros = null where user_id = %(me)s",
    "the key's status": "update public.openrouter_user_keys set status = 'active' where user_id = %(me)s",
    "a key of one's own": "insert into public.openrouter_user_keys (key_hash, user_id, key_name, attempt)"
    " values (repeat('a', 64), %(me)s, 'mine', 7)",
    "the limit on the profile": "update public.profiles set openrouter_key_limit = 1000 where id = %(me)s",
    "the status on the profile": "update public.profiles set openrouter_provisioning_status = 'active'",
    "a profile for somebody else": "insert into public.profiles (id) values (%(other)s)",
    "the state": "update doorkey.provisioning set state = 'due', failures = 0 where user_id = %(me)s",
    "a wish": "select doorkey.want(%(me)s)",
    "enrolling somebody": "select doorkey.enrol(%(other)s)",
    "closing a hold": "update doorkey.credit_holds set held_micros = 0 where user_id = %(me)s",
    "forgetting a proof": "delete from doorkey.used_proofs",
    "signing a proof": "select doorkey.sign_proof('whsec_', array['doorkey.proof'])",
    "using a proof": "select doorkey.use_proof('reveal_my_key', array['r'], 'p', 0, '')",
    "another secret": "update doorkey.settings set webhook_secret = null",
    "claiming as a server": "select * from public.claim_provisioning(%(me)s, 60, 'r')",
    "claiming for somebody else": "select * from public.claim_provisioning(%(other)s, 60, 'r')",
    "claiming behind the door": "select * from doorkey.claim_provisioning(%(me)s, 60, 'r')",
    "finishing as a server": "select public.finish_provisioning(%(me)s, 1, repeat('a', 64), 'mine', null, 1, 's', 'r')",
    "reserving for somebody else": "select * from public.reserve_credits(%(other)s, 1, 60, 'mine', null, 'r')",
    "settling as a server": "select * from public.settle_credits(%(hold)s, 0, null, 'p', 'm', 'g', 'r')",
    "settling behind the door": "select * from doorkey.settle_hold(%(me)s, %(hold)s, 0, null, 'p', 'm', 'g', 'r')",
    "releasing behind the door": "select doorkey.release_hold(%(me)s, %(hold)s, 'r')",
    "somebody else's secret": "select * from public.reveal_key(%(other)s, 'r')",
    "somebody else's account": "select doorkey.account_of(%(other)s)",
}


@pytest.fixture
async def people(database: Database) -> tuple[OwnDoors, OwnDoors]:
    """Two with a key and a call under way."""
    await database.run("update doorkey.settings set webhook_secret = %s", (WEBHOOK_SECRET,))
    found = []
    for _ in range(2):
        own = OwnDoors(database, await database.insert_user(metadata={"full_name": "Ann"}))
        await Doors(database).make_ready(own.user_id)
        await own.reserve(100, f"of {own.user_id}")
        found.append(own)
    return found[0], found[1]


async def is_refused(own: OwnDoors, statement: str, parameters: dict[str, uuid.UUID]) -> bool:
    """Whether Postgres says that it is not theirs to do. Any other refusal would say that they got in."""
    async with own.database.acting_as("authenticated", own.user_id) as connection:
        try:
            await connection.execute(statement, parameters)
        except psycopg.errors.InsufficientPrivilege:
            return True
        return False


async def test_by_hand_nobody_gets_more_than_is_theirs(people: tuple[OwnDoors, OwnDoors]) -> None:
    me, other = people
    hold_id = await me.database.value("select id from doorkey.credit_holds where user_id = %s", (me.user_id,))
    before = await state_of(me.database)
    tried = TRIED | {f"reading {table}": f"select 1 from {table}" for table in HIDDEN}
    parameters = {"me": me.user_id, "other": other.user_id, "hold": hold_id}
    done = [name for name, statement in tried.items() if not await is_refused(me, statement, parameters)]
    assert not done
    assert await state_of(me.database) == before


async def test_an_own_door_takes_no_other_user(people: tuple[OwnDoors, OwnDoors]) -> None:
    me, other = people
    arguments = {"user_id": other.user_id, "lease_seconds": 60, "request_id": "r"}
    with pytest.raises(psycopg.errors.UndefinedFunction):
        await me.call("claim_my_provisioning", arguments, me.proof("claim_my_provisioning", {}))


@pytest.mark.parametrize(
    ("table", "person"),
    [
        ("public.profiles", "id"),
        ("public.credit_accounts", "user_id"),
        ("public.credit_transactions", "user_id"),
        ("public.openrouter_user_keys", "user_id"),
    ],
)
async def test_nobody_reads_anybody_elses_rows(people: tuple[OwnDoors, OwnDoors], table: str, person: str) -> None:
    me, _ = people
    async with me.database.acting_as("authenticated", me.user_id) as connection:
        rows = await (await connection.execute(f"select distinct {person} as whose from {table}")).fetchall()
    assert rows == [{"whose": me.user_id}]


# One's own profile


async def created(own: OwnDoors) -> bool:
    async with own.database.acting_as("authenticated", own.user_id) as connection:
        (row,) = await (await connection.execute("select public.create_my_profile() as is_there")).fetchall()
        return bool(row["is_there"])


async def test_whom_the_trigger_missed_can_make_their_own_profile_and_no_others(
    people: tuple[OwnDoors, OwnDoors],
) -> None:
    me, other = people
    theirs = "select * from public.profiles where id = %s"
    (before,) = await me.database.rows(theirs, (me.user_id,))
    await me.database.run("delete from public.profiles")
    await me.database.run("delete from doorkey.provisioning where user_id = %s", (me.user_id,))
    assert [await created(me) for _ in range(2)] == [True, True]
    (after,) = await me.database.rows(theirs, (me.user_id,))
    assert (after["email"], after["full_name"]) == (before["email"], "Ann")
    assert (after["openrouter_provisioning_status"], after["openrouter_key_limit"]) == ("pending", None)
    assert await Doors(me.database).state(me.user_id) == "due"
    assert await me.database.rows(theirs, (other.user_id,)) == []


async def test_a_profile_that_is_there_stays_as_it_is(people: tuple[OwnDoors, OwnDoors]) -> None:
    me, _ = people
    before = await state_of(me.database)
    assert await created(me)
    assert await state_of(me.database) == before


async def test_users_from_before_and_users_who_are_gone_get_no_profile(database: Database) -> None:
    old, gone = [OwnDoors(database, await database.insert_user()) for _ in range(2)]
    await database.run("delete from public.profiles")
    await database.run("delete from doorkey.provisioning")
    await database.run("update auth.users set created_at = '2020-01-01' where id = %s", (old.user_id,))
    await database.run("update auth.users set deleted_at = now() where id = %s", (gone.user_id,))
    nobody = OwnDoors(database, uuid.uuid4())
    assert [await created(own) for own in (old, gone, nobody)] == [False, False, False]
    assert await database.value("select count(*) from public.profiles") == 0


MINE = {"id": "%(me)s", "email": "%(mail)s", "full_name": "'Ann'"}


def insert(columns: dict[str, str], then: str = "") -> str:
    return f"insert into public.profiles ({', '.join(columns)}) values ({', '.join(columns.values())}) {then}"


# What somebody whose profile is missing could write there by hand; right but for one thing.
CHOSEN = {
    "another name": insert(MINE | {"full_name": "'The Boss'"}),
    "no name": insert(MINE | {"full_name": "null"}),
    "nothing but the id": insert({"id": "%(me)s"}),
    "another address": insert(MINE | {"email": "'boss@example.com'"}),
    "somebody else's row": insert(MINE | {"id": "%(other)s"}),
    "the limit": insert(MINE | {"openrouter_key_limit": "1000"}),
    "the status": insert(MINE | {"openrouter_provisioning_status": "'active'"}),
    "the name of a key": insert(MINE | {"openrouter_key_name": "'mine'"}),
    "since when": insert(MINE | {"created_at": "'2020-01-01'"}),
    "over what may be there": insert(MINE, "on conflict (id) do update set full_name = 'The Boss'"),
    "two at once": insert(MINE) + ", (%(other)s, %(mail)s, 'Ann')",
}


async def by_hand(own: OwnDoors, statement: str, other: uuid.UUID) -> str | None:
    """What Postgres says to it; None: nothing."""
    mail = await own.database.value("select max(email) from auth.users where id = %s", (own.user_id,))
    parameters = {"me": own.user_id, "other": other, "mail": mail}
    async with own.database.acting_as("authenticated", own.user_id) as connection:
        try:
            await connection.execute(statement, parameters)
        except psycopg.Error as error:
            return error.sqlstate
    return None


@pytest.mark.parametrize("name", CHOSEN)
async def test_nothing_in_a_missing_profile_can_be_chosen(people: tuple[OwnDoors, OwnDoors], name: str) -> None:
    me, other = people
    await me.database.run("delete from public.profiles")
    assert await by_hand(me, CHOSEN[name], other.user_id) == "42501"
    assert await me.database.value("select count(*) from public.profiles") == 0


async def test_by_hand_a_missing_profile_is_the_one_that_the_door_makes_and_once_it_is_there_it_stays(
    people: tuple[OwnDoors, OwnDoors],
) -> None:
    me, other = people
    rows = "select to_jsonb(p) - '{created_at,updated_at}'::text[] as row from public.profiles as p where id = %s"
    await me.database.run("delete from public.profiles")
    assert await by_hand(me, insert(MINE), other.user_id) is None
    written = await me.database.rows(rows, (me.user_id,))
    assert await by_hand(me, insert(MINE), other.user_id) == "23505"
    for statement in ("update public.profiles set full_name = 'The Boss'", "delete from public.profiles"):
        assert await by_hand(me, statement, other.user_id) == "42501"
    await me.database.run("delete from public.profiles")
    assert await created(me)
    assert await me.database.rows(rows, (me.user_id,)) == written


async def test_who_is_not_served_makes_no_profile_by_hand(people: tuple[OwnDoors, OwnDoors]) -> None:
    me, other = people
    await me.database.run("delete from public.profiles")
    await me.database.run("update auth.users set deleted_at = now() where id = %s", (me.user_id,))
    assert await by_hand(me, insert(MINE), other.user_id) == "42501"
    await me.database.run("update auth.users set deleted_at = null where id = %s", (me.user_id,))
    await me.database.run("delete from doorkey.provisioning where user_id = %s", (me.user_id,))
    assert await by_hand(me, insert(MINE), other.user_id) == "42501"
    nobody = OwnDoors(me.database, uuid.uuid4())
    assert await by_hand(nobody, insert(MINE), other.user_id) == "42501"


async def test_many_requests_of_one_person_make_one_profile(people: tuple[OwnDoors, OwnDoors]) -> None:
    me, _ = people
    await me.database.run("delete from public.profiles")
    assert await asyncio.gather(*(created(me) for _ in range(16))) == [True] * 16
    assert await me.database.value("select count(*) from public.profiles") == 1


async def test_the_door_waits_for_a_row_that_is_just_being_made_by_hand(people: tuple[OwnDoors, OwnDoors]) -> None:
    me, _ = people
    await me.database.run("delete from public.profiles")
    async with me.database.acting_as("authenticated", me.user_id) as connection:
        await connection.execute("begin")
        await connection.execute(
            "insert into public.profiles (id, email, full_name) values (%s, %s, 'Ann')",
            (me.user_id, await me.database.value("select email from auth.users where id = %s", (me.user_id,))),
        )
        door = asyncio.create_task(created(me))
        await wait_until_blocked(me.database, 1)
        await connection.execute("commit")
    assert await door


async def test_where_a_host_lets_people_insert_the_door_makes_no_use_of_it(hosted_database: Database) -> None:
    await hosted_database.run(
        "create table public.profiles (id uuid primary key, email text, full_name text);"
        " alter table public.profiles enable row level security;"
        " grant select, insert on public.profiles to authenticated;"
        " create policy own on public.profiles to authenticated using (true) with check (true)",
        role="postgres",
    )
    before = await hosted_database.rows("select * from pg_policies where tablename = 'profiles'")
    await hosted_database.migrate()
    assert await hosted_database.rows("select * from pg_policies where tablename = 'profiles'") == before
    me = OwnDoors(hosted_database, await hosted_database.insert_user())
    assert not await created(me)
    assert await hosted_database.value("select count(*) from public.profiles") == 0


async def test_a_hosts_own_profiles_keep_their_own_rules(hosted_database: Database) -> None:
    await hosted_database.run(
        "create table public.profiles (id uuid primary key, nickname text not null)", role="postgres"
    )
    await hosted_database.migrate()
    me = OwnDoors(hosted_database, await hosted_database.insert_user())
    assert not await created(me)
    await hosted_database.run("update doorkey.settings set fills_host_profiles = true")
    assert not await created(me)
    await hosted_database.run("alter table public.profiles alter column nickname drop not null", role="postgres")
    assert await created(me)


# Proofs are forgotten


async def test_a_sweep_forgets_proofs_that_have_expired_and_no_others(people: tuple[OwnDoors, OwnDoors]) -> None:
    me, other = people
    await me.database.run(
        "insert into doorkey.used_proofs values ('old', now() - interval '2 min'), ('new', now() - interval '30 s')"
    )
    async with me.database.acting_as("service_role") as service:
        await service.execute("select public.start_sweep(10)")
    left = await me.database.rows("select proof_id from doorkey.used_proofs")
    assert len(left) == 3
    assert "old" not in {row["proof_id"] for row in left}
    assert await Credits(me.database).balances(other.user_id) == (5_000_000 - 100, 100, 0)


async def test_calls_without_a_sweep_forget_more_proofs_than_they_leave(people: tuple[OwnDoors, OwnDoors]) -> None:
    """As while the service key is rejected. Whoever is at it keeps nobody waiting, and no proof is let in again."""
    me, _ = people
    database = me.database
    await database.run(
        "insert into doorkey.used_proofs select 'old ' || n, now() - interval '61 s' from generate_series(1, 8) as n"
    )
    await database.run("insert into doorkey.used_proofs values ('new', now() - interval '50 s')")
    old = "select count(*) from doorkey.used_proofs where proof_id like 'old%%'"
    async with database.connect(autocommit=False) as another:
        await another.execute("select from doorkey.used_proofs where proof_id = 'old 1' for update")
        assert [(await forgets(me, old)) for _ in range(3)] == [5, 2, 1]
        await another.rollback()
    assert await forgets(me, old) == 0
    assert await database.value("select count(*) from doorkey.used_proofs where proof_id = 'new'") == 1


async def test_a_sweep_waits_for_nobodys_proof(people: tuple[OwnDoors, OwnDoors]) -> None:
    """Whoever uses one goes on to rows that the sweep may have by then."""
    me, _ = people
    await me.database.run("insert into doorkey.used_proofs values ('old', now() - interval '2 min')")
    async with me.database.connect(autocommit=False) as another:
        await another.execute("select from doorkey.used_proofs where proof_id = 'old' for update")
        async with me.database.acting_as("service_role") as service:
            await service.execute("set lock_timeout = '1s'")
            await service.execute("select public.start_sweep(10)")


async def forgets(me: OwnDoors, count: str) -> int:
    """What a call leaves."""
    await me.word("recheck_my_key")
    return int(await me.database.value(count))
