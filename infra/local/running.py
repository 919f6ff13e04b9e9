"""Which stacks of `doorkey dev` run on this machine, for commands that turn their switches.

Each leaves two files in its temporary folder, which go away with it: its addresses, with nothing secret, and the
functions' environment, for the eyes of the same user only. One that was left by a killed stack is not believed.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from infra.connection.environments import EnvFile
from infra.local.stack import Stack, living_folders

ADDRESSES_FILE = "addresses.json"
ENVIRONMENT_FILE = "functions.env"


@dataclass(frozen=True)
class Addresses:
    """Where the parts of one stack answer."""

    edge: str
    openrouter: str
    functions: str

    def has(self, url: str) -> bool:
        """Whether it is an address of this stack, whatever path it has."""
        return _origin(url) in {_origin(own) for own in asdict(self).values()}


async def announce(stack: Stack) -> None:
    """Leaves a stack's addresses and environment for other commands, until its folder is removed."""
    await EnvFile(stack.folder / ENVIRONMENT_FILE).write(
        {**stack.functions_environment, "DATABASE_URL": stack.database_url}
    )
    addresses = Addresses(stack.supabase_url, stack.openrouter_url, stack.functions_url)
    draft = stack.folder / f"{ADDRESSES_FILE}.new"
    draft.write_text(json.dumps(asdict(addresses)))
    draft.rename(stack.folder / ADDRESSES_FILE)


def running_stacks() -> list[Addresses]:
    """The stacks that announced themselves and still run."""
    found = (_read(folder / ADDRESSES_FILE) for folder in living_folders())
    return [addresses for addresses in found if addresses is not None]


def environments_of_running() -> list[Path]:
    """Env files of the functions of the stacks that this user runs, with DATABASE_URL."""
    found = (folder / ENVIRONMENT_FILE for folder in living_folders())
    # Somebody else could have put one there.
    return [path for path in found if path.is_file() and path.stat().st_uid == os.getuid()]


def _read(path: Path) -> Addresses | None:
    try:
        return Addresses(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None  # a test's or a demo's stack, or of another version


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.replace("localhost", "127.0.0.1")
