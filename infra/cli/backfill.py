"""``doorkey backfill``: users from before the installation get what a signup gets, and signups keep their room.

The surprising thing: it keeps no note of how far it has come. Whoever has a row is passed over, so it may be killed
anywhere, run again, or run twice at once. The sweep makes the keys; this only enrols, a batch at a time, and looks on.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from functions.clients.outside import build_clients
from functions.clients.supabase import DatabaseRefused, Supabase, SupabaseAnswerLost, SupabaseUnreachable
from functions.kit.counting import counted
from functions.kit.settings import Settings
from functions.provisioning import store
from functions.provisioning.store import BackfilledBatch, BackfillPreview, BackfillProgress, OldUsers

USERS_PER_PREVIEW = 5_000
MAX_BATCH = 1_000
# A hundred million users.
MAX_CALLS = 100_000
# Where there is no brake to take half of.
DEFAULT_PER_HOUR = 250
POLL_SECONDS = 2.0
MAX_WAIT_SECONDS = 90 * 86_400.0
# The next batch is enrolled when the moments given to the last one end so soon.
LEAD_SECONDS = 60.0
# A sweep begins every minute.
SWEEP_LATE_SECONDS = 300.0
STALLED_SECONDS = 900.0
MAX_TRIES = 5

T = TypeVar("T")


class BackfillStopped(Exception):
    """The backfill did not begin, or did not come to its end; the message says why and what to do."""


@dataclass(frozen=True)
class BackfillPlan:
    """What the operator asked for.

    Attributes:
        chosen: which users.
        limit: at most so many of them; None: all.
        per_hour: how many keys an hour; None: half of the brake.
        batch: how many are enrolled at a time.
        is_dry_run: count only.
        waits: follow until they have their keys.
    """

    chosen: OldUsers
    limit: int | None
    per_hour: int | None
    batch: int
    is_dry_run: bool
    waits: bool


async def run(console: Console, plan: BackfillPlan) -> None:
    """Says what a backfill would do; then, unless it is a dry run, does it.

    Raises:
        BackfillStopped: the rate is too high, no sweep is running, or not everybody got a key.
        SettingsInvalid: the functions' environment is needed here too.
        DoorkeyError: the database refused or can't be reached.
    """
    settings = Settings.from_environment()
    clients = build_clients(settings)
    async with clients.http:
        before = await store.backfill_progress(clients.supabase)
        per_hour = _rate(plan.per_hour, before)
        with console.status("Counting users"):
            found = await _count(clients.supabase, plan)
        console.print(_table(found, before, per_hour))
        if plan.is_dry_run:
            late = _sweep_lateness(before)
            if late:
                console.print(f"{late} Without one nobody makes the keys.", style="yellow")
            console.print("This was a dry run: nothing was changed. Run it again with --yes to do it.")
            return
        await _Backfill(console, clients.supabase, plan, per_hour, keys_found=found.due).run(before)


def _rate(asked: int | None, progress: BackfillProgress) -> int:
    brake, most = progress.max_keys_per_hour, progress.max_per_hour
    if brake is None or most is None:
        return asked or DEFAULT_PER_HOUR
    rate = asked or max(brake // 2, 1)
    if rate > most:
        raise BackfillStopped(
            f"{counted(rate, 'key')} an hour {'is' if rate == 1 else 'are'} too many for a backfill: of the {brake}"
            f" that max_keys_per_hour allows in doorkey.settings, it may have {most}; the others are kept for signups."
        )
    return rate


async def _count(database: Supabase, plan: BackfillPlan) -> BackfillPreview:
    """All pages of the preview in one."""
    confirmed = unconfirmed = anonymous = left_out = due = 0
    after: uuid.UUID | None = None
    for _ in range(MAX_CALLS):
        left = None if plan.limit is None else plan.limit - confirmed - unconfirmed - anonymous
        users = USERS_PER_PREVIEW if left is None else min(left, USERS_PER_PREVIEW)
        page = await store.preview_backfill(database, plan.chosen, after=after, users=users)
        confirmed += page.confirmed
        unconfirmed += page.unconfirmed
        anonymous += page.anonymous
        left_out += page.left_out
        due += page.due
        after = page.next_after
        if after is None or confirmed + unconfirmed + anonymous == plan.limit:
            break
    return BackfillPreview(confirmed, unconfirmed, anonymous, left_out, due, after)


def _table(found: BackfillPreview, progress: BackfillProgress, per_hour: int) -> Table:
    """Users, money and hours."""
    enrolled = found.confirmed + found.unconfirmed + found.anonymous
    waiting = enrolled - found.due
    table = Table(title="Users from before doorkey, without a row", show_header=False, title_justify="left")
    table.add_row("Confirmed", f"{found.confirmed}")
    table.add_row("Unconfirmed", f"{found.unconfirmed}")
    table.add_row("Anonymous", f"{found.anonymous}")
    table.add_row("Banned or deleted", f"{found.left_out}, left out")
    table.add_section()
    table.add_row("OpenRouter keys", f"{found.due}" + (", without a limit" if progress.is_uncapped else ""))
    why = "provision_on is manual" if progress.provision_on == "manual" else "until they confirm or convert"
    table.add_row("Enrolled, but waiting", f"{waiting}" + (f", {why}" if waiting else ""))
    table.add_row("Welcome credits", f"at most {_money(found.due, progress)}")
    if waiting:
        table.add_row("", f"and {_money(waiting, progress)} if all who wait come to it")
    table.add_section()
    table.add_row("Takes", f"{_hours(found.due, per_hour)} at {counted(per_hour, 'key')} an hour")
    if progress.max_per_hour is not None and per_hour == progress.max_per_hour:
        table.add_row("", "which is all that max_keys_per_hour leaves to a backfill")
    elif progress.max_per_hour is not None:
        fastest = f"{_hours(found.due, progress.max_per_hour)} at {progress.max_per_hour}"
        table.add_row("", f"at best {fastest}: the brake max_keys_per_hour is {progress.max_keys_per_hour}")
    if progress.ready or progress.due or progress.working or progress.waiting or progress.dead:
        table.add_section()
        table.add_row("Backfilled earlier", _standing(progress))
    return table


def _money(users: int, progress: BackfillProgress) -> str:
    micros = users * progress.welcome_micros
    return f"{micros / progress.micros_per_credit:,.2f} credits (${micros / 1_000_000:,.2f})"


def _hours(keys: int, per_hour: int) -> str:
    return f"{keys / per_hour:,.1f} hours"


def _standing(progress: BackfillProgress) -> str:
    under_way = progress.due + progress.working
    return f"{progress.ready} ready, {under_way} under way, {progress.waiting} waiting, {progress.dead} given up"


def _sweep_lateness(progress: BackfillProgress) -> str | None:
    """What is wrong with the sweep, as a sentence."""
    if progress.last_sweep_seconds is None:
        return "No sweep has ever begun."
    if progress.last_sweep_seconds > SWEEP_LATE_SECONDS:
        return f"No sweep has begun for {progress.last_sweep_seconds / 60:,.0f} minutes."
    return None


class _Backfill:
    """One run: enrols batch after batch, and follows what becomes of them."""

    def __init__(
        self, console: Console, database: Supabase, plan: BackfillPlan, per_hour: int, *, keys_found: int
    ) -> None:
        self._console = console
        self._database = database
        self._plan = plan
        self._per_hour = per_hour
        self._keys_found = self._keys_left = keys_found
        self._enrolled = 0
        self._unfilled_profiles = 0

    async def run(self, progress: BackfillProgress) -> None:
        """To the end; `progress` is how it stands now.

        Raises:
            BackfillStopped: as for the command.
        """
        late = _sweep_lateness(progress)
        if late and self._plan.waits:
            raise BackfillStopped(
                f"{late} Nobody would make the keys, so nothing was changed. Start the sweep, or enrol the users"
                " all the same with --no-wait."
            )
        columns = (TextColumn("Keys"), BarColumn(30), MofNCompleteColumn(), TextColumn("{task.description}"))
        try:
            with Progress(*columns, TimeElapsedColumn(), console=self._console) as bar:
                task = bar.add_task(_standing(progress))
                progress = await self._work(bar, task)
        except asyncio.CancelledError:
            self._console.print("Stopped. The sweep finishes what was enrolled; run it again to go on.")
            raise
        self._conclude(progress)

    async def _work(self, bar: Progress, task: TaskID) -> BackfillProgress:
        after: uuid.UUID | None = None
        for _ in range(MAX_CALLS):
            batch = await self._enrol(after)
            after = batch.next_after
            if not self._console.is_terminal and batch.due + batch.waiting:
                self._console.print(f"{counted(self._enrolled, 'user')} enrolled.")
            is_last = after is None or self._enrolled == self._plan.limit
            if not self._plan.waits:
                bar.update(task, advance=batch.due, total=self._keys_found, description="enrolled")
            elif not is_last:
                await self._follow(bar, task, self._has_room)
            if is_last:
                break
        is_all = (lambda at: at.due + at.working == 0) if self._plan.waits else (lambda _: True)
        return await self._follow(bar, task, is_all)

    async def _enrol(self, after: uuid.UUID | None) -> BackfilledBatch:
        limit = self._plan.limit
        users = self._plan.batch if limit is None else min(self._plan.batch, limit - self._enrolled)
        try:
            batch = await _persist(
                lambda: store.backfill(
                    self._database,
                    self._plan.chosen,
                    after=after,
                    users=users,
                    per_hour=self._per_hour,
                    request_id=uuid.uuid4().hex,
                ),
                # A batch whose answer was lost may have been enrolled: the limit could no longer be kept.
                is_repeatable=limit is None,
            )
        except DatabaseRefused as error:
            raise BackfillStopped(f"The database refused the batch ({error.word}). Run it again later.") from None
        self._enrolled += batch.due + batch.waiting
        self._unfilled_profiles += batch.unfilled_profiles
        self._keys_left = max(self._keys_left - batch.due, 0)
        return batch

    def _has_room(self, progress: BackfillProgress) -> bool:
        """Whether the last batch is nearly done. What is tried again and again must not pile up."""
        return progress.ahead_seconds <= LEAD_SECONDS and progress.due + progress.working < self._plan.batch

    async def _follow(
        self, bar: Progress, task: TaskID, is_reached: Callable[[BackfillProgress], bool]
    ) -> BackfillProgress:
        """Shows how it stands until that is reached.

        Raises:
            BackfillStopped: no sweep is running, or nothing happens any more.
        """
        started = changed = time.monotonic()
        shown = ""
        while time.monotonic() - started < MAX_WAIT_SECONDS:
            progress = await _persist(lambda: store.backfill_progress(self._database), is_repeatable=True)
            done = progress.ready + progress.dead + progress.gone
            under_way = progress.due + progress.working
            standing = _standing(progress)
            held = f", held: {progress.held_reason}" if progress.held_reason else ""
            bar.update(task, completed=done, total=done + under_way + self._keys_left, description=standing + held)
            if is_reached(progress):
                return progress
            late = _sweep_lateness(progress)
            if late:
                raise BackfillStopped(
                    f"{late} {counted(under_way, 'user waits', 'users wait')} for their key. Start the sweep and run"
                    " this again."
                )
            if standing != shown:
                shown, changed = standing, time.monotonic()
            elif (held or not progress.ahead_seconds) and time.monotonic() - changed > STALLED_SECONDS:
                why = f"OpenRouter refuses everybody ({progress.held_reason})" if held else "They are tried again later"
                raise BackfillStopped(f"Nothing has changed for {STALLED_SECONDS / 60:.0f} minutes: {standing}. {why}.")
            await asyncio.sleep(POLL_SECONDS)
        raise BackfillStopped("It is taking longer than anybody watches. Run it again to go on.")

    def _conclude(self, progress: BackfillProgress) -> None:
        self._console.print(
            f"{counted(self._enrolled, 'user')} enrolled. All backfills together: {_standing(progress)}."
        )
        if self._unfilled_profiles:
            self._console.print(
                f"{counted(self._unfilled_profiles, 'of them has', 'of them have')} no row in public.profiles, and none"
                " could be made: doorkey.audit_log says why (profile.not_filled)."
            )
        if progress.dead:
            given_up = counted(progress.dead, "user was", "users were")
            raise BackfillStopped(f"{given_up} given up. See their last_error, then doorkey redrive.")


async def _persist(call: Callable[[], Awaitable[T]], *, is_repeatable: bool) -> T:
    """The call's result, though the database may be away for a moment: this command runs for hours."""
    for tries_left in reversed(range(MAX_TRIES)):
        try:
            return await call()
        except (SupabaseUnreachable, SupabaseAnswerLost) as error:
            if not tries_left or (isinstance(error, SupabaseAnswerLost) and not is_repeatable):
                raise
        await asyncio.sleep(POLL_SECONDS)
    raise AssertionError("unreachable")
