"""`doorkey backfill` as an operator runs it, against the running stack: killed in the middle, and run again.

Everybody here was created in an hour of the nineties that is the test's own: it neither sees nor disturbs others.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from rich.console import Console

from functions import sweep
from functions.clients.outside import build_clients
from functions.clients.supabase import SupabaseAnswerLost, SupabaseUnreachable
from functions.kit.settings import Settings
from functions.provisioning.store import OldUsers
from infra.cli import backfill
from infra.cli.backfill import BackfillPlan, BackfillStopped
from infra.local.stack import CHECKOUT, Stack
from tests.support.people import database_of
from tests.support.scenes import Scene

USERS = 12
FAST = ("--per-hour", "36000")
POLL_SECONDS = 0.1
DEADLINE_SECONDS = 60.0


@dataclass
class Crowd:
    """Users from before, of one hour."""

    stack: Stack
    http: httpx.AsyncClient
    since: datetime
    users: list[uuid.UUID]

    @property
    def window(self) -> tuple[str, ...]:
        """What restricts a backfill to them."""
        before = self.since + timedelta(hours=1)
        return ("--created-since", f"{self.since:%Y-%m-%dT%H:%M:%S}", "--created-before", f"{before:%Y-%m-%dT%H:%M:%S}")

    async def join(self, how_many: int, *, is_confirmed: bool = True, is_banned: bool = False) -> list[uuid.UUID]:
        """More of them, as they were before doorkey came."""
        users = [uuid.uuid4() for _ in range(how_many)]
        for user_id in users:
            await database_of(self.stack).run(
                "insert into auth.users (id, email, created_at, email_confirmed_at, banned_until) values (%s, %s, %s,"
                " case when %s then now() end, case when %s then now() + interval '1 day' end)",
                (user_id, f"{user_id}@example.com", self.since, is_confirmed, is_banned),
            )
        self.users += users
        return users

    async def states(self) -> list[str]:
        """The states of those who have a row."""
        rows = await database_of(self.stack).rows(
            "select state::text from doorkey.provisioning where user_id = any(%s)", (self.users,)
        )
        return sorted(row["state"] for row in rows)

    async def until_enrolled(self, how_many: int) -> None:
        """Waits until so many have a row."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(await self.states()) < how_many:
            assert time.monotonic() < deadline
            await asyncio.sleep(POLL_SECONDS)

    async def assert_one_key_and_one_grant_each(self) -> None:
        for user_id in self.users:
            scene = Scene(self.stack, self.http, user_id)
            await scene.assert_one_key(attempt=1)
            assert await scene.grants() == [5_000_000]


@pytest.fixture
async def crowd(stack: Stack, http: httpx.AsyncClient) -> AsyncIterator[Crowd]:
    """Nobody yet, in an hour of their own; a sweep has just been."""
    crowd = Crowd(stack, http, datetime(1990, 1, 1, tzinfo=UTC) + timedelta(hours=secrets.randbelow(80_000)), [])
    await sweep_began(stack)
    yield crowd
    await database_of(stack).run(
        "delete from doorkey.provisioning where user_id = any(%s) and key_hash is null", (crowd.users,)
    )


async def sweep_began(stack: Stack, how_long_ago: str = "0 s") -> None:
    """As if a sweep had begun then."""
    await database_of(stack).run("update doorkey.settings set last_sweep_at = now() - %s::interval", (how_long_ago,))


async def start(crowd: Crowd, *words: str) -> asyncio.subprocess.Process:
    """The command, running."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "infra.cli.main",
        "backfill",
        *crowd.window,
        *words,
        cwd=CHECKOUT,
        env={"PATH": os.environ["PATH"], "COLUMNS": "200", **crowd.stack.functions_environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def run(crowd: Crowd, *words: str) -> tuple[int, str]:
    """The command's exit code and all that it printed."""
    process = await start(crowd, *words)
    printed, _ = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    return process.returncode or 0, printed.decode()


@asynccontextmanager
async def sweeping(stack: Stack) -> AsyncIterator[None]:
    """Sweeps one after the other meanwhile, as the schedule would."""
    settings = Settings.from_environment(stack.functions_environment)
    clients = build_clients(settings)
    handle = sweep.build(settings, clients)

    is_over = asyncio.Event()

    async def again_and_again() -> None:
        while not is_over.is_set():
            await handle({"source": "aws.events"})
            await asyncio.sleep(POLL_SECONDS)

    async with clients.http:
        task = asyncio.create_task(again_and_again())
        try:
            yield
        finally:
            is_over.set()
            await task


async def test_a_dry_run_says_users_money_and_hours_and_changes_nothing(crowd: Crowd) -> None:
    await crowd.join(3)
    await crowd.join(2, is_confirmed=False)
    await crowd.join(1, is_banned=True)
    database = database_of(crowd.stack)
    tables = ("doorkey.provisioning", "doorkey.audit_log", "public.profiles", "public.credit_transactions")
    # An edited setting leaves a line in the audit log, so both are read between the edits.
    await database.run("update doorkey.settings set max_keys_per_hour = 20")
    try:
        before = [await database.rows(f"select * from {table} as t order by t::text") for table in tables]
        code, printed = await run(crowd)
        after = [await database.rows(f"select * from {table} as t order by t::text") for table in tables]
    finally:
        await database.run("update doorkey.settings set max_keys_per_hour = null")
    assert code == 0
    lines = [" ".join(line.strip("│ ").replace("│", " ").split()) for line in printed.splitlines()]
    for line in (
        "Confirmed 3",
        "Unconfirmed 2",
        "Banned or deleted 1, left out",
        "OpenRouter keys 3",
        "Enrolled, but waiting 2, until they confirm or convert",
        "Welcome credits at most 15.00 credits ($15.00)",
        "and 10.00 credits ($10.00) if all who wait come to it",
        "Takes 0.3 hours at 10 keys an hour",
        "at best 0.2 hours at 18: the brake max_keys_per_hour is 20",
    ):
        assert line in lines, printed
    assert "nothing was changed" in printed
    assert after == before


async def test_killed_in_the_middle_and_run_again_everybody_has_one_key_and_one_grant(crowd: Crowd) -> None:
    await crowd.join(USERS)
    # Nobody sweeps: it stands at its first batches.
    process = await start(crowd, "--yes", *FAST, "--batch", "3")
    await crowd.until_enrolled(3)
    process.kill()
    await process.wait()
    assert 3 <= len(await crowd.states()) < USERS
    async with sweeping(crowd.stack):
        process = await start(crowd, "--yes", *FAST, "--batch", "3")
        await crowd.until_enrolled(6)
        process.kill()
        await process.wait()
        twice = await asyncio.gather(*(run(crowd, "--yes", *FAST, "--batch", "5") for _ in range(2)))
    assert [code for code, _ in twice] == [0, 0], twice
    await crowd.assert_one_key_and_one_grant_each()
    assert all("0 under way" in printed for _, printed in twice)
    _, printed = await run(crowd)
    assert "OpenRouter keys" in printed
    assert "at most 0.00 credits" in printed
    statuses = await database_of(crowd.stack).rows(
        "select distinct openrouter_provisioning_status as status from public.profiles where id = any(%s)",
        (crowd.users,),
    )
    assert [row["status"] for row in statuses] == ["active"]


async def test_interrupted_it_says_how_to_go_on(crowd: Crowd) -> None:
    await crowd.join(4)
    process = await start(crowd, "--yes", *FAST, "--batch", "2")
    await crowd.until_enrolled(2)
    process.send_signal(signal.SIGINT)
    printed, _ = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    assert process.returncode == 130
    assert "run it again to go on" in printed.decode()
    assert len(await crowd.states()) == 2


async def test_the_limit_and_the_user_are_kept(crowd: Crowd) -> None:
    users = await crowd.join(5)
    code, printed = await run(crowd, "--yes", "--no-wait", "--batch", "2", "--limit", "3")
    assert (code, len(await crowd.states())) == (0, 3), printed
    assert "3 users enrolled" in printed
    # By id: the last is left over.
    left = max(users)
    code, _ = await run(crowd, "--yes", "--no-wait", "--user", str(left))
    assert (code, len(await crowd.states())) == (0, 4)
    assert (await Scene(crowd.stack, crowd.http, left).row())["backfill_at"] is not None


async def test_without_a_sweep_it_says_so_and_enrols_only_when_told_to(crowd: Crowd) -> None:
    await crowd.join(2)
    await sweep_began(crowd.stack, "1 h")
    code, printed = await run(crowd)
    assert code == 0
    assert "No sweep has begun for 60 minutes" in printed
    code, printed = await run(crowd, "--yes", *FAST)
    assert code == 1
    assert "No sweep has begun for 60 minutes. Nobody would make the keys, so nothing was changed." in printed
    assert await crowd.states() == []
    code, printed = await run(crowd, "--yes", *FAST, "--no-wait")
    assert code == 0
    assert await crowd.states() == ["due", "due"]


async def test_a_rate_above_what_the_brake_leaves_is_refused_in_a_sentence(crowd: Crowd) -> None:
    await crowd.join(1)
    database = database_of(crowd.stack)
    await database.run("update doorkey.settings set max_keys_per_hour = 500")
    try:
        code, printed = await run(crowd, "--yes", "--per-hour", "451")
    finally:
        await database.run("update doorkey.settings set max_keys_per_hour = null")
    assert code == 1
    assert "451 keys an hour are too many for a backfill: of the 500 that max_keys_per_hour allows" in printed
    assert "Traceback" not in printed
    assert await crowd.states() == []


async def test_those_given_up_are_named_and_the_code_is_not_zero(crowd: Crowd) -> None:
    (user_id,) = await crowd.join(1)
    await run(crowd, "--yes", *FAST, "--no-wait")
    await database_of(crowd.stack).run(
        "update doorkey.provisioning set state = 'dead', last_error = 'openrouter_refused' where user_id = %s",
        (user_id,),
    )
    code, printed = await run(crowd, "--yes", *FAST, "--no-wait")
    assert code == 1
    assert "1 user was given up" in printed
    assert "doorkey redrive" in printed


@pytest.mark.parametrize(
    ("bound", "sentence"),
    [("STALLED_SECONDS", "Nothing has changed for"), ("SWEEP_LATE_SECONDS", "Start the sweep and run this again")],
)
async def test_it_waits_for_its_batch_and_not_for_ever(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch, bound: str, sentence: str
) -> None:
    await crowd.join(2)
    for name, value in crowd.stack.functions_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(backfill, bound, 5.0)
    monkeypatch.setattr(backfill, "POLL_SECONDS", POLL_SECONDS)
    plan = BackfillPlan(
        OldUsers(created_since=crowd.since, created_before=crowd.since + timedelta(hours=1)),
        limit=None,
        per_hour=36_000,
        batch=1,
        is_dry_run=False,
        waits=True,
    )
    await sweep_began(crowd.stack)
    with pytest.raises(BackfillStopped, match=sentence):
        await asyncio.wait_for(backfill.run(Console(quiet=True), plan), DEADLINE_SECONDS)
    assert await crowd.states() == ["due"]


async def test_a_short_absence_of_the_database_is_sat_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill, "POLL_SECONDS", 0.0)

    async def failing(*errors: Exception) -> int:
        left = list(errors)

        async def call() -> int:
            if left:
                raise left.pop(0)
            return len(errors)

        return await backfill._persist(call, is_repeatable=all(isinstance(e, SupabaseUnreachable) for e in errors))

    unreachable, lost = SupabaseUnreachable("line"), SupabaseAnswerLost("line")
    assert await failing(*[unreachable] * 4) == 4
    with pytest.raises(SupabaseUnreachable):
        await failing(*[unreachable] * 5)
    # It may have been enrolled: once more, and the limit would not be kept.
    with pytest.raises(SupabaseAnswerLost):
        await failing(lost)
