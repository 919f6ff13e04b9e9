"""The caller's account; and whoever has nothing yet is provisioned on the spot.

The third chance after the hint and the sweep, with the same code: a trigger may be missing, a hint lost. Who is served
is the database's to say, as always: whoever came before the installation is not.

The surprising thing: when OpenRouter is slow, the answer goes out and the attempt goes on. Cancelled between making a
key and registering it, it would leave a stray. On Lambda it stands still with its sandbox, and wakes with it; if it
never does, its lease runs out and the sweep begins anew. See docs/decisions/0018.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from functions.accounts.store import create_my_profile, get_my_account
from functions.clients.supabase import Supabase
from functions.kit.errors import DoorkeyError, ProfileNotFound
from functions.provisioning.states import Chance, ProvisioningState
from functions.provisioning.steps import Outcome, Provisioner
from functions.web.sessions import Session

# Less than what one answer of OpenRouter may take; people look at a page meanwhile.
QUICK_SECONDS = 8.0


class Arrivals:
    """Reads accounts, and has those provisioned who have nothing.

    Args:
        database: the Data API.
        provisioner: the same as everywhere.
        quick_seconds: how long a request waits for it.
    """

    def __init__(self, database: Supabase, provisioner: Provisioner, quick_seconds: float = QUICK_SECONDS) -> None:
        self._database = database
        self._provisioner = provisioner
        self._quick_seconds = quick_seconds
        self._going_on: set[asyncio.Task[Outcome]] = set()

    async def account(self, session: Session, *, request_id: str) -> dict[str, Any]:
        """The caller's account, as far as it is known within a few seconds.

        Raises:
            ProfileNotFound: not served here.
            DoorkeyError: nothing is known of the account, and it could not be found out or made.
        """
        account = await get_my_account(self._database, session)
        if account is not None and not _is_due(account):
            return account
        if account is None:
            # Before the key, which is shown on it. A host's profiles may not want another row: no reason to stop.
            with contextlib.suppress(DoorkeyError):
                await create_my_profile(self._database, session)
        try:
            await self._provision(session, request_id)
        except DoorkeyError:
            # Its line is written. What is known is shown; the hint and the sweep have their chance still.
            if account is None:
                raise
            return account
        account = await get_my_account(self._database, session)
        if account is None:
            raise ProfileNotFound(str(session.user_id))
        return account

    async def _provision(self, session: Session, request_id: str) -> None:
        """Waits for the attempt, but not for long."""
        attempt = asyncio.create_task(
            self._provisioner.provision(session.user_id, request_id=request_id, chance=Chance.LAZY, session=session)
        )
        self._going_on.add(attempt)
        attempt.add_done_callback(self._forget)
        done, _ = await asyncio.wait({attempt}, timeout=self._quick_seconds)
        if done:
            attempt.result()

    def _forget(self, attempt: asyncio.Task[Outcome]) -> None:
        self._going_on.discard(attempt)
        if not attempt.cancelled():
            attempt.exception()  # looked at, so that asyncio doesn't complain: the line is written


def is_pending(account: dict[str, Any]) -> bool:
    """Whether the key is being made or about to be: asking again soon is worth it."""
    state = ProvisioningState(account["provisioning"]["state"])
    return account["key"] is None and state in (ProvisioningState.DUE, ProvisioningState.WORKING)


def _is_due(account: dict[str, Any]) -> bool:
    return account["key"] is None and bool(account["provisioning"]["is_due"])
