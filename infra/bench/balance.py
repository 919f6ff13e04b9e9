"""What the API adds to one question to the database: the balance as Lambda calls the handler, beside the bare RPC.

Both run on a thread of their own: each has an event loop of its own, as in a sandbox.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
from fastapi import FastAPI

from functions import api, webhook
from functions.clients.outside import KEEPALIVE_SECONDS, build_clients
from functions.kit.settings import Settings
from functions.web.application import ApplicationEntry
from infra.bench.measuring import Check, Effort, Measured
from infra.bench.people import token_for
from infra.bench.places import insert_users, quiet_stack, settings_of
from infra.bench.provisioning import lines_to_nowhere, provision
from infra.local.stack import Stack

PAIRS = 300
WARM_UPS = 20
MILLIS = 1_000


# Shaped like a key, and nobody's.
REJECTED_KEY = "sb_secret_of-nobody-at-all-here"


async def measure(effort: Effort) -> Measured:
    """Asks for the balance of a user who has their key, in turns."""
    return await _measure(effort, {})


async def measure_own_door(effort: Effort) -> Measured:
    """The same with a rejected secret key: the person's own door is open, and no call is lost on the bad key."""
    return await _measure(effort, {"SUPABASE_SECRET_KEY": REJECTED_KEY})


async def _measure(effort: Effort, changes: dict[str, str]) -> Measured:
    calls: list[str] = []

    async def hear(request: httpx.Request) -> None:
        if request.url.path.startswith("/rest/v1/"):
            calls.append(request.url.path)

    async with quiet_stack() as stack:
        (user_id,) = await insert_users(stack, 1)
        settings = settings_of(stack)
        clients = build_clients(settings)
        with lines_to_nowhere():
            async with clients.http:
                await provision(webhook.build(settings, clients), settings, user_id)
            handler = ApplicationEntry(lambda: _build(settings.with_changes(changes), hear))
            token = token_for(stack, user_id)
            bare = _BareRpc(stack, token)
            event = balance_event(token)
            with ThreadPoolExecutor(1) as ours, ThreadPoolExecutor(1) as floor:
                run = asyncio.get_running_loop().run_in_executor
                count, warm_ups = effort.size(PAIRS, 3), effort.size(WARM_UPS, 1)
                measured = await effort.pairs(
                    count,
                    lambda: run(ours, _ask_api_ms, handler, event),
                    lambda: run(floor, bare.ask_ms),
                    warm_ups,
                )
    asked = count + warm_ups
    check = Check("calls to the Data API", str(len(calls)), f"one for each of {asked} requests", len(calls) == asked)
    return replace(measured, checks=[check])


def _build(settings: Settings, hear: Callable[[httpx.Request], Awaitable[None]]) -> FastAPI:
    clients = build_clients(settings)
    clients.http.event_hooks = {"request": [hear], "response": []}
    return api.build(settings, clients)


def balance_event(token: str) -> dict[str, object]:
    """The request as API Gateway hands it on."""
    path = "/v1/credits/balance"
    http = {"method": "GET", "path": path, "protocol": "HTTP/1.1", "sourceIp": "203.0.113.7", "userAgent": "bench"}
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"host": "api.example", "authorization": f"Bearer {token}", "x-request-id": uuid.uuid4().hex},
        "requestContext": {"http": http, "stage": "$default"},
        "isBase64Encoded": False,
    }


def _ask_api_ms(handler: ApplicationEntry, event: dict[str, object]) -> float:
    started = time.perf_counter()
    answer = handler(event)
    spent_ms = (time.perf_counter() - started) * MILLIS
    if answer["statusCode"] != 200:
        raise RuntimeError(f"the balance was answered with {answer['statusCode']}")
    return spent_ms


class _BareRpc:
    """One POST with the user's own token, and its JSON read."""

    def __init__(self, stack: Stack, token: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = httpx.AsyncClient(limits=httpx.Limits(keepalive_expiry=KEEPALIVE_SECONDS))
        self._url = f"{stack.supabase_url}/rest/v1/rpc/get_my_account"
        self._headers = {"apikey": stack.secrets.publishable_key, "Authorization": f"Bearer {token}"}

    def ask_ms(self) -> float:
        """Asks once; how long it took."""
        started = time.perf_counter()
        account = self._loop.run_until_complete(self._ask())
        spent_ms = (time.perf_counter() - started) * MILLIS
        if account["credits"] is None:
            raise RuntimeError("there is no balance")
        return spent_ms

    async def _ask(self) -> dict[str, object]:
        answer = await self._client.post(self._url, headers=self._headers, json={})
        account: dict[str, object] = answer.raise_for_status().json()
        return account
