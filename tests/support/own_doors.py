"""A person's own doors as the functions use them for that person, and as the person could use them by hand.

Every own door stands here with arguments that it would take. A proof is made by the code that ships; what is done to it
before it is sent is the caller's.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from functions.accounts import store as accounts
from functions.clients.proofs import Proofs
from functions.clients.supabase import Rpc
from functions.credits import store as credit_store
from functions.kit.settings import decode_webhook_secret
from functions.provisioning import store as provisioning
from tests.support.databases import Database, Row
from tests.support.doors import SEALED, key_hash
from tests.support.environment import WEBHOOK_SECRET

Arguments = dict[str, Any]

OWN_DOORS: dict[str, Rpc] = {
    rpc.own_door: rpc
    for store in (accounts, credit_store, provisioning)
    for rpc in vars(store).values()
    if isinstance(rpc, Rpc) and rpc.own_door is not None
}
# What each would take from a user without a key, or with a claim that is under way; `hold_id` is nobody's.
SAMPLES: dict[str, Arguments] = {
    "claim_my_provisioning": {"lease_seconds": 60, "request_id": "r", "chance": "lazy"},
    "finish_my_provisioning": {
        "attempt": 1,
        "key_hash": key_hash("mine"),
        "key_name": "mine",
        "key_label": None,
        "limit_micros": 5_000_000,
        "sealed_secret": SEALED,
        "request_id": "r",
    },
    "finish_my_key_update": {
        "attempt": 1,
        "key_hash": key_hash("mine"),
        "limit_micros": 5_000_000,
        "is_enabled": True,
        "usage_micros": 0,
        "request_id": "r",
    },
    "finish_my_key_deletion": {"attempt": 1, "key_hash": key_hash("mine"), "request_id": "r"},
    "defer_my_provisioning": {
        "attempt": 1,
        "error": "openrouter_limited",
        "delay_seconds": 60,
        "gives_up": False,
        "is_outage": False,
        "request_id": "r",
    },
    "hold_my_provisioning": {"attempt": 1, "error": "openrouter_payment_required", "request_id": "r"},
    "recheck_my_key": {"request_id": "r"},
    "reveal_my_key": {"request_id": "r"},
    "request_my_key_rotation": {"grace_seconds": 0, "request_id": "r"},
    "reserve_my_credits": {
        "amount_micros": 100,
        "ttl_seconds": 60,
        "idempotency_key": "k",
        "key_hash": None,
        "request_id": "r",
    },
    "settle_my_hold": {
        "hold_id": str(uuid.UUID(int=0)),
        "cost_micros": "12.50",
        "tokens": 7,
        "provider": "a provider",
        "model": "a/model",
        "generation_id": None,
        "request_id": "r",
    },
    "release_my_hold": {"hold_id": str(uuid.UUID(int=0)), "request_id": "r"},
}


@dataclass(frozen=True)
class OwnDoors:
    """One person's own doors, through `public`, as role authenticated with their claims.

    Attributes:
        database: whose doors.
        user_id: whose token.
        secrets: those that the functions know.
        skew_seconds: how far the clock of the functions is ahead.
    """

    database: Database
    user_id: uuid.UUID
    secrets: tuple[str, ...] = (WEBHOOK_SECRET,)
    skew_seconds: float = 0.0

    def proof(self, door: str, arguments: Mapping[str, Any]) -> Arguments:
        """What a function of ours would send beside the arguments."""
        proofs = Proofs(
            [decode_webhook_secret(secret) for secret in self.secrets], clock=lambda: time.time() + self.skew_seconds
        )
        return dict(proofs.sign(door, self.user_id, arguments))

    async def call(self, door: str, arguments: Mapping[str, Any], proof: Mapping[str, Any] | None = None) -> list[Row]:
        """Calls a door, by default with a proof of its own."""
        sent = {**arguments, **(self.proof(door, arguments) if proof is None else proof)}
        named = ", ".join(f"{name} => %({name})s" for name in sent)
        async with self.database.acting_as("authenticated", self.user_id) as connection:
            return await (await connection.execute(f"select * from public.{door}({named})", sent)).fetchall()

    async def word(self, door: str, **arguments: object) -> Any:
        """The one value that a door answers; what is not given is as in its sample."""
        (row,) = await self.call(door, SAMPLES[door] | arguments)
        (value,) = row.values()
        return value

    async def row(self, door: str, **arguments: object) -> Row:
        """The one row that a door answers; likewise."""
        (row,) = await self.call(door, SAMPLES[door] | arguments)
        return row

    async def reserve(self, amount_micros: int, key: str) -> Row:
        """A hold."""
        return await self.row("reserve_my_credits", amount_micros=amount_micros, idempotency_key=key)

    async def settle(self, hold_id: uuid.UUID, cost_micros: int | Decimal) -> Row:
        """Charges its call."""
        return await self.row("settle_my_hold", hold_id=str(hold_id), cost_micros=format(Decimal(cost_micros), "f"))

    def of(self, user_id: uuid.UUID) -> OwnDoors:
        """The same doors of somebody else."""
        return replace(self, user_id=user_id)
