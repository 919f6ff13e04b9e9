"""Every acl of ours is the declared one, where default privileges are hosted's; and the host's stay as they were."""

from __future__ import annotations

import json
import uuid

import httpx
import pytest

from infra.local.stack import Stack
from tests.database.catalog import Catalog
from tests.database.declared_grants import CLIENT_ROLES, OBJECTS, OWNER, Grant, declared_grants
from tests.support.databases import Database

MAKE_HOST_OBJECTS = """
create table public.{0} (id bigint generated always as identity primary key);
create function public.{0}_count() returns bigint language sql as 'select count(*) from public.{0}';
create view public.{0}_view as select id from public.{0};
"""
HOST_OBJECT_ACLS = """
select replace(kind || ' ' || name, '{0}', '') as name, acl from (
  select relkind::text as kind, relname::text as name, relacl::text as acl from pg_class
  union all
  select 'function', proname, proacl::text from pg_proc
) as o where starts_with(name, '{0}') order by 1
"""


def lines(grants: set[Grant]) -> str:
    """For messages."""
    return "".join(f"\n  {grant}" for grant in sorted(grants)) or " none"


async def assert_as_declared(catalog: Catalog, but: str = "") -> None:
    found, declared = ({g for g in grants if g.name != but} for grants in (await catalog.grants(), declared_grants()))
    assert found == declared, (
        f"\ngranted, and not declared (is a revoke missing beside the object?):{lines(found - declared)}"
        f"\ndeclared in declared_grants.py, and not granted:{lines(declared - found)}"
    )


@pytest.fixture(scope="session")
async def used_stack(stack: Stack, http: httpx.AsyncClient) -> Stack:
    """The shared stack after a sign-up and a request of each kind with each key: Lite would grant at the first."""
    await http.post(
        f"{stack.supabase_url}/auth/v1/signup",
        headers={"apikey": stack.secrets.publishable_key},
        json={"email": f"{uuid.uuid4()}@example.com", "password": str(uuid.uuid4())},
    )
    for key in (stack.secrets.publishable_key, stack.secrets.secret_key):
        for path in ("plans", "profiles", "rpc/get_doorkey_health", ""):
            answer = await http.get(f"{stack.supabase_url}/rest/v1/{path}", headers={"apikey": key})
            assert answer.status_code < 500, answer.text
    return stack


@pytest.fixture(params=["database", "used_stack"])
def catalog(request: pytest.FixtureRequest) -> Catalog:
    """Of a fresh database, and of the running stack."""
    place: Database | Stack = request.getfixturevalue(request.param)
    return Catalog(place.superuser_url)


async def test_every_object_has_its_line_in_the_declaration(catalog: Catalog) -> None:
    found = await catalog.objects()
    for kind, declared in OBJECTS.items():
        assert found.get(kind, set()) == declared, (
            f"a {kind} and its line in declared_grants.py come and go together: say there who may use it"
        )
    assert found.keys() == OBJECTS.keys()


async def test_everything_belongs_to_the_role_that_migrates(catalog: Catalog) -> None:
    assert await catalog.owners() == {OWNER}


async def test_every_grant_is_declared_and_every_declaration_granted(catalog: Catalog) -> None:
    await assert_as_declared(catalog)


async def test_no_sequence_is_usable_by_clients(catalog: Catalog) -> None:
    grants = {grant for grant in await catalog.grants() if grant.kind == "sequence"}
    assert not grants, f"revoke all on the sequence, beside its table:{lines(grants)}"
    # `has_...` also knows what comes by membership or from public.
    rows = await catalog.rows(
        f"""select c.oid::regclass::text as sequence, r.role
              from pg_class as c, unnest(array{list(CLIENT_ROLES)}) as r (role)
             where c.relkind = 'S' and c.relnamespace in ('public'::regnamespace, 'doorkey'::regnamespace)
               and has_sequence_privilege(r.role, c.oid, 'usage, select, update')"""
    )
    assert rows == []


async def test_a_repeated_migration_grants_nothing_new(database: Database) -> None:
    await database.migrate()
    await assert_as_declared(Catalog(database.superuser_url))


async def test_every_object_closes_itself_whatever_was_granted(database: Database) -> None:
    await database.run(
        """grant all on all tables in schema public, doorkey to anon, authenticated, service_role;
           grant all on all sequences in schema public, doorkey to anon, authenticated, service_role;
           grant all on all functions in schema public, doorkey to public, anon, authenticated, service_role;
           grant all on schema doorkey to public, anon, authenticated, service_role;""",
        role="postgres",
    )
    await database.migrate()
    # A table of this name may be the host's: on one that is there already, grants are left alone.
    await assert_as_declared(Catalog(database.superuser_url), but="public.profiles")


async def test_the_migrations_change_no_privilege_of_the_hosts(hosted_database: Database) -> None:
    catalog = Catalog(hosted_database.superuser_url)
    defaults, acls = await catalog.default_privileges(), await catalog.foreign_acls()
    assert {row["kind"] for row in defaults} == {"r", "f", "S"}, "the test needs hosted's default privileges"
    await hosted_database.migrate()
    assert await catalog.default_privileges() == defaults
    assert await catalog.foreign_acls() == acls


async def test_the_stack_has_the_privileges_of_a_migrated_database(stack: Stack, database: Database) -> None:
    of_stack, of_database = Catalog(stack.superuser_url), Catalog(database.superuser_url)
    assert await of_stack.default_privileges() == await of_database.default_privileges()
    assert await of_stack.foreign_acls() == await of_database.foreign_acls()


@pytest.mark.parametrize("role", CLIENT_ROLES)
async def test_what_the_host_makes_afterwards_works_as_before(hosted_database: Database, role: str) -> None:
    await hosted_database.run(MAKE_HOST_OBJECTS.format("earlier"), role="postgres")
    await hosted_database.migrate()
    await hosted_database.run(MAKE_HOST_OBJECTS.format("later_on"), role="postgres")
    acls = [await hosted_database.rows(HOST_OBJECT_ACLS.format(name)) for name in ("earlier", "later_on")]
    assert len(acls[0]) == 5, json.dumps(acls[0])
    assert acls[0] == acls[1]
    async with hosted_database.acting_as(role) as connection:
        await connection.execute("insert into public.later_on default values")
        for statement in ("public.later_on_count()", "count from (select count(*) from public.later_on_view)"):
            row = await (await connection.execute(f"select {statement}")).fetchone()
            assert row is not None
            assert list(row.values()) == [1]
