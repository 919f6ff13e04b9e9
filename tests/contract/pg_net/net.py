"""What the suite drives: a database with schema net, and whatever empties its queue.

The surprising thing: two kinds that must be one to the tests. `StandIn` owns its server and its
worker and may kill them; `RealExtension` is somebody's server, reached through one URL, and may be
crashed only where its owner said so.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import DictRow, dict_row

from infra.local.pg_net import SCHEMA
from infra.local.postgres import Postgres
from tests.contract.pg_net.polling import WAIT_SECONDS, attempts

MAY_CRASH_VARIABLE = "PG_NET_CONTRACT_MAY_CRASH"

CHECKOUT = Path(__file__).parents[3]
Connection = psycopg.AsyncConnection[DictRow]

# Both kinds put their name and version into pg_stat_activity.
FIND_WORKER = "select pid from pg_stat_activity where application_name like 'pg_net _.%'"


class Net(ABC):
    """A database with pg_net or its stand-in.

    Attributes:
        url: of a superuser.
        is_real: whether this is the extension itself.
    """

    is_real: bool

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection: Connection | None = None

    async def connect(self, **options: Any) -> Connection:
        return await psycopg.AsyncConnection.connect(
            self.url, **{"autocommit": True, "row_factory": dict_row, **options}
        )

    async def rows(self, statement: str, *arguments: object) -> list[DictRow]:
        """Runs a statement on the suite's own connection, made anew when the last one has broken."""
        if self._connection is None or self._connection.closed:
            self._connection = await self.connect()
        cursor = await self._connection.execute(statement, arguments or None)
        return await cursor.fetchall() if cursor.description else []

    async def disconnect(self) -> None:
        if self._connection:
            await self._connection.close()

    async def value(self, statement: str, *arguments: object) -> Any:
        return next(iter((await self.rows(statement, *arguments))[0].values()))

    async def responses(self, *ids: int) -> Mapping[int, DictRow]:
        """The response rows of these requests, once all are there."""
        statement = "select * from net._http_response where id = any (%s)"
        found: list[DictRow] = []
        async for _ in attempts(f"the responses to {ids}"):
            found = await self.rows(statement, list(ids))
            if len(found) >= len(ids):
                break
        return {row["id"]: row for row in found}

    async def queued(self) -> int:
        return int(await self.value("select count(*) from net.http_request_queue"))

    async def worker_pid(self) -> int | None:
        found = await self.rows(FIND_WORKER)
        return found[0]["pid"] if found else None

    async def is_up(self) -> bool:
        """Whether the database answers and says that its worker is there."""
        try:
            await self.rows("select net.check_worker_is_up()")
        except psycopg.Error:
            return False
        return await self.worker_pid() is not None

    async def wait_until_up(self, *, but_not: int | None = None) -> None:
        """Waits for a worker; with `but_not`, for another one than that."""
        async for _ in attempts("a worker that is up"):
            if await self.is_up() and await self.worker_pid() != but_not:
                return

    @abstractmethod
    async def kill_worker_and_recover(self) -> None:
        """SIGKILL, and back on its feet."""


class RealExtension(Net):
    """The extension on a server that was there before the suite."""

    is_real = True

    async def kill_worker_and_recover(self) -> None:
        if os.environ.get(MAY_CRASH_VARIABLE) != "1":
            pytest.skip(f"crashes the whole server; set {MAY_CRASH_VARIABLE}=1 to allow it")
        pid = await self.worker_pid()
        async with await self.connect() as connection:
            # The server kills its own child: works wherever it runs. The crash ends this
            # connection.
            with suppress(psycopg.Error):
                await connection.execute(f"copy (select) to program 'kill -KILL {pid}'")
                await connection.execute("select pg_sleep(5)")
        await self.disconnect()
        await self.wait_until_up(but_not=pid)


class StandIn(Net):
    """An embedded Postgres with schema.sql, and the worker as a process."""

    is_real = False

    def __init__(self, server: Postgres) -> None:
        super().__init__(server.superuser_url)
        self._server = server
        self._postgres: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        await self.start_server()
        async with await self.connect() as connection:
            await connection.execute(SCHEMA.read_bytes())
        await self.start_worker()

    async def stop(self) -> None:
        if self._worker:
            self._worker.kill()
            self._worker.wait()
        await self.stop_server(signal.SIGQUIT)

    async def start_server(self) -> None:
        self._postgres = self._launch_server()
        async for _ in attempts("a server that answers"):
            with suppress(psycopg.Error):
                await self.rows("select 1")
                return

    def _launch_server(self) -> subprocess.Popen[bytes]:
        who = self._server.identity
        return subprocess.Popen(
            self._server.command,
            stderr=subprocess.DEVNULL,
            cwd=self._server.data,
            user=who.uid if who else None,
            group=who.gid if who else None,
            extra_groups=[] if who else None,
        )

    async def stop_server(self, how: signal.Signals) -> None:
        assert self._postgres
        await self.disconnect()
        self._postgres.send_signal(how)
        await asyncio.to_thread(self._postgres.wait, WAIT_SECONDS)

    async def start_worker(self) -> None:
        self._worker = start_worker_process(self.url, stderr=subprocess.DEVNULL)
        await self.wait_until_up()

    async def stop_worker(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Signals the worker, waits for its end and returns its exit code."""
        assert self._worker
        self._worker.send_signal(how)
        return await asyncio.to_thread(self._worker.wait, WAIT_SECONDS)

    async def kill_worker_and_recover(self) -> None:
        await self.stop_worker(signal.SIGKILL)
        await self.start_worker()
        # The sessions of the one that was killed may be seen for a moment: it is the other one that finds the death.
        async for _ in attempts("a worker that found the death"):
            if await self.queued() == 0:
                return

    async def restart_server(self, how: signal.Signals) -> None:
        """Stops the server, in good order (SIGINT) or at once (SIGQUIT), and starts it."""
        await self.stop_server(how)
        await self.start_server()
        await self.wait_until_up()

    async def restart_in_good_order(self) -> None:
        """SIGTERM to the worker, wait for its batch, stop the server; and start both again."""
        assert await self.stop_worker() == 0
        await self.stop_server(signal.SIGINT)
        await self.start_server()
        await self.start_worker()


def start_worker_process(url: str | None, *, stderr: int) -> subprocess.Popen[bytes]:
    """The stand-in's worker, with only this setting in its environment."""
    settings = {} if url is None else {"PG_NET_DATABASE_URL": url}
    return subprocess.Popen(
        [sys.executable, "-m", "infra.local.pg_net"],
        stderr=stderr,
        cwd=CHECKOUT,
        env={"PATH": os.environ.get("PATH", ""), **settings},
    )
