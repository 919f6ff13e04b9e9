"""``doorkey doctor``: what a person runs first. Says what is wrong, and what mends it.

The exit code says how bad it is, for scripts: 0 all is well, 1 something should be looked after, 2 something is broken.
"""

from __future__ import annotations

import json
import os
import textwrap

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from functions.clients.outside import build_clients
from functions.health.checks import Check, judge_all, worst_of
from infra.cli.uninstall import database_url as checked_database_url
from infra.connection.environments import Home
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
        CannotGoOn: nobody knows which installation is meant.
        UninstallStopped: the address has a password, where everybody can read it.
        typer.Exit: with the code.
    """
    if database_url is not None:
        database_url = checked_database_url(database_url, {})
    place = await find_place(home, database_url)
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
        console.print(_table(checks))
        console.print(conclusion(checks), highlight=False)
    raise typer.Exit(EXIT_CODES[status])


def _table(checks: list[Check]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for check in checks:
        text = Text(check.finding)
        if check.mend:
            text.append("\n" + textwrap.indent(check.mend, "-> "), style="bold")
        state = check.state.upper() if check.state == "broken" else check.state
        table.add_row(Text(state, style=STYLES[check.state]), check.name, text)
    return table


def conclusion(checks: list[Check]) -> str:
    """What a person does next, in a sentence or two."""
    counts = {state: [check.name for check in checks if check.state == state] for state in STYLES}
    skipped = f" {len(counts['skipped'])} could not be looked at." if counts["skipped"] else ""
    if counts["broken"]:
        first = counts["broken"][0]
        others = f", and {len(counts['broken']) - 1} more" if counts["broken"][1:] else ""
        again = f"Mend {first} first, then run this again: it may be what the others need."
        return f"\nBroken: {first}{others}. {again}{skipped}"
    if counts["warning"]:
        return f"\nIt works. To be looked after: {', '.join(counts['warning'])}.{skipped}"
    return "\nAll is well."
