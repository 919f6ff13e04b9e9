"""A Postgres for a moment that looks as a hosted Supabase project does: for tests, and for generating schema.sql.

Unlike the stack's, it forgets everything if the machine fails, unless it is asked not to: whoever uses it throws it
away.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from infra.local import hosted, postgres
from infra.local.stack import CHECKOUT, StackSecrets, memory_with_room, new_folder
from infra.local.supervisor import Supervisor, free_port


@dataclass(frozen=True, repr=False)
class ScratchServer:
    """A running server, whose database `postgres` is as hosted gives it.

    Attributes:
        server: the process's cluster.
        role_password: of the roles that log in, `supabase_admin` excepted.
    """

    server: postgres.Postgres
    role_password: str

    def url(self, role: str = postgres.SUPERUSER, database: str = "postgres") -> str:
        """A connection URL for a role that may log in."""
        password = self.server.password if role == postgres.SUPERUSER else self.role_password
        return self.server.url(role, password, database)


@asynccontextmanager
async def running_scratch_server(*, is_durable: bool = False) -> AsyncIterator[ScratchServer]:
    """Starts one, and removes every trace of it at the end.

    Args:
        is_durable: whether it waits for the disk, for those who measure.

    Raises:
        PartFailed: the database or Lite could not start.
    """
    folder = new_folder(None if is_durable else memory_with_room())
    supervisor = Supervisor(folder / "logs")
    made = StackSecrets()
    try:
        server = postgres.prepare(CHECKOUT, folder, made.superuser_password, free_port())
        await supervisor.start(postgres.part(server, forgets=not is_durable))
        await hosted.install(server.superuser_url, made.role_password, folder, supervisor, made.lite_keys)
        yield ScratchServer(server, made.role_password)
    finally:
        await supervisor.stop_all()
        shutil.rmtree(folder, ignore_errors=True)
