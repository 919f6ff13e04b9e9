"""What a run leaves behind: ``build/crash.json`` for machines, a few lines for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from tests.crash.calls import AFTER, BEFORE, CALLS, CLAIM, DURING, OWN_CALLS
from tests.crash.plan import Plan
from tests.crash.shared import Shared

if TYPE_CHECKING:
    from tests.crash.run import Outcome

MAX_NAMED = 20


def kill_points(shared: Shared) -> dict[str, dict[str, int]]:
    """How often a process was killed at each call, before, during and after it."""
    totals = shared.totals()
    return {str(call): {m: totals[("kill", str(call), m)] for m in (BEFORE, DURING, AFTER)} for call in CALLS}


def not_reached(shared: Shared) -> list[str]:
    """Kill points at which nobody was killed. (Before a claim is answered, nobody knows what it is for.)"""
    return [
        f"{moment} {name}"
        for name, moments in kill_points(shared).items()
        for moment in (BEFORE, AFTER)
        if not moments[moment] and not (moment == BEFORE and name.endswith(CLAIM) and not name.startswith("any"))
    ]


def as_json(plan: Plan, shared: Shared, outcome: Outcome, command: str, mutation: str | None) -> dict[str, Any]:
    """The whole report."""
    totals = shared.totals()
    return {
        "seed": plan.seed,
        "signups": len(plan.scripts),
        "mutation": mutation,
        "replay": command,
        "is_passed": not outcome.violations,
        "violations": {
            name: {"count": len(found), "first": [f"{who}: {what}" for who, what in found[:MAX_NAMED]]}
            for name, found in sorted(outcome.violations.items())
        },
        "calls": totals[("calls",)],
        "processes_killed": totals[("killed",)],
        "killed_by_the_functions_time_out": totals[("out of time",)],
        "hits": {key[1]: totals[key] for key in sorted(totals) if key[0] == "hit"},
        "acts": {key[1]: totals[key] for key in sorted(totals) if key[0] == "act"},
        "carried_by_own_doors": {call.name: totals[("carried", str(call))] for call in OWN_CALLS},
        "outages_of_the_service_key": len(plan.outages),
        "kill_points": kill_points(shared),
        "kill_points_not_reached": not_reached(shared),
        **outcome.facts,
    }


def write(report: dict[str, Any], path: Path) -> None:
    """Stores it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, default=str) + "\n")


def show(report: dict[str, Any], console: Console) -> None:
    """What people want to know first."""
    table = Table(title="Processes killed at", title_justify="left")
    for heading in ("call", BEFORE, DURING, AFTER):
        table.add_column(heading, justify="left" if heading == "call" else "right")
    for name, moments in report["kill_points"].items():
        table.add_row(name, *(str(moments[m] or "-") for m in (BEFORE, DURING, AFTER)))
    console.print(table)
    took = report["seconds"]
    console.print(
        f"{report['signups']} signups, {report['calls']} calls, {report['processes_killed']} processes killed; "
        f"{sum(report['carried_by_own_doors'].values())} calls carried by own doors in "
        f"{report['outages_of_the_service_key']} outages of the service key; "
        f"{took['disturbed']:.0f} s disturbed, {took['settling']:.0f} s to settle; states {report['states']}."
    )
    for name, found in report["violations"].items():
        console.print(f"[bold red]{name}[/]: {found['count']}", highlight=False)
        for line in found["first"][:5]:
            console.print(f"  {line}", markup=False, highlight=False)
