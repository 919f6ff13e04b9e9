"""Databases for tests: cloned from templates in a tenth of a second, dropped afterwards.

Two templates: `hosted`, as a Supabase project is before doorkey comes, and `doorkey`, with the migrations applied as
role `postgres`. The server is a real one with hosted's roles, privileges and Auth tables; only fsync is off.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from infra.local import postgres
from infra.local.scratch import running_scratch_server
from infra.local.stack import CHECKOUT, with_login

MIGRATIONS = sorted((CHECKOUT / "supabase" / "migrations").glob("*.sql"))

Row = dict[str, Any]
Connection = psycopg.AsyncConnection[Row]


@dataclass(frozen=True, repr=False)
class Database:
    """One database of the test server.

    Attributes:
        name: its name.
        superuser_url: of `supabase_admin` in it.
        password: of the roles that log in.
    """

    name: str
    superuser_url: str
    password: str

    def url(self, role: str) -> str:
        """A connection URL for `postgres`, `authenticator`, `supabase_auth_admin` or `supabase_admin`."""
        if role == postgres.SUPERUSER:
            return self.superuser_url
        return with_login(self.superuser_url, role, self.password)

    @asynccontextmanager
    async def connect(self, role: str = postgres.SUPERUSER, *, autocommit: bool = True) -> AsyncIterator[Connection]:
        """A connection as that role; rows are dicts."""
        async with await psycopg.AsyncConnection.connect(
            self.url(role), autocommit=autocommit, row_factory=dict_row
        ) as connection:
            yield connection

    @asynccontextmanager
    async def acting_as(self, role: str, user_id: uuid.UUID | None = None) -> AsyncIterator[Connection]:
        """A connection that does what the Data API does for `anon`, `authenticated` or `service_role`."""
        async with self.connect("authenticator") as connection:
            claims = {"role": role} | ({"sub": str(user_id)} if user_id else {})
            await connection.execute("select set_config('request.jwt.claims', %s, false)", (json.dumps(claims),))
            # What older auth.uid() functions read.
            await connection.execute(
                "select set_config('request.jwt.claim.sub', %s, false)", (str(user_id) if user_id else "",)
            )
            await connection.execute(f"set role {role}")
            yield connection

    async def rows(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        """What a query as superuser returns."""
        async with self.connect() as connection:
            return await (await connection.execute(statement, parameters)).fetchall()

    async def value(self, statement: str, parameters: Sequence[object] = ()) -> Any:
        """The one value that a query as superuser returns."""
        (row,) = await self.rows(statement, parameters)
        (value,) = row.values()
        return value

    async def run(self, statement: str, parameters: Sequence[object] = (), role: str = postgres.SUPERUSER) -> None:
        """Runs one statement, or several without parameters."""
        async with self.connect(role) as connection:
            await connection.execute(statement, parameters or None)

    async def migrate(self) -> None:
        """Applies every migration as `postgres`, each in a transaction, as the CLI does."""
        async with self.connect("postgres", autocommit=False) as connection:
            for path in MIGRATIONS:
                await connection.execute(path.read_bytes())
                await connection.commit()

    async def insert_user(
        self,
        *,
        email: str | None = None,
        phone: str | None = None,
        confirmed: bool = True,
        is_anonymous: bool = False,
        metadata: object = None,
        created_at: str | None = None,
    ) -> uuid.UUID:
        """Inserts a user as Auth does: as supabase_auth_admin, unconfirmed first, confirmed in the same transaction."""
        user_id = uuid.uuid4()
        if email is None and phone is None and not is_anonymous:
            email = f"{user_id}@example.com"
        async with self.connect("supabase_auth_admin", autocommit=False) as connection:
            await connection.execute(
                """insert into users (id, aud, role, email, phone, is_anonymous, raw_user_meta_data,
                                      created_at, updated_at)
                   values (%s, 'authenticated', '', %s, %s, %s, %s, coalesce(%s::timestamptz, now()), now())""",
                (user_id, email, phone, is_anonymous, json.dumps(metadata or {}), created_at),
            )
            await connection.execute("update users set role = 'authenticated' where id = %s", (user_id,))
            if confirmed and not is_anonymous:
                column = "email_confirmed_at" if email else "phone_confirmed_at"
                await connection.execute(f"update users set {column} = now() where id = %s", (user_id,))
            await connection.commit()
        return user_id


@dataclass(frozen=True, repr=False)
class DatabaseServer:
    """The server with its templates."""

    superuser_url: str
    password: str

    @asynccontextmanager
    async def clone(self, template: str) -> AsyncIterator[Database]:
        """A database of its own, made from a template and dropped at the end."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        async with await psycopg.AsyncConnection.connect(self.superuser_url, autocommit=True) as connection:
            await connection.execute(f"create database {name} template {template} strategy file_copy")
            # Settings and grants on a database are not cloned with it.
            await connection.execute(f"grant create, connect, temporary on database {name} to postgres")
            try:
                yield Database(
                    name, with_login(self.superuser_url, postgres.SUPERUSER, self._root_password, name), self.password
                )
            finally:
                await connection.execute(f"drop database {name} with (force)")

    @property
    def _root_password(self) -> str:
        return psycopg.conninfo.conninfo_to_dict(self.superuser_url)["password"] or ""  # type: ignore[return-value]


@asynccontextmanager
async def running_database_server() -> AsyncIterator[DatabaseServer]:
    """Starts the server and makes the templates."""
    async with running_scratch_server() as server:
        async with await psycopg.AsyncConnection.connect(
            server.url(database="template1"), autocommit=True
        ) as connection:
            await connection.execute("create database hosted template postgres")
            await connection.execute("create database doorkey template hosted")
            await connection.execute("grant create, connect, temporary on database doorkey to postgres")
        await Database("doorkey", server.url(database="doorkey"), server.role_password).migrate()
        yield DatabaseServer(server.url(), server.role_password)
