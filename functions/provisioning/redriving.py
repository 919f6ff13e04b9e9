"""Provisions everybody who is due, at the pace that OpenRouter bears.

The surprising thing: it stays for a moment after a failure. A first retry is due a second or two later, and the next
sweep is a minute away.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from uuid import UUID

from functions.kit.clock import Clock
from functions.kit.errors import DoorkeyError
from functions.provisioning import store
from functions.provisioning.states import Chance
from functions.provisioning.steps import Outcome, Provisioner

DUE_PER_PAGE = 200
MAX_PAGES = 300
CONCURRENCY = 16
# The next try is due after some seconds: whoever waits for it here does not wait for the next sweep.
PATIENCE_SECONDS = 10.0
POLL_SECONDS = 0.5
AGAIN_SOON = (Outcome.DEFERRED, Outcome.LIMITED)
# Between the beginnings of two attempts, once OpenRouter has asked to slow down.
MIN_GAP_SECONDS = 0.01
MAX_GAP_SECONDS = 1.0
# Those who were under way together are told together: that counts once.
TOLD_SECONDS = 0.2


class Pace:
    """Spaces attempts out as OpenRouter wants them: further apart after a 429, a little closer after a success.

    Attributes:
        gap_seconds: between the beginnings of two attempts.
    """

    def __init__(self) -> None:
        self.gap_seconds = 0.0
        self._next_at = float("-inf")
        self._told_at = float("-inf")

    async def turn(self) -> None:
        """Waits for one's turn."""
        now = time.monotonic()
        begins_at = max(now, self._next_at)
        self._next_at = begins_at + self.gap_seconds
        await asyncio.sleep(begins_at - now)

    def follow(self, outcome: Outcome) -> None:
        """Learns from how an attempt ended."""
        now = time.monotonic()
        if outcome is Outcome.LIMITED and now - self._told_at >= TOLD_SECONDS:
            self._told_at = now
            self.gap_seconds = min(max(self.gap_seconds * 1.25, MIN_GAP_SECONDS), MAX_GAP_SECONDS)
        elif outcome is Outcome.READY:
            self.gap_seconds *= 0.99


class Redrive:
    """Provisions page after page of who is due, and counts how each ended.

    Attributes:
        is_everything_done: whether nobody was left.
    """

    def __init__(self, provisioner: Provisioner, request_id: str, clock: Clock) -> None:
        self._provisioner = provisioner
        self._request_id = request_id
        self._clock = clock
        self._pace = Pace()
        self._outcomes: Counter[str] = Counter()
        # Who is not asked again in this sweep: a row that stays due although it was worked on would come for ever.
        self._done: set[UUID] = set()
        self._worked: set[UUID] = set()
        self._passed_by: set[UUID] = set()
        self.is_everything_done = False

    async def run(self, is_time_left: Callable[[], bool]) -> None:
        """Until nobody is due, nor likely to be in a moment; or the time is over."""
        room = asyncio.Semaphore(CONCURRENCY)
        self.is_everything_done = False
        waits_until = self._clock()
        for _ in range(MAX_PAGES):
            if not is_time_left():
                return
            listed = await store.list_due(self._provisioner.database, due_rows=DUE_PER_PAGE)
            due = [user_id for user_id in listed if user_id not in self._done]
            worked, soon = self._count()
            await asyncio.gather(*(self._one(user_id, room, is_time_left) for user_id in due))
            worked_now, soon_now = self._count()
            if soon_now > soon:
                waits_until = self._clock() + PATIENCE_SECONDS
            # Who could not be claimed is asked again once others could: if the queue was held, one of them was the
            # probe.
            if worked_now == worked:
                if due or self._clock() >= waits_until:
                    self.is_everything_done = not due
                    return
                await asyncio.sleep(POLL_SECONDS)

    def _count(self) -> tuple[int, int]:
        """How many attempts were made, and how many of them may be made again soon."""
        return sum(self._outcomes.values()), sum(self._outcomes[outcome] for outcome in AGAIN_SOON)

    async def _one(self, user_id: UUID, room: asyncio.Semaphore, is_time_left: Callable[[], bool]) -> None:
        async with room:
            await self._pace.turn()
            if not is_time_left():
                return
            try:
                outcome = await self._provisioner.provision(user_id, request_id=self._request_id, chance=Chance.SWEEP)
            except DoorkeyError:
                # Its line is written; the others must not wait for it.
                self._outcomes["failed"] += 1
                self._worked.add(user_id)
                self._done.add(user_id)
                return
        if outcome is Outcome.NOTHING_TO_DO:
            self._passed_by.add(user_id)
            return
        self._pace.follow(outcome)
        self._outcomes[outcome] += 1
        self._worked.add(user_id)
        # Who was deferred is listed again only when the pause is over.
        if outcome not in AGAIN_SOON:
            self._done.add(user_id)

    def facts(self) -> dict[str, str | int | float | bool | None]:
        """What came of it, for the log."""
        outcomes = Counter(self._outcomes)
        if left := self._passed_by - self._worked:
            outcomes[Outcome.NOTHING_TO_DO.value] = len(left)
        return {
            "redriven": len(self._worked | self._passed_by),
            "is_everything_done": self.is_everything_done,
            **{f"outcome_{name}": count for name, count in sorted(outcomes.items())},
        }
