"""``python -m tests.crash --signups 1000 --seed 7``: runs the crash test and judges.

Without a seed one is drawn; it is printed first and last, with the command that replays the plan.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from infra.local.stack import CHECKOUT
from infra.local.supervisor import PartFailed
from tests.crash import report
from tests.crash.crowd import CrewFailed
from tests.crash.mutations import BY_NAME, MutationMisses
from tests.crash.plan import make_plan
from tests.crash.processes import Nursery
from tests.crash.run import LOGS, ROWS, Run
from tests.crash.shared import Shared


def main() -> int:
    """Runs it; 0: everything held. 1: something did not."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--signups", type=_positive, default=1_000, help="how many users; default 1000")
    parser.add_argument("--seed", type=int, help="replays the plan of an earlier run")
    parser.add_argument("--mutation", choices=sorted(BY_NAME), metavar="NAME", help="breaks the code on purpose")
    parser.add_argument("--output", type=Path, default=CHECKOUT / "build" / "crash.json", help="where the report goes")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    command = f"python -m tests.crash --signups {arguments.signups} --seed {seed}"
    if arguments.mutation:
        command += f" --mutation '{arguments.mutation}'"
    console = Console()
    console.print(f"Seed {seed}. To replay the plan: {command}", highlight=False, soft_wrap=True)
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    plan = make_plan(seed, arguments.signups)
    shared = Shared(ROWS, len(plan.by_user))
    # Before there is a loop or a thread.
    nursery = Nursery(plan, shared, arguments.mutation)
    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, TextColumn("{task.fields[word]}"), console=console) as progress:
            task = progress.add_task("", total=None, word="")

            def show(phase: str, done: int, total: int) -> None:
                word = f"{shared.totals()[('killed',)]} killed"
                progress.update(task, description=phase, completed=done, total=total, word=word)

            outcome = asyncio.run(Run(plan, shared, nursery, arguments.mutation, show).run())
    except (PartFailed, MutationMisses, CrewFailed) as failure:
        console.print(f"The run could not be made: {failure}", style="bold red", markup=False)
        return 2
    finally:
        nursery.stop()
    written = report.as_json(plan, shared, outcome, command, arguments.mutation)
    report.write(written, arguments.output)
    report.show(written, console)
    if outcome.violations:
        console.print(f"Something did not hold. To replay the plan: {command}", style="bold red", soft_wrap=True)
        return 1
    console.print(f"Everything held. To replay the plan: {command}", highlight=False, soft_wrap=True)
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least one")
    return number


if __name__ == "__main__":
    sys.exit(main())
