"""One run: starts the stack and the crew, signs everybody up, lets the plan play, waits until all is still, judges."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from functions import sweep
from functions.clients.outside import build_clients
from functions.kit.observability import start_logging
from functions.kit.sealing import Sealer
from functions.kit.settings import Settings
from functions.provisioning import store
from infra.local.stack import CHECKOUT, Stack, StackOptions, running_stack
from tests.crash import verdict
from tests.crash.acts import NEW_PLANS, Actor
from tests.crash.doorbell import Doorbell
from tests.crash.mutations import apply_in_python, apply_in_sql
from tests.crash.plan import Plan, Script
from tests.crash.processes import CREW, Nursery, Place
from tests.crash.shared import Shared

LOGS = CHECKOUT / "build" / "crash-logs"
WATCH = Path(__file__).with_name("watch.sql")
LEASE_SECONDS = 2
# The least that the settings allow, and how old a stray must really be: older than any function lives.
STRAY_AGE_SETTING_SECONDS = 60
STRAY_AGE_SECONDS = 30
AN_HOUR_SECONDS = 3600.0
IN_FLIGHT = 160
USER_SECONDS = 12.0
POLL_SECONDS = 0.25
# A ban that ends later than this is none that the plan made to end.
SOON = "interval '1 minute'"
MAX_ROUNDS = 200
STUCK_SECONDS = 8.0
PAGE_USERS = 5_000

DRIVER = len(CREW) + 1
ROWS = len(CREW) + 2

_CLOCK = (
    # Time runs faster for those who wait for their next try, and for the minute of a refusal of everybody.
    "update doorkey.provisioning set due_at = now() where state = 'due' and last_error is not null and due_at > now()",
    "update doorkey.settings set held_until = now() where held_reason is not null and held_until > now()",
)
_STATES = """
select user_id, state = 'ready' and wanted = claimed, state in ('gone', 'dead') or due_at > now() + interval '2 s'
  from doorkey.provisioning where updated_at > now() - interval '3 s'
"""
_OPEN = f"""
select count(*) filter (where state = 'working' or (state = 'due' and due_at <= now() + {SOON})
                           or (state = 'ready' and revisit_at <= now() + {SOON})),
       sum(attempt)::bigint
  from doorkey.provisioning
"""


@dataclass
class Outcome:
    """What a run found.

    Attributes:
        facts: numbers for the report.
        violations: by invariant, whom it is about and what is wrong.
        not_reached: kill points at which nobody was killed.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    violations: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


@dataclass
class Run:
    """Everything that a run needs.

    Attributes:
        plan: what happens.
        shared: the counters.
        nursery: the processes.
        mutation: what is broken on purpose, if anything.
        show: told the phase, how many of how many, and a word about it.
    """

    plan: Plan
    shared: Shared
    nursery: Nursery
    mutation: str | None
    show: Callable[[str, int, int], None]
    ready: set[uuid.UUID] = field(default_factory=set)
    settled: set[uuid.UUID] = field(default_factory=set)

    async def run(self) -> Outcome:
        """Plays the plan.

        Raises:
            PartFailed: the stack did not start.
            MutationMisses: the code that it breaks looks otherwise now.
        """
        outcome = Outcome()
        seconds: dict[str, float] = {}
        started = time.monotonic()
        start_logging((LOGS / "driver.log").open("a"))

        def lap(name: str) -> None:
            seconds[name] = round(time.monotonic() - started - sum(seconds.values()), 1)

        options = StackOptions(
            log_folder=LOGS,
            sweep_seconds=0,
            functions_environment={
                "DOORKEY_LEASE_SECONDS": str(LEASE_SECONDS),
                "DOORKEY_STRAY_AGE_SECONDS": str(STRAY_AGE_SETTING_SECONDS),
                "DOORKEY_SWEEP_BUDGET_SECONDS": "10",
            },
        )
        self.show("Starting the stack", 0, 1)
        async with (
            running_stack(options) as stack,
            Doorbell(self.plan, self.shared, self.nursery.hints).open() as doorbell,
            await psycopg.AsyncConnection.connect(stack.superuser_url, autocommit=True) as database,
        ):
            await self._prepare(stack, database, doorbell)
            lap("start")
            await self._play(stack, database)
            lap("disturbed")
            self.shared.be_quiet()
            await self._drain(doorbell)
            self.nursery.stop()
            apply_in_python(self.mutation)
            await self._judge(stack, database, outcome)
            lap("settling")
            outcome.facts |= await self._facts(database, doorbell, seconds)
        return outcome

    async def _prepare(self, stack: Stack, database: psycopg.AsyncConnection[Any], doorbell: Doorbell) -> None:
        await database.execute(
            "update doorkey.settings set max_keys_per_hour = null, webhook_url = %s", (doorbell.url,)
        )
        await database.execute(NEW_PLANS)
        await database.execute(WATCH.read_bytes())
        await apply_in_sql(self.mutation, database)
        self.nursery.start(
            Place(
                environment=stack.functions_environment,
                superuser_url=stack.superuser_url,
                role_password=stack.secrets.role_password,
                log=str(LOGS / "workers.log"),
                sweep_pause_seconds=max(0.5, len(self.plan.scripts) / 4_000),
                sweeps_clock_ahead_seconds=STRAY_AGE_SETTING_SECONDS - STRAY_AGE_SECONDS,
            )
        )

    async def _play(self, stack: Stack, database: psycopg.AsyncConnection[Any]) -> None:
        done = 0
        room = asyncio.Semaphore(IN_FLIGHT)
        clock = asyncio.create_task(self._move_the_clock(database))
        actor = self._actor(stack)

        async def one(script: Script) -> None:
            nonlocal done
            async with room:
                await self._live(script, actor)
            done += 1
            self.show("Signups", done, len(self.plan.scripts))

        try:
            async with asyncio.TaskGroup() as group:
                for script in self.plan.scripts:
                    group.create_task(one(script))
        finally:
            clock.cancel()
            await asyncio.wait([clock])
            await actor.close()

    def _actor(self, stack: Stack) -> Actor:
        return Actor(
            stack.superuser_url,
            stack.secrets.role_password,
            (stack.openrouter_url, stack.secrets.management_key),
            lambda act: self.shared.count(DRIVER, "act", act.value),
        )

    async def _live(self, script: Script, actor: Actor) -> None:
        """One user's life, until their row is still or enough time has passed."""
        await actor.sign_up(script)
        for number, step in enumerate(script.steps):
            if step.after_seconds is None:
                await self._until(script.user_id, self.ready)
            else:
                await asyncio.sleep(step.after_seconds)
            self.ready.discard(script.user_id)
            await actor.perform(step.act, script, f"step {number}")
        await asyncio.sleep(POLL_SECONDS * 2)
        await self._until(script.user_id, self.ready, self.settled)

    async def _until(self, user_id: uuid.UUID, *these: set[uuid.UUID]) -> None:
        """Until the user is in one of these sets, or has waited long enough."""
        deadline = time.monotonic() + USER_SECONDS
        while not any(user_id in those for those in these) and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)

    async def _move_the_clock(self, database: psycopg.AsyncConnection[Any]) -> None:
        while True:
            for statement in _CLOCK:
                await database.execute(statement)  # type: ignore[arg-type]
            for user_id, is_ready, is_settled in await (await database.execute(_STATES)).fetchall():
                (self.ready.add if is_ready else self.ready.discard)(user_id)
                (self.settled.add if is_settled else self.settled.discard)(user_id)
            await asyncio.sleep(POLL_SECONDS)

    async def _drain(self, doorbell: Doorbell) -> None:
        """What was rung is delivered; what was begun has the time of a lease to end."""
        deadline = time.monotonic() + USER_SECONDS
        while doorbell.waiting and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        await asyncio.sleep(1.0)

    async def _judge(self, stack: Stack, database: psycopg.AsyncConnection[Any], outcome: Outcome) -> None:
        settings = Settings.from_environment(stack.functions_environment)
        found: list[tuple[str, uuid.UUID | str, str]] = []
        await self._sweep_until_still(settings, database, STRAY_AGE_SETTING_SECONDS - STRAY_AGE_SECONDS)
        outcome.facts["redriven"] = await self._redrive(settings, database)
        await self._sweep_until_still(settings, database, STRAY_AGE_SETTING_SECONDS - STRAY_AGE_SECONDS)
        self.show("Judging", 0, 1)
        world = await verdict.look(database, stack.openrouter_url, stack.secrets.management_key)
        found += verdict.judge_deletions(world)
        outcome.facts["strays_left_to_the_last_collection"] = len(world.at_openrouter)
        await self._sweep_until_still(settings, database, AN_HOUR_SECONDS)
        world = await verdict.look(database, stack.openrouter_url, stack.secrets.management_key)
        outcome.facts["strays_left_to_the_last_collection"] -= len(world.at_openrouter)
        found += verdict.judge(self.plan, world, Sealer(settings.sealing_keys))
        totals = self.shared.totals()
        if totals[("failed",)]:
            found.append(("no process fails", "-", f"{totals[('failed',)]} ended with an error; see the log"))
        for invariant, who, what in found:
            outcome.violations.setdefault(invariant, []).append((str(who), what))

    async def _sweep_until_still(
        self, settings: Settings, database: psycopg.AsyncConnection[Any], ahead_seconds: float
    ) -> None:
        """Two sweeps at once, again and again, until nothing is open and a whole walk found nothing to mend."""
        still, moved, last = 0, time.monotonic(), None
        wanted = len(self.plan.scripts) // PAGE_USERS + 2
        first, second = build_clients(settings), build_clients(settings)
        async with first.http, second.http:
            handles = [sweep.build(settings, c, clock=lambda: time.time() + ahead_seconds) for c in (first, second)]
            for _ in range(MAX_ROUNDS):
                for statement in _CLOCK:
                    await database.execute(statement)  # type: ignore[arg-type]
                lines = await asyncio.gather(*(handle({"source": "aws.events"}) for handle in handles))
                row = await (await database.execute(_OPEN)).fetchone()
                open_rows, attempts = row or (0, 0)
                work = sum(line.get(n, 0) or 0 for line in lines for n in ("enrolled", "healed", "strays_deleted"))
                self.show("Settling", len(self.plan.scripts) - open_rows, len(self.plan.scripts))
                still = still + 1 if not open_rows and not work else 0
                if still >= wanted:
                    return
                if (open_rows, attempts) != last or work:
                    moved, last = time.monotonic(), (open_rows, attempts)
                if time.monotonic() - moved > STUCK_SECONDS:
                    return  # the verdict says what is stuck
                if open_rows:
                    await asyncio.sleep(POLL_SECONDS)

    async def _redrive(self, settings: Settings, database: psycopg.AsyncConnection[Any]) -> dict[str, int]:
        """Who was given up without being hopeless has another chance, once, as an operator would give it."""
        hopeless = {script.user_id for script in self.plan.scripts if script.is_hopeless}
        query = "select user_id, last_error from doorkey.provisioning where state = 'dead'"
        dead = await (await database.execute(query)).fetchall()
        chosen = [(user_id, error) for user_id, error in dead if user_id not in hopeless]
        clients = build_clients(settings)
        async with clients.http:
            for user_id, _ in chosen:
                await store.redrive(clients.supabase, user_id=user_id, error=None, redriven_rows=1, request_id="crash")
        return dict(Counter(str(error) for _, error in chosen))

    async def _facts(
        self, database: psycopg.AsyncConnection[Any], doorbell: Doorbell, seconds: dict[str, float]
    ) -> dict[str, Any]:
        async def rows(statement: str) -> list[Any]:
            return await (await database.execute(statement)).fetchall()  # type: ignore[arg-type]

        percentiles = "percentile_cont(array[0.5, 0.9, 0.99, 1]) within group (order by {0})"
        (ready,) = await rows(
            f"select {percentiles.format('extract(epoch from ready_at - created_at)')} from doorkey.provisioning"
        )
        (attempts,) = await rows(f"select {percentiles.format('attempt')} from doorkey.provisioning")
        states = await rows("select state::text, count(*) from doorkey.provisioning group by 1 order by 1")
        audit = await rows("select action, count(*) from doorkey.audit_log group by 1 order by 1")
        names = ("p50", "p90", "p99", "max")
        return {
            "seconds": seconds,
            "signups_per_second": round(len(self.plan.scripts) / seconds["disturbed"], 1),
            "seconds_from_signup_to_key": dict(zip(names, [round(x, 2) for x in ready[0] or ()], strict=False)),
            "attempts_per_user": dict(zip(names, attempts[0] or (), strict=False)),
            "states": dict(states),
            "hints": dict(doorbell.counts),
            "audit_log": dict(audit),
        }
