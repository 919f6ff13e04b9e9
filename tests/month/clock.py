"""One clock for everybody: the functions, the simulator and the database.

The surprising thing: in the database of a simulated month `now()` itself is replaced. Postgres inlines a function in
SQL, so whatever calls `now()` asks our table, column defaults too.
"""

from __future__ import annotations

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
create or replace function pg_catalog.now() returns timestamptz language sql stable as $$ select month.moment() $$;
"""


class MovedClock:
    """The time of the simulated month; only ever goes on.

    Args:
        database: whose clock follows.
    """

    _connection: psycopg.AsyncConnection[Any]

    def __init__(self, database: Database) -> None:
        self._database = database
        self.now = START

    @asynccontextmanager
    async def installed(self) -> AsyncIterator[None]:
        """Takes the database's own clock away; the database is thrown away afterwards."""
        await self._database.run(_INSTALL)
        async with await psycopg.AsyncConnection.connect(
            self._database.superuser_url, autocommit=True, row_factory=tuple_row
        ) as self._connection:
            yield

    async def move_to(self, moment: datetime) -> None:
        """Goes on to this moment, or a millisecond on if that is past."""
        self.now = max(moment, self.now + timedelta(milliseconds=1))
        await self._connection.execute("update month.clock set at = %s", (self.now,))

    async def rows(self, statement: str, *parameters: object) -> list[Any]:
        """What a query as superuser returns, over the same connection."""
        return await (await self._connection.execute(statement, parameters)).fetchall()

    def moment(self) -> datetime:
        """For the simulator."""
        return self.now

    def seconds(self) -> float:
        """For the functions."""
        return self.now.timestamp()
