"""Applies the migrations with the Supabase CLI, as role `postgres`, as on a hosted project."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit, urlunsplit

from infra.local.supervisor import LAST_LINES, PartFailed

MIGRATION_SECONDS = 120
DEFAULT_PORT = 5432


async def run_cli(checkout: Path, *words: str, database_url: str) -> str:
    """Runs the Supabase CLI against a database and returns what it printed.

    The password goes by the environment: command lines are visible to everybody.

    Raises:
        PartFailed: with the CLI's own words.
    """
    parts = urlsplit(database_url)
    bare = urlunsplit(parts._replace(netloc=f"{parts.username}@{parts.hostname}:{parts.port or DEFAULT_PORT}"))
    with TemporaryDirectory(prefix="doorkey-cli-") as home:
        return await _run(checkout, words, bare, parts.password or "", home)


async def _run(checkout: Path, words: tuple[str, ...], bare: str, password: str, home: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            str(checkout / "node_modules" / ".bin" / "supabase"),
            *words,
            "--db-url",
            bare,
            "--workdir",
            str(checkout),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={
                "PATH": os.environ.get("PATH", ""),
                # It keeps a device id and unpacks itself; nothing of that stays.
                "HOME": home,
                "TMPDIR": home,
                "PGPASSWORD": password,
                "PGSSLMODE": "disable",
                "SUPABASE_YES": "true",
                "DO_NOT_TRACK": "1",
                "NO_COLOR": "1",
            },
        )
    except OSError as error:
        raise PartFailed(
            "migrations", f"the Supabase CLI could not be started ({error.strerror}); run `make clean setup`"
        ) from None
    try:
        out, err = await asyncio.wait_for(process.communicate(), MIGRATION_SECONDS)
    except TimeoutError:
        raise PartFailed("migrations", f"took longer than {MIGRATION_SECONDS} seconds") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise PartFailed(
            "migrations",
            f"could not be applied: `supabase {' '.join(words)}` failed",
            (out + err).decode(errors="replace").splitlines()[-LAST_LINES:],
        )
    return out.decode()


async def migrate(checkout: Path, database_url: str) -> None:
    """Applies what is not applied yet.

    Raises:
        PartFailed: with the CLI's own words.
    """
    await run_cli(checkout, "migration", "up", database_url=database_url)
