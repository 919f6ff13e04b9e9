"""The table for people, and ``build/bench.json`` for programs."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from infra.bench.measuring import Measured
from infra.bench.rows import Row
from infra.local.stack import CHECKOUT

REPORT = CHECKOUT / "build" / "bench.json"


@dataclass(frozen=True)
class Result:
    """A row, and what it came to."""

    row: Row
    measured: Measured

    @property
    def holds(self) -> bool:
        """Whether the goal is kept, and whatever else must be true is."""
        return self.row.goal.holds(self.measured.ratio) and all(check.holds for check in self.measured.checks)

    def as_json(self) -> dict[str, Any]:
        """The row as programs read it; `spread` is the quartiles of the ratio."""
        return {
            "name": self.row.name,
            "what": self.row.ours,
            "beside": self.row.floor,
            "unit": self.row.unit,
            "ours": round(statistics.median(self.measured.ours), 4),
            "floor": round(statistics.median(self.measured.floor), 4),
            "ratio": round(self.measured.ratio, 4),
            "spread": [round(quartile, 4) for quartile in self.measured.spread],
            "pairs": len(self.measured.ours),
            "goal": str(self.row.goal),
            "holds": self.holds,
            "checks": [asdict(check) for check in self.measured.checks],
            "notes": self.measured.notes,
        }


def write(results: list[Result], is_quick: bool, path: Path = REPORT) -> None:
    """Writes the report, as a whole or not at all."""
    report = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "is_quick": is_quick,
        "machine": machine(),
        "rows": [result.as_json() for result in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    draft.replace(path)


def machine() -> dict[str, Any]:
    """What it ran on, and how much else was going on."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_at_the_end": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def table(results: list[Result]) -> Table:
    """The rows, each narrow enough for 80 columns."""
    found = machine()
    shown = Table(
        title=f"{found['cores']} cores, {found['cpu']}, Python {found['python']}",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for column in ("row", "ours", "floor", "ratio", "half between", "goal", "holds"):
        shown.add_column(column, justify="left" if column in ("row", "goal", "holds") else "right", no_wrap=True)
    for result in results:
        line = result.as_json()
        lower, upper = line["spread"]
        shown.add_row(
            f"[bold]{line['name']}[/bold]",
            f"{_short(line['ours'])} {line['unit']}",
            _short(line["floor"]),
            f"{line['ratio']:.2f}",
            f"{lower:.2f} to {upper:.2f}",
            line["goal"],
            "[green]yes[/green]" if result.holds else "[red]no[/red]",
        )
    return shown


def remarks(results: list[Result]) -> list[str]:
    """What must be true besides the ratios, and what else is worth knowing: a line each."""
    lines = []
    for result in results:
        for check in result.measured.checks:
            word = "as wanted" if check.holds else "NOT as wanted"
            lines.append(f"{result.row.name}, {check.name}: {check.found} ({word}: {check.wanted})")
        lines += [f"{result.row.name}: {note}" for note in result.measured.notes]
    return lines


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
