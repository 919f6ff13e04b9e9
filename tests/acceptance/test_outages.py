"""A part of the world is away for a minute or an hour: nothing is lost, and one sweep after it makes everything good.

On a stack of this module's own. The clock is moved by moving every stored time back: an hour takes seconds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from functions import sweep
from functions.clients.outside import build_clients
from functions.kit.settings import Settings
from functions.provisioning.redriving import CONCURRENCY
from infra.local.faults import EDGE, OPENROUTER, FaultControl
from infra.local.stack import Stack, StackOptions, running_stack
from tests.support.scenes import Between, Scene, named

USERS = 16
MINUTES = 60
# How long an answer is waited for where none comes; elsewhere as long as by default, because a busy machine is slow.
HASTY_SECONDS = 1.0
# By then every key that was left is old enough to be collected.
LATER_SECONDS = 7_200
# Longer than a finish is asked for again.
FROZEN_SECONDS = 4.0


@pytest.fixture(scope="module")
async def stack() -> AsyncIterator[Stack]:
    """A stack of its own, without a schedule and without hints: what happens, the test does."""
    options = StackOptions(sweep_seconds=0, forgets=True)
    async with running_stack(options) as running:
        async with await psycopg.AsyncConnection.connect(running.superuser_url, autocommit=True) as database:
            await database.execute("update doorkey.settings set webhook_url = null, max_keys_per_hour = null")
        yield running


@pytest.fixture
async def crowd(stack: Stack, http: httpx.AsyncClient) -> list[Scene]:
    """Some who just signed up."""
    return [await arrive(stack, http) for _ in range(USERS)]


async def arrive(stack: Stack, http: httpx.AsyncClient) -> Scene:
    scene = Scene(stack, http, uuid.uuid4())
    await scene.sql(
        "insert into auth.users (id, email, email_confirmed_at) values (%s, %s, now())",
        scene.user_id,
        f"{scene.user_id}@example.com",
    )
    return scene


async def run_sweep(
    stack: Stack, transport: Between | None = None, later_seconds: int = 0, **environment: str
) -> dict[str, Any]:
    settings = Settings.from_environment({**stack.functions_environment, **environment})
    clients = build_clients(settings, transport=transport)
    async with clients.http:
        handle = sweep.build(settings, clients, clock=lambda: time.time() + later_seconds)
        return await handle({"source": "aws.events"})


async def pass_time(scene: Scene, seconds: int) -> None:
    """Moves every time that is waited for."""
    interval = f"interval '{seconds} seconds'"
    await scene.sql(
        f"update doorkey.provisioning set due_at = due_at - {interval},"
        f" lease_expires_at = lease_expires_at - {interval}, revisit_at = revisit_at - {interval}"
    )
    await scene.sql(f"update doorkey.settings set held_until = held_until - {interval}")


async def assert_all_well(crowd: list[Scene]) -> None:
    """One key each, known, with the right limit; one grant each."""
    assert {(await scene.row())["state"] for scene in crowd} == {"ready"}
    for scene in crowd:
        (hash_,) = await scene.known_hashes()
        keys = await scene.keys()
        assert [key["hash"] for key in keys.values()] == [hash_]
        assert next(iter(keys.values()))["limit"] == 5.0
        assert await scene.grants() == [5_000_000]


# How OpenRouter is away, each for a quarter of the hour.
QUARTERS: list[dict[str, Any]] = [
    {"lose_answers": 1.0, "only": ["POST /keys"]},
    {"is_away": True},
    {"errors": 1.0, "error_status": 503},
    {"html_errors": 1.0, "errors_after_work": True},
]


@pytest.mark.timeout(300)  # sixty sweeps
async def test_openrouter_away_for_an_hour_costs_nobody_their_key(
    stack: Stack, http: httpx.AsyncClient, crowd: list[Scene]
) -> None:
    faults = FaultControl(OPENROUTER, stack.openrouter_url)
    probes = []
    try:
        for minute in range(MINUTES):
            if minute % (MINUTES // 4) == 0:
                await faults.order(**QUARTERS[minute * 4 // MINUTES])
            if minute % 20 == 10:
                crowd.append(await arrive(stack, http))
            transport = Between()
            line = await run_sweep(stack, transport)
            probes.append(transport.calls.count("POST /keys"))
            assert line["dead"] == 0
            await pass_time(crowd[0], 60)
    finally:
        await faults.clear()
    # At first everybody tries; once enough have found it so, one a minute does, and none of them burns an attempt.
    assert max(probes[:3]) > 1
    assert set(probes[5:]) == {1}
    assert max([(await scene.row())["failures"] for scene in crowd]) <= 3
    line = await run_sweep(stack)
    assert (line["outcome_ready"], line["is_everything_done"]) == (len(crowd), True)
    # Strays are a matter of their age.
    await run_sweep(stack, later_seconds=LATER_SECONDS)
    await assert_all_well(crowd)
    (settings,) = await crowd[0].sql("select held_reason, outage_failures from doorkey.settings")
    assert settings == {"held_reason": None, "outage_failures": 0}


@pytest.mark.parametrize(
    "plan",
    [
        {"errors": 1.0, "error_status": 503},
        {"errors": 0.5, "error_status": 502, "errors_after_work": True},
        {"lose_answers": 0.5},
        {"is_away": True},
    ],
    ids=["503", "502 after the work", "answers are lost", "nobody answers"],
)
async def test_the_gateway_failing_for_some_minutes_loses_nothing(
    stack: Stack, crowd: list[Scene], plan: dict[str, Any]
) -> None:
    faults = FaultControl(EDGE, stack.supabase_url)
    await faults.order(only=["POST /rest/v1/rpc"], seed=7, **plan)
    try:
        for _ in range(3):
            await run_sweep(stack)
            await pass_time(crowd[0], 60)
    finally:
        await faults.clear()
    # Whoever was claimed meanwhile holds a lease that nobody keeps.
    await pass_time(crowd[0], 3_600)
    line = await run_sweep(stack)
    assert line.get("is_everything_done") is True, line
    assert line["dead"] == 0
    await run_sweep(stack, later_seconds=LATER_SECONDS)
    await assert_all_well(crowd)


async def test_the_database_standing_still_in_the_middle_loses_nothing(
    stack: Stack, http: httpx.AsyncClient, crowd: list[Scene]
) -> None:
    """As in a fail-over: connections hang, and nobody knows what was committed."""
    reached = asyncio.Event()

    async def before(request: httpx.Request) -> None:
        if named(request) == "POST /keys":
            reached.set()

    await run_sweep(stack, Between(before=before))  # so that all connections are there
    crowd += [await arrive(stack, http) for _ in range(USERS)]
    reached.clear()
    server = stack.supervisor.pid("postgres")
    family = [server, *children(server)]
    hasty = run_sweep(stack, Between(before=before), DOORKEY_OUTSIDE_TIMEOUT_SECONDS=str(HASTY_SECONDS))
    working = asyncio.create_task(hasty)
    await reached.wait()
    with frozen(family):
        await asyncio.sleep(FROZEN_SECONDS)
    await working
    left = [scene for scene in crowd if (await scene.row())["state"] != "ready"]
    assert len(left) >= CONCURRENCY // 4, "it hit them in the middle"
    await pass_time(crowd[0], 3_600)
    line = await run_sweep(stack)
    assert (line["is_everything_done"], line["dead"]) == (True, 0)
    await run_sweep(stack, later_seconds=LATER_SECONDS)
    await assert_all_well(crowd)


@contextmanager
def frozen(family: list[int]) -> Iterator[None]:
    """A server and all its workers stand still."""
    stopped = [member for member in family if _send(member, signal.SIGSTOP)]
    try:
        yield
    finally:
        for member in stopped:
            _send(member, signal.SIGCONT)


def _send(pid: int, what: signal.Signals) -> bool:
    """Whether it was there: a worker of Postgres may end by itself."""
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        return False
    return True


def children(pid: int) -> list[int]:
    """The processes that this one started, and theirs."""
    direct = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(FileNotFoundError, ProcessLookupError):  # they come and go
            if f"\nPPid:\t{pid}\n" in status.read_text(errors="replace"):
                direct.append(int(status.parent.name))
    return [*direct, *(grandchild for child in direct for grandchild in children(child))]
