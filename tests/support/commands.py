"""`doorkey ...` as an operator runs it: a process of its own, with the functions' environment and nothing else."""

from __future__ import annotations

import asyncio
import os
import sys

from infra.local.stack import CHECKOUT, Stack


async def run_doorkey(stack: Stack, *words: str) -> tuple[int, str]:
    """The command's exit code and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "infra.cli.main",
        *words,
        cwd=CHECKOUT,
        env={"PATH": os.environ["PATH"], "COLUMNS": "200", **stack.functions_environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    return process.returncode or 0, printed.decode()
