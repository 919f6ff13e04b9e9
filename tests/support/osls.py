"""osls, as the Makefile calls it, in an environment that holds nothing of this machine's owner."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from infra.local.stack import CHECKOUT

OSLS = CHECKOUT / "node_modules" / ".bin" / "osls"
OSLS_SECONDS = 100


def run_osls(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs osls in the checkout, with nothing of this machine's environment but PATH."""
    return subprocess.run(
        [str(OSLS), *arguments],
        cwd=CHECKOUT,
        env={"PATH": os.environ["PATH"], "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=OSLS_SECONDS,
        check=False,
    )
