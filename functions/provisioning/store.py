"""The whole SQL vocabulary of provisioning."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from functions.clients.supabase import Rpc, Supabase
from functions.provisioning.states import ProvisioningState

CLAIM = Rpc("claim_provisioning", ("user_id", "lease_seconds", "request_id"), "service_role")
FINISH = Rpc(
    "finish_provisioning",
    (
        "user_id",
        "attempt",
        "key_hash",
        "key_name",
        "key_label",
        "limit_micros",
        "sealed_secret",
        "request_id",
    ),
    "service_role",
)
FINISH_KEY_UPDATE = Rpc(
    "finish_key_update",
    ("user_id", "attempt", "key_hash", "limit_micros", "request_id"),
    "service_role",
)
DEFER = Rpc(
    "defer_provisioning",
    ("user_id", "attempt", "error", "delay_seconds", "gives_up", "request_id"),
    "service_role",
)

LEASE_LOST = "lease_lost"
USER_GONE = "user_gone"


@dataclass(frozen=True)
class Claim:
    """A lease on one user's row, and all that the work needs.

    Attributes:
        user_id: whose key.
        attempt: fences: only this attempt may finish.
        failures: attempts that failed since the last success.
        key_hash: the live key; None: one is to be made.
        limit_micros: the lifetime limit that the ledger allows; None: no cap.
    """

    user_id: UUID
    attempt: int
    failures: int
    key_hash: str | None
    limit_micros: int | None


async def claim(database: Supabase, user_id: UUID, *, lease_seconds: int, request_id: str) -> Claim | None:
    """Takes the lease; None: nothing to do. Repeating it after a lost answer finds the lease taken: wait it out."""
    rows = await database.call(
        CLAIM, {"user_id": str(user_id), "lease_seconds": lease_seconds, "request_id": request_id}
    )
    if not rows:
        return None
    row = rows[0]
    limit_micros = None if row["limit_micros"] is None else int(row["limit_micros"])
    if (limit_micros is None) != row["is_uncapped"]:
        # "No limit" must be said, it can't be an omission: this is somebody's money.
        raise ValueError("the claim has neither a limit nor leave to go without one")
    return Claim(
        user_id=UUID(row["user_id"]),
        attempt=row["attempt"],
        failures=row["failures"],
        key_hash=row["key_hash"],
        limit_micros=limit_micros,
    )


async def finish(
    database: Supabase,
    claim: Claim,
    *,
    key_hash: str,
    key_name: str,
    key_label: str | None,
    sealed_secret: str,
    request_id: str,
) -> ProvisioningState:
    """Registers the key just made. Repeatable with the same arguments."""
    state = await database.call(
        FINISH,
        {
            "user_id": str(claim.user_id),
            "attempt": claim.attempt,
            "key_hash": key_hash,
            "key_name": key_name,
            "key_label": key_label,
            "limit_micros": claim.limit_micros,
            "sealed_secret": sealed_secret,
            "request_id": request_id,
        },
    )
    return ProvisioningState(state)


async def finish_key_update(database: Supabase, claim: Claim, *, request_id: str) -> ProvisioningState:
    """Records that OpenRouter took the limit. Repeatable with the same arguments."""
    state = await database.call(
        FINISH_KEY_UPDATE,
        {
            "user_id": str(claim.user_id),
            "attempt": claim.attempt,
            "key_hash": claim.key_hash,
            "limit_micros": claim.limit_micros,
            "request_id": request_id,
        },
    )
    return ProvisioningState(state)


async def defer(
    database: Supabase,
    claim: Claim,
    *,
    error: str,
    delay_seconds: int,
    gives_up: bool,
    request_id: str,
) -> ProvisioningState:
    """Ends an attempt that failed."""
    state = await database.call(
        DEFER,
        {
            "user_id": str(claim.user_id),
            "attempt": claim.attempt,
            "error": error,
            "delay_seconds": delay_seconds,
            "gives_up": gives_up,
            "request_id": request_id,
        },
    )
    return ProvisioningState(state)
