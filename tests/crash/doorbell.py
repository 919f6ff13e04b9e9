"""Where the database's hints arrive: answered at once, and then dropped, repeated, held back and handed to the workers.

Between pg_net and the workers stands only this. The bytes and headers are passed on as they came, so the functions
check the signature themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from standardwebhooks.webhooks import Webhook

from tests.crash.plan import Crew, HintFate, Plan, Script
from tests.crash.shared import Shared

PATH = "/webhooks/supabase"
MAX_HEAD_BYTES = 8 * 1024
DRAIN_SECONDS = 20.0
POLL_SECONDS = 0.2
LAST_WORK_SECONDS = 1.0
AS_IT_COMES = HintFate((0.0,))
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Doorbell:
    """Receives hints and deals them out.

    Attributes:
        url: what `webhook_url` must say.
        counts: hints that were `rung`, `dropped`, `repeated`, `delayed`, `delivered`; and what was `asked`.
    """

    def __init__(self, plan: Plan, shared: Shared, workers: dict[Crew, socket.socket]) -> None:
        self.url = ""
        self._secret = ""
        self.counts: Counter[str] = Counter()
        self._by_user = plan.by_user
        self._rung: Counter[uuid.UUID] = Counter()
        self._shared = shared
        self._workers = workers
        self._queues: dict[Crew, asyncio.Queue[bytes]] = {kind: asyncio.Queue() for kind in workers}

    @asynccontextmanager
    async def open(self, secret: str) -> AsyncIterator[Doorbell]:
        """Listens, and hands out, until the end of the block; the secret signs what no trigger gives."""
        self._secret = secret
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0, limit=MAX_HEAD_BYTES)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{PATH}"
        senders = [asyncio.create_task(self._hand_out(kind)) for kind in self._workers]
        try:
            yield self
        finally:
            for sender in senders:
                sender.cancel()
            server.close()

    async def drain(self) -> None:
        """Until the workers have taken what was rung, and had a moment for it."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
            if not any(queue.qsize() for queue in self._queues.values()):
                break
        await asyncio.sleep(LAST_WORK_SECONDS)

    def ring(self, user_id: uuid.UUID) -> None:
        """A hint that no trigger gives: of whoever changed a wish and doesn't leave it to the sweep."""
        body = json.dumps({"type": "UPDATE", "schema": "auth", "table": "users", "record": {"id": str(user_id)}})
        now = datetime.now(UTC)
        name = f"msg_{uuid.uuid4()}"
        headers = {
            "webhook-id": name,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(self._secret).sign(name, now, body),
        }
        self._deal_out(AS_IT_COMES, user_id, headers, body)

    def ask(self, script: Script, token: str) -> None:
        """Passes on what a person asks for, with their token: the next thing that was not answered yet."""
        number = self._shared.answered(script.index)
        self.counts["asked"] += 1
        asked = {"index": script.index, "user_id": str(script.user_id), "token": token, "number": number}
        self._queues[script.crew].put_nowait(json.dumps({"ask": asked}).encode())

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")[1:]
                headers = {n.strip().lower(): v.strip() for n, _, v in (line.partition(":") for line in lines if line)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                writer.write(_ANSWER)
                await writer.drain()
                self._rung_by_the_database(headers, body.decode())
        writer.close()

    def _rung_by_the_database(self, headers: dict[str, str], body: str) -> None:
        payload = json.loads(body)
        user_id = uuid.UUID((payload["record"] or payload["old_record"])["id"])
        script = self._by_user[user_id]
        number, self._rung[user_id] = self._rung[user_id], self._rung[user_id] + 1
        fate = AS_IT_COMES if self._shared.is_quiet or number >= len(script.hints) else script.hints[number]
        self.counts["rung"] += 1
        self.counts["dropped"] += not fate.delays_seconds
        self.counts["repeated"] += len(fate.delays_seconds) > 1
        self.counts["delayed"] += any(fate.delays_seconds)
        self._deal_out(fate, user_id, headers, body)

    def _deal_out(self, fate: HintFate, user_id: uuid.UUID, headers: dict[str, str], body: str) -> None:
        http = {"method": "POST", "path": PATH, "sourceIp": "127.0.0.1"}
        event = {"version": "2.0", "rawPath": PATH, "headers": headers, "requestContext": {"http": http}}
        message = json.dumps(event | {"body": body, "isBase64Encoded": False}).encode()
        queue = self._queues[self._by_user[user_id].crew]
        for delay_seconds in fate.delays_seconds:
            if delay_seconds:
                asyncio.get_running_loop().call_later(delay_seconds, queue.put_nowait, message)
            else:
                queue.put_nowait(message)

    async def _hand_out(self, kind: Crew) -> None:
        while True:
            await asyncio.get_running_loop().sock_sendall(self._workers[kind], await self._queues[kind].get())
            self.counts["delivered"] += 1
