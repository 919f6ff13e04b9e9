"""How long somebody waits for their key after Auth has let them in, on a stack that has nothing else to do.

The clock starts when Auth's answer is there, and stops when their profile says active. Between lie
the database's hint, the function and OpenRouter.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from typing import Any

import httpx
import psycopg

from infra.bench.measuring import Effort, Measured
from infra.bench.places import quiet_stack
from infra.local.stack import Stack, StackOptions

SIGNUPS = 50
LATENCY_MS = 300
READY_SECONDS = 20.0
POLL_SECONDS = 0.003
# pg_net rests for a second after a batch, and for another when it has found its queue empty: idle is after both.
REST_SECONDS = 2.5
QUICK_REST_SECONDS = 0.0
MILLIS = 1_000


async def measure(effort: Effort) -> Measured:
    """Signs people up one after the other."""
    count = effort.size(SIGNUPS, 1)
    async with (
        quiet_stack(StackOptions(openrouter_latency_ms=LATENCY_MS), rings=True) as stack,
        httpx.AsyncClient(timeout=READY_SECONDS, trust_env=False) as http,
        await psycopg.AsyncConnection.connect(stack.superuser_url, autocommit=True) as database,
    ):
        await _wait_ms(stack, http, database)  # the first request of everything
        waited = []
        for number in range(count):
            await asyncio.sleep(QUICK_REST_SECONDS if effort.is_quick else REST_SECONDS)
            waited.append(await _wait_ms(stack, http, database))
            effort.progress(number + 1, count)
    return Measured(waited, [float(LATENCY_MS)] * count)


async def _wait_ms(stack: Stack, http: httpx.AsyncClient, database: psycopg.AsyncConnection[Any]) -> float:
    answer = await http.post(
        f"{stack.supabase_url}/auth/v1/signup",
        json={"email": f"{uuid.uuid4()}@example.com", "password": secrets.token_urlsafe(12)},
        headers={"apikey": stack.secrets.publishable_key},
    )
    started = time.perf_counter()
    user_id = answer.raise_for_status().json()["user"]["id"]
    while time.perf_counter() - started < READY_SECONDS:
        rows = await database.execute(
            "select 1 from public.profiles where id = %s and openrouter_provisioning_status = 'active'", (user_id,)
        )
        if await rows.fetchone():
            return (time.perf_counter() - started) * MILLIS
        await asyncio.sleep(POLL_SECONDS)
    raise TimeoutError(f"no key after {READY_SECONDS:.0f} seconds")
