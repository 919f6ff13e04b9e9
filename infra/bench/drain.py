"""How fast a crowd gets its keys where OpenRouter is slow and faulty: by the sweep alone, all hints lost.

What would be possible is reckoned from what happened: the simulator says how many requests it let through, those that
met a fault included, and its limit lets so many through a second. The sweep runs as on Lambda, in a process of its own,
at the schedule's pace and with the time that the functions' settings give it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from functions.clients.openrouter import PAGE_KEYS, OpenRouter
from functions.clients.outside import build_clients
from functions.provisioning.names import KeyName
from functions.provisioning.strays import collect_strays
from infra.bench.measuring import Check, Effort, Measured
from infra.bench.places import insert_users, quiet_stack, settings_of
from infra.local.faults import OPENROUTER, FaultControl
from infra.local.stack import CHECKOUT, PROJECT, Stack
from infra.local.supervisor import LAST_LINES, PartFailed

USERS = 2_000
QUICK_USERS = 30
# serverless.yml says the same.
SCHEDULE_SECONDS = 60
QUICK_SCHEDULE_SECONDS = 1
REQUESTS_PER_SECOND = 50
# A fifth in all: a tenth that did nothing; of the others, a ninth whose key was made, and nobody heard of it.
ERRORS = 0.1
LOST_ANSWERS = 0.1 / 0.9
SEED = 4
MAX_SECONDS = 1_200
POLL_SECONDS = 0.1
MAX_MEMORY_MB = 150
MAX_PAGES = 100
MAX_COLLECTIONS = 50


async def measure(effort: Effort) -> Measured:
    """Lets a crowd in, and waits until everybody is served."""
    count = effort.size(USERS, QUICK_USERS)
    async with quiet_stack() as stack:
        faults = FaultControl(OPENROUTER, stack.openrouter_url)
        await faults.order(
            requests_per_second=REQUESTS_PER_SECOND,
            errors=ERRORS,
            lose_answers=LOST_ANSWERS,
            seed=SEED,
            only=["POST /keys"],
        )
        await insert_users(stack, count)
        started = time.perf_counter()
        process = await _start_sweeps(stack, effort.size(SCHEDULE_SECONDS, QUICK_SCHEDULE_SECONDS))
        await _until_all_ready(stack, process, effort, count)
        took_seconds = time.perf_counter() - started
        report = await faults.clear()
        memory_mb = await _end_sweeps(process)
        keys = await _keys_after_collection(stack)
        wrong = await _not_served_once(stack, keys)
    refused = report.counts["requests_per_second"]
    let_through = report.requests - refused
    # At the beginning the simulator lets through at once what it would in a second.
    allowed_seconds = max(1.0, let_through / REQUESTS_PER_SECOND - 1.0)
    return Measured(
        [count / took_seconds],
        [count / allowed_seconds],
        [
            Check("memory", f"{memory_mb:.0f} MB", f"<= {MAX_MEMORY_MB} MB", memory_mb <= MAX_MEMORY_MB),
            Check("not served exactly once", f"{wrong} users", "0 users", wrong == 0),
        ],
        [
            f"{count} in {took_seconds:.1f} s; its limit takes {allowed_seconds:.1f} s for {let_through} requests:"
            f" {report.counts['errors']} errors and {report.counts['lose_answers']} lost answers among them. "
            f"{refused} more were refused with 429."
        ],
    )


async def _start_sweeps(stack: Stack, every_seconds: int) -> asyncio.subprocess.Process:
    with _log_of(stack).open("wb") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "infra.bench.sweep_process", str(every_seconds),
            cwd=CHECKOUT, env={"PATH": os.environ.get("PATH", ""), **stack.functions_environment},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
        )  # fmt: skip


def _log_of(stack: Stack) -> Path:
    return stack.log_folder / "sweep.log"


async def _until_all_ready(stack: Stack, process: asyncio.subprocess.Process, effort: Effort, count: int) -> None:
    deadline = time.monotonic() + MAX_SECONDS
    async with await psycopg.AsyncConnection.connect(stack.superuser_url, autocommit=True) as database:
        while time.monotonic() < deadline and process.returncode is None:
            rows = await database.execute("select count(*) from doorkey.provisioning where state = 'ready'")
            ready = (await rows.fetchall())[0][0]
            effort.progress(ready, count)
            if ready == count:
                return
            await asyncio.sleep(POLL_SECONDS)
    last_lines = _log_of(stack).read_text().splitlines()[-LAST_LINES:]
    raise PartFailed("sweep", f"did not serve {count} users within {MAX_SECONDS} seconds, or died", last_lines)


async def _end_sweeps(process: asyncio.subprocess.Process) -> float:
    """Ends it after the sweep that is running; its peak of memory."""
    out, _ = await process.communicate(b"")  # which closes its standard input
    return float(json.loads(out)["memory_mb"])


async def _keys_after_collection(stack: Stack) -> list[dict[str, Any]]:
    """What is left at OpenRouter once the strays were collected, as the sweep will an hour later."""
    clients = build_clients(settings_of(stack))
    async with clients.http:
        for _ in range(MAX_COLLECTIONS):
            report = await collect_strays(
                clients.openrouter,
                clients.supabase,
                project=PROJECT,
                now=datetime.now(UTC) + timedelta(hours=1),
                min_age=timedelta(minutes=15),
            )
            if report.deleted == 0:
                break
        return await _all_keys(clients.openrouter)


async def _all_keys(openrouter: OpenRouter) -> list[dict[str, Any]]:
    found = []
    for page_number in range(MAX_PAGES):
        page = await openrouter.list_keys(page_number * PAGE_KEYS)
        found += [{"hash": key.key_hash, "name": KeyName.parse(key.name)} for key in page]
        if len(page) < PAGE_KEYS:
            break
    return found


async def _not_served_once(stack: Stack, keys: list[dict[str, Any]]) -> int:
    """How many users don't have exactly one key, known by its hash, and one welcome."""
    at_openrouter = Counter((str(key["name"].user_id), key["hash"]) for key in keys if key["name"] is not None)
    by_user = Counter(user_id for user_id, _ in at_openrouter)
    async with await psycopg.AsyncConnection.connect(stack.superuser_url, autocommit=True) as database:
        rows = await database.execute(
            """select p.user_id::text, p.key_hash,
                      (select count(*) from public.credit_transactions as t where t.user_id = p.user_id)
                 from doorkey.provisioning as p"""
        )
        return sum(
            by_user[user_id] != 1 or at_openrouter[user_id, key_hash] != 1 or grants != 1
            for user_id, key_hash, grants in await rows.fetchall()
        )
