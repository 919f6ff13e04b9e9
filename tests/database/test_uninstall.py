"""Uninstalled, a host is as it was before; what of the ledger is kept, the next installation finds again.

The SQL is the file that `doorkey uninstall` runs; here as role `postgres`, in one transaction, as there.
"""

from __future__ import annotations

import asyncio
import re

import psycopg
import pytest
from psycopg.sql import Identifier

from infra.cli.key_deletion import NOTE
from infra.cli.uninstall import UNINSTALL, uninstall_from
from infra.local.migrations import migrate
from infra.local.stack import CHECKOUT
from tests.database.catalog import Catalog
from tests.database.declared_grants import declared_grants
from tests.database.test_host_safety import HOSTS, install_beside
from tests.support.credit_doors import Credits
from tests.support.databases import MIGRATIONS, Database, Row
from tests.support.doors import Doors, wait_until_blocked

# What the account counts for the key in use becomes the key's own.
BALANCES = "select to_jsonb(a) - 'key_cost_micros' as account from public.credit_accounts as a order by user_id"
USAGE = {"unheld_costs", "key_usage", "key_usage_days", "welcomes"}
INTERNAL = {"credit_lots", "credit_holds", "credit_takings", "posting_answers", "plan_changes", "audit_log"} | USAGE
KEPT = {"plans", "credit_accounts", "credit_transactions", "openrouter_user_keys"} | INTERNAL
BUSY_HOST = (
    HOSTS["stock"].setup
    + """;
    alter table public.profiles enable row level security;
    revoke all on public.profiles from anon;
    grant select (id) on public.profiles to anon;
    create policy "All may look" on public.profiles for select to anon using (first_name is not null);
    create table public.todos (id int primary key, owner uuid references auth.users (id), note text);
    create view public.my_todos as select * from public.todos;
    create type public.mood as enum ('good', 'bad');
    create function public.add_todo(text) returns text language sql as 'select $1';
"""
)
# Everything that the catalog of a database says, by names. The host's rows are looked at elsewhere.
CATALOG = {
    "schemas": """select n.nspname, n.nspowner::regrole::text, n.nspacl::text, obj_description(n.oid, 'pg_namespace')
                    from pg_namespace n""",
    "relations": """select c.oid::regclass::text, c.relkind, c.relowner::regrole::text, c.relacl::text,
                           c.relrowsecurity, c.reloptions::text, obj_description(c.oid, 'pg_class') from pg_class c""",
    "columns": """select a.attrelid::regclass::text, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                         a.attacl::text, pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum)
                    from pg_attribute a left join pg_attrdef d on (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
                   where a.attnum > 0 and not a.attisdropped""",
    "functions": """select p.oid::regprocedure::text, p.proowner::regrole::text, p.proacl::text, p.prosecdef,
                           p.proconfig::text, p.prosrc from pg_proc p""",
    "types": "select t.oid::regtype::text, t.typowner::regrole::text, t.typacl::text from pg_type t",
    "enums": "select enumtypid::regtype::text, enumlabel, enumsortorder from pg_enum",
    "constraints": """select conname, conrelid::regclass::text, contype, confrelid::regclass::text,
                             pg_get_constraintdef(oid) from pg_constraint""",
    "indexes": "select indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index",
    "triggers": "select tgrelid::regclass::text, tgname, tgenabled, pg_get_triggerdef(oid) from pg_trigger"
    " where not tgisinternal",
    "policies": "select * from pg_policies",
    "extensions": "select extname, extversion, extnamespace::regnamespace::text from pg_extension",
    "default acls": "select defaclrole::regrole::text, defaclnamespace::regnamespace::text, defaclobjtype,"
    " defaclacl::text from pg_default_acl",
    "roles": "select rolname, rolsuper, rolbypassrls, rolconfig::text from pg_roles",
    "settings": "select setdatabase, setrole::regrole::text, setconfig::text from pg_db_role_setting",
}


async def catalog_of(database: Database) -> dict[str, set[str]]:
    """What the catalog says, the system's own excepted."""
    found = {}
    for name, statement in CATALOG.items():
        rows = await database.rows(statement)
        lines = {" | ".join(str(value) for value in row.values()) for row in rows}
        # Storage of large values is named by numbers, and temporary schemas come and go.
        found[name] = {line for line in lines if not re.match(r"pg_(toast|temp)", line)}
    return found


async def uninstall(database: Database, *, keeps_ledger: bool = False) -> None:
    async with database.connect("postgres") as connection:
        await uninstall_from(connection, keeps_ledger=keeps_ledger)


async def money(database: Database, schema: str) -> dict[str, list[Row]]:
    """Balances, and everything that they come from. The schema: of what people may read of it."""
    names = {name: "doorkey" if name in INTERNAL else schema for name in KEPT}
    row = "(to_jsonb(t) - array['charged_cost_micros', 'key_cost_micros'])"
    found = {
        name: await database.rows(f"select {row} as row from {at}.{name} as t order by {row}::text")
        for name, at in names.items()
    }
    # While doorkey is there, the account counts it for the key in use.
    figure, source = (
        ("charged_cost_micros", "doorkey.openrouter_user_keys")
        if schema == "doorkey"
        else ("cost_micros", "doorkey.key_costs")
    )
    found["costs"] = await database.rows(f"select key_hash, {figure} as cost_micros from {source} order by key_hash")
    return found


async def lived_in(database: Database) -> Doors:
    """People in several states, with a call under way and one that was charged, and an update and a deletion."""
    doors, credit_doors = Doors(database), Credits(database)
    for _ in range(3):
        caller = await database.insert_user()
        await doors.make_ready(caller)
        await credit_doors.reserve(caller, 100)
        await credit_doors.settle((await credit_doors.reserve(caller, 100))["hold_id"], 70)
    await database.insert_user(confirmed=False)
    gone = await database.insert_user()
    await doors.make_ready(gone)
    await database.run("delete from auth.users where id = %s", (gone,), role="supabase_auth_admin")
    return doors


@pytest.mark.parametrize("keeps_ledger", [False, True], ids=["all", "ledger_kept"])
@pytest.mark.parametrize("setup", ["select 1", BUSY_HOST], ids=["plain", "with_profiles_and_more"])
async def test_uninstalled_a_host_is_as_it_was_before(
    hosted_database: Database, setup: str, *, keeps_ledger: bool
) -> None:
    await hosted_database.run(setup, role="postgres")
    before = await catalog_of(hosted_database)
    await migrate(CHECKOUT, hosted_database.url("postgres"))
    await lived_in(hosted_database)
    assert await catalog_of(hosted_database) != before
    await uninstall(hosted_database, keeps_ledger=keeps_ledger)
    after = await catalog_of(hosted_database)
    if keeps_ledger:
        tables = await hosted_database.rows(
            "select relname from pg_class where relnamespace = 'doorkey'::regnamespace and relkind = 'r'"
        )
        assert {row["relname"] for row in tables} == KEPT
        after = {kind: {line for line in lines if "doorkey." not in line} for kind, lines in after.items()}
        after["schemas"] = {line for line in after["schemas"] if not line.startswith("doorkey ")}
        after["policies"] = {line for line in after["policies"] if not line.startswith("doorkey ")}
    assert after == before
    assert await hosted_database.value("select count(*) from supabase_migrations.schema_migrations") == 0
    await hosted_database.insert_user()


async def test_a_kept_ledger_is_for_the_owner_alone_and_holds_every_row(database: Database) -> None:
    await lived_in(database)
    before = await money(database, "public")
    await uninstall(database, keeps_ledger=True)
    assert await money(database, "doorkey") == before
    async with database.connect("postgres") as owner:
        for name in KEPT:
            await owner.execute(f"select count(*) from doorkey.{name}")
    for role in ("anon", "authenticated", "service_role"):
        async with database.acting_as(role) as connection:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await connection.execute("select count(*) from doorkey.credit_accounts")
    assert await database.value("select count(*) from pg_policies where schemaname = 'doorkey'") == 0


@pytest.mark.parametrize("keeps_ledger", [False, True], ids=["all", "ledger_kept"])
async def test_it_can_be_installed_again(database: Database, *, keeps_ledger: bool) -> None:
    doors = await lived_in(database)
    before = await money(database, "public")
    await uninstall(database, keeps_ledger=keeps_ledger)
    await database.migrate()
    assert await Catalog(database.superuser_url).grants() == declared_grants()
    if keeps_ledger:
        assert await money(database, "public") == before
    newcomer = await database.insert_user()
    claim = await doors.make_ready(newcomer)
    assert claim["limit_micros"] == 5_000_000


async def test_over_a_kept_ledger_nobody_gets_a_second_key_or_a_second_welcome(database: Database) -> None:
    doors = Doors(database)
    kept, gone, lost = [await database.insert_user() for _ in range(3)]
    for user_id in (kept, gone, lost):
        await doors.make_ready(user_id)
    # What the key in use was charged is its own still.
    await Credits(database).settle((await Credits(database).reserve(kept, 1000))["hold_id"], 750)
    costs = await database.rows("select * from doorkey.key_costs order by key_hash")
    assert sum(key["cost_micros"] for key in costs) == 750
    balances = await database.rows(BALANCES)
    await uninstall(database, keeps_ledger=True)
    await database.run("delete from auth.users where id = %s", (gone,), role="supabase_auth_admin")
    await database.run(
        "update doorkey.openrouter_user_keys set status = 'deleted', deleted_at = now() where user_id = %s", (lost,)
    )
    await database.migrate()

    assert await doors.state(kept) == "ready"
    assert await database.rows("select * from doorkey.key_costs order by key_hash") == costs
    assert await database.value("select openrouter_provisioning_status from public.profiles where id = %s", (kept,))
    # They see a key again when they ask for another one; it takes over what the old one may spend.
    await doors.rotate(kept, 0)
    claim = await doors.claimed(kept)
    assert (claim["action"], claim["attempt"], claim["limit_micros"]) == ("create", 2, 0)

    # The sweep finds that the key of a user who is gone is there still.
    async with database.acting_as("service_role") as service:
        await service.execute("select public.start_sweep(1000)")
    assert (await doors.claimed(gone))["action"] == "delete"

    # Whoever has none is a user from before.
    assert await doors.claim(lost) is None
    async with database.acting_as("service_role") as service:
        await service.execute("select public.backfill_users(null, null, null, null, 100, 100, 'r')")
    assert (await doors.claimed(lost))["limit_micros"] == 5_000_000
    assert await database.rows(BALANCES) == balances


async def test_a_kept_ledger_can_go_later(hosted_database: Database) -> None:
    before = await catalog_of(hosted_database)
    await hosted_database.migrate()
    await lived_in(hosted_database)
    await uninstall(hosted_database, keeps_ledger=True)
    # By now the name is free for a table of the host's.
    await hosted_database.run("create table public.plans (id int)", role="postgres")
    await uninstall(hosted_database, keeps_ledger=True)
    await uninstall(hosted_database)
    await hosted_database.run("drop table public.plans", role="postgres")
    assert await catalog_of(hosted_database) == before


async def test_a_hosts_own_history_of_migrations_stays(hosted_database: Database) -> None:
    await migrate(CHECKOUT, hosted_database.url("postgres"))
    version = MIGRATIONS[0].name.partition("_")[0]
    await hosted_database.run(
        "insert into supabase_migrations.schema_migrations (version, name) values ('20200101000000', 'todos')"
    )
    await hosted_database.run(
        "update supabase_migrations.schema_migrations set name = 'theirs' where version = %s", (version,)
    )
    await uninstall(hosted_database)
    rows = await hosted_database.rows("select name from supabase_migrations.schema_migrations order by 1")
    assert [row["name"] for row in rows] == ["theirs", "todos"]


BUILT_ON_OURS = {
    "a column": "alter table public.profiles add column nickname text",
    "a trigger of theirs at signup": """
        create function public.greet() returns trigger language plpgsql security definer as $$
        begin update public.profiles set full_name = 'new' where id = new.id; return new; end $$;
        create trigger zzz_greet after insert on auth.users for each row execute function public.greet()""",
    "a foreign key": "create table public.posts (author uuid references public.profiles (id))",
    "a policy": "create policy mine on public.profiles for update to authenticated using ((select auth.uid()) = id)",
    "a view": "create view public.names as select id, full_name from public.profiles",
}


@pytest.mark.parametrize("name", BUILT_ON_OURS)
async def test_profiles_of_ours_that_the_host_took_over_stay(database: Database, name: str) -> None:
    await database.run(BUILT_ON_OURS[name], role="postgres")
    user_id = await database.insert_user()
    await uninstall(database)
    assert await database.value("select count(*) from public.profiles where id = %s", (user_id,)) == 1
    # Who writes to it is the host's to say from now on.
    policies = await database.rows("select policyname from pg_policies where tablename = 'profiles' and cmd = 'INSERT'")
    assert policies == []
    assert not await database.value("select has_any_column_privilege('authenticated', 'public.profiles', 'insert')")
    columns = (await Catalog(database.superuser_url).columns())["public.profiles"]
    assert not [column for column in columns if column.startswith("openrouter_")]
    await database.insert_user()
    await database.migrate()
    assert await database.value("select owns_profiles from doorkey.settings") is False


async def test_columns_of_the_hosts_by_our_names_stay(hosted_database: Database) -> None:
    await install_beside(HOSTS["our_names_with_other_types"], hosted_database)
    await hosted_database.run("alter table public.profiles drop column openrouter_key_limit", role="postgres")
    await hosted_database.migrate()
    await uninstall(hosted_database)
    columns = (await Catalog(hosted_database.superuser_url).columns())["public.profiles"]
    assert columns == ["id", "openrouter_key_name", "openrouter_provisioning_status"]


DEPENDENTS = {
    "a view": "create view public.theirs as select available_micros from public.credit_accounts",
    "a foreign key": "create table public.theirs (plan text references public.plans (id))",
    "a table in our schema": "create table doorkey.theirs (state doorkey.provisioning_state);"
    "alter table doorkey.theirs set schema public",
    "a view in our schema": "create view doorkey.theirs as select 1 as one",
}


@pytest.mark.parametrize("name", DEPENDENTS)
async def test_what_the_host_built_on_ours_stops_it_and_nothing_is_half_done(database: Database, name: str) -> None:
    await database.run(DEPENDENTS[name], role="postgres")
    doors = await lived_in(database)
    before = await catalog_of(database)
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        await uninstall(database)
    assert await catalog_of(database) == before
    await doors.make_ready(await database.insert_user())


@pytest.mark.parametrize("table", ["auth.users", "doorkey.provisioning", "public.profiles"])
async def test_a_lock_stops_it_within_seconds_and_nothing_is_half_done(database: Database, table: str) -> None:
    before = await catalog_of(database)
    async with database.connect(autocommit=False) as somebody:
        await somebody.execute(f"lock table {table} in row exclusive mode")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await uninstall(database)
    assert await catalog_of(database) == before


async def test_what_auth_has_begun_ends_first_and_is_noticed(database: Database) -> None:
    user_id = await database.insert_user()
    troubles: list[str | None] = []
    async with database.connect("supabase_auth_admin", autocommit=False) as auth:
        auth.add_notice_handler(lambda notice: troubles.append(notice.message_primary))
        await auth.execute("update users set last_sign_in_at = now() where id = %s", (user_id,))
        uninstalling = asyncio.create_task(uninstall(database, keeps_ledger=True))
        await wait_until_blocked(database, 1)
        # It needs our tables only now: they must not be taken from it yet.
        await auth.execute("update users set banned_until = now() + interval '1 day' where id = %s", (user_id,))
        await auth.commit()
    await uninstalling
    assert troubles == []
    assert await database.value("select count(*) from doorkey.audit_log where action = 'user.not_noticed'") == 0
    assert await database.value("select to_regclass('doorkey.provisioning')") is None


async def test_a_function_that_the_host_called_like_a_door_since_stays(database: Database) -> None:
    await database.run(
        "create function public.reveal_key(text) returns text language sql as 'select $1'", role="postgres"
    )
    await uninstall(database)
    assert await database.value("select public.reveal_key('theirs')") == "theirs"


async def test_another_schema_by_our_name_is_left_alone(hosted_database: Database) -> None:
    await hosted_database.run("create schema doorkey; create table doorkey.theirs (id int)", role="postgres")
    with pytest.raises(psycopg.errors.RaiseException, match="not installed here"):
        await uninstall(hosted_database)
    assert await hosted_database.value("select count(*) from doorkey.theirs") == 0


def test_the_names_are_those_that_the_installation_claims() -> None:
    def names(text: str) -> set[str]:
        return set(re.findall(r"'([a-z_]+)'", text))

    uninstalling = UNINSTALL.read_text()
    claimed = names(MIGRATIONS[0].read_text().split("unnest(array[")[1].split("])")[0])
    dropped = names(uninstalling.split("c_doors constant")[1].split("c_kept_tables")[0])
    indexes = {name for name in claimed if name.startswith(("credit_", "openrouter_"))} - dropped
    assert claimed - indexes == dropped


async def test_what_a_deleted_key_was_charged_is_not_its_successors_after_another_installation(
    database: Database,
) -> None:
    doors = Doors(database)
    user_id = await database.insert_user()
    await doors.make_ready(user_id)
    await Credits(database).settle((await Credits(database).reserve(user_id, 1_000_000))["hold_id"], 750_000)
    # As --delete-keys notes it.
    async with database.connect("postgres") as owner:
        (key,) = await doors.keys(user_id)
        await owner.execute(NOTE.format(Identifier("public", "openrouter_user_keys")), (key["key_hash"],))
    await uninstall(database, keeps_ledger=True)
    await database.migrate()
    async with database.acting_as("service_role") as service:
        await service.execute("select public.backfill_users(null, null, null, null, 100, 100, 'r')")
    claim = await doors.claimed(user_id)
    assert claim["limit_micros"] == 4_250_000
    await doors.finish(claim, "another one")
    assert {key["key_name"]: key["cost_micros"] for key in await doors.keys(user_id)} == {
        f"{user_id}-1": 750_000,
        "another one": 0,
    }
    assert await Credits(database).limit(user_id) == 4_250_000
