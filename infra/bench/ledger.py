"""What reading one's money costs as the ledger grows: the balance among millions of entries, and a page far back.

The surprising thing: all entries are of the one user who asks. That is the worst case: an index by user alone would
lead through all of them. They are written in bulk, with triggers off.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace

import psycopg

from infra.bench.growth import USERS
from infra.bench.measuring import Check, Effort, Measured
from infra.bench.places import durable_server, install_doorkey, new_database, run_sql
from infra.local.scratch import ScratchServer

PAIRS = 300
WARM_UPS = 30
# One sample is so many calls, so that it is longer than what the machine does beside.
CALLS = 10
FEW_ENTRIES = 10_000
MANY_ENTRIES = 5_000_000
QUICK_ENTRIES = 12_000
PAGE_ROWS = 50
FAR_PAGE = 1_000
QUICK_FAR_PAGE = 10
MILLIS = 1_000
# The first of those that USERS makes.
USER_ID = uuid.UUID("24c9e15e-52af-c47c-225b-757e7bee1f9d")

# Two entries each: calls, spread over half a year.
ENTRIES = """
set session_replication_role = replica;
insert into public.credit_transactions
  (user_id, type, amount_micros, spendable_micros, system_account, idempotency_key, reason, actor, provider, model,
   created_at)
select md5('user1')::uuid, 'usage', -1, -1, 'spent', 'bench:' || n, 'Call', 'credits', 'a provider',
       'a/model-' || n % 7,
       now() - (({entries} / 2 - n) * interval '180 days') / ({entries} / 2)
  from generate_series(1, {entries} / 2) as n;
set session_replication_role = origin;
"""


class _Reader:
    """The user, at the Data API's connection."""

    def __init__(self, connection: psycopg.AsyncConnection) -> None:
        self._connection = connection

    @classmethod
    async def connect(cls, server: ScratchServer, database: str) -> _Reader:
        """As the Data API does for a person's token."""
        connection = await psycopg.AsyncConnection.connect(server.url("authenticator", database), autocommit=True)
        claims = json.dumps({"role": "authenticated", "sub": str(USER_ID)})
        await connection.execute(
            "select set_config('request.jwt.claims', %s, false), set_config('request.jwt.claim.sub', %s, false)",
            (claims, str(USER_ID)),
        )
        await connection.execute("set role authenticated")
        return cls(connection)

    async def call_ms(self, statement: str, parameters: Sequence[object], rows: int) -> float:
        """How long one of some calls takes, that answer so many rows."""
        found: list[tuple[object, ...]] = []
        started = time.perf_counter()
        for _ in range(CALLS):
            found = await (await self._connection.execute(statement, parameters)).fetchall()
        spent_ms = (time.perf_counter() - started) * MILLIS / CALLS
        if len(found) != rows or found[0][0] is None:
            raise RuntimeError("another answer than was to be measured")
        return spent_ms

    async def balance_ms(self) -> float:
        """The balance, with its lots."""
        return await self.call_ms("select public.get_my_account() -> 'credits' ->> 'available_micros'", (), 1)

    async def page_ms(self, place: Sequence[object]) -> float:
        """One page from a place on."""
        statement = "select * from public.list_my_transactions(null, null, null, %s, %s, %s)"
        return await self.call_ms(statement, (*place, PAGE_ROWS), PAGE_ROWS)

    async def place(self, page: int) -> Sequence[object]:
        """Where a page begins."""
        if page == 1:
            return (None, None)
        found = await self._connection.execute(
            "select created_at, id from public.credit_transactions order by created_at desc, id desc offset %s limit 1",
            (PAGE_ROWS * (page - 1) - 1,),
        )
        (row,) = await found.fetchall()
        return tuple(row)

    async def close(self) -> None:
        """Hangs up."""
        await self._connection.close()


async def measure_balance(effort: Effort) -> Measured:
    """Reads the balance in two databases of one server, in turns."""
    async with durable_server() as server:
        few = await _filled(server, "few", FEW_ENTRIES)
        many = await _filled(server, "many", effort.size(MANY_ENTRIES, QUICK_ENTRIES))
        await run_sql(server.url(), "checkpoint")
        measured = await effort.pairs(effort.size(PAIRS, 2), many.balance_ms, few.balance_ms, effort.size(WARM_UPS, 1))
        await few.close()
        await many.close()
        counted = [await _count_entries(server, name) for name in ("few", "many")]
    wanted = [FEW_ENTRIES, effort.size(MANY_ENTRIES, QUICK_ENTRIES)]
    found = " and ".join(f"{count:,}" for count in counted)
    check = Check(
        "ledger entries",
        found,
        " and ".join(f"{count:,}" for count in wanted) + " or more",
        all(n >= w for n, w in zip(counted, wanted, strict=True)),
    )
    return replace(measured, checks=[check])


async def measure_pages(effort: Effort) -> Measured:
    """Reads a page far back and the first one, in turns, among as many entries as the balance does."""
    async with durable_server() as server:
        reader = await _filled(server, "many", effort.size(MANY_ENTRIES, QUICK_ENTRIES))
        await run_sql(server.url(), "checkpoint")
        first = await reader.place(1)
        far = await reader.place(effort.size(FAR_PAGE, QUICK_FAR_PAGE))
        measured = await effort.pairs(
            effort.size(PAIRS, 2),
            lambda: reader.page_ms(far),
            lambda: reader.page_ms(first),
            effort.size(WARM_UPS, 1),
        )
        await reader.close()
    return measured


async def _filled(server: ScratchServer, name: str, entries: int) -> _Reader:
    await new_database(server, name)
    await install_doorkey(server, name)
    url = server.url(database=name)
    await run_sql(url, USERS.format(count=1))
    await run_sql(url, ENTRIES.format(entries=entries))
    await run_sql(url, "vacuum analyze")
    return await _Reader.connect(server, name)


async def _count_entries(server: ScratchServer, name: str) -> int:
    async with await psycopg.AsyncConnection.connect(server.url(database=name)) as database:
        found = await database.execute("select count(*) from doorkey.ledger_entries")
        ((count,),) = await found.fetchall()
        return int(count)
