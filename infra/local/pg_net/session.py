"""The worker's two connections, its locks, and the row that tells a death from a stop.

The surprising thing: two connections. The *control* one hears the bells and is what people see and
terminate as "pg_net 0.20.4"; the *batch* one holds the transaction. So terminating the worker lets
its batch finish, as in pg_net, where a single connection would take the batch with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg

from infra.local.pg_net import VERSION

WAKE_CHANNEL = "pg_net_wake"
RESTART_CHANNEL = "pg_net_restart"
CONNECT_SECONDS = 5

# Advisory lock keys. The first number is "pg_n" in ASCII; net.check_worker_is_up() looks for the
# first pair.
UP_LOCK = (1885822830, 1)
BATCH_LOCK = (1885822830, 2)
# The backend of a worker killed a moment ago needs this long, at most, to notice.
LOCK_WAIT_SECONDS = 1.0

Connection = psycopg.AsyncConnection[Any]

log = logging.getLogger(__name__)


class CannotStart(Exception):
    """The worker can't start here; the message says why and what to do."""


@dataclass(frozen=True)
class Session:
    """Connections of a worker that holds its locks and listens."""

    control: Connection
    batch: Connection


@asynccontextmanager
async def open_session(database_url: str, *, is_first: bool) -> AsyncIterator[Session]:
    """Connects, takes the locks, recovers from a death and listens; notes the end, if it lives to.

    Only the first session of a process looks for a death: the later ones know their own past.

    Raises:
        CannotStart: no stand-in schema there, or another worker is running.
        psycopg.Error: the database cannot be reached.
    """
    async with AsyncExitStack() as stack:
        control = await _connect(stack, database_url, f"pg_net {VERSION}")
        batch = await _connect(stack, database_url, "pg_net's batch")
        await _require_schema(control)
        await _lock(control, UP_LOCK)
        await _lock(batch, BATCH_LOCK)
        await _mark_running(batch, recover=is_first)
        await control.execute(f"listen {WAKE_CHANNEL}")
        await control.execute(f"listen {RESTART_CHANNEL}")
        try:
            yield Session(control, batch)
        finally:
            # Without a database there is nothing to note: a server that went first explains itself.
            with suppress(psycopg.Error):
                await batch.execute("update net._stand_in_worker set running = false")


async def _connect(stack: AsyncExitStack, database_url: str, name: str) -> Connection:
    connection = await psycopg.AsyncConnection.connect(
        database_url, autocommit=True, application_name=name, connect_timeout=CONNECT_SECONDS
    )
    return await stack.enter_async_context(connection)


async def _require_schema(connection: Connection) -> None:
    cursor = await connection.execute("select to_regclass('net._stand_in_worker')")
    if await cursor.fetchone() == (None,):
        raise CannotStart("this database has no pg_net stand-in; apply schema.sql first")


async def _lock(connection: Connection, key: tuple[int, int]) -> None:
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    # Asked again and again, because lock_timeout would need a transaction and so lose a session's
    # lock.
    while True:
        cursor = await connection.execute("select pg_try_advisory_lock(%s, %s)", key)
        if await cursor.fetchone() == (True,):
            return
        if time.monotonic() > deadline:
            raise CannotStart("another pg_net worker is running for this database")
        await connection.execute("select pg_sleep(0.05)")


async def _mark_running(connection: Connection, *, recover: bool) -> None:
    """Empties both tables if the last worker died, as a crash would (they are unlogged in pg_net).

    "Running" under an earlier start of the server is no death of the worker: the server went first.
    Did it crash, Postgres has emptied the tables itself; was it stopped in good order, they keep
    their rows, and so they must here.
    """
    async with connection.transaction():
        cursor = await connection.execute(
            "select running and server_started_at = pg_postmaster_start_time() from net._stand_in_worker for update"
        )
        if recover and await cursor.fetchone() == (True,):
            log.warning("worker.death_found tables=emptied")
            await connection.execute("truncate net.http_request_queue, net._http_response restart identity")
        await connection.execute(
            "update net._stand_in_worker set running = true, server_started_at = pg_postmaster_start_time()"
        )
