"""After the disturbances: sweeps, two at once, until nothing is open and nothing is found to be mended."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from uuid import UUID

from functions import sweep
from functions.clients.outside import build_clients
from functions.kit.settings import Settings
from functions.provisioning import store
from tests.crash.crowd import CLOCK, Database

MAX_ROUNDS = 400
POLL_SECONDS = 0.25
STUCK_SECONDS = 8.0
# What a sweep looks at in one go, of users whom it may have missed.
PAGE_USERS = 5_000
# A ban that ends later is none that the plan made to end.
SOON = "interval '1 minute'"
_OPEN = f"""
select count(*) filter (where state = 'working' or (state = 'due' and due_at <= now() + {SOON})
                           or (state = 'ready' and revisit_at <= now() + {SOON})),
       count(*), sum(attempt)::bigint
  from doorkey.provisioning
"""


async def sweep_until_still(
    settings: Settings, database: Database, ahead_seconds: float, show: Callable[[str, int, int], None]
) -> None:
    """Sweeps, or gives up when nothing moves any more: the verdict says what is stuck.

    Args:
        settings: the functions'.
        database: to see what is open, and to move the clock.
        ahead_seconds: so much later it is for the sweeps, and so much older is every stray.
        show: told how far it is.
    """
    still, moved, last = 0, time.monotonic(), None
    first, second = build_clients(settings), build_clients(settings)
    async with first.http, second.http:
        handles = [sweep.build(settings, c, clock=lambda: time.time() + ahead_seconds) for c in (first, second)]
        for _ in range(MAX_ROUNDS):
            for statement in CLOCK:
                await database.execute(statement)
            lines = await asyncio.gather(*(handle({"source": "aws.events"}) for handle in handles))
            mended = sum(line.get(n) or 0 for line in lines for n in ("enrolled", "healed", "strays_deleted"))
            open_rows, all_rows, attempts = await (await database.execute(_OPEN)).fetchone() or (0, 0, 0)
            show("Settling", all_rows - open_rows, all_rows)
            still = 0 if open_rows or mended else still + 1
            # A whole walk round everybody.
            if still >= all_rows // PAGE_USERS + 2:
                return
            if mended or (open_rows, attempts) != last:
                moved, last = time.monotonic(), (open_rows, attempts)
            if time.monotonic() - moved > STUCK_SECONDS:
                return
            if open_rows:
                await asyncio.sleep(POLL_SECONDS)


async def redrive_once(settings: Settings, database: Database, hopeless: Iterable[UUID]) -> dict[str, int]:
    """Gives who is dead without being hopeless another chance, as an operator would; how many, by what they died of."""
    expected = set(hopeless)
    cursor = await database.execute("select user_id, last_error from doorkey.provisioning where state = 'dead'")
    chosen = [(user_id, error) for user_id, error in await cursor.fetchall() if user_id not in expected]
    clients = build_clients(settings)
    async with clients.http:
        for user_id, _ in chosen:
            await store.redrive(clients.supabase, user_id=user_id, error=None, redriven_rows=1, request_id="crash")
    return dict(Counter(str(error) for _, error in chosen))
