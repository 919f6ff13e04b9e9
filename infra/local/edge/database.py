"""A few Postgres connections that act as Auth does.

The surprising thing: every transaction runs as session user supabase_auth_admin with search_path
`auth`, even when the URL is a superuser's, because triggers of the project see exactly that on
hosted (supabase.md 2). Only password hashing runs as the URL's own user: pgcrypto lives in
`extensions`, which supabase_auth_admin may not use.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row

Row = dict[str, Any]
Connection = psycopg.AsyncConnection[Row]
Cursor = psycopg.AsyncCursor[Row]

MAX_CONNECTIONS = 4
CONNECT_TIMEOUT_SECONDS = 5


class AuthDatabase:
    """Transactions on the auth schema; at most MAX_CONNECTIONS at a time, reused when idle."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[Connection] = []
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)

    async def close(self) -> None:
        """Closes the idle connections."""
        while self._idle:
            await self._idle.pop().close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Cursor]:
        """One transaction as Auth: commits at the end, rolls back on an exception."""
        async with self._connection() as connection, connection.transaction():
            cursor = connection.cursor()
            if connection.info.parameter_status("is_superuser") == "on":
                await cursor.execute("set local session authorization supabase_auth_admin")
            await cursor.execute("set local search_path = auth")
            yield cursor

    async def hash_password(self, password: str) -> str:
        """A bcrypt hash that Auth and Lite accept at sign-in."""
        async with self._connection() as connection, connection.transaction():
            cursor = await connection.execute(
                "select extensions.crypt(%s, extensions.gen_salt('bf')) as hash", [password]
            )
            row = await cursor.fetchone()
        return str(row["hash"]) if row else ""

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        async with self._slots:
            connection = await self._take()
            try:
                yield connection
            finally:
                if not connection.closed:
                    self._idle.append(connection)

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if await self._alive(connection):
                return connection
        return await psycopg.AsyncConnection.connect(
            self._url,
            autocommit=True,
            row_factory=dict_row,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            application_name="edge",
        )

    @staticmethod
    async def _alive(connection: Connection) -> bool:
        # Postgres may have been restarted since: a test of the stack does just that.
        try:
            await connection.execute("")
        except psycopg.OperationalError:
            await connection.close()
            return False
        return True
