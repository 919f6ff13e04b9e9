"""One sweep: does whatever is due, within a budget of time. It is the guarantee behind all the hints.

The surprising thing: it decides nothing. It asks who is due and calls `provision` for each, as the webhook does; so two
sweeps at once, or a sweep and a hint, are as harmless as two hints.
"""

from __future__ import annotations

import asyncio
import logging
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
MAX_PAGES = 50
CONCURRENCY = 16
# Where somebody is due all the time, strays must have their turn nevertheless.
REDRIVE_SHARE = 0.8


@dataclass(frozen=True)
class SweepSettings:
    """What a sweep may take.

    Attributes:
        budget_seconds: no new work is begun after this; less than the function's time-out by more than one attempt.
        stray_age_seconds: how old a key must be before it counts as a stray; longer than any lease.
        deletes_strays: whether strays are deleted, or only counted.
    """

    budget_seconds: float
    stray_age_seconds: int
    deletes_strays: bool = True


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
        with line.step("redrive"):
            outcomes, is_everything_done = await _redrive(provisioner, request_id, lambda: is_time_left(REDRIVE_SHARE))
        line.add(redriven=sum(outcomes.values()), is_everything_done=is_everything_done)
        line.add(**{f"outcome_{name}": count for name, count in sorted(outcomes.items())})
        if is_time_left():
            with line.step("strays"):
                await _collect(provisioner, settings, line, clock)
    except DoorkeyError as error:
        line.add_error(error)
        line.write(logging.ERROR)
        raise
    line.measure(metrics.SWEEPS_FINISHED, 1)
    is_trouble = start.held_reason is not None or start.is_braked or start.dead > 0
    line.write(logging.WARNING if is_trouble else logging.INFO)
    return line


async def _redrive(
    provisioner: Provisioner, request_id: str, is_time_left: Callable[[], bool]
) -> tuple[Counter[str], bool]:
    """Provisions page after page of who is due; says how each ended, and whether nobody was left."""
    outcomes: Counter[str] = Counter()
    done: set[UUID] = set()
    passed_by: set[UUID] = set()
    room = asyncio.Semaphore(CONCURRENCY)

    async def one(user_id: UUID) -> None:
        async with room:
            if not is_time_left():
                outcomes["out_of_time"] += 1
                return
            try:
                outcome = await provisioner.provision(user_id, request_id=request_id)
            except DoorkeyError:
                # Its line is written; the others must not wait for it.
                outcomes["failed"] += 1
                done.add(user_id)
                return
            if outcome is Outcome.NOTHING_TO_DO:
                passed_by.add(user_id)
                return
            outcomes[outcome.value] += 1
            done.add(user_id)

    is_everything_done = False
    for _ in range(MAX_PAGES):
        if not is_time_left():
            break
        # A row that stays due although it was worked on comes again: once is enough.
        due = [u for u in await store.list_due(provisioner.database, due_rows=DUE_PER_PAGE) if u not in done]
        before = len(done)
        await asyncio.gather(*(one(user_id) for user_id in due))
        # Who could not be claimed is asked again once others could: if the queue was held, one of them was the probe.
        if len(done) == before:
            is_everything_done = not due
            break
    if passed_by - done:
        outcomes[Outcome.NOTHING_TO_DO.value] = len(passed_by - done)
    return outcomes, is_everything_done


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
