"""One sweep: does whatever is due, within a budget of time. It is the guarantee behind all the hints.

The surprising thing: it decides nothing. It asks who is due and calls `provision` for each, as the webhook does; so two
sweeps at once, or a sweep and a hint, are as harmless as two hints.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from functions.kit.clock import Clock
from functions.kit.errors import DoorkeyError
from functions.kit.observability import WorkLine
from functions.provisioning import metrics, store
from functions.provisioning.steps import Outcome, Provisioner
from functions.provisioning.strays import collect_strays

USERS_PER_SWEEP = 5_000
DUE_PER_PAGE = 200
MAX_PAGES = 300
CONCURRENCY = 16
# Where somebody is due all the time, strays must have their turn nevertheless.
REDRIVE_SHARE = 0.8
# A first retry is due after some seconds: whoever waits for it here does not wait for the next sweep.
PATIENCE_SECONDS = 5.0
POLL_SECONDS = 0.5
AGAIN_SOON = (Outcome.DEFERRED, Outcome.LIMITED)
# Between the beginnings of two attempts, once OpenRouter has asked to slow down.
MIN_GAP_SECONDS = 0.005
MAX_GAP_SECONDS = 1.0


@dataclass(frozen=True)
class SweepSettings:
    """What a sweep may take.

    Attributes:
        budget_seconds: no new work is begun after this; less than the function's time-out by more than one attempt.
        stray_age_seconds: how old a key must be before it counts as a stray; longer than any lease.
        deletes_strays: whether strays are deleted, or only counted.
        patience_seconds: how long it stays for those whose attempt just failed, and who may be due again soon.
    """

    budget_seconds: float
    stray_age_seconds: int
    deletes_strays: bool = True
    patience_seconds: float = PATIENCE_SECONDS


async def sweep(provisioner: Provisioner, settings: SweepSettings, *, request_id: str, clock: Clock) -> WorkLine:
    """Enrols whom the trigger missed, redrives what is due, collects strays. Writes one line; returns it.

    Raises:
        DoorkeyError: the sweep could not even begin. What fails later is in the line.
    """
    line = WorkLine("sweep.finished", request_id=request_id)
    started = clock()

    def is_time_left(share: float = 1.0) -> bool:
        return clock() < started + share * settings.budget_seconds

    try:
        with line.step("start"):
            start = await store.start_sweep(provisioner.database, users=USERS_PER_SWEEP)
        line.add(
            enrolled=start.enrolled,
            healed=start.healed,
            pruned=start.pruned,
            oldest_due_seconds=start.oldest_due_seconds,
            dead=start.dead,
            held_reason=start.held_reason,
            is_braked=start.is_braked,
        )
        line.measure(metrics.OLDEST_DUE_SECONDS, start.oldest_due_seconds)
        line.measure(metrics.DEAD_ROWS, start.dead)
        line.measure(metrics.QUEUE_HELD, int(start.held_reason is not None))
        line.measure(metrics.HOURLY_BRAKE, int(start.is_braked))
        redrive = _Redrive(provisioner, settings.patience_seconds, request_id, clock)
        with line.step("redrive"):
            await redrive.run(lambda: is_time_left(REDRIVE_SHARE))
        if is_time_left():
            with line.step("strays"):
                await _collect(provisioner, settings, line, clock)
        if not redrive.is_everything_done and is_time_left():
            with line.step("redrive_on"):
                await redrive.run(is_time_left)
        line.add(**redrive.facts())
    except DoorkeyError as error:
        line.add_error(error)
        line.write(logging.ERROR)
        raise
    line.measure(metrics.SWEEPS_FINISHED, 1)
    is_trouble = start.held_reason is not None or start.is_braked or start.dead > 0
    line.write(logging.WARNING if is_trouble else logging.INFO)
    return line


class _Pace:
    """Spaces attempts out as OpenRouter wants them: further apart after a 429, a little closer after a success."""

    def __init__(self) -> None:
        self._gap_seconds = 0.0
        self._next_at = float("-inf")

    async def turn(self) -> None:
        """Waits for one's turn."""
        now = time.monotonic()
        begins_at = max(now, self._next_at)
        self._next_at = begins_at + self._gap_seconds
        await asyncio.sleep(begins_at - now)

    def follow(self, outcome: Outcome) -> None:
        """Learns from how an attempt ended."""
        if outcome is Outcome.LIMITED:
            self._gap_seconds = min(max(self._gap_seconds * 1.25, MIN_GAP_SECONDS), MAX_GAP_SECONDS)
        elif outcome is Outcome.READY:
            self._gap_seconds *= 0.99


class _Redrive:
    """Provisions page after page of who is due, and counts how each ended.

    Attributes:
        is_everything_done: whether nobody was left.
    """

    def __init__(self, provisioner: Provisioner, patience_seconds: float, request_id: str, clock: Clock) -> None:
        self._provisioner = provisioner
        self._patience_seconds = patience_seconds
        self._request_id = request_id
        self._clock = clock
        self._pace = _Pace()
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
                waits_until = self._clock() + self._patience_seconds
            # Who could not be claimed is asked again once others could: if the queue was held, one of them was the
            # probe.
            if worked_now == worked:
                if self._clock() >= waits_until:
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
                outcome = await self._provisioner.provision(user_id, request_id=self._request_id)
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
        if outcome not in AGAIN_SOON or self._patience_seconds == 0:
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


async def _collect(provisioner: Provisioner, settings: SweepSettings, line: WorkLine, clock: Clock) -> None:
    try:
        report = await collect_strays(
            provisioner.openrouter,
            provisioner.database,
            project=provisioner.project,
            now=datetime.fromtimestamp(clock(), UTC),
            min_age=timedelta(seconds=settings.stray_age_seconds),
            is_dry_run=not settings.deletes_strays,
        )
    except DoorkeyError as error:
        # Strays can wait; what is due was done.
        line.add(strays_error=error.code)
        return
    line.add(
        stray_keys=len(report.strays),
        foreign_keys=report.foreign_keys,
        strays_deleted=report.deleted,
        oldest_stray_seconds=report.oldest_stray_seconds,
        is_stray_search_complete=report.is_complete,
    )
    line.measure(metrics.STRAY_KEYS, len(report.strays))
    line.measure(metrics.OLDEST_STRAY_SECONDS, report.oldest_stray_seconds)
