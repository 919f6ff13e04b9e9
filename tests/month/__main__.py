"""``python -m tests.month``: plays a simulated month, and writes build/month.json; 1: something has no name."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from infra.local.stack import CHECKOUT
from tests.month.run import faults, play
from tests.support.databases import running_database_server


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
    for fault in found:
        console.print(fault, style="bold red", markup=False)
    console.print(
        f"{report['ledger_micros']} micro-dollars charged, {report['simulator_micros']} billed;"
        f" unknown: {report['causes'].get('unknown', 0)}. {'Something is wrong.' if found else 'Every one is placed.'}"
    )
    return 1 if found else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.month", description=__doc__)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=CHECKOUT / "build" / "month.json")
    return asyncio.run(run(parser.parse_args(), Console()))


if __name__ == "__main__":
    sys.exit(main())
