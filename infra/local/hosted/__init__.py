"""Makes an empty Postgres look as a hosted Supabase project does before anybody has touched it.

The tables of Auth are made by Lite when it starts; then they are given to whom they belong to on hosted.
"""

from __future__ import annotations

import signal
from pathlib import Path

import psycopg

from infra.local import lite
from infra.local.supervisor import PartFailed, Supervisor, free_port

CONNECT_SECONDS = 10
MIN_VERSION = 150_000
LOGIN_ROLES = ("postgres", "authenticator", "supabase_auth_admin")

_HERE = Path(__file__).parent
_CHECKOUT = _HERE.parents[2]


async def install(
    superuser_url: str, role_password: str, folder: Path, supervisor: Supervisor, keys: lite.LiteKeys
) -> None:
    """Roles, schemas, privileges, Auth's tables and pg_net's.

    Args:
        superuser_url: of ``supabase_admin`` in an empty database.
        role_password: for the roles that log in.
        folder: where Lite may keep its configuration.
        supervisor: runs Lite for a moment.
        keys: of that Lite.

    Raises:
        PartFailed: the database is somebody's, or Lite does not start.
    """
    async with await _connect(superuser_url) as database:
        await _check_is_usable(database)
        await database.execute((_HERE / "roles.sql").read_bytes())
        for role in LOGIN_ROLES:
            await database.execute(
                psycopg.sql.SQL("alter role {} password {}").format(
                    psycopg.sql.Identifier(role), psycopg.sql.Literal(role_password)
                )
            )
        await supervisor.start(lite.part("install", _CHECKOUT, folder, free_port(), superuser_url, keys))
        await supervisor.stop("install", signal.SIGKILL)
        await database.execute((_HERE / "auth_ownership.sql").read_bytes())
        await database.execute((_HERE.parent / "edge" / "lite_repairs.sql").read_bytes())
        await database.execute((_HERE.parent / "pg_net" / "schema.sql").read_bytes())


async def _connect(superuser_url: str) -> psycopg.AsyncConnection[tuple[object, ...]]:
    try:
        return await psycopg.AsyncConnection.connect(superuser_url, autocommit=True, connect_timeout=CONNECT_SECONDS)
    except (psycopg.Error, ValueError) as error:
        # Only the kind: the driver's message may quote the address with its password.
        raise PartFailed(
            "postgres", f"does not let us in ({type(error).__name__}); is DATABASE_URL right, and does the server run"
        ) from None


async def _check_is_usable(database: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
    found = await (
        await database.execute(
            """select current_setting('server_version_num')::integer,
                      (select rolsuper from pg_roles where rolname = current_user),
                      to_regnamespace('auth') is not null"""
        )
    ).fetchone()
    version, is_superuser, has_auth = found or (0, False, True)
    if not isinstance(version, int) or version < MIN_VERSION:
        raise PartFailed("postgres", "is too old; DATABASE_URL must name a Postgres 15 or newer")
    if not is_superuser:
        raise PartFailed("postgres", "does not let us make roles; DATABASE_URL must be a superuser's")
    if has_auth:
        raise PartFailed(
            "postgres", "is in use; DATABASE_URL must name an empty database, and this one has a schema auth"
        )
