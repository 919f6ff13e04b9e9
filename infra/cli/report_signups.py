"""``doorkey report signups``: what became of each day's signups, as a table and as a plot.

The surprising thing: a day's figures go on changing. A row is counted as it stands now, not as it stood that evening.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from functions.clients.outside import build_clients
from functions.kit.counting import counted
from functions.kit.settings import Settings
from functions.signups.store import SignupDay, report_signups

MAX_DAYS = 366
PLOT_COLUMNS = 60
COLUMNS = (
    *("signups", "eager", "lazy", "sweep", "waiting", "open", "dead", "gone"),
    *("median", "95 %", "rate"),
)
# A letter of its own for each, because not every terminal has colours, and a log has none.
PARTS = {
    "eager": ("█", "green", "by the hint"),
    "lazy": ("▓", "cyan", "by a request"),
    "by_sweep": ("▒", "blue", "by the sweep"),
    "by_unknown": ("◦", "blue", "by somebody"),
    "waiting": ("·", "dim", "waiting"),
    "under_way": ("+", "yellow", "open"),
    "dead": ("x", "bold red", "given up"),
    "gone": ("-", "dim", "gone before"),
}


async def run(console: Console, progress: Console, days: int, *, as_json: bool) -> None:
    """Asks for the last so many days, and shows them.

    Raises:
        SettingsInvalid: the functions' environment is needed here too.
        DoorkeyError: the database refused or can't be reached.
    """
    clients = build_clients(Settings.from_environment())
    today = datetime.now(UTC).date()
    async with clients.http:
        with progress.status("Counting signups"):
            report = await report_signups(clients.supabase, from_day=today - timedelta(days=days - 1), to_day=today)
    if as_json:
        console.print_json(json.dumps([_as_json(day) for day in report]))
        return
    if any(day.signups for day in report):
        console.print(table_of(report))
        console.print(plot_of(report))
    console.print(sentence_of(report))


def table_of(report: list[SignupDay]) -> Table:
    """The figures; days without a signup are left to the plot."""
    # No wider than it must be: 80 columns hold it.
    table = Table("day", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for day in report:
        if day.signups:
            table.add_row(
                day.day.isoformat(),
                *(str(count) for count in (day.signups, day.eager, day.lazy, day.by_sweep + day.by_unknown)),
                *(str(count) for count in (day.waiting, day.under_way, day.dead, day.gone)),
                _seconds(day.median_seconds),
                _seconds(day.p95_seconds),
                _percent(day.success_rate),
            )
    return table


def plot_of(report: list[SignupDay]) -> Text:
    """One bar a day from the first that has signups on, as long as they are many, in parts; with a legend."""
    most = max(day.signups for day in report)
    shown = list(itertools.dropwhile(lambda day: not day.signups, report))
    plot = Text()
    if len(shown) < len(report):
        plot.append("before   nobody\n", style="dim")
    for day in shown:
        plot.append(f"{day.day:%m-%d} ", style="dim").append_text(_bar(day, most)).append(f" {day.signups}\n")
    for name, (letter, style, meaning) in PARTS.items():
        if any(getattr(day, name) for day in report):
            plot.append(letter, style=style).append(f" {meaning}   ")
    return plot


def sentence_of(report: list[SignupDay]) -> str:
    """What it comes to."""
    signups = sum(day.signups for day in report)
    within = f"within {counted(len(report), 'day')}"
    if not signups:
        return f"Nobody has signed up {within}."
    provisioned = sum(day.provisioned for day in report)
    wanted = provisioned + sum(day.under_way + day.dead for day in report)
    rate = _percent(provisioned / wanted if wanted else None)
    return (
        f"{counted(signups, 'signup')} {within}; {provisioned:,} of the {counted(wanted, 'who was', 'who were')} to"
        f" have a key {'has' if provisioned == 1 else 'have'} had one: {rate}."
    )


def _bar(day: SignupDay, most: int) -> Text:
    """Lengths are rounded where parts end, so that they add up."""
    bar = Text()
    so_far = 0
    for name, (letter, style, _) in PARTS.items():
        before, so_far = so_far, so_far + getattr(day, name)
        columns = math.ceil(so_far * PLOT_COLUMNS / most) - math.ceil(before * PLOT_COLUMNS / most)
        bar.append(letter * columns, style=style)
    return bar


def _as_json(day: SignupDay) -> dict[str, object]:
    return {**asdict(day), "day": day.day.isoformat(), "success_rate": day.success_rate}


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _percent(share: float | None) -> str:
    # Rounded down: 100 % means all of them.
    return "-" if share is None else f"{math.floor(share * 1000) / 10:g} %"
