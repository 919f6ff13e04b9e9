"""``doorkey redrive``: another chance, now, for users whose provisioning was given up or waits for its next try.

The surprising thing: whoever is due already needs none, also while the queue is held. So it says how many those are,
and what holds them.
"""

from __future__ import annotations

import uuid

from rich.console import Console
from rich.text import Text

from functions.clients.outside import build_clients
from functions.health.database import finding_of_hold
from functions.health.store import get_health
from functions.kit.counting import counted
from functions.kit.settings import Settings
from functions.provisioning import store

ROWS_PER_CALL = 500
MAX_CALLS = 2_000
MAX_DUE_COUNTED = 1_000


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
            due = len(await store.list_due(clients.supabase, due_rows=MAX_DUE_COUNTED))
            held_reason = (await get_health(clients.supabase))["held_reason"]
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
    console.print(sentence_of(total, due, is_held=held_reason is not None), highlight=False)
    if held_reason is not None:
        _, finding, mend = finding_of_hold(held_reason)
        console.print(finding, style="yellow", highlight=False)
        # On one line at any width: it is copied.
        console.print(Text(f"  -> {mend}", style="bold"), soft_wrap=True)


def sentence_of(redriven: int, due: int, *, is_held: bool) -> str:
    """What was done, and what becomes of those who are due.

    Args:
        redriven: how many got another chance.
        due: how many were due before, counted up to `MAX_DUE_COUNTED`.
        is_held: nobody is served for the time being, but one probe a minute.
    """
    then = "they wait until the queue is no longer held" if is_held else "the next sweep works on them"
    if redriven:
        return f"{counted(redriven, 'user is', 'users are')} due again; {then}."
    nobody = "Nobody to redrive: no row that was given up or waits fits."
    if not due:
        return nobody
    at_least = "At least " if due == MAX_DUE_COUNTED else ""
    return f"{nobody} {at_least}{counted(due, 'user is', 'users are')} due already; {then}."
