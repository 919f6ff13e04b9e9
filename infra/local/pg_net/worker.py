"""The worker's life: woken, it sends batch after batch until the queue is empty (supabase.md 1.1).

The surprising thing: the second of rest after a batch is cut short by the first wake, and only by
the first, until the queue has been found empty. So a lone request never waits, and a stream of them
leaves once a second, 200 at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from dataclasses import dataclass

import psycopg

from infra.local.pg_net.request_queue import delete_expired, store, take
from infra.local.pg_net.session import (
    RESTART_CHANNEL,
    CannotStart,
    Connection,
    Session,
    open_session,
)
from infra.local.pg_net.transfer import new_client, send

REST_SECONDS = 1.0
RESTART_SECONDS = 1.0
# A database that stays away longer than this is gone for good.
RECONNECT_ATTEMPTS = 60

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """What one iteration did."""

    sent: int
    expired: int


class Worker:
    """Sends what is queued in one database until told to stop.

    Args:
        database_url: of a superuser, in the database where ``schema.sql`` was applied.
    """

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._tls = ssl.create_default_context()
        self._latch = asyncio.Event()
        self._should_wake = True
        self._stopping = asyncio.Event()
        self._restarting = False

    def stop(self) -> None:
        """Ends the worker after the running batch. A signal handler of the loop may call it."""
        self._stopping.set()
        self._latch.set()

    async def run(self) -> None:
        """Works until `stop`.

        Raises:
            CannotStart: the database is out of reach, unprepared, or has another worker.
        """
        is_first, failures = True, 0
        while not self._stopping.is_set():
            try:
                async with open_session(self._database_url, is_first=is_first) as session:
                    log.info("worker.started")
                    is_first, failures = False, 0
                    await self._serve(session)
            except psycopg.Error as error:
                if is_first:
                    raise CannotStart(f"can't reach the database: {error}") from error
                failures += 1
                if failures > RECONNECT_ATTEMPTS:
                    raise CannotStart("the database went away and didn't come back") from error
                # A batch that fails is sent again and again, once a second and without end: pg_net
                # does that.
                log.warning("worker.failed error=%s", type(error).__name__)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), RESTART_SECONDS)
        log.info("worker.stopped")

    async def _serve(self, session: Session) -> None:
        """Listens and sends until told to end. Starts awake, for what is left over."""
        self._restarting, self._should_wake = False, True
        listening = asyncio.create_task(self._listen(session))
        sending = asyncio.create_task(self._send_when_woken(session.batch))
        try:
            await asyncio.wait({listening, sending}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                await listening  # raises when the server has gone: then the batch is cut off
            await sending
        finally:
            for task in (listening, sending):
                task.cancel()
            await asyncio.gather(listening, sending, return_exceptions=True)

    async def _send_when_woken(self, connection: Connection) -> None:
        while not self._is_ending:
            if self._should_wake:
                self._should_wake = False
                await self._drain(connection)
            else:
                await self._rest(None)

    async def _drain(self, connection: Connection) -> None:
        while True:
            batch = await self._send_batch(connection)
            if batch.sent or batch.expired:
                log.info("batch.sent requests=%d expired=%d", batch.sent, batch.expired)
            await self._rest(REST_SECONDS)
            if self._is_ending or not (batch.sent or batch.expired):
                return

    async def _send_batch(self, connection: Connection) -> Batch:
        """One transaction: answers are stored as they come, and seen when the slowest has come."""
        async with connection.transaction(), new_client(self._tls) as client:
            expired = await delete_expired(connection)
            requests = await take(connection)
            transfers = [asyncio.create_task(send(client, request)) for request in requests]
            try:
                for transfer in asyncio.as_completed(transfers):
                    await store(connection, await transfer)
            finally:
                # After a failed insert the rest is cut off: sent perhaps, and sent again with the
                # next batch.
                for task in transfers:
                    task.cancel()
                await asyncio.gather(*transfers, return_exceptions=True)
        return Batch(len(requests), expired)

    async def _listen(self, session: Session) -> None:
        """Hears the bells until its connection ends; raises if the batch's has ended too."""
        try:
            async for notification in session.control.notifies():
                if notification.channel == RESTART_CHANNEL:
                    self._restart()
                elif not self._should_wake:
                    self._should_wake = True
                    self._latch.set()
        except psycopg.Error:
            log.warning("worker.terminated")
            self._restart()
            await session.batch.execute("select")

    def _restart(self) -> None:
        self._restarting = True
        self._latch.set()

    @property
    def _is_ending(self) -> bool:
        return self._stopping.is_set() or self._restarting

    async def _rest(self, seconds: float | None) -> None:
        """Waits that long, or until woken."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._latch.wait()
        self._latch.clear()
