"""``doorkey report``: what happened, day by day, in UTC."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console

from infra.cli import report_drift, report_signups
from infra.cli.running import errors, run_command

app = typer.Typer(
    name="report",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="What happened, day by day, in UTC. Needs the functions' environment (docs/settings.md).",
)
console = Console()

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command(epilog="Example: [bold]doorkey report signups --days 14[/bold]")
def signups(
    days: Annotated[
        int, typer.Option(min=1, max=report_signups.MAX_DAYS, help="How many days, the last one being today.")
    ] = 30,
    as_json: AsJson = False,
) -> None:
    """Shows what became of each day's signups: provisioned by whom, how fast, and who has no key; a table and a plot.

    Those for whom no key is wanted yet, because they have not confirmed their address, don't count against the rate.
    """
    # What is read by a program goes out alone.
    run_command(report_signups.run(console, errors if as_json else console, days, as_json=as_json))


@app.command(epilog="Example: [bold]doorkey report drift --day 2026-11-20[/bold]")
def drift(
    day: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Which UTC day; yesterday if not said.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compares the ledger, the receipts and OpenRouter's figures for a day, and shows the keys that differ, and why.

    The exit code is 0 when every difference has a known cause, and 1 when one has none.
    """
    chosen = None if day is None else day.date()
    # What is read by a program goes out alone.
    run_command(report_drift.run(console, errors if as_json else console, chosen, as_json=as_json))
