"""The whole of doorkey on one machine: Postgres, Data API, Auth, gateway, pg_net, OpenRouter and the functions.

Each part stands where hosted Supabase, AWS or OpenRouter has its own, and is a process of its own. Ports are found,
so any number of stacks run side by side; everything lives in one temporary folder that goes away with it.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from infra.local import hosted, lite, postgres
from infra.local.functions import WEBHOOK_PATH
from infra.local.migrations import DEFAULT_PORT, migrate
from infra.local.supervisor import Part, PartFailed, Supervisor, answers, free_port, is_port_free

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDER_PREFIX = "doorkey-stack-"
OWNER_FILE = "supervisor-pid"
# Where to go when the usual temporary folder is closed to others and the database must run as somebody else.
PUBLIC_PLACES = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108  mkdtemp makes names that nobody can foresee
# Linux's folder in memory, for servers that live as long as a run of the tests.
MEMORY = Path("/dev/shm")  # noqa: S108
MEMORY_BYTES = 2 * 1024**3
PROJECT = "local"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class StackOptions:
    """What may be chosen.

    Attributes:
        log_folder: where the parts' logs go; None: below the temporary folder, gone with it.
        database_url: of a superuser of an empty database, instead of the embedded Postgres.
        openrouter_latency_ms: how long the simulator takes for each answer.
        sweep_seconds: how often the sweep runs; 0: never.
        functions_environment: settings of the functions, over the stack's own.
        ports: fixed ports by part, for apps that have the address in their configuration; others are found.
        forgets: lives in memory, if there is room, and would lose everything if the machine failed: for tests.
    """

    log_folder: Path | None = None
    database_url: str | None = None
    openrouter_latency_ms: int = 0
    sweep_seconds: float = 60.0
    functions_environment: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    forgets: bool = False


@dataclass(frozen=True, repr=False)
class StackSecrets:
    """Made anew for every stack."""

    superuser_password: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    role_password: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    publishable_key: str = field(default_factory=lambda: f"sb_publishable_{secrets.token_urlsafe(24)}")
    secret_key: str = field(default_factory=lambda: f"sb_secret_{secrets.token_urlsafe(24)}")
    lite_keys: lite.LiteKeys = field(
        default_factory=lambda: lite.LiteKeys(
            publishable=f"sb_publishable_{secrets.token_urlsafe(24)}",
            secret=f"sb_secret_{secrets.token_urlsafe(24)}",
            jwt_secret=secrets.token_urlsafe(48),
        )
    )
    legacy_jwt_secret: str = field(default_factory=lambda: secrets.token_urlsafe(48))
    webhook_secret: str = field(default_factory=lambda: "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())
    webhook_shared_secret: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    sealing_key: str = field(default_factory=lambda: "k1:" + base64.b64encode(secrets.token_bytes(32)).decode())
    management_key: str = field(default_factory=lambda: f"sk-or-v1-{secrets.token_hex(32)}")
    operator_token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    signing_key_pem: str = field(default_factory=lambda: _new_signing_key())

    def all_values(self) -> list[str]:
        """Every secret, for those who search logs for them."""
        own = [value for value in vars(self).values() if isinstance(value, str)]
        return [*own, *vars(self.lite_keys).values()]


@dataclass(frozen=True)
class Stack:
    """A running stack.

    Attributes:
        supabase_url: what an app calls as its Supabase project.
        functions_url: the functions' public base URL.
        openrouter_url: what an OpenRouter client takes as its base URL.
        database_url: of role `postgres`, as on hosted.
        superuser_url: of `supabase_admin`, which hosted does not give out.
        folder: temporary, with everything in it.
        log_folder: one file for each part.
        secrets: all that was made for it.
        supervisor: the processes.
        parts: how each was started, so that tests can start one again.
    """

    supabase_url: str
    functions_url: str
    openrouter_url: str
    database_url: str
    superuser_url: str
    folder: Path
    log_folder: Path
    secrets: StackSecrets
    supervisor: Supervisor
    parts: dict[str, Part]

    def role_url(self, role: str, database: str | None = None) -> str:
        """A connection URL for one of the login roles, in this or another database of the server."""
        return with_login(self.superuser_url, role, self.secrets.role_password, database)

    @property
    def functions_environment(self) -> dict[str, str]:
        """The settings that the functions run with."""
        return dict(self.parts["functions"].environment)


@asynccontextmanager
async def running_stack(
    options: StackOptions | None = None, progress: Progress = lambda _: None
) -> AsyncIterator[Stack]:
    """Starts everything, and stops and removes everything at the end, however it comes.

    Args:
        options: what may be chosen.
        progress: told the name of each step as it begins.

    Raises:
        PartFailed: a part could not start.
    """
    options = options or StackOptions()
    remove_abandoned()
    folder = new_folder(memory_with_room() if options.forgets else None)
    supervisor = Supervisor(options.log_folder or folder / "logs")
    try:
        yield await _start(options, folder, supervisor, progress)
    finally:
        await supervisor.stop_all()
        shutil.rmtree(folder, ignore_errors=True)


async def _start(options: StackOptions, folder: Path, supervisor: Supervisor, progress: Progress) -> Stack:
    made = StackSecrets()
    ports = {name: _port(name, options) for name in ("rest", "auth", "edge", "openrouter", "functions")}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    progress("database")
    superuser_url = await _start_database(options, folder, supervisor, made)
    postgres_url = with_login(superuser_url, "postgres", made.role_password)
    progress("hosted look")
    await hosted.install(superuser_url, made.role_password, folder, supervisor, made.lite_keys)
    progress("migrations")
    await migrate(CHECKOUT, postgres_url)
    async with await psycopg.AsyncConnection.connect(superuser_url, autocommit=True) as database:
        await database.execute(
            "update doorkey.settings set webhook_url = %s, webhook_secret = %s",
            (urls["functions"] + WEBHOOK_PATH, made.webhook_secret),
        )
        parts = _parts(options, folder, superuser_url, made, ports, urls)
        progress("data api and auth")
        await lite.promote(database)
        await asyncio.gather(supervisor.start(parts["rest"]), supervisor.start(parts["auth"]))
        await lite.demote(database, ports["rest"], made.lite_keys)
    progress("gateway, openrouter, pg_net and functions")
    await asyncio.gather(*(supervisor.start(parts[n]) for n in ("edge", "openrouter", "functions", "pg_net")))
    return Stack(
        supabase_url=urls["edge"],
        functions_url=urls["functions"],
        openrouter_url=urls["openrouter"] + "/api/v1",
        database_url=postgres_url,
        superuser_url=superuser_url,
        folder=folder,
        log_folder=supervisor.log_folder,
        secrets=made,
        supervisor=supervisor,
        parts=parts,
    )


async def _start_database(options: StackOptions, folder: Path, supervisor: Supervisor, made: StackSecrets) -> str:
    if options.database_url is not None:
        return options.database_url
    # Not in a thread: that could not be cancelled, and would go on writing into a folder that is being removed.
    server = postgres.prepare(CHECKOUT, folder, made.superuser_password, free_port())
    await supervisor.start(postgres.part(server, forgets=options.forgets))
    return server.superuser_url


def _port(name: str, options: StackOptions) -> int:
    wanted = options.ports.get(name)
    if wanted is None:
        return free_port()
    if not is_port_free(wanted):
        raise PartFailed(name, f"can't have port {wanted}: another program listens there; choose another, or none")
    return wanted


def _parts(
    options: StackOptions,
    folder: Path,
    superuser_url: str,
    made: StackSecrets,
    ports: dict[str, int],
    urls: dict[str, str],
) -> dict[str, Part]:
    def python(name: str, environment: dict[str, str], *words: str, health: str) -> Part:
        return Part(
            name=name,
            command=[sys.executable, "-m", f"infra.local.{name}", "--port", str(ports[name]), *words],
            folder=CHECKOUT,
            environment={"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment},
            is_ready=answers(urls[name] + health),
        )

    def lite_part(name: str) -> Part:
        login_url = with_login(superuser_url, lite.LOGINS[name], made.role_password)
        return lite.part(name, CHECKOUT, folder, ports[name], login_url, made.lite_keys)

    functions_environment = {
        "SUPABASE_URL": urls["edge"],
        "SUPABASE_PUBLISHABLE_KEY": made.publishable_key,
        "SUPABASE_SECRET_KEY": made.secret_key,
        "OPENROUTER_BASE_URL": urls["openrouter"] + "/api/v1",
        "OPENROUTER_MANAGEMENT_KEY": made.management_key,
        "DOORKEY_PROJECT": PROJECT,
        "DOORKEY_SEALING_KEYS": made.sealing_key,
        "DOORKEY_WEBHOOK_SECRETS": made.webhook_secret,
        "DOORKEY_WEBHOOK_SHARED_SECRET": made.webhook_shared_secret,
        "DOORKEY_OPERATOR_TOKEN_SHA256": sha256(made.operator_token.encode()).hexdigest(),
        "DOORKEY_ALLOWED_ORIGINS": "http://127.0.0.1:3000,http://localhost:3000",
        **options.functions_environment,
    }
    parts = [
        lite_part("rest"),
        lite_part("auth"),
        python(
            "edge",
            {
                "EDGE_PUBLISHABLE_KEY": made.publishable_key,
                "EDGE_SECRET_KEYS": made.secret_key,
                "EDGE_UPSTREAM_PUBLISHABLE_KEY": made.lite_keys.publishable,
                "EDGE_UPSTREAM_SECRET_KEY": made.lite_keys.secret,
                "EDGE_UPSTREAM_JWT_SECRET": made.lite_keys.jwt_secret,
                "EDGE_SIGNING_KEY": made.signing_key_pem,
                "EDGE_LEGACY_JWT_SECRET": made.legacy_jwt_secret,
                "EDGE_DATABASE_URL": superuser_url,
            },
            "--rest-url",
            urls["rest"],
            "--auth-url",
            urls["auth"],
            health="/edge/health",
        ),
        python(
            "openrouter",
            {"SIMULATOR_MANAGEMENT_KEY": made.management_key},
            "--state-file",
            str(folder / "openrouter.sqlite"),
            "--latency-ms",
            str(options.openrouter_latency_ms),
            health="/simulator/health",
        ),
        python("functions", functions_environment, "--sweep-seconds", str(options.sweep_seconds), health="/health"),
        Part(
            name="pg_net",
            command=[sys.executable, "-m", "infra.local.pg_net"],
            folder=CHECKOUT,
            environment={"PYTHONUNBUFFERED": "1", "PG_NET_DATABASE_URL": superuser_url},
            is_ready=_pg_net_is_up(superuser_url),
        ),
    ]
    return {part.name: part for part in parts}


def _pg_net_is_up(superuser_url: str) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        async with await psycopg.AsyncConnection.connect(superuser_url, autocommit=True) as database:
            try:
                await database.execute("select net.check_worker_is_up()")
            except psycopg.Error:
                return False
        return True

    return check


def with_login(url: str, user: str, password: str, database: str | None = None) -> str:
    """The same address for another user, and another database if given."""
    parts = urlsplit(url)
    path = parts.path if database is None else f"/{database}"
    return urlunsplit(
        parts._replace(netloc=f"{user}:{password}@{parts.hostname}:{parts.port or DEFAULT_PORT}", path=path)
    )


def _new_signing_key() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def memory_with_room() -> Path | None:
    """Where files live in memory, if there is such a place with room: a clone takes 0.04 s there, and 1 s on a disk."""
    if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK | os.X_OK):
        return None
    return MEMORY if shutil.disk_usage(MEMORY).free >= MEMORY_BYTES else None


def new_folder(parent: Path | None = None) -> Path:
    """A temporary folder that the unprivileged user of Postgres can pass through; below `parent`, if that will do."""
    parent = parent or Path(tempfile.gettempdir())
    if postgres.unprivileged_identity() is not None:
        parent = next((place for place in (parent, *PUBLIC_PLACES) if _everybody_may_pass(place)), parent)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent))
    (folder / OWNER_FILE).write_text(str(os.getpid()))
    # Others may pass, not look; what is secret in it has closed permissions of its own.
    folder.chmod(0o711)
    return folder


def _everybody_may_pass(place: Path) -> bool:
    return place.is_dir() and all(
        step.stat().st_mode & stat.S_IXOTH for step in (place.resolve(), *place.resolve().parents)
    )


def remove_abandoned() -> None:
    """Removes the folders of stacks whose supervisor was killed."""
    for folder, is_alive in _folders():
        if not is_alive:
            shutil.rmtree(folder, ignore_errors=True)


def living_folders() -> list[Path]:
    """The folders of stacks that run on this machine now."""
    return sorted(folder for folder, is_alive in _folders() if is_alive)


def _folders() -> Iterator[tuple[Path, bool]]:
    """Every stack's folder, and whether its supervisor lives."""
    places = (Path(tempfile.gettempdir()), *PUBLIC_PLACES, MEMORY)
    for folder in {found for place in places for found in place.glob(f"{FOLDER_PREFIX}*")}:
        try:
            os.kill(int((folder / OWNER_FILE).read_text()), 0)
        except ProcessLookupError:
            yield folder, False
        except PermissionError:
            yield folder, True  # somebody else's
        except (OSError, ValueError):
            continue  # being made just now
        else:
            yield folder, True
