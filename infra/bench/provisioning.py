"""One warm provisioning, from the signed hint to the answer, beside the fewest lines that do the same.

The script of those lines verifies nothing, seals nothing, logs nothing and never asks what went wrong.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from functions import webhook
from functions.clients.outside import KEEPALIVE_SECONDS, build_clients
from functions.kit.observability import logger, start_logging
from functions.kit.settings import Settings
from functions.web.entry import Handle
from infra.bench.measuring import Check, Effort, Measured
from infra.bench.places import insert_users, quiet_stack, settings_of
from infra.local.stack import Stack

PAIRS = 200
WARM_UPS = 10
ROUND_TRIPS = ["claim_provisioning", "POST /keys", "finish_provisioning"]
SEALED = "v1.k1.AAAA"
MILLIS = 1_000


async def measure(effort: Effort) -> Measured:
    """Provisions users in turns by the handler and by the script."""
    pairs, warm_ups = effort.size(PAIRS, 2), effort.size(WARM_UPS, 1)
    async with quiet_stack() as stack:
        users = iter(await insert_users(stack, 2 * (pairs + warm_ups) + 1))
        settings = settings_of(stack)
        clients = build_clients(settings)
        async with clients.http, script_client(settings) as script:
            handle = webhook.build(settings, clients)
            with lines_to_nowhere():
                trips = await _round_trips(settings, next(users))
                measured = await effort.pairs(
                    pairs,
                    lambda: timed(lambda: provision(handle, settings, next(users))),
                    lambda: timed(lambda: provision_by_script(script, stack, settings, next(users))),
                    warm_ups,
                )
    measured.checks.append(Check("round trips", ", ".join(trips), "exactly those of the script", trips == ROUND_TRIPS))
    return measured


@contextmanager
def lines_to_nowhere() -> Iterator[None]:
    """The log's lines are made as on Lambda, and written where nobody reads them."""
    handlers = list(logger.handlers)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        start_logging(nowhere, logging.INFO, metrics_stage="bench")
        yield
    logger.handlers[:] = handlers


async def provision(handle: Handle, settings: Settings, user_id: uuid.UUID) -> None:
    """The hint as the database sends it and API Gateway hands it on; it must end with a key."""
    answer = await handle(signed_hint(settings, user_id))
    if json.loads(answer["body"]) != {"outcome": "ready"}:
        raise RuntimeError(f"a provisioning ended with {answer['statusCode']}")


def signed_hint(settings: Settings, user_id: uuid.UUID) -> dict[str, Any]:
    """The event of one insert into auth.users."""
    body = json.dumps(
        {"type": "INSERT", "table": "users", "schema": "auth", "record": {"id": str(user_id)}, "old_record": None}
    ).encode()
    message_id, timestamp = f"msg_{uuid.uuid4()}", str(int(time.time()))
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    signature = base64.b64encode(hmac.digest(settings.webhook_secrets[0], signed, hashlib.sha256)).decode()
    return {
        "version": "2.0",
        "rawPath": "/webhooks/supabase",
        "rawQueryString": "",
        "headers": {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1,{signature}",
        },
        "requestContext": {"http": {"method": "POST", "path": "/webhooks/supabase", "sourceIp": "203.0.113.7"}},
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
    }


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """How many milliseconds it takes."""
    started = time.perf_counter()
    await work()
    return (time.perf_counter() - started) * MILLIS


class Listening(httpx.AsyncHTTPTransport):
    """Keeps the name of each request that leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Counts the request and sends it on."""
        *_, place, name = request.url.path.split("/")
        self.heard.append(name if place == "rpc" else f"{request.method} /{name}")
        return await super().handle_async_request(request)


async def _round_trips(settings: Settings, user_id: uuid.UUID) -> list[str]:
    """What leaves the process for one provisioning."""
    listening = Listening()
    clients = build_clients(settings, listening)
    async with clients.http:
        await provision(webhook.build(settings, clients), settings, user_id)
    return listening.heard


def script_client(settings: Settings) -> httpx.AsyncClient:
    """As good a client as ours."""
    return httpx.AsyncClient(
        timeout=settings.doorkey_outside_timeout_seconds, limits=httpx.Limits(keepalive_expiry=KEEPALIVE_SECONDS)
    )


async def provision_by_script(client: httpx.AsyncClient, stack: Stack, settings: Settings, user_id: uuid.UUID) -> str:
    """Those lines; the key's secret."""
    rpc, apikey = f"{stack.supabase_url}/rest/v1/rpc", {"apikey": stack.secrets.secret_key}
    answer = await client.post(
        f"{rpc}/claim_provisioning",
        headers=apikey,
        json={"user_id": str(user_id), "lease_seconds": settings.doorkey_lease_seconds, "request_id": "script"},
    )
    (claim,) = answer.raise_for_status().json()
    answer = await client.post(
        f"{stack.openrouter_url}/keys",
        headers={"Authorization": f"Bearer {stack.secrets.management_key}"},
        json={
            "name": f"doorkey-local-{user_id}-{claim['attempt']}",
            "limit": claim["limit_micros"] / 1_000_000,
            "include_byok_in_limit": False,
        },
    )
    made = answer.raise_for_status().json()
    key = made["data"]
    answer = await client.post(
        f"{rpc}/finish_provisioning",
        headers=apikey,
        json={
            "user_id": str(user_id),
            "attempt": claim["attempt"],
            "key_hash": key["hash"],
            "key_name": key["name"],
            "key_label": key["label"],
            "limit_micros": claim["limit_micros"],
            "sealed_secret": SEALED,
            "request_id": "script",
        },
    )
    if answer.raise_for_status().json() != "ready":
        raise RuntimeError("the script's provisioning did not end well")
    return str(made["key"])
