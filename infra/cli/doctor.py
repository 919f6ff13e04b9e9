"""``doorkey doctor``: what a person runs first. Says what is wrong, and what mends it.

The exit code says how bad it is, for scripts: 0 all is well, 1 something should be looked after, 2 something is broken.
"""

from __future__ import annotations

import itertools
import json
import os

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from functions.clients.outside import build_clients
from functions.health.checks import Check, judge_all, worst_of
from infra.cli.uninstall import UninstallStopped
from infra.cli.uninstall import database_url as checked_database_url
from infra.connection.environments import Home
from infra.connection.plans import CannotGoOn
from infra.doctor.lines import judges, look
from infra.doctor.places import find_place
from infra.doctor.settings import examine_settings

EXIT_CODES = {"ok": 0, "warning": 1, "broken": 2}
# Words, so that nobody needs to see colours.
STYLES = {"ok": "green", "warning": "yellow", "broken": "bold red", "skipped": "dim"}
JSON_VERSION = 1


async def run(console: Console, home: Home | None, database_url: str | None, *, as_json: bool) -> None:
    """Looks at everything, shows it, and exits with the code that says how bad it is.

    Args:
        console: for what is shown.
        home: where the functions' environment is kept, if that was said.
        database_url: of role `postgres`, if that was said.
        as_json: for programs.

    Raises:
        typer.Exit: with the code.
    """
    try:
        url = checked_database_url(database_url, {}) if database_url is not None else None
        place = await find_place(home, url)
    except (CannotGoOn, UninstallStopped) as failure:
        Console(stderr=True).print(str(failure), style="bold red", markup=False, highlight=False)
        raise typer.Exit(EXIT_CODES["broken"]) from None
    examined = examine_settings(place.environment)
    clients = build_clients(examined.settings)
    async with clients.http:
        with console.status(f"Looking at {place.name}"):
            facts = await look(place, examined, clients)
    checks = judge_all(facts, judges(place, examined, os.environ))
    status = worst_of(checks)
    if as_json:
        report = {"version": JSON_VERSION, "status": status, "checks": [check.model_dump() for check in checks]}
        typer.echo(json.dumps(report, indent=1))
    else:
        console.print(f"doorkey doctor, looking at {place.name}\n", highlight=False)
        _show(console, checks)
        console.print(conclusion(checks), highlight=False)
    raise typer.Exit(EXIT_CODES[status])


def _show(console: Console, checks: list[Check]) -> None:
    """A table, and below each row that isn't ok what mends it: unbroken, so that it can be copied."""
    rows = _folded(checks)
    state_width = max(len(check.state) for check in rows)
    name_width = max(len(check.name) for check in rows)
    for has_mend, together in itertools.groupby(rows, key=lambda check: check.mend is not None):
        for several in [[check] for check in together] if has_mend else [list(together)]:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
            table.add_column(no_wrap=True, min_width=state_width)
            table.add_column(no_wrap=True, min_width=name_width)
            table.add_column()
            for check in several:
                state = check.state.upper() if check.state == "broken" else check.state
                table.add_row(Text(state, style=STYLES[check.state]), check.name, Text(check.finding))
            console.print(table)
            for act, _, remark in (line.partition("   ") for line in (several[0].mend or "").splitlines()):
                console.print(Text(f"  -> {act}", style="bold"), soft_wrap=True)
                if remark:
                    console.print(Padding(Text(remark, style="dim"), (0, 0, 0, 5)))


def _folded(checks: list[Check]) -> list[Check]:
    """Those that were skipped for one reason as one line, behind all others: they are nothing to be read."""
    skipped: dict[str, list[str]] = {}
    for check in checks:
        if check.state == "skipped":
            skipped.setdefault(check.finding, []).append(check.name)
    told = [check for check in checks if check.state != "skipped"]
    return told + [
        Check(name=names[0], state="skipped", finding=finding)
        if len(names) == 1
        else Check(name=f"{len(names)} checks", state="skipped", finding=f"{finding} ({', '.join(names)})")
        for finding, names in skipped.items()
    ]


def conclusion(checks: list[Check]) -> str:
    """What a person does next, in a sentence or two."""
    counts = {state: [check.name for check in checks if check.state == state] for state in STYLES}
    if counts["broken"]:
        first, *others = counts["broken"]
        if not others:
            return f"\nBroken: {first}. Mend it, then run this again."
        return f"\nBroken: {first} and {len(others)} more. Mend {first} first, then run this again: others may need it."
    if counts["warning"]:
        return f"\nIt works. To be looked after: {', '.join(counts['warning'])}."
    return "\nAll is well."
