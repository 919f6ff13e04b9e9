"""``doorkey redrive``: another chance, now, for users whose provisioning was given up or waits for its next try."""

from __future__ import annotations

import uuid

from rich.console import Console

from functions.clients.outside import build_clients
from functions.kit.settings import Settings
from functions.provisioning import store

ROWS_PER_CALL = 500
MAX_CALLS = 2_000


async def run(console: Console, user_id: uuid.UUID | None, error: str | None) -> None:
    """Redrives one user, those with one error, or all; the sweep does the work.

    Raises:
        SettingsInvalid: the functions' environment is needed here too.
        DoorkeyError: the database refused or can't be reached.
    """
    settings = Settings.from_environment()
    clients = build_clients(settings)
    total = 0
    async with clients.http:
        with console.status("Redriving"):
            for _ in range(MAX_CALLS):
                count = await store.redrive(
                    clients.supabase,
                    user_id=user_id,
                    error=error,
                    redriven_rows=ROWS_PER_CALL,
                    request_id=uuid.uuid4().hex,
                )
                total += count
                if count < ROWS_PER_CALL:
                    break
    if total == 0:
        console.print("Nobody to redrive: no row that was given up or waits fits.")
    else:
        console.print(f"{total} {'user is' if total == 1 else 'users are'} due again; the next sweep works on them.")
