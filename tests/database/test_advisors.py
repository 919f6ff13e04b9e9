"""Supabase's own advisors find nothing, and what they lack or don't ask is asked here.

The CLI's advisors lack the lints 0025 to 0029 (supabase.md 8). Of these, 0025 is about storage buckets, which doorkey
has none of; 0026 and 0027 about tables that GraphQL shows, which are exactly those that may be read; 0028 and 0029
about definer functions that clients may call.
"""

from __future__ import annotations

import json
import logging

import pytest

from infra.local.migrations import run_cli
from infra.local.stack import CHECKOUT
from infra.local.supervisor import PartFailed
from tests.database.catalog import Catalog
from tests.database.declared_grants import COLUMNS, TABLES
from tests.support.databases import Database

log = logging.getLogger(__name__)

OURS = "('public'::regnamespace, 'doorkey'::regnamespace)"


async def advise(database: Database) -> list[dict[str, str]]:
    """What the real CLI finds, information included. Fails from warnings on."""
    try:
        output = await run_cli(
            CHECKOUT,
            *("db", "advisors", "--type", "all", "--level", "info", "--fail-on", "warn"),
            database_url=database.url("postgres"),
        )
    except PartFailed as failure:
        pytest.fail("\n".join([str(failure), *failure.last_lines]))
    findings: list[dict[str, str]] = json.loads(output)
    return findings


async def test_supabase_advisors_find_nothing(database: Database) -> None:
    findings = await advise(database)
    for finding in findings:
        log.info("advisor.noted level=%s name=%s %s", finding["level"], finding["name"], finding["detail"])
    assert {finding["level"] for finding in findings} <= {"INFO"}
    # Indexes of a new database are unused, and internal tables have no policy because nobody may come near them.
    assert {finding["name"] for finding in findings} <= {"unused_index", "rls_enabled_no_policy"}, findings


async def test_advisors_are_awake(database: Database) -> None:
    await database.run("create table public.open_to_all (id int primary key)", role="postgres")
    with pytest.raises(pytest.fail.Exception, match="db advisors"):
        await advise(database)


async def test_graphql_would_show_only_what_is_declared(database: Database) -> None:
    """Lints 0026 and 0027: whatever a client may select, by any grant."""
    for role in ("anon", "authenticated"):
        rows = await database.rows(
            f"""select c.oid::regclass::text as name, n.nspname || '.' || c.relname as path
                  from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
                 where c.relnamespace in {OURS} and c.relkind in ('r', 'p', 'v', 'm', 'f')
                   and has_any_column_privilege('{role}', c.oid, 'select')"""
        )
        declared = {table for table, readers in TABLES.items() if role in readers or role in COLUMNS.get(table, {})}
        assert {row["path"] for row in rows} == declared, role


async def test_no_definer_function_stands_in_an_exposed_schema(database: Database) -> None:
    """Lints 0028 and 0029, and stricter: a door has no power of its own, whoever may call it."""
    definers = await database.rows(
        """select oid::regprocedure::text as function from pg_proc
            where prosecdef and proowner = 'postgres'::regrole and pronamespace <> 'doorkey'::regnamespace"""
    )
    assert definers == [], "put what needs power into doorkey, and a thin security invoker door before it"


async def test_functions_open_to_clients_by_power_stand_behind_a_door_of_the_same_caller(database: Database) -> None:
    """A definer function that a client may call is reached only through its public door."""
    orphans = await database.rows(
        """select p.oid::regprocedure::text as function, r.role
             from pg_proc as p, unnest(array['anon', 'authenticated', 'service_role']) as r (role)
            where p.prosecdef and p.pronamespace = 'doorkey'::regnamespace
              and has_function_privilege(r.role, p.oid, 'execute')
              and not exists (
                select from pg_proc as d
                 where d.pronamespace = 'public'::regnamespace and has_function_privilege(r.role, d.oid, 'execute')
                   and strpos(d.prosrc, 'doorkey.' || p.proname || '(') > 0)"""
    )
    assert orphans == []


async def test_every_function_finds_nothing_by_search_path(database: Database) -> None:
    functions = await database.rows(
        f"""select oid::regprocedure::text as function, proconfig from pg_proc
             where pronamespace in {OURS} and 'search_path=""' <> all (coalesce(proconfig, '{{}}'))"""
    )
    assert functions == [], "add: set search_path = ''"


async def test_every_table_has_row_level_security(database: Database) -> None:
    tables = await database.rows(
        f"""select oid::regclass::text as name from pg_class
             where relnamespace in {OURS} and relkind in ('r', 'p') and not relrowsecurity"""
    )
    assert tables == [], "a grant by mistake should still show nothing: enable row level security"
    others = await database.rows(
        f"select oid::regclass::text as name from pg_class where relnamespace in {OURS} and relkind in ('v', 'm', 'f')"
        # Read with the rights of whoever asks: row by row what the tables behind it show them.
        " and not (relkind = 'v' and 'security_invoker=true' = any (reloptions))"
    )
    assert others == [], "row level security doesn't cover views and the like: say here why this one is safe"


async def test_no_hidden_table_has_a_policy_and_every_personal_one_names_its_reader(database: Database) -> None:
    policies = await database.rows(
        f"""select p.polrelid::regclass::text as name, n.nspname, p.polcmd::text as command,
                   pg_get_expr(coalesce(p.polqual, p.polwithcheck), p.polrelid) as condition,
                   array(select rolname::text from pg_roles where oid = any (p.polroles) order by 1) as roles
              from pg_policy as p join pg_class as c on c.oid = p.polrelid
              join pg_namespace as n on n.oid = c.relnamespace where n.oid in {OURS}"""
    )
    assert {policy["nspname"] for policy in policies} == {"public"}
    assert {policy["command"] for policy in policies} == {"r", "a"}
    assert [policy["name"] for policy in policies if policy["command"] == "a"] == ["profiles"]
    for policy in policies:
        is_personal = "auth.uid()" in policy["condition"]
        assert policy["roles"] == (["authenticated"] if is_personal else ["anon", "authenticated"]), policy


async def test_every_foreign_key_has_an_index(database: Database) -> None:
    """Lint 0001: deleting or changing what is referred to must not read the whole table. Nulls refer to nothing."""
    bare = await database.rows(
        f"""select conrelid::regclass::text as name, conname from pg_constraint as k
             where contype = 'f' and connamespace in {OURS}
               and not exists (
                 select from pg_index as i
                  where i.indrelid = k.conrelid and i.indisvalid
                    and (i.indpred is null or pg_get_expr(i.indpred, i.indrelid) = (
                           select format('(%%I IS NOT NULL)', a.attname) from pg_attribute as a
                            where a.attrelid = k.conrelid and a.attnum = k.conkey[1]))
                    and (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey)"""
    )
    assert bare == []


async def test_every_table_has_a_primary_key(database: Database) -> None:
    found = await database.rows(
        f"""select oid::regclass::text as name from pg_class as c where relnamespace in {OURS} and relkind in ('r', 'p')
               and not exists (select from pg_constraint where conrelid = c.oid and contype = 'p')"""
    )
    assert found == []


async def test_nothing_is_empty_that_is_checked_here(database: Database) -> None:
    """The checks above are for all of something: here is that something."""
    objects = await Catalog(database.superuser_url).objects()
    assert len(objects["table"]) >= 11
    assert len(objects["function"]) >= 30
    assert (
        await database.value(f"select count(*) from pg_constraint where contype = 'f' and connamespace in {OURS}") > 5
    )
