"""What a new sandbox costs before its first call: a process that imports a handler and builds it.

The whole process is timed, the interpreter's own start too; its bytecode is compiled before, as on a warm disk. click
is hidden: it is not in the zip, and where it is, httpx imports it and rich for a command line. On both sides alike.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
import time

from infra.bench.measuring import Effort, Measured
from infra.local.stack import CHECKOUT
from infra.local.supervisor import PartFailed

PAIRS = 25
MILLIS = 1_000
HIDDEN = "import sys; sys.modules['click'] = None"
FLOOR = "import fastapi, mangum, httpx, jwt, supabase"
BUILD = """
from functions import {name}
from functions.clients.outside import build_clients
from functions.kit.settings import Settings
settings = Settings.from_environment()
{name}.build(settings, build_clients(settings))
"""
# Right in form; nothing listens there.
ENVIRONMENT = {
    "SUPABASE_URL": "http://127.0.0.1:9",
    "SUPABASE_PUBLISHABLE_KEY": "sb_publishable_of-a-measurement",
    "SUPABASE_SECRET_KEY": "sb_secret_of-a-measurement",
    "OPENROUTER_MANAGEMENT_KEY": "sk-or-v1-of-a-measurement",
    "DOORKEY_PROJECT": "bench",
    "DOORKEY_SEALING_KEYS": "k1:" + base64.b64encode(bytes(32)).decode(),
    "DOORKEY_WEBHOOK_SECRETS": "whsec_" + base64.b64encode(bytes(32)).decode(),
}


async def measure_plain_handlers(effort: Effort) -> Measured:
    """`webhook` and `sweep`: whichever is slower counts."""
    measured = [await _measure(effort, name) for name in ("webhook", "sweep")]
    return max(measured, key=lambda one: one.ratio)


async def measure_api(effort: Effort) -> Measured:
    """`api`, which is an application of FastAPI."""
    return await _measure(effort, "api")


async def _measure(effort: Effort, name: str) -> Measured:
    return await effort.pairs(
        effort.size(PAIRS, 1), lambda: _process_ms(BUILD.format(name=name)), lambda: _process_ms(FLOOR)
    )


async def _process_ms(code: str) -> float:
    environment = {"PATH": os.environ.get("PATH", ""), **ENVIRONMENT}
    code = f"{HIDDEN}\n{code}"
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=CHECKOUT, env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    spent_ms = (time.perf_counter() - started) * MILLIS
    if process.returncode:
        raise PartFailed("cold start", "failed", err.decode(errors="replace").splitlines()[-5:])
    return spent_ms
