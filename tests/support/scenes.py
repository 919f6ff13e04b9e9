"""One user on the running stack, and a transport that stalls, loses or replaces what others answer.

What is provisioned with it is the code that ships: only the wires are in the test's hands.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row

from functions.clients.outside import build_clients
from functions.kit.settings import Settings
from functions.provisioning.steps import Outcome, Provisioner
from infra.local.stack import PROJECT, Stack

PAGE_SIZE = 100
MAX_PAGES = 20
MAX_POLLS = 250
POLL_SECONDS = 0.02

Answer = httpx.Response
Before = Callable[[httpx.Request], Awaitable[Answer | None]]
After = Callable[[httpx.Request, Answer], Awaitable[Answer]]


async def pass_on(_request: httpx.Request) -> None:
    """Nothing happens before."""


async def keep(_request: httpx.Request, answer: Answer) -> Answer:
    """Nothing happens after."""
    return answer


class Between(httpx.AsyncBaseTransport):
    """Stands between the functions and the world; `calls` is what passed, such as ``POST /keys``."""

    def __init__(self, before: Before = pass_on, after: After = keep) -> None:
        self._inner = httpx.AsyncHTTPTransport()
        self._before = before
        self._after = after
        self.calls: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> Answer:
        self.calls.append(named(request))
        answer = await self._before(request)
        if answer is not None:
            return answer
        answer = await self._inner.handle_async_request(request)
        await answer.aread()
        return await self._after(request, answer)

    async def aclose(self) -> None:
        await self._inner.aclose()


def named(request: httpx.Request) -> str:
    """``POST /keys``, ``PATCH /keys``, ``DELETE /keys``, or the name of an RPC."""
    parts = request.url.path.split("/")
    return parts[-1] if "rpc" in parts else f"{request.method} /{parts[min(3, len(parts) - 1)]}"


@dataclass
class Scene:
    """One user on the stack."""

    stack: Stack
    http: httpx.AsyncClient
    user_id: uuid.UUID

    async def sql(self, statement: str, *parameters: object) -> list[dict[str, Any]]:
        async with await psycopg.AsyncConnection.connect(
            self.stack.superuser_url, autocommit=True, row_factory=dict_row
        ) as connection:
            cursor = await connection.execute(statement, parameters)
            return await cursor.fetchall() if cursor.description else []

    async def row(self) -> dict[str, Any]:
        (row,) = await self.sql("select *, now() from doorkey.provisioning where user_id = %s", self.user_id)
        return row

    async def known_hashes(self) -> list[str]:
        rows = await self.sql("select key_hash from public.openrouter_user_keys where user_id = %s", self.user_id)
        return [row["key_hash"] for row in rows]

    async def grants(self) -> list[int]:
        rows = await self.sql("select amount_micros from public.credit_transactions where user_id = %s", self.user_id)
        return [row["amount_micros"] for row in rows]

    async def expire_lease(self) -> None:
        await self.sql(
            "update doorkey.provisioning set lease_expires_at = now() - interval '1 s' where user_id = %s", self.user_id
        )

    async def release_queue(self) -> None:
        """Nothing holds everybody any more, and no failure is counted towards it, whatever the test before left."""
        await self.sql(
            "update doorkey.settings set held_reason = null, held_until = null, outage_failures = 0"
            " where held_reason is not null or outage_failures > 0"
        )

    async def make_due_now(self) -> None:
        await self.sql("update doorkey.provisioning set due_at = now() where user_id = %s", self.user_id)

    async def delete_user(self) -> None:
        await self.sql("delete from auth.users where id = %s", self.user_id)

    async def keys(self) -> dict[int, dict[str, Any]]:
        """The user's keys at OpenRouter, by the number of the attempt."""
        head = f"doorkey-{PROJECT}-{self.user_id}-"
        found: dict[int, dict[str, Any]] = {}
        for page in range(MAX_PAGES):
            answer = await self.http.get(
                f"{self.stack.openrouter_url}/keys",
                params={"offset": page * PAGE_SIZE},
                headers={"Authorization": f"Bearer {self.stack.secrets.management_key}"},
            )
            keys = answer.raise_for_status().json()["data"]
            found |= {int(k["name"].removeprefix(head)): k for k in keys if k["name"].startswith(head)}
            if len(keys) < PAGE_SIZE:
                break
        return found

    @asynccontextmanager
    async def provisioner(self, transport: Between) -> AsyncIterator[Provisioner]:
        settings = Settings.from_environment(self.stack.functions_environment)
        clients = build_clients(settings, transport=transport)
        async with clients.http:
            yield Provisioner.build(settings, clients)

    async def provision(self, transport: Between | None = None) -> Outcome:
        async with self.provisioner(transport or Between()) as provisioner:
            return await provisioner.provision(self.user_id, request_id="races")

    async def assert_one_key(self, attempt: int, limit_usd: float = 5.0) -> None:
        """The key that this attempt made is the only one, known, and limited so."""
        keys = await self.keys()
        assert list(keys) == [attempt]
        assert await self.known_hashes() == [keys[attempt]["hash"]]
        assert keys[attempt]["limit"] == limit_usd
        assert (await self.row())["state"] == "ready"


def once_after(call: str, act: Callable[[], Awaitable[object]]) -> After:
    """Does something once, after this call was committed and before its answer arrives."""
    done: list[str] = []

    async def after(request: httpx.Request, answer: Answer) -> Answer:
        if named(request) == call and not done:
            done.append(call)
            await act()
        return answer

    return after


def lose(call: str, times: int = 1) -> After:
    """Loses the answers of this call after it was committed."""
    left = [times]

    async def after(request: httpx.Request, answer: Answer) -> Answer:
        if named(request) == call and left[0]:
            left[0] -= 1
            raise httpx.ReadTimeout("lost on purpose", request=request)
        return answer

    return after


def instead(
    call: str, status: int, content: str = "", headers: Mapping[str, str] | None = None, *, times: int = 1_000
) -> Before:
    """Answers this call without passing it on."""
    left = [times]

    async def before(request: httpx.Request) -> Answer | None:
        if named(request) != call or not left[0]:
            return None
        left[0] -= 1
        return Answer(status, headers=headers, content=content)

    return before


async def until_blocked(scene: Scene, how_many: int) -> None:
    """Waits until so many transactions wait for a lock."""
    for _ in range(MAX_POLLS):
        (row,) = await scene.sql("select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
        if row["count"] >= how_many:
            return
        await asyncio.sleep(POLL_SECONDS)
    pytest.fail(f"not {how_many} transactions came to wait")
