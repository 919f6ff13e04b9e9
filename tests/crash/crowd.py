"""The crowd: everybody signs up, and what their script says happens to them, while time runs faster than elsewhere.

A bounded number lives at once, each until their key is as wanted: so a slow machine sees as much trouble as a fast one,
in more time.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from tests.crash.acts import Actor
from tests.crash.asking import WISHES
from tests.crash.calls import SWEEPS_CALLS
from tests.crash.doorbell import Doorbell
from tests.crash.outages import OUTAGE_SECONDS
from tests.crash.plan import Act, KillPoint, Plan, Script
from tests.crash.processes import Nursery
from tests.crash.service_key import ServiceKey
from tests.crash.shared import Shared

# So many live at once; fewer where there are few, or sweeps would never come to an end.
IN_FLIGHT = range(20, 80)
USER_SECONDS = 60.0
# Where something is broken on purpose, many wait for what will never be.
USER_SECONDS_OF_THE_BROKEN = 5.0
POLL_SECONDS = 0.25
# How long somebody waits for an answer before they ask again, and how long at most for all that they want.
POLLS_BEFORE_ASKING_AGAIN = 8
ASKING_SECONDS = 20.0
# How long a sweeper that shall come to a certain call is waited for, once everybody has signed up.
SWEEPERS_SECONDS = 30.0
# A transaction's time is that of its beginning: so old may be what is new.
OVERLAP = timedelta(seconds=5)

# Time runs faster for those who wait for their next try, and for the minute of a refusal of everybody.
CLOCK = (
    "update doorkey.provisioning set due_at = now() where state = 'due' and last_error is not null and due_at > now()",
    "update doorkey.settings set held_until = now() where held_reason is not null and held_until > now()",
)
_STATES = """
select user_id, state = 'ready' and wanted = claimed,
       state in ('gone', 'dead') or due_at > now() + interval '2 s', now()
  from doorkey.provisioning where updated_at > %s
"""

Database = psycopg.AsyncConnection[Any]


class CrewFailed(Exception):
    """The nursery, and every process with it, has ended by itself."""


class Crowd:
    """Everybody in the plan.

    Attributes:
        understudies: who played too, because nobody had been killed at some point.
    """

    def __init__(
        self,
        plan: Plan,
        shared: Shared,
        nursery: Nursery,
        actor: Actor,
        doorbell: Doorbell,
        service_key: ServiceKey,
        token_of: Callable[[uuid.UUID], str],
        show: Callable[[str, int, int], None],
    ) -> None:
        self._plan = plan
        self._nursery = nursery
        self._shared = shared
        self._actor = actor
        self._doorbell = doorbell
        self._service_key = service_key
        self._token_of = token_of
        self._signups: asyncio.Queue[Script] = asyncio.Queue()
        self._show = show
        self._ready: set[uuid.UUID] = set()
        self._settled: set[uuid.UUID] = set()
        self._user_seconds = USER_SECONDS
        self.understudies: list[Script] = []

    async def play(self, database: Database, *, is_complete: bool) -> None:
        """Lives everybody's life; and, to be complete, waits long for each and comes to every kill point.

        Raises:
            CrewFailed: there is nobody left to be killed.
        """
        self._user_seconds = USER_SECONDS if is_complete else USER_SECONDS_OF_THE_BROKEN
        clock = asyncio.create_task(self._move_the_clock(database))
        lives = asyncio.create_task(self._live_them_all(is_complete=is_complete))
        await asyncio.wait((clock, lives), return_when=asyncio.FIRST_COMPLETED)
        (clock if lives.done() else lives).cancel()
        with suppress(asyncio.CancelledError):
            await clock
        await lives

    async def _live_them_all(self, *, is_complete: bool) -> None:
        async with asyncio.TaskGroup() as group:
            outages = group.create_task(self._play_outages())
            await self._live_all("Signups", [script for script in self._plan.scripts if script.outage is None])
            # Fewer signed up than was planned for, where there are few.
            for script in self._plan.scripts:
                self._signups.put_nowait(script)
            await outages
        if is_complete:
            await self._come_to_every_point()

    async def _play_outages(self) -> None:
        signed_up = 0
        for number, outage in enumerate(self._plan.outages):
            while signed_up < outage.after_signups:
                await self._signups.get()
                signed_up += 1
            signing_up = [script for script in self._plan.scripts if script.outage == number]
            await self._live_in_an_outage(signing_up, is_rotated=outage.is_rotated)

    async def _live_in_an_outage(self, scripts: Iterable[Script], *, is_rotated: bool) -> None:
        """Everybody else goes on meanwhile."""
        async with asyncio.TaskGroup() as group, self._service_key.outage(is_rotated=is_rotated):
            for script in scripts:
                group.create_task(self._live(script))
            await asyncio.sleep(OUTAGE_SECONDS)

    async def _live_all(self, phase: str, scripts: Iterable[Script]) -> None:
        everybody = list(scripts)
        done = 0
        room = asyncio.Semaphore(min(max(IN_FLIGHT.start, len(everybody) // 10), IN_FLIGHT.stop))

        async def one(script: Script) -> None:
            nonlocal done
            async with room:
                self._signups.put_nowait(script)
                await self._live(script)
            done += 1
            self._show(phase, done, len(everybody))

        async with asyncio.TaskGroup() as group:
            for script in everybody:
                group.create_task(one(script))

    async def _come_to_every_point(self) -> None:
        for number in range(max(len(scripts) for scripts in self._plan.understudies.values())):
            called = [
                scripts[number]
                for point, scripts in self._plan.understudies.items()
                if number < len(scripts) and not self._is_reached(point)
            ]
            self.understudies += called
            own = [script for script in called if script.outage is not None]
            if own:
                self._show("Understudies", len(called) - len(own), len(called))
                await self._live_in_an_outage(own, is_rotated=number % 2 == 1)
            await self._live_all("Understudies", [script for script in called if script.outage is None])
        deadline = time.monotonic() + SWEEPERS_SECONDS
        points = [(call, moment) for call in SWEEPS_CALLS for moment in ("before", "after")]
        while time.monotonic() < deadline:
            reached = sum(map(self._is_reached, points))
            self._show("Sweepers", reached, len(points))
            if reached == len(points):
                return
            await asyncio.sleep(POLL_SECONDS)

    def _is_reached(self, point: KillPoint) -> bool:
        return self._shared.kills(*point) > 0

    async def _live(self, script: Script) -> None:
        """One user's life, until their row is still or enough time has passed."""
        await self._actor.sign_up(script)
        for number, step in enumerate(script.steps):
            if step.after_seconds is None:
                await self._until(script.user_id, self._ready)
            else:
                await asyncio.sleep(step.after_seconds)
            self._ready.discard(script.user_id)
            await self._actor.perform(step.act, script, f"step {number}")
            if step.act in (Act.GRANT, Act.ROTATE):
                self._doorbell.ring(script.user_id)
        if script.has_token:
            await self._ask_for_everything(script)
        await asyncio.sleep(POLL_SECONDS * 2)
        await self._until(script.user_id, self._ready, self._settled)

    async def _ask_for_everything(self, script: Script) -> None:
        """Until all was answered. What gets no answer is asked again, also while somebody is at it."""
        token, deadline = self._token_of(script.user_id), time.monotonic() + ASKING_SECONDS
        while time.monotonic() < deadline and self._shared.answered(script.index) < len(WISHES):
            # Gone, or given up: they are told so again and again.
            if script.user_id in self._settled and script.user_id not in self._ready and not script.is_missed:
                return
            number = self._shared.answered(script.index)
            self._doorbell.ask(script, token)
            for _ in range(POLLS_BEFORE_ASKING_AGAIN):
                await asyncio.sleep(POLL_SECONDS)
                if self._shared.answered(script.index) > number:
                    break

    async def _until(self, user_id: uuid.UUID, *these: set[uuid.UUID]) -> None:
        """Until the user is in one of these sets, or has waited long enough."""
        deadline = time.monotonic() + self._user_seconds
        while time.monotonic() < deadline:
            if any(user_id in those for those in these):
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _move_the_clock(self, database: Database) -> None:
        since = datetime.min.replace(tzinfo=UTC)
        while self._nursery.is_alive:
            for statement in CLOCK:
                await database.execute(statement)
            for user_id, is_ready, is_settled, now in await (await database.execute(_STATES, (since,))).fetchall():
                (self._ready.add if is_ready else self._ready.discard)(user_id)
                (self._settled.add if is_settled else self._settled.discard)(user_id)
                since = now - OVERLAP
            await asyncio.sleep(POLL_SECONDS)
        raise CrewFailed("the processes met an error that nobody foresaw; see workers.log")
