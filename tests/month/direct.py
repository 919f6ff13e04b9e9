"""The database's doors without the Data API: each RPC as service_role over a connection, for many calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from functions.clients.supabase import DatabaseRefused, Rpc
from tests.month.clock import TELL, MovedClock
from tests.support.databases import Database

CONNECTIONS = 4


class Doors:
    """Stands where `functions.clients.supabase.Supabase` does.

    Args:
        database: whose doors.
        clock: what the sessions are told.
    """

    def __init__(self, database: Database, clock: MovedClock) -> None:
        self._database = database
        self._clock = clock
        self._free: asyncio.Queue[psycopg.AsyncConnection[Any]] = asyncio.Queue()
        self._told: dict[psycopg.AsyncConnection[Any], datetime] = {}
        self._statements: dict[str, str] = {}
        # One asks how a door is called, however many want to know at once: each has a connection for it.
        self._asking = asyncio.Lock()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Doors]:
        """With its connections."""
        connections = []
        try:
            for _ in range(CONNECTIONS):
                connection = await psycopg.AsyncConnection.connect(
                    self._database.url("authenticator"), autocommit=True, row_factory=tuple_row
                )
                connections.append(connection)
                await connection.execute("set role service_role")
                self._free.put_nowait(connection)
            yield self
        finally:
            for connection in connections:
                await connection.close()

    async def call(self, rpc: Rpc, arguments: Mapping[str, Any], *, session: object = None) -> Any:
        """Calls a door, as the Data API would."""
        del session
        async with self._asking:
            statement = self._statements.get(rpc.name) or await self._prepare(rpc)
        connection = await self._free.get()
        try:
            if self._told.get(connection) != self._clock.now:
                self._told[connection] = self._clock.now
                await connection.execute(TELL, (self._clock.now.isoformat(),))
            row = await (await connection.execute(statement, dict(arguments))).fetchone()
        except psycopg.Error as error:
            if (error.sqlstate or "").startswith("PT4"):
                raise DatabaseRefused(
                    error.diag.message_primary or "",
                    int((error.sqlstate or "PT400")[2:]),
                    error.diag.message_hint or "",
                ) from None
            raise
        finally:
            self._free.put_nowait(connection)
        return None if row is None or row[0] is None else json.loads(row[0], parse_float=Decimal)

    async def _prepare(self, rpc: Rpc) -> str:
        (found,) = await self._database.rows(
            "select p.proretset, (select array_agg(format('%%s => %%%%(%%s)s::%%s', a.name, a.name,"
            " p.proargtypes[a.place - 1]::regtype) order by a.place)"
            " from unnest(p.proargnames[1:p.pronargs]) with ordinality as a (name, place)) as arguments"
            " from pg_proc as p where p.pronamespace = 'public'::regnamespace and p.proname = %s",
            (rpc.name,),
        )
        call = f"public.{rpc.name}({', '.join(found['arguments'] or [])})"
        self._statements[rpc.name] = (
            f"select coalesce(jsonb_agg(to_jsonb(t)), '[]')::text from {call} as t"
            if found["proretset"]
            else f"select to_jsonb({call})::text"
        )
        return self._statements[rpc.name]
