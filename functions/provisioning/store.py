"""The whole SQL vocabulary of provisioning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from functions.clients.supabase import Caller, Rpc, Supabase
from functions.provisioning.names import KeyName
from functions.provisioning.states import Chance, KeyAction, KeyKind, ProvisioningState

CLAIM = Rpc(
    "claim_provisioning",
    ("user_id", "lease_seconds", "request_id", "chance"),
    "service_role",
    own_door="claim_my_provisioning",
)
FINISH = Rpc(
    "finish_provisioning",
    ("user_id", "attempt", "key_hash", "key_name", "key_label", "limit_micros", "sealed_secret", "request_id"),
    "service_role",
    own_door="finish_my_provisioning",
)
FINISH_KEY_UPDATE = Rpc(
    "finish_key_update",
    ("user_id", "attempt", "key_hash", "limit_micros", "is_enabled", "usage_micros", "request_id"),
    "service_role",
    own_door="finish_my_key_update",
)
FINISH_KEY_DELETION = Rpc(
    "finish_key_deletion",
    ("user_id", "attempt", "key_hash", "request_id"),
    "service_role",
    own_door="finish_my_key_deletion",
)
DEFER = Rpc(
    "defer_provisioning",
    ("user_id", "attempt", "error", "delay_seconds", "gives_up", "is_outage", "request_id"),
    "service_role",
    own_door="defer_my_provisioning",
)
HOLD = Rpc(
    "hold_provisioning",
    ("user_id", "attempt", "error", "request_id"),
    "service_role",
    own_door="hold_my_provisioning",
)
REDRIVE = Rpc("redrive_provisioning", ("user_id", "error", "redriven_rows", "request_id"), "service_role")
START_SWEEP = Rpc("start_sweep", ("users",), "service_role")
LIST_DUE = Rpc("list_due_provisioning", ("due_rows",), "service_role")
CLASSIFY_KEYS = Rpc("classify_keys", ("key_hashes", "user_ids", "attempts"), "service_role")
RECHECK_KEY = Rpc("recheck_key", ("user_id", "request_id"), "service_role", own_door="recheck_my_key")
_OLD_USERS = ("after", "user_id", "created_since", "created_before", "users")
PREVIEW_BACKFILL = Rpc("preview_backfill", _OLD_USERS, "service_role")
BACKFILL = Rpc("backfill_users", (*_OLD_USERS, "per_hour", "request_id"), "service_role")
BACKFILL_PROGRESS = Rpc("get_backfill_progress", (), "service_role")

LEASE_LOST = "lease_lost"
USER_GONE = "user_gone"


@dataclass(frozen=True)
class Claim:
    """A lease on one user's row, and all that the work needs.

    Attributes:
        user_id: whose key.
        attempt: fences: only this attempt may finish.
        failures: attempts that failed since the last success.
        action: what is to be done at OpenRouter.
        key_hash: the key that it is to be done with; None exactly when one is to be made.
        limit_micros: the lifetime limit that the ledger allows; None: no cap.
        is_enabled: whether the key may be used; not while the user is banned.
    """

    user_id: UUID
    attempt: int
    failures: int
    action: KeyAction
    key_hash: str | None
    limit_micros: int | None
    is_enabled: bool


async def claim(
    database: Supabase,
    user_id: UUID,
    *,
    lease_seconds: int,
    request_id: str,
    chance: Chance,
    session: Caller | None = None,
) -> Claim | None:
    """Takes the lease; None: nothing to do. Repeating it after a lost answer finds the lease taken: wait it out."""
    about = {"user_id": str(user_id), "lease_seconds": lease_seconds}
    rows = await database.call(CLAIM, {**about, "request_id": request_id, "chance": chance}, session=session)
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
        action=KeyAction(row["action"]),
        key_hash=row["key_hash"],
        limit_micros=limit_micros,
        is_enabled=row["is_enabled"],
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
    session: Caller | None = None,
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
        session=session,
    )
    return ProvisioningState(state)


async def finish_key_update(
    database: Supabase, claim: Claim, *, usage_micros: Decimal, request_id: str, session: Caller | None = None
) -> ProvisioningState:
    """Records that OpenRouter took the limit and the switch, and what it said was spent. Repeatable likewise."""
    state = await database.call(
        FINISH_KEY_UPDATE,
        {
            "user_id": str(claim.user_id),
            "attempt": claim.attempt,
            "key_hash": claim.key_hash,
            "limit_micros": claim.limit_micros,
            "is_enabled": claim.is_enabled,
            # As text and without an exponent, like every cost.
            "usage_micros": format(usage_micros, "f"),
            "request_id": request_id,
        },
        session=session,
    )
    return ProvisioningState(state)


async def finish_key_deletion(
    database: Supabase, claim: Claim, *, request_id: str, session: Caller | None = None
) -> ProvisioningState:
    """Records that the key is no more; whoever is still here is due for a new one. Repeatable likewise."""
    about = {"user_id": str(claim.user_id), "attempt": claim.attempt, "key_hash": claim.key_hash}
    state = await database.call(FINISH_KEY_DELETION, {**about, "request_id": request_id}, session=session)
    return ProvisioningState(state)


async def defer(
    database: Supabase,
    claim: Claim,
    *,
    error: str,
    delay_seconds: int,
    gives_up: bool,
    is_outage: bool,
    request_id: str,
    session: Caller | None = None,
) -> ProvisioningState:
    """Ends an attempt that failed. Several in a row by an outage hold the queue, and burn no more attempts."""
    state = await database.call(
        DEFER,
        {
            "user_id": str(claim.user_id),
            "attempt": claim.attempt,
            "error": error,
            "delay_seconds": delay_seconds,
            "gives_up": gives_up,
            "is_outage": is_outage,
            "request_id": request_id,
        },
        session=session,
    )
    return ProvisioningState(state)


async def hold(database: Supabase, claim: Claim, *, error: str, request_id: str, session: Caller | None = None) -> None:
    """Ends an attempt that would have been refused to anybody: none is burnt, and the queue is held for a minute."""
    arguments = {"user_id": str(claim.user_id), "attempt": claim.attempt, "error": error, "request_id": request_id}
    await database.call(HOLD, arguments, session=session)


async def redrive(
    database: Supabase, *, user_id: UUID | None, error: str | None, redriven_rows: int, request_id: str
) -> int:
    """Gives rows that were given up or wait another chance now; how many."""
    count = await database.call(
        REDRIVE,
        {
            "user_id": str(user_id) if user_id else None,
            "error": error,
            "redriven_rows": redriven_rows,
            "request_id": request_id,
        },
    )
    return int(count)


@dataclass(frozen=True)
class SweepStart:
    """What the database did by itself at the start of a sweep, and how far behind it is.

    Attributes:
        enrolled: users whom the trigger had missed.
        healed: users whose key was not as it should be, and who are due again.
        pruned: lines of the audit log that were too old.
        oldest_due_seconds: how long the longest waiting has waited.
        dead: rows that were given up.
        held_reason: why nobody is claimed but one probe a minute; None: all is well.
        is_braked: whether the hour is full.
    """

    enrolled: int
    healed: int
    pruned: int
    oldest_due_seconds: int
    dead: int
    held_reason: str | None
    is_braked: bool


async def start_sweep(database: Supabase, *, users: int) -> SweepStart:
    """Begins a sweep; looks at so many users whom the trigger may have missed."""
    (row,) = await database.call(START_SWEEP, {"users": users})
    return SweepStart(**row)


async def list_due(database: Supabase, *, due_rows: int) -> list[UUID]:
    """Who is due, longest waiting first."""
    return [UUID(user_id) for user_id in await database.call(LIST_DUE, {"due_rows": due_rows})]


async def classify_keys(database: Supabase, keys: Mapping[str, KeyName]) -> dict[str, KeyKind]:
    """What these keys are, by hash, that go by our names at OpenRouter."""
    names = list(keys.values())
    found = await database.call(
        CLASSIFY_KEYS,
        {
            "key_hashes": list(keys),
            "user_ids": [str(name.user_id) for name in names],
            "attempts": [name.attempt for name in names],
        },
    )
    return {row["key_hash"]: KeyKind(row["kind"]) for row in found}


async def recheck_key(database: Supabase, claim: Claim, *, request_id: str, session: Caller | None = None) -> None:
    """Has the key set right again, after something was done to it too late."""
    arguments = {"user_id": str(claim.user_id), "request_id": request_id}
    await database.call(RECHECK_KEY, arguments, session=session)


@dataclass(frozen=True)
class OldUsers:
    """Which users from before the installation; None: all of them.

    Attributes:
        user_id: only this one.
        created_since: only those created then or later.
        created_before: only those created earlier.
    """

    user_id: UUID | None = None
    created_since: datetime | None = None
    created_before: datetime | None = None

    def arguments(self, after: UUID | None, users: int) -> dict[str, str | int | None]:
        """As the doors take them: so many users after that one."""
        return {
            "after": str(after) if after else None,
            "user_id": str(self.user_id) if self.user_id else None,
            "created_since": self.created_since.isoformat() if self.created_since else None,
            "created_before": self.created_before.isoformat() if self.created_before else None,
            "users": users,
        }


@dataclass(frozen=True)
class BackfillPreview:
    """Some users from before who have no row.

    Attributes:
        confirmed, unconfirmed, anonymous: how many a backfill would enrol, by kind.
        left_out: how many it would not: banned or deleted.
        due: how many would get a key at once; the other enrolled ones would wait.
        next_after: where to go on; None: there are no more.
    """

    confirmed: int
    unconfirmed: int
    anonymous: int
    left_out: int
    due: int
    next_after: UUID | None


@dataclass(frozen=True)
class BackfilledBatch:
    """What one batch enrolled.

    Attributes:
        due: how many will get a key, each at a moment of their own.
        waiting: how many wait, as they would had they signed up today.
        unfilled_profiles: how many have no row in the host's profiles that could be filled; the audit log says why.
        next_after: where to go on; None: there are no more.
    """

    due: int
    waiting: int
    unfilled_profiles: int
    next_after: UUID | None


@dataclass(frozen=True)
class BackfillProgress:
    """How all backfills together stand, and what bounds them.

    Attributes:
        waiting, due, working, ready, dead, gone: how many users from before are in this state.
        ahead_seconds: until the last moment that was given to one of them.
        last_sweep_seconds: since the last sweep began; None: none ever did.
        held_reason: why nobody is claimed but one probe a minute; None: all is well.
        max_keys_per_hour: the brake; None: there is none.
        max_per_hour: how much of it a backfill may have.
        provision_on: the setting of that name.
        welcome_micros: what a new user on the default plan is greeted with.
        micros_per_credit: what a credit is worth.
        is_uncapped: whether keys on the default plan have no limit.
    """

    waiting: int
    due: int
    working: int
    ready: int
    dead: int
    gone: int
    ahead_seconds: float
    last_sweep_seconds: float | None
    held_reason: str | None
    max_keys_per_hour: int | None
    max_per_hour: int | None
    provision_on: str
    welcome_micros: int
    micros_per_credit: int
    is_uncapped: bool


async def preview_backfill(database: Supabase, chosen: OldUsers, *, after: UUID | None, users: int) -> BackfillPreview:
    """Counts so many users whom a backfill would enrol, by id after that one. Changes nothing."""
    (row,) = await database.call(PREVIEW_BACKFILL, chosen.arguments(after, users))
    return BackfillPreview(**{**row, "next_after": UUID(row["next_after"]) if row["next_after"] else None})


async def backfill(
    database: Supabase, chosen: OldUsers, *, after: UUID | None, users: int, per_hour: int, request_id: str
) -> BackfilledBatch:
    """Enrols so many users, by id after that one. Repeatable: whoever is enrolled is passed over."""
    (row,) = await database.call(
        BACKFILL, {**chosen.arguments(after, users), "per_hour": per_hour, "request_id": request_id}
    )
    return BackfilledBatch(**{**row, "next_after": UUID(row["next_after"]) if row["next_after"] else None})


async def backfill_progress(database: Supabase) -> BackfillProgress:
    """How all backfills together stand."""
    (row,) = await database.call(BACKFILL_PROGRESS, {})
    return BackfillProgress(**row)
