"""``python -m tests.month``: plays a simulated month, and writes build/month.json; 1: something has no name."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from infra.local.stack import CHECKOUT
from tests.month.run import faults, play
from tests.support.databases import running_database_server

CAUSES = ("agrees", "in_flight", "unseen", "byok", "unknown")
EXAMPLE = "Example: make month ARGS='--users 25 --calls 5000'"


async def run(arguments: argparse.Namespace, console: Console) -> int:
    """One month."""
    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    started = time.monotonic()
    with (
        Progress(*columns, TimeRemainingColumn(), console=console) as progress,
    ):
        task = progress.add_task("Calls", total=arguments.calls)
        async with running_database_server() as server, server.clone("doorkey") as database:
            report = await play(
                database,
                users=arguments.users,
                calls=arguments.calls,
                seed=arguments.seed,
                show=lambda done: progress.update(task, completed=done),
            )
    found = faults(report)
    report |= {"seed": arguments.seed, "seconds": round(time.monotonic() - started, 1), "faults": found}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    console.print(day_table(report["by_day"]))
    console.print(cause_table(report["causes"]))
    for fault in found:
        console.print(fault, style="bold red", markup=False)
    unknown = report["causes"].get("unknown", {}).get("key_days", 0)
    console.print(
        f"{report['ledger_micros']} micro-dollars charged, {report['simulator_micros']} billed; unknown: {unknown}."
        f" {'Something is wrong.' if found else 'Every one is placed.'} {arguments.output} has the figures.",
        highlight=False,
    )
    return 1 if found else 0


def day_table(by_day: dict[str, dict[str, Any]]) -> Table:
    """A row for each UTC day, in micro-dollars; a cost charged a day later is a difference on both."""
    table = Table("UTC day", "keys", "ledger", "receipts", "OpenRouter", "BYOK", "difference")
    for column in table.columns[1:]:
        column.justify = "right"
    names = ("ledger_micros", "receipts_micros", "openrouter_micros", "byok_micros", "difference_micros")
    for day, figures in by_day.items():
        table.add_row(day, str(figures["keys"]), *(f"{Decimal(figures[name]):,.1f}" for name in names))
    return table


def cause_table(causes: dict[str, dict[str, Any]]) -> Table:
    """A row for each cause, also for those that nothing had: a key counts once for each day."""
    table = Table("cause", "keys and days", "difference")
    for column in table.columns[1:]:
        column.justify = "right"
    for cause in CAUSES:
        found = causes.get(cause, {"key_days": 0, "difference_micros": "0"})
        table.add_row(cause, f"{found['key_days']:,}", f"{Decimal(found['difference_micros']):,.1f}")
    return table


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make month", description="Plays a month in minutes.", epilog=EXAMPLE)
    parser.add_argument("--users", type=int, default=500, help="how many (500)")
    parser.add_argument("--calls", type=int, default=100_000, help="how many (100,000)")
    parser.add_argument("--seed", type=int, default=1, help="of the plan (1)")
    parser.add_argument("--output", type=Path, default=CHECKOUT / "build" / "month.json", help="where the JSON goes")
    return asyncio.run(run(parser.parse_args(), Console()))


if __name__ == "__main__":
    sys.exit(main())
