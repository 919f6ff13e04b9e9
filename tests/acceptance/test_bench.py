"""`make bench` runs and says what it says; its numbers are for people to judge, and no test compares them."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from infra.bench.rows import ROWS
from infra.local.stack import CHECKOUT

TABLE = CHECKOUT / "docs" / "benchmarks.md"
SECONDS = 600


@pytest.mark.timeout(SECONDS)
async def test_every_row_runs_and_keeps_to_the_round_trips_it_promises(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "infra.bench", "--quick", "--report", str(report),
        cwd=CHECKOUT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    written = json.loads(report.read_text())
    assert [row["name"] for row in written["rows"]] == [row.name for row in ROWS]
    for row in written["rows"]:
        assert row["ours"] > 0, row
        assert row["floor"] > 0, row
        assert row["goal"], row
        failed = [check for check in row["checks"] if not check["holds"]]
        assert failed == [], row["name"]


def test_the_committed_table_has_every_row_and_its_goal() -> None:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    missing = [row.name for row in ROWS if not any(f"`{row.name}`" in line and str(row.goal) in line for line in lines)]
    assert missing == []
