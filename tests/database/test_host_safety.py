"""Beside the host: whatever its `public.profiles` looks like, people sign up, and what can be provisioned is.

Each host is set up as role `postgres` before doorkey comes, as on hosted Supabase. Migrations run twice every time.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import psycopg
import pytest

from tests.support.databases import Database, Row
from tests.support.doors import Doors

OLD_USERS = 1000
TABLE = "create table public.profiles (id uuid primary key references auth.users (id) on delete cascade"
# A plain insert without `on conflict`, by the trigger that Supabase's documentation names.
STOCK_TRIGGER = """
create function public.handle_new_user() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  insert into public.profiles (id, {columns}) values (new.id, {values});
  return new;
end
$$;
create trigger on_auth_user_created after insert on auth.users
  for each row execute procedure public.handle_new_user();
"""
RAISES = """
create function public.host_says_no() returns trigger language plpgsql as $$
begin
  raise exception 'the host says no' using errcode = 'P0042';
end
$$;
"""


@dataclass(frozen=True)
class Host:
    """What was there before, and what is to become of the profile.

    Attributes:
        setup: SQL as role postgres, or as the superuser if `is_foreign`.
        profile: the status in the user's profile after signup; None: no row, or none that can be told.
        notes: what the audit log says about the user after signup.
    """

    setup: str
    profile: str | None
    notes: frozenset[str] = frozenset()
    is_foreign: bool = False


NOT_FILLED = frozenset({"profile.not_filled"})

HOSTS = {
    "nothing": Host("select 1", "pending"),
    "stock": Host(
        TABLE + ", first_name text);" + STOCK_TRIGGER.format(columns="first_name", values="new.email"), "pending"
    ),
    "no_trigger_of_its_own": Host(TABLE + ", avatar_url text, points int not null default 0)", "pending"),
    "required_column": Host(TABLE + ", username text not null)", None, NOT_FILLED),
    "required_column_filled_by_its_trigger": Host(
        TABLE + ", username text not null);" + STOCK_TRIGGER.format(columns="username", values="new.email"), "pending"
    ),
    "view": Host(
        "create table public.people (id uuid); create view public.profiles as select id from public.people",
        None,
        NOT_FILLED,
    ),
    "keyed_by_user_id": Host(
        "create table public.profiles (user_id uuid primary key references auth.users (id))", None, NOT_FILLED
    ),
    "id_of_its_own_beside_user_id": Host(
        "create table public.profiles (id uuid primary key default gen_random_uuid(), user_id uuid"
        " references auth.users (id))",
        None,
        NOT_FILLED,
    ),
    "numbered": Host("create table public.profiles (id bigint generated always as identity)", None, NOT_FILLED),
    "our_names_with_other_types": Host(
        TABLE + ", openrouter_key_name int, openrouter_key_limit boolean, openrouter_provisioning_status int)",
        None,
        NOT_FILLED,
    ),
    "our_status_with_a_check": Host(
        TABLE + ", openrouter_provisioning_status text check (openrouter_provisioning_status = 'x'))", None, NOT_FILLED
    ),
    "trigger_on_profiles_raises": Host(
        f"{TABLE});{RAISES} create trigger no before insert or update on public.profiles"
        " for each row execute function public.host_says_no()",
        None,
        NOT_FILLED,
    ),
    "trigger_on_profiles_raises_at_commit": Host(
        f"{TABLE});{RAISES} create constraint trigger no after insert or update on public.profiles"
        " deferrable initially deferred for each row execute function public.host_says_no()",
        None,
        NOT_FILLED,
    ),
    "foreign_key_checked_at_commit": Host(
        "create table public.profiles (id uuid primary key references auth.users (id) on delete cascade"
        " deferrable initially deferred)",
        "pending",
    ),
    "somebody_elses": Host(
        f"{TABLE}); alter table public.profiles owner to supabase_admin;"
        " revoke all on public.profiles from postgres, public",
        None,
        NOT_FILLED,
        is_foreign=True,
    ),
}


async def install_beside(host: Host, database: Database) -> None:
    await database.run(host.setup, role="supabase_admin" if host.is_foreign else "postgres")
    await database.migrate()
    await database.migrate()


async def profile_status(database: Database, user_id: uuid.UUID) -> object:
    rows = await database.rows(
        "select to_jsonb(p) ->> 'openrouter_provisioning_status' as status from public.profiles as p"
        " where to_jsonb(p) ->> 'id' = %s",
        (str(user_id),),
    )
    return rows[0]["status"] if rows else None


@pytest.mark.parametrize("name", HOSTS)
async def test_signups_succeed_beside_any_profiles_and_are_provisioned(hosted_database: Database, name: str) -> None:
    host, doors = HOSTS[name], Doors(hosted_database)
    await install_beside(host, hosted_database)
    await hosted_database.run("update doorkey.settings set fills_host_profiles = true")
    user_id = await hosted_database.insert_user()
    assert await doors.state(user_id) == "due"
    assert await profile_status(hosted_database, user_id) == host.profile
    assert await doors.notes(user_id) == host.notes
    claim = await doors.make_ready(user_id)
    assert claim["limit_micros"] == 5_000_000
    if host.profile:
        assert await profile_status(hosted_database, user_id) == "active"


async def test_no_row_is_invented_in_a_table_whose_id_is_not_the_users(hosted_database: Database) -> None:
    await install_beside(HOSTS["id_of_its_own_beside_user_id"], hosted_database)
    await hosted_database.run("update doorkey.settings set fills_host_profiles = true")
    await hosted_database.insert_user()
    assert await hosted_database.value("select count(*) from public.profiles") == 0


async def test_a_host_that_inserts_its_row_later_does_not_stumble_over_one_of_ours(hosted_database: Database) -> None:
    await install_beside(HOSTS["no_trigger_of_its_own"], hosted_database)
    user_id = await hosted_database.insert_user()
    await hosted_database.run("insert into public.profiles (id) values (%s)", (user_id,), role="postgres")
    await Doors(hosted_database).make_ready(user_id)
    assert await profile_status(hosted_database, user_id) == "active"


@pytest.mark.parametrize("moment", ["signup", "finish"])
async def test_a_lock_on_profiles_costs_the_profile_and_nothing_else(hosted_database: Database, moment: str) -> None:
    await install_beside(HOSTS["nothing"], hosted_database)
    doors = Doors(hosted_database)
    user_id = await hosted_database.insert_user() if moment == "finish" else uuid.UUID(int=0)
    async with hosted_database.connect("postgres", autocommit=False) as host:
        await host.execute("lock table public.profiles in access exclusive mode")
        if moment == "signup":
            user_id = await hosted_database.insert_user()
        await doors.make_ready(user_id)
    assert await doors.notes(user_id) == {"profile.not_updated"} | (NOT_FILLED if moment == "signup" else set())


async def what_the_host_sees(database: Database) -> dict[str, list[Row]]:
    """Everything about its own objects that we could have changed."""
    ours = "array['openrouter_key_name', 'openrouter_key_limit', 'openrouter_provisioning_status']"
    statements = {
        "relations": """select c.oid::regclass::text as name, relowner::regrole::text, relacl::text, relrowsecurity,
                               relforcerowsecurity, reloptions::text
                          from pg_class as c where relnamespace in ('public'::regnamespace, 'auth'::regnamespace)
                           and relname in ('profiles', 'users', 'identities', 'todos') order by 1""",
        "columns": f"""select attrelid::regclass::text as name, attname, attacl::text, attnotnull
                         from pg_attribute where attnum > 0 and attname <> all ({ours})
                          and attrelid in ('public.profiles'::regclass, 'public.todos'::regclass) order by 1, 2""",
        "policies": "select * from pg_policies where tablename in ('profiles', 'todos') order by policyname",
        "triggers": """select tgrelid::regclass::text, tgname, tgenabled, pg_get_triggerdef(oid) from pg_trigger
                        where not tgisinternal and not starts_with(tgname, 'zz_doorkey') and tgrelid in
                        ('auth.users'::regclass, 'public.profiles'::regclass) order by 1, 2""",
        "functions": """select oid::regprocedure::text as name, proacl::text, proowner::regrole::text, prosrc
                          from pg_proc where proname in ('handle_new_user', 'add_todo') order by 1""",
        "schemas": "select nspname, nspacl::text from pg_namespace where nspname <> 'doorkey'"
        " and not starts_with(nspname, 'pg_') order by 1",
        "default privileges": "select defaclrole, defaclnamespace, defaclobjtype, defaclacl::text from pg_default_acl"
        " order by 1, 2, 3",
        "roles": "select rolname, rolsuper, rolbypassrls, rolconfig::text from pg_roles order by 1",
        "rows": f"select to_jsonb(p) - {ours} as row from public.profiles as p order by id",
    }
    return {name: await database.rows(statement) for name, statement in statements.items()}


async def test_what_is_the_hosts_stays_as_it_was(hosted_database: Database) -> None:
    await hosted_database.run(
        HOSTS["stock"].setup
        + """;
        alter table public.profiles enable row level security;
        revoke all on public.profiles from anon;
        grant select (id) on public.profiles to anon;
        create policy "All may look" on public.profiles for select to anon using (first_name is not null);
        create table public.todos (id int, note text);
        create function public.add_todo() returns void language sql as 'select';
        """,
        role="postgres",
    )
    await hosted_database.insert_user()
    before = await what_the_host_sees(hosted_database)
    assert before["rows"]
    await hosted_database.migrate()
    await hosted_database.migrate()
    assert await what_the_host_sees(hosted_database) == before
    newcomer = await hosted_database.insert_user()
    await Doors(hosted_database).make_ready(newcomer)
    after = await what_the_host_sees(hosted_database)
    after["rows"] = [r for r in after["rows"] if r["row"]["id"] != str(newcomer)]
    assert after == before


async def test_what_the_host_makes_afterwards_is_open_as_before(hosted_database: Database) -> None:
    make = "create table public.{0} (id int); create function public.{0}() returns int language sql as 'select 1'"
    acl = (
        "select (select relacl::text from pg_class where oid = 'public.{0}'::regclass) as relation,"
        " (select proacl::text from pg_proc where oid = 'public.{0}'::regproc) as function"
    )
    await hosted_database.run(make.format("earlier"), role="postgres")
    await hosted_database.migrate()
    await hosted_database.run(make.format("later"), role="postgres")
    assert await hosted_database.rows(acl.format("later")) == await hosted_database.rows(acl.format("earlier"))


async def test_a_thousand_old_users_are_left_alone(hosted_database: Database) -> None:
    await hosted_database.run(
        f"""insert into auth.users (id, email, created_at)
            select gen_random_uuid(), n || '@example.com', now() - interval '1 day'
              from generate_series(1, {OLD_USERS}) as n""",
        role="supabase_auth_admin",
    )
    await hosted_database.migrate()
    await hosted_database.migrate()
    old = (await hosted_database.rows("select id from auth.users limit 1"))[0]["id"]
    # Neither a sign-in, nor a late confirmation, nor somebody who asks for it.
    await hosted_database.run("update auth.users set last_sign_in_at = now()", role="supabase_auth_admin")
    await hosted_database.run("update auth.users set email_confirmed_at = now()", role="supabase_auth_admin")
    assert await Doors(hosted_database).claim(old) is None
    for table in ("doorkey.provisioning", "public.credit_accounts", "public.profiles", "net.http_request_queue"):
        assert await hosted_database.value(f"select count(*) from {table}") == 0, table
    assert await Doors(hosted_database).state(await hosted_database.insert_user()) == "due"


async def test_migrating_again_forgets_nothing(database: Database) -> None:
    doors = Doors(database)
    await database.run("update doorkey.settings set provision_on = 'created', key_reveal = 'once'")
    await database.run("update public.plans set welcome_credits_micros = 7")
    user_id = await database.insert_user()
    await doors.make_ready(user_id)
    tables = ("doorkey.settings", "public.plans", "doorkey.provisioning", "public.credit_accounts", "public.profiles")
    before = [await database.rows(f"select * from {table}") for table in tables]
    await database.migrate()
    assert [await database.rows(f"select * from {table}") for table in tables] == before


@pytest.mark.parametrize("name", ["plans", "credit_accounts", "credit_transactions", "openrouter_user_keys"])
async def test_a_table_of_the_hosts_by_one_of_our_names_stops_the_installation_untouched(
    hosted_database: Database, name: str
) -> None:
    await hosted_database.run(f"create table public.{name} (id text primary key)", role="postgres")
    acl = f"select relacl::text, relrowsecurity from pg_class where oid = 'public.{name}'::regclass"
    before = await hosted_database.rows(acl)
    with pytest.raises(psycopg.Error, match=name):
        await hosted_database.migrate()
    assert await hosted_database.rows(acl) == before
    assert await hosted_database.value("select to_regnamespace('doorkey')") is None
    await hosted_database.insert_user()


async def test_a_function_of_the_hosts_by_the_name_of_one_of_our_doors_is_not_replaced(
    hosted_database: Database,
) -> None:
    await hosted_database.run(
        "create function public.get_my_account() returns jsonb language sql as $$ select '\"theirs\"'::jsonb $$",
        role="postgres",
    )
    with pytest.raises(psycopg.Error, match="get_my_account"):
        await hosted_database.migrate()
    assert await hosted_database.value("select public.get_my_account()") == "theirs"
    assert await hosted_database.value("select to_regnamespace('doorkey')") is None


ASSERTING = """
create function public.checks() returns trigger language plpgsql as $$ begin assert false; return new; end $$;
create trigger checks before insert or update on public.profiles for each row execute function public.checks();
"""
CANCELLING = ASSERTING.replace("assert false", "raise sqlstate '57014'")


@pytest.mark.parametrize("trigger", [ASSERTING, CANCELLING], ids=["asserts", "cancels"])
async def test_what_handlers_do_not_catch_by_themselves_stops_no_signup(
    hosted_database: Database, trigger: str
) -> None:
    await install_beside(HOSTS["no_trigger_of_its_own"], hosted_database)
    await hosted_database.run("update doorkey.settings set fills_host_profiles = true")
    await hosted_database.run(trigger, role="postgres")
    user_id = await hosted_database.insert_user()
    doors = Doors(hosted_database)
    assert "profile.not_filled" in await doors.notes(user_id)
    await doors.make_ready(user_id)


async def test_a_profile_that_the_host_inserts_when_the_address_is_confirmed_is_the_hosts(
    hosted_database: Database,
) -> None:
    await install_beside(HOSTS["no_trigger_of_its_own"], hosted_database)
    await hosted_database.run(
        "create function public.on_confirmed() returns trigger language plpgsql security definer as"
        " $$ begin insert into public.profiles (id) values (new.id); return new; end $$;"
        " create trigger on_confirmed after update of email_confirmed_at on auth.users"
        " for each row execute function public.on_confirmed()",
        role="postgres",
    )
    user_id = await hosted_database.insert_user()
    await Doors(hosted_database).make_ready(user_id)
    assert await profile_status(hosted_database, user_id) == "active"


async def test_a_schema_of_the_hosts_by_our_name_is_left_as_it_is(hosted_database: Database) -> None:
    await hosted_database.run("create schema doorkey; grant usage on schema doorkey to anon", role="postgres")
    acl = "select nspacl::text from pg_namespace where nspname = 'doorkey'"
    before = await hosted_database.value(acl)
    with pytest.raises(psycopg.Error, match="schema called doorkey"):
        await hosted_database.migrate()
    assert await hosted_database.value(acl) == before


@pytest.mark.parametrize("column", ["email", "is_anonymous", "banned_until", "email_confirmed_at"])
async def test_auth_may_alter_its_columns(database: Database, column: str) -> None:
    kind = await database.value(
        "select format_type(atttypid, atttypmod) from pg_attribute"
        " where attrelid = 'auth.users'::regclass and attname = %s",
        (column,),
    )
    depending = await database.value(
        "select count(*) from pg_depend d join pg_trigger t on d.classid = 'pg_trigger'::regclass and d.objid = t.oid"
        " join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid"
        " where t.tgname like 'zz_doorkey%%' and a.attrelid = 'auth.users'::regclass and a.attname = %s",
        (column,),
    )
    assert kind
    assert depending == 0


@pytest.mark.parametrize("column", ["email", "is_anonymous", "banned_until", "deleted_at", "raw_user_meta_data"])
@pytest.mark.parametrize("change", ["alter column {} type text", "drop column {}"])
async def test_auth_may_change_a_column_that_we_read(database: Database, column: str, change: str) -> None:
    """As a migration of Auth's does: a view of ours over its table would stop it, and Auth with it."""
    async with database.connect("supabase_auth_admin", autocommit=False) as auth:
        await auth.execute(f"alter table auth.users {change.format(column)}")
        await auth.rollback()
