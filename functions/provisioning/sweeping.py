"""One sweep: does whatever is due, within a budget of time. It is the guarantee behind all the hints.

The surprising thing: it decides nothing. It asks who is due and calls `provision` for each, as the webhook does; so two
sweeps at once, or a sweep and a hint, are as harmless as two hints.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from functions.kit.clock import Clock
from functions.kit.errors import DoorkeyError
from functions.kit.observability import Metric, WorkLine
from functions.provisioning import metrics, store
from functions.provisioning.redriving import Redrive
from functions.provisioning.steps import Provisioner
from functions.provisioning.strays import collect_strays

USERS_PER_SWEEP = 5_000
# Of the budget: the rest is for whoever is due, however much there is to renew.
CHORES_SHARE = 0.5


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


# What else is done on the way, and counted, in one number or several with names: given the request id, and what says
# whether there is time left.
Chore = Callable[[str, Callable[[], bool]], Awaitable[int | Mapping[str, int]]]


async def sweep(
    provisioner: Provisioner,
    settings: SweepSettings,
    chores: Mapping[str, Chore],
    gauges: Mapping[str, Metric],
    *,
    request_id: str,
    clock: Clock,
) -> WorkLine:
    """Enrols whom the trigger missed, redrives what is due, collects strays. Writes one line; returns it.

    Args:
        provisioner: works on each user who is due.
        settings: what the sweep may take.
        chores: what other nouns have done first, because keys may become due by it; by the name of its count. They may
            take half of the budget.
        gauges: which of their counts CloudWatch keeps; one that is not said is not measured.
        request_id: for the log.
        clock: tells the time.

    Raises:
        DoorkeyError: the sweep could not even begin. What fails later is in the line.
    """
    line = WorkLine("sweep.finished", request_id=request_id)
    started = clock()

    def is_time_left() -> bool:
        return clock() < started + settings.budget_seconds

    def is_time_for_chores() -> bool:
        return clock() < started + settings.budget_seconds * CHORES_SHARE

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
        await _do(chores, gauges, line, request_id, is_time_for_chores)
        redrive = Redrive(provisioner, request_id, clock)
        await _redrive_beside_collection(redrive, provisioner, settings, line, clock, is_time_left)
        line.add(**redrive.facts())
    except DoorkeyError as error:
        line.add_error(error)
        line.write(logging.ERROR)
        raise
    line.measure(metrics.SWEEPS_FINISHED, 1)
    is_trouble = start.held_reason is not None or start.is_braked or start.dead > 0
    line.write(logging.WARNING if is_trouble else logging.INFO)
    return line


async def _do(
    chores: Mapping[str, Chore],
    gauges: Mapping[str, Metric],
    line: WorkLine,
    request_id: str,
    is_time_left: Callable[[], bool],
) -> None:
    for name, chore in chores.items():
        try:
            with line.step(name):
                counted = await chore(request_id, is_time_left)
            counts = counted if isinstance(counted, Mapping) else {name: counted}
            line.add(**counts)
            for gauge in gauges.keys() & counts.keys():
                line.measure(gauges[gauge], counts[gauge])
        except DoorkeyError as error:
            # The next sweep does it; what is due must not wait for that.
            line.add(**{f"{name}_error": error.code})
            line.count_rejected_key(error)


async def _redrive_beside_collection(
    redrive: Redrive,
    provisioner: Provisioner,
    settings: SweepSettings,
    line: WorkLine,
    clock: Clock,
    is_time_left: Callable[[], bool],
) -> None:
    """Side by side: where somebody is due all the time strays have their turn nevertheless, and nobody waits for it."""
    collecting = asyncio.create_task(_collect(provisioner, settings, line, clock)) if is_time_left() else None
    try:
        with line.step("redrive"):
            await redrive.run(is_time_left)
    finally:
        if collecting is not None:
            await collecting


async def _collect(provisioner: Provisioner, settings: SweepSettings, line: WorkLine, clock: Clock) -> None:
    try:
        with line.step("strays"):
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
