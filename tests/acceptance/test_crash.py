"""The crash test, on a stack of its own, and whether it notices when something is broken.

What it does and what it checks stands in `tests/crash`; ten thousand signups and all mutations: `make crash-test` and
`make crash-mutations`.
"""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from infra.local.stack import CHECKOUT
from tests.crash.mutate import run_one
from tests.crash.mutations import BY_NAME
from tests.crash.run import LOGS
from tests.support.secrets_used import leaks

SIGNUPS = 1_000
FEW_SIGNUPS = 60
CRASH_SECONDS = 600


@pytest.mark.timeout(CRASH_SECONDS)
async def test_a_thousand_signups_among_dying_workers_end_as_they_must() -> None:
    output = CHECKOUT / "build" / "crash.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.crash", "--signups", str(SIGNUPS), "--output", str(output),
        cwd=CHECKOUT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    report = json.loads(output.read_text())
    assert report["kill_points_not_reached"] == []
    assert report["processes_killed"] >= len(report["kill_points"])
    # The logs of a run in which much went wrong; its own secrets are known by their forms only.
    assert {log.name: leaks(log.read_bytes()) for log in LOGS.glob("*.log") if leaks(log.read_bytes())} == {}


@pytest.mark.timeout(CRASH_SECONDS)
@pytest.mark.parametrize("name", ["a key is deleted on a time-out", "own finish without the attempt check"])
async def test_the_crash_test_notices_what_is_broken(name: str) -> None:
    result = await asyncio.to_thread(run_one, BY_NAME[name], FEW_SIGNUPS, seed=1)
    assert result.is_as_it_must_be, result.violations
