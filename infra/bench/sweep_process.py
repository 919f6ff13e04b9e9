"""``python -m infra.bench.sweep_process SECONDS``: the sweep in a process of its own, at the schedule's pace.

It is called as Lambda calls it: one sandbox, one loop, one call after the other, the first at once. It ends when its
standard input does, and says then how much memory it took at most.
"""

from __future__ import annotations

import json
import resource
import select
import sys
import time
from pathlib import Path

from functions import sweep

KIBI = 1024
MEGA = 1_000_000


def main() -> None:
    """Sweeps at a fixed rate until nobody wants it any more; settings from the environment."""
    every_seconds = float(sys.argv[1])
    next_at = time.monotonic()
    while True:
        sweep.handler({"source": "aws.events", "detail-type": "Scheduled Event"})
        # As EventBridge does: what would have begun meanwhile begins at once.
        next_at = max(next_at + every_seconds, time.monotonic())
        if select.select([sys.stdin], [], [], max(0.0, next_at - time.monotonic()))[0]:
            break
    sys.stdout.write(json.dumps({"memory_mb": _peak_bytes() / MEGA}))


def _peak_bytes() -> int:
    """The most memory that was ever in use; not what `getrusage` says where another way is: it counts the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * KIBI
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
