"""What the catalog says of our objects: all of them, and who may do what to each.

In the databases of these tests nobody else has anything in `public`, so whatever is there is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.database.declared_grants import Grant

# A missing acl means the built-in default, which for functions and types is: everybody.
_OBJECTS = """
with spaces as (
  select oid, nspname, nspowner, nspacl from pg_namespace where nspname in ('public', 'doorkey')
), objects as (
  select 'schema' as kind, nspname::text as name, nspowner as owner, coalesce(nspacl, acldefault('n', nspowner)) as acl
    from spaces where nspname = 'doorkey'
  union all
  select case c.relkind when 'S' then 'sequence' else 'table' end, n.nspname || '.' || c.relname, c.relowner,
         coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))
    from pg_class as c join spaces as n on n.oid = c.relnamespace where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
  union all
  select 'function', n.nspname || '.' || p.proname || '(' || oidvectortypes(p.proargtypes) || ')', p.proowner,
         coalesce(p.proacl, acldefault('f', p.proowner))
    from pg_proc as p join spaces as n on n.oid = p.pronamespace
  union all
  select 'type', n.nspname || '.' || t.typname, t.typowner, coalesce(t.typacl, acldefault('T', t.typowner))
    from pg_type as t join spaces as n on n.oid = t.typnamespace
    left join pg_class as c on c.oid = t.typrelid
   where t.typtype in ('e', 'd', 'r') or (t.typtype = 'c' and c.relkind = 'c')
)
"""
_COLUMN_ACLS = """
  select 'column' as kind, n.nspname || '.' || c.relname || '.' || a.attname as name, c.relowner as owner,
         a.attacl as acl
    from pg_attribute as a join pg_class as c on c.oid = a.attrelid join spaces as n on n.oid = c.relnamespace
   where a.attacl is not null and not a.attisdropped
"""


@dataclass(frozen=True)
class Catalog:
    """One database's catalog, as read by whoever the URL names."""

    url: str

    async def rows(self, statement: str) -> list[dict[str, Any]]:
        """What a query returns."""
        async with await psycopg.AsyncConnection.connect(self.url, row_factory=dict_row) as connection:
            return await (await connection.execute(statement)).fetchall()

    async def objects(self) -> dict[str, set[str]]:
        """The names of our objects by kind: schema, table, sequence, function, type."""
        found: dict[str, set[str]] = {}
        for row in await self.rows(_OBJECTS + "select kind, name from objects"):
            found.setdefault(row["kind"], set()).add(row["name"])
        return found

    async def owners(self) -> set[str]:
        """Whom our objects belong to."""
        rows = await self.rows(_OBJECTS + "select distinct owner::regrole::text as owner from objects")
        return {row["owner"] for row in rows}

    async def grants(self) -> set[Grant]:
        """Every privilege on our objects, besides the owner's; one that may be passed on says so."""
        rows = await self.rows(
            f"""{_OBJECTS}
            select o.kind, o.name, case a.grantee when 0 then 'public' else a.grantee::regrole::text end as grantee,
                   a.privilege_type || case when a.is_grantable then ' WITH GRANT OPTION' else '' end as privilege
              from (select * from objects union all {_COLUMN_ACLS}) as o, aclexplode(o.acl) as a
             where a.grantee <> o.owner"""
        )
        return {Grant(**row) for row in rows}

    async def columns(self) -> dict[str, list[str]]:
        """The columns of each table of ours, in order."""
        rows = await self.rows(
            """select n.nspname || '.' || c.relname as name, array_agg(a.attname::text order by a.attnum) as columns
                 from pg_attribute as a join pg_class as c on c.oid = a.attrelid
                 join pg_namespace as n on n.oid = c.relnamespace
                where n.nspname in ('public', 'doorkey') and c.relkind in ('r', 'p', 'v', 'm', 'f')
                  and a.attnum > 0 and not a.attisdropped
                group by 1"""
        )
        return {row["name"]: row["columns"] for row in rows}

    async def argument_names(self) -> dict[str, list[str]]:
        """The names of what each function of ours takes."""
        rows = await self.rows(
            """select n.nspname || '.' || p.proname || '(' || oidvectortypes(p.proargtypes) || ')' as name,
                      coalesce(p.proargnames[1:p.pronargs], '{}') as arguments
                 from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
                where n.nspname in ('public', 'doorkey')"""
        )
        return {row["name"]: row["arguments"] for row in rows}

    async def default_privileges(self) -> list[dict[str, Any]]:
        """What objects made from now on are born with."""
        return await self.rows(
            """select defaclrole::regrole::text as role, defaclnamespace::regnamespace::text as space,
                      defaclobjtype::text as kind, defaclacl::text as acl
                 from pg_default_acl order by 1, 2, 3"""
        )

    async def foreign_acls(self) -> list[dict[str, Any]]:
        """Every acl of whatever is not ours, the system's own excepted."""
        return await self.rows(
            """select 'schema' as kind, nspname::text as name, nspacl::text as acl from pg_namespace
                where nspname <> 'doorkey' and nspname !~ '^pg_'
               union all
               select c.relkind::text, c.oid::regclass::text, c.relacl::text from pg_class as c
                 join pg_namespace as n on n.oid = c.relnamespace where n.nspname !~ '^pg_|^public$|^doorkey$'
               union all
               select 'column', a.attrelid::regclass || '.' || a.attname, a.attacl::text from pg_attribute as a
                 join pg_class as c on c.oid = a.attrelid join pg_namespace as n on n.oid = c.relnamespace
                where n.nspname !~ '^pg_|^public$|^doorkey$' and a.attacl is not null
               union all
               select 'function', p.oid::regprocedure::text, p.proacl::text from pg_proc as p
                 join pg_namespace as n on n.oid = p.pronamespace where n.nspname !~ '^pg_|^public$|^doorkey$'
               union all
               select 'member', roleid::regrole || ' ' || member::regrole, null from pg_auth_members
               union all
               select 'role', rolname, rolsuper::text || rolbypassrls || rolinherit || rolcreaterole from pg_roles
               order by 1, 2, 3"""
        )
