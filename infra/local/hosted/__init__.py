"""Makes an empty Postgres look as a hosted Supabase project does before anybody has touched it.

The tables of Auth are made by Lite when it starts; then they are given to whom they belong to on hosted.
"""

from __future__ import annotations

import signal
from pathlib import Path

import psycopg

from infra.local import lite
from infra.local.supervisor import PartFailed, Supervisor, free_port

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
    async with await psycopg.AsyncConnection.connect(superuser_url, autocommit=True) as database:
        found = await (await database.execute("select to_regnamespace('auth') is not null")).fetchone()
        if found != (False,):
            raise PartFailed(
                "postgres", "DATABASE_URL must name an empty database, and this one has a schema called auth"
            )
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
