"""One run: starts the stack and the crew, signs everybody up, lets the plan play, waits until all is still, judges."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from functions.kit.observability import start_logging
from functions.kit.sealing import Sealer
from functions.kit.settings import Settings
from infra.local.stack import CHECKOUT, Stack, StackOptions, running_stack
from tests.crash import report, verdict, verdict_of_calls
from tests.crash.acts import NEW_PLANS, Actor
from tests.crash.crowd import Crowd, Database
from tests.crash.doorbell import Doorbell
from tests.crash.mutations import apply_in_python, apply_in_sql
from tests.crash.plan import Plan, Script
from tests.crash.processes import CREW, Nursery, Place
from tests.crash.service_key import ServiceKey
from tests.crash.shared import Shared
from tests.crash.stillness import redrive_once, sweep_until_still
from tests.support.people import token_for

LOGS = CHECKOUT / "build" / "crash-logs"
WATCH = Path(__file__).with_name("watch.sql")
LEASE_SECONDS = 2
# The least that the settings allow, and how old a stray must really be: older than any function lives.
STRAY_AGE_SETTING_SECONDS = 60
STRAY_AGE_SECONDS = 20
AHEAD_SECONDS = float(STRAY_AGE_SETTING_SECONDS - STRAY_AGE_SECONDS)
AN_HOUR_SECONDS = 3600.0

DRIVER = len(CREW) + 1
ROWS = len(CREW) + 2


@dataclass
class Outcome:
    """What a run found.

    Attributes:
        facts: numbers for the report.
        violations: by invariant, whom it is about and what is wrong.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    violations: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, invariant: str, who: object, what: str) -> None:
        """Notes a violation."""
        self.violations.setdefault(invariant, []).append((str(who), what))


@dataclass
class Run:
    """Everything that a run needs.

    Attributes:
        plan: what happens.
        shared: the counters.
        nursery: the processes.
        mutation: what is broken on purpose, if anything.
        show: told the phase, and how many of how many.
    """

    plan: Plan
    shared: Shared
    nursery: Nursery
    mutation: str | None
    show: Callable[[str, int, int], None]

    async def run(self) -> Outcome:
        """Plays the plan.

        Raises:
            CrewFailed: the processes ended by themselves.
            PartFailed: the stack did not start.
            MutationMisses: the code that it breaks looks otherwise now.
        """
        with tempfile.TemporaryDirectory() as folder:
            return await self._run(Path(folder) / "secret")

    async def _run(self, secret: Path) -> Outcome:
        outcome = Outcome()
        seconds: dict[str, float] = {}
        started = time.monotonic()

        def lap(name: str) -> None:
            seconds[name] = round(time.monotonic() - started - sum(seconds.values()), 1)

        options = StackOptions(
            log_folder=LOGS,
            sweep_seconds=0,
            forgets=True,
            functions_environment={
                "DOORKEY_LEASE_SECONDS": str(LEASE_SECONDS),
                "DOORKEY_STRAY_AGE_SECONDS": str(STRAY_AGE_SETTING_SECONDS),
                "DOORKEY_SWEEP_BUDGET_SECONDS": "6",
            },
        )
        self.show("Starting the stack", 0, 1)
        async with (
            running_stack(options) as stack,
            Doorbell(self.plan, self.shared, self.nursery.hints).open(stack.secrets.webhook_secret) as doorbell,
            await psycopg.AsyncConnection.connect(stack.superuser_url, autocommit=True) as database,
        ):
            service_key = ServiceKey(stack.supabase_url, stack.secrets.secret_key, secret, self.shared)
            await self._prepare(stack, database, doorbell, secret)
            lap("start")
            actor = self._actor(stack)
            crowd = Crowd(
                self.plan, self.shared, self.nursery, actor, doorbell, service_key,
                lambda user_id: token_for(stack, user_id), self.show,
            )  # fmt: skip
            await crowd.play(database, is_complete=self.mutation is None)
            await actor.close()
            lap("disturbed")
            self.shared.be_quiet()
            await doorbell.drain()
            self.nursery.stop()
            apply_in_python(self.mutation)
            settings = Settings.from_environment(
                {**stack.functions_environment, "SUPABASE_SECRET_KEY": service_key.value}
            )
            await self._judge(stack, settings, database, [*self.plan.scripts, *crowd.understudies], outcome)
            lap("settling")
            outcome.facts |= {"seconds": seconds, "hints": dict(doorbell.counts)}
            outcome.facts |= {"understudies": len(crowd.understudies), **await _facts(database)}
        return outcome

    async def _prepare(self, stack: Stack, database: Database, doorbell: Doorbell, secret: Path) -> None:
        await database.execute(
            "update doorkey.settings set max_keys_per_hour = null, webhook_url = %s", (doorbell.url,)
        )
        await database.execute(NEW_PLANS)
        await database.execute(WATCH.read_bytes())
        await apply_in_sql(self.mutation, database)
        self.nursery.start(
            Place(
                environment={**stack.functions_environment, "DOORKEY_SECRET_ID": str(secret)},
                superuser_url=stack.superuser_url,
                role_password=stack.secrets.role_password,
                log=str(LOGS / "workers.log"),
                sweep_pause_seconds=max(1.0, len(self.plan.scripts) / 4_000),
                sweeps_clock_ahead_seconds=AHEAD_SECONDS,
            )
        )

    def _actor(self, stack: Stack) -> Actor:
        return Actor(
            stack.superuser_url,
            stack.secrets.role_password,
            (stack.openrouter_url, stack.secrets.management_key),
            lambda act: self.shared.count(DRIVER, "act", act.value),
        )

    async def _judge(
        self, stack: Stack, settings: Settings, database: Database, scripts: list[Script], outcome: Outcome
    ) -> None:
        hopeless = [script.user_id for script in scripts if script.is_hopeless]
        found: list[tuple[str, uuid.UUID | str, str]] = []
        with (LOGS / "settling.log").open("a") as log:
            start_logging(log)
            await sweep_until_still(settings, database, AHEAD_SECONDS, self.show)
            outcome.facts["redriven"] = await redrive_once(settings, database, hopeless)
            if outcome.facts["redriven"]:
                await sweep_until_still(settings, database, AHEAD_SECONDS, self.show)
            world = await verdict.look(database, stack.openrouter_url, stack.secrets.management_key)
            found += verdict.judge_deletions(world)
            keys_before = len(world.at_openrouter)
            await sweep_until_still(settings, database, AN_HOUR_SECONDS, self.show)
        world = await verdict.look(database, stack.openrouter_url, stack.secrets.management_key)
        outcome.facts["strays_left_to_the_last_collection"] = keys_before - len(world.at_openrouter)
        found += verdict.judge(scripts, world, Sealer(settings.sealing_keys))
        found += verdict_of_calls.judge(scripts, world, self.shared)
        for invariant, who, what in found:
            outcome.add(invariant, who, what)
        failed = self.shared.totals()[("failed",)]
        if failed:
            outcome.add("no process fails", "-", f"{failed} ended with an error; see {LOGS.name}/workers.log")
        if self.mutation is None:
            for point in report.not_reached(self.shared):
                outcome.add("every kill point is reached", "-", point)


async def _facts(database: Database) -> dict[str, Any]:
    async def rows(statement: str) -> list[Any]:
        return await (await database.execute(statement)).fetchall()

    percentiles = "percentile_cont(array[0.5, 0.9, 0.99, 1]) within group (order by {0})"
    names = ("p50", "p90", "p99", "max")
    ((ready,),) = await rows(
        f"select {percentiles.format('extract(epoch from ready_at - created_at)')} from doorkey.provisioning"
    )
    ((attempts,),) = await rows(f"select {percentiles.format('attempt')} from doorkey.provisioning")
    return {
        "seconds_from_signup_to_key": dict(zip(names, [round(x, 2) for x in ready or ()], strict=False)),
        "attempts_per_user": dict(zip(names, attempts or (), strict=False)),
        "states": dict(await rows("select state::text, count(*) from doorkey.provisioning group by 1 order by 1")),
        "audit_log": dict(await rows("select action, count(*) from doorkey.audit_log group by 1 order by 1")),
    }
