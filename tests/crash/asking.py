"""What people ask for themselves, with their token: to be provisioned, another key, and calls that are paid for.

A worker does it as the API and the gateway do; whatever the service key is worth at the moment. What comes of it is the
verdict's to judge: so what is asked under a number is always the same, and who was told that it is done is noted.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from functions.accounts import store as accounts
from functions.accounts.arrivals import Arrivals
from functions.clients.outside import Clients
from functions.clients.supabase import SupabaseError
from functions.credits import store as credit_store
from functions.kit.errors import DoorkeyError, NoKey, ProfileNotFound
from functions.kit.settings import Settings
from functions.provisioning.steps import Provisioner
from functions.web.sessions import Session
from tests.crash.shared import Shared

RESERVED_MICROS = 20_000
TTL_SECONDS = 2


class Wish(StrEnum):
    """What somebody asks for."""

    SETTLE = "settle"  # a call that costs less than was held
    ROTATE = "rotate"  # another key, at once
    RELEASE = "release"  # a call that was not made
    EXCEED = "exceed"  # a call that costs more
    LEAVE = "leave"  # a call of which nobody hears again


# In this order; the number is the place here.
WISHES = (Wish.SETTLE, Wish.ROTATE, Wish.RELEASE, Wish.EXCEED, Wish.LEAVE)


def hold_key(number: int) -> str:
    """The idempotency key: the same for everybody, because it is the user's own."""
    return f"ask {number}"


def cost_micros(user_id: uuid.UUID, number: int) -> int:
    """What the call costs at the provider."""
    share = user_id.int % (RESERVED_MICROS // 2)
    return share + 1 if WISHES[number] is Wish.SETTLE else RESERVED_MICROS + share


@dataclass(frozen=True)
class Asker:
    """In one worker."""

    clients: Clients
    provisioner: Provisioner
    arrivals: Arrivals
    shared: Shared

    @classmethod
    def build(cls, settings: Settings, clients: Clients, shared: Shared) -> Asker:
        """With these clients."""
        provisioner = Provisioner.build(settings, clients)
        return cls(clients, provisioner, Arrivals(clients.supabase, provisioner), shared)

    async def ask(self, index: int, user_id: uuid.UUID, token: str, number: int) -> None:
        """Does what is asked for under this number. Without an answer it is asked again."""
        session = Session(user_id, token, is_anonymous=False)
        try:
            if (await self.arrivals.account(session, request_id=hold_key(number)))["key"] is None:
                return
            is_done = await self._fulfil(session, number)
        except (SupabaseError, NoKey, ProfileNotFound):
            return
        except DoorkeyError:
            # No is an answer: there are no credits left, or they are banned.
            is_done = False
        self.shared.answer(index, number, is_done=is_done)

    async def _fulfil(self, session: Session, number: int) -> bool:
        database, wish, request_id = self.clients.supabase, WISHES[number], hold_key(number)
        if wish is Wish.ROTATE:
            await accounts.request_rotation(database, session, grace_seconds=0, request_id=request_id)
            await self.provisioner.provision(session.user_id, request_id=request_id, session=session)
            return True
        hold = await credit_store.reserve(
            database,
            session.user_id,
            amount_micros=RESERVED_MICROS,
            ttl_seconds=TTL_SECONDS,
            idempotency_key=hold_key(number),
            key_hash=None,
            request_id=request_id,
            session=session,
        )
        if wish is Wish.RELEASE:
            await credit_store.release(database, hold.hold_id, request_id=request_id, session=session)
        elif wish is not Wish.LEAVE:
            await credit_store.settle(
                database,
                hold.hold_id,
                cost_micros=Decimal(cost_micros(session.user_id, number)),
                provider="a provider",
                model="a/model",
                generation_id=request_id,
                request_id=request_id,
                session=session,
            )
        return True
