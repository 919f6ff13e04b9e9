"""``python -m tests.crash.mutate``: does the crash test notice? Runs it with each mutation; every run must fail.

One run without any comes first, and must pass. The surprising thing: a mutation counts as caught only by the invariant
that it is there for; that something else broke proves little.
"""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from infra.local.stack import CHECKOUT
from tests.crash.mutations import MUTATIONS, Mutation

BUILD = CHECKOUT / "build"
RUN_SECONDS = 900
PASSED, FAILED = 0, 1


@dataclass(frozen=True)
class Result:
    """How one run ended.

    Attributes:
        mutation: what was broken; None: nothing.
        violations: how many of each invariant.
        seconds: how long it took.
        is_as_it_must_be: caught by the right invariant; or, without a mutation, passed.
    """

    mutation: Mutation | None
    violations: dict[str, int]
    seconds: float
    is_as_it_must_be: bool


def run_one(mutation: Mutation | None, signups: int, seed: int) -> Result:
    """One run in a process of its own.

    Raises:
        subprocess.SubprocessError, ValueError: it could not be made.
    """
    output = BUILD / "crash-mutation.json"
    output.unlink(missing_ok=True)
    words = ["--signups", str(signups), "--seed", str(seed), "--output", str(output)]
    words += ["--mutation", mutation.name] if mutation else []
    ended = subprocess.run(
        [sys.executable, "-m", "tests.crash", *words],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    if ended.returncode not in (PASSED, FAILED):
        raise ValueError(f"The run ended with code {ended.returncode}: {ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    report = json.loads(output.read_text())
    violations = {name: found["count"] for name, found in report["violations"].items()}
    is_right = bool(violations.keys() & set(mutation.caught_by)) if mutation else not violations
    return Result(mutation, violations, sum(report["seconds"].values()), is_right)


def main() -> int:
    """Runs them all; 0: every mutation was caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.mutate", description=__doc__)
    parser.add_argument("--signups", type=int, default=200, help="in each run; default 200")
    parser.add_argument("--seed", type=int, help="the same for all runs; drawn without")
    parser.add_argument("--only", help="only mutations with this in their names")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    chosen = [m for m in MUTATIONS if (arguments.only or "") in m.name]
    console = Console()
    console.print(f"Seed {seed}, {arguments.signups} signups in each run.", highlight=False)
    results: list[Result] = []
    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(chosen) + 1)
        for mutation in (None, *chosen):
            progress.update(task, description=mutation.name if mutation else "without a mutation")
            results.append(run_one(mutation, arguments.signups, seed))
            # Each at once: what was found so far outlives a run that can't be made.
            _write(results, seed, BUILD / "crash-mutations.json")
            progress.advance(task)
    console.print(_table(results))
    survived = [result for result in results if not result.is_as_it_must_be]
    if survived:
        console.print(f"{len(survived)} of {len(results)} runs did not end as they must.", style="bold red")
        return 1
    console.print(f"Without a mutation everything held; each of {len(chosen)} mutations was caught.")
    return 0


def _table(results: list[Result]) -> Table:
    table = Table("mutation", "violated", "s", "", title="Mutations", title_justify="left")
    for result in results:
        violated = ", ".join(f"{name} ({count})" for name, count in result.violations.items())
        name = result.mutation.name if result.mutation else "(none)"
        table.add_row(name, violated or "nothing", f"{result.seconds:.0f}", "ok" if result.is_as_it_must_be else "NO")
    return table


def _write(results: list[Result], seed: int, path: Path) -> None:
    rows = [
        {
            "mutation": result.mutation.name if result.mutation else None,
            "violations": result.violations,
            "seconds": round(result.seconds, 1),
            "is_as_it_must_be": result.is_as_it_must_be,
        }
        for result in results
    ]
    path.write_text(json.dumps({"seed": seed, "runs": rows}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
