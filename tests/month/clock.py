"""One clock for everybody: the functions, the simulator and the database.

The surprising thing: in the database of a simulated month `now()` itself is replaced, column defaults too. A session
that was told the time by a setting asks no table: `now()` stands in filters, and is asked for every row.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from tests.support.databases import Database

# Later than any installation.
START = datetime(2027, 1, 30, 22, 0, tzinfo=UTC)

_INSTALL = """
create schema month;
grant usage on schema month to public;
create table month.clock (at timestamptz not null);
insert into month.clock values ('2027-01-30T22:00:00Z');
create function month.moment() returns timestamptz language plpgsql stable security definer set search_path = ''
as $$ begin return (select c.at from month.clock as c); end $$;
create or replace function pg_catalog.now() returns timestamptz language sql stable as $$
  select coalesce(nullif(current_setting('month.at', true), '')::timestamptz, month.moment())
$$;
"""
TELL = "select set_config('month.at', %s, false)"


class MovedClock:
    """The time of the simulated month; only ever goes on.

    Args:
        database: whose clock follows.
    """

    _connection: psycopg.AsyncConnection[Any]

    def __init__(self, database: Database) -> None:
        self._database = database
        self.now = START
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def installed(self) -> AsyncIterator[None]:
        """Takes the database's own clock away; the database is thrown away afterwards."""
        await self._database.run(_INSTALL)
        async with await psycopg.AsyncConnection.connect(
            self._database.superuser_url, autocommit=True, row_factory=tuple_row
        ) as self._connection:
            yield

    def move_to(self, moment: datetime) -> None:
        """Goes on to this moment, or a millisecond on if that is past; sessions are told when they ask next."""
        self.now = max(moment, self.now + timedelta(milliseconds=1))

    async def tell_everybody(self) -> None:
        """Sessions too that nobody tells the time."""
        await self.rows("update month.clock set at = %s returning 1", self.now)

    async def rows(self, statement: str, *parameters: object) -> list[Any]:
        """What a query as superuser returns, over a session of the clock's own."""
        async with self._turn:
            await self._connection.execute(TELL, (self.now.isoformat(),))
            return await (await self._connection.execute(statement, parameters)).fetchall()

    def moment(self) -> datetime:
        """For the simulator."""
        return self.now

    def seconds(self) -> float:
        """For the functions."""
        return self.now.timestamp()
