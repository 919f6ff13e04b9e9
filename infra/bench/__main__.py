"""``python -m infra.bench``: measures row after row, prints the table and writes ``build/bench.json``.

It ends with 0 whether the goals hold or not: that is for the table to say, and for a person to judge.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from infra.bench import flame_graph, report
from infra.bench.measuring import Effort
from infra.bench.report import REPORT, Result
from infra.bench.rows import ROWS, Row
from infra.local.supervisor import PartFailed

EXAMPLE = "Example: make bench ARGS='--only balance'"


def main() -> None:
    """Reads the command line, measures, and says what came of it."""
    parser = argparse.ArgumentParser(
        prog="make bench", description="Measures every path beside its floor.", epilog=EXAMPLE
    )
    parser.add_argument("--only", action="append", choices=[row.name for row in ROWS], help="this row; may be repeated")
    parser.add_argument("--quick", action="store_true", help="tiny numbers: shows that it runs, and measures nothing")
    parser.add_argument("--report", type=Path, default=REPORT, help="where the JSON goes")
    parser.add_argument("--flame-graph", action="store_true", help="draw docs/provisioning-flamegraph.svg instead")
    arguments = parser.parse_args()
    console = Console()
    try:
        if arguments.flame_graph:
            path = flame_graph.draw()
            console.print(f"The flame graph of a provisioning is in {path}.", highlight=False)
            return
        chosen = [row for row in ROWS if not arguments.only or row.name in arguments.only]
        results = asyncio.run(_measure_all(console, chosen, arguments.quick))
    except PartFailed as failure:
        console.print(f"[red]{failure}[/red]", *failure.last_lines, sep="\n", highlight=False)
        sys.exit(1)
    report.write(results, arguments.quick, arguments.report)
    console.print(report.table(results))
    for line in report.remarks(results):
        console.print(line, highlight=False)
    kept = sum(result.holds for result in results)
    console.print(f"{kept} of {len(results)} goals hold. {arguments.report} has the numbers.", highlight=False)


async def _measure_all(console: Console, chosen: list[Row], is_quick: bool) -> list[Result]:
    results = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for row in chosen:
            task = progress.add_task(f"{row.name}: {row.ours}", total=None)

            def show(done: int, total: int, task: int = task) -> None:
                progress.update(task, completed=done, total=total)  # type: ignore[arg-type]

            results.append(Result(row, await row.measure(Effort(is_quick, show))))
            progress.update(task, completed=1, total=1)
    return results


if __name__ == "__main__":
    main()
