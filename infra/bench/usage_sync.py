"""One page of the usage sync beside the fewest lines that read it and hand it over.

The script asks what the sync asks, and has the database do the same: what the ratio shows is what our own lines cost.
Before each page ten keys spend something, and a new round begins; nobody measures that.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx

from functions.clients.outside import Clients, build_clients
from functions.metering import store
from functions.metering.sync import sync_page
from infra.bench.measuring import Check, Effort, Measured
from infra.bench.places import insert_users, quiet_stack, run_sql, settings_of
from infra.bench.provisioning import Listening, provision_by_script, script_client, timed
from infra.local.stack import Stack

PAIRS = 200
WARM_UPS = 5
KEYS = 100
CHANGED = 10
ROUND_TRIPS = ["GET /keys", "record_usage"]
NEW_ROUND = "update doorkey.usage_sync set started_at = now() - interval '2 hours', finished_at = now()"
CHAT = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}


async def measure(effort: Effort) -> Measured:
    """Reads pages in turns by the sync and by the script."""
    async with quiet_stack() as stack:
        settings = settings_of(stack)
        clients = build_clients(settings)
        async with clients.http, script_client(settings) as script:
            users = await insert_users(stack, KEYS)
            secrets = itertools.cycle([await provision_by_script(script, stack, settings, user) for user in users])

            async def page_of(read: Callable[[store.SyncCursor], Awaitable[object]]) -> float:
                for _ in range(CHANGED):
                    await _spend(script, stack, next(secrets))
                cursor = await _new_round(stack, clients)
                return await timed(lambda: read(cursor))

            async def ours(cursor: store.SyncCursor) -> None:
                await sync_page(clients.openrouter, clients.supabase, cursor, request_id="bench")

            listening = Listening()
            heard = build_clients(settings, listening)
            async with heard.http:
                cursor = await _new_round(stack, clients)
                recorded = await sync_page(heard.openrouter, heard.supabase, cursor, request_id="bench")
            measured = await effort.pairs(
                effort.size(PAIRS, 2),
                lambda: page_of(ours),
                lambda: page_of(lambda cursor: _page_by_script(script, stack, cursor)),
                effort.size(WARM_UPS, 1),
            )
    trips, counted = listening.heard, recorded.counts["usage_keys"]
    measured.checks.append(Check("round trips", ", ".join(trips), "exactly those of the script", trips == ROUND_TRIPS))
    measured.checks.append(Check("keys on the page", str(counted), str(KEYS), counted == KEYS))
    return measured


async def _new_round(stack: Stack, clients: Clients) -> store.SyncCursor:
    await run_sql(stack.superuser_url, NEW_ROUND)
    cursor = await store.begin_usage_sync(clients.supabase, every_seconds=3_600)
    if cursor is None:
        raise RuntimeError("no round of the usage sync began")
    return cursor


async def _spend(client: httpx.AsyncClient, stack: Stack, secret: str) -> None:
    answer = await client.post(
        f"{stack.openrouter_url}/chat/completions", json=CHAT, headers={"Authorization": f"Bearer {secret}"}
    )
    answer.raise_for_status()


async def _page_by_script(client: httpx.AsyncClient, stack: Stack, cursor: store.SyncCursor) -> None:
    read_at = datetime.now(UTC)
    answer = await client.get(
        f"{stack.openrouter_url}/keys",
        params={"offset": cursor.at.offset, "include_disabled": "true"},
        headers={"Authorization": f"Bearer {stack.secrets.management_key}"},
    )
    keys = answer.raise_for_status().json()["data"]
    answer = await client.post(
        f"{stack.supabase_url}/rest/v1/rpc/record_usage",
        headers={"apikey": stack.secrets.secret_key},
        json={
            "round": cursor.round,
            "read_offset": cursor.at.offset,
            "next_offset": cursor.at.offset + len(keys) - 1,
            "next_anchor": keys[-1]["hash"],
            "next_is_second_look": False,
            "key_hashes": [key["hash"] for key in keys],
            "usage_micros": [_micros(key["usage"]) for key in keys],
            "byok_micros": [_micros(key["byok_usage"]) for key in keys],
            "daily_micros": [_micros(key["usage_daily"]) for key in keys],
            "limit_micros": [round(key["limit"] * 1_000_000) for key in keys],
            "disabled_hashes": [key["hash"] for key in keys if key["disabled"]],
            "read_at": read_at.isoformat(),
            "request_id": "script",
        },
    )
    (row,) = answer.raise_for_status().json()
    if row["counted"] != KEYS:
        raise RuntimeError(f"the script's page counted {row['counted']} keys")


def _micros(usd: Any) -> str:
    return format(Decimal(str(usd)).scaleb(6), "f")
