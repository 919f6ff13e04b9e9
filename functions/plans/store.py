"""The whole SQL vocabulary of plans: what each is, who is on which, and the periods that it brings.

The surprising thing: a change at the end of a period is only noted here. The sweep that renews takes it up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from functions.clients.supabase import DatabaseRefused, Rpc, Supabase
from functions.kit.errors import (
    DoorkeyError,
    IdempotencyConflict,
    IdempotencyKeyInvalid,
    NoPeriod,
    PlanExists,
    PlanInactive,
    PlanInvalid,
    PlanIsDefault,
    PlanUnchanged,
    PostingInvalid,
    ProfileNotFound,
    UnknownPlan,
)

RENEW_PERIODS = Rpc("renew_periods", ("renewed_rows", "request_id"), "service_role")
EXPIRE_LOTS = Rpc("expire_lots", ("expired_rows", "request_id"), "service_role")
CHANGE_PLAN = Rpc(
    "change_plan",
    ("user_id", "plan_id", "takes_effect", "idempotency_key", "actor", "reason", "request_id"),
    "service_role",
)
# A markup has fractions.
LIST_PLANS = Rpc("list_plans", ("after_id", "plan_rows"), "service_role", is_exact=True)
SET_PLAN = Rpc(
    "set_plan",
    ("plan_id", "is_new", "plan_columns", "plan_values", "actor", "request_id"),
    "service_role",
    is_exact=True,
)

_REFUSALS: tuple[type[DoorkeyError], ...] = (
    IdempotencyConflict,
    IdempotencyKeyInvalid,
    NoPeriod,
    PlanExists,
    PlanInactive,
    PlanInvalid,
    PlanIsDefault,
    PlanUnchanged,
    PostingInvalid,
    ProfileNotFound,
    UnknownPlan,
)
_REFUSALS_BY_WORD: dict[str, type[DoorkeyError]] = {refusal.code: refusal for refusal in _REFUSALS} | {
    # Deleted: nobody, for whoever asks.
    "user_gone": ProfileNotFound,
}


@dataclass(frozen=True)
class PlanChange:
    """A change of plan that was taken up.

    Attributes:
        plan_id: the plan that the user comes to.
        effective_at: when.
        period_ends_at: when the period that they are in ends; None: they are in none.
    """

    plan_id: str
    effective_at: datetime
    period_ends_at: datetime | None


@dataclass(frozen=True)
class PlanEdit:
    """A plan as it was and is. A plan is as its row in public.plans: column and value, money in micro-dollars.

    Attributes:
        before: None: there was none.
        after: the same as before, if there was nothing to change.
        accounts: how many are on it.
        users: how many the sweep walks round, to have their keys' limits follow.
    """

    before: dict[str, Any] | None
    after: dict[str, Any]
    accounts: int
    users: int


async def list_plans(database: Supabase, *, after_id: str | None, plan_rows: int) -> list[dict[str, Any]]:
    """So many plans by their ids, after that one; 1 to 1000 at once. Each has its `accounts` and `is_default`, too."""
    return list(await database.call(LIST_PLANS, {"after_id": after_id, "plan_rows": plan_rows}))


async def set_plan(
    database: Supabase,
    plan_id: str,
    values: Mapping[str, str | None],
    *,
    is_new: bool,
    actor: str,
    request_id: str,
) -> PlanEdit:
    """Sets columns of a plan, and leaves the others as they are. Repeatable with the same content.

    Args:
        database: the Data API.
        plan_id: which.
        values: by column, as text; models and features as JSON; None: not set.
        is_new: whether it is to be added.
        actor: who asked, for the audit log.
        request_id: for the audit log.

    Raises:
        UnknownPlan: there is none, and it is not to be added.
        PlanExists: it is to be added, and there is one with another content.
        PlanInvalid: a column or value that makes no plan.
        PlanIsDefault: it is to be closed, and new users come to it.
    """
    arguments = {
        "plan_id": plan_id,
        "is_new": is_new,
        "plan_columns": list(values),
        "plan_values": list(values.values()),
        "actor": actor,
        "request_id": request_id,
    }
    return PlanEdit(**await _call(database, SET_PLAN, arguments))


async def renew_periods(database: Supabase, *, renewed_rows: int, request_id: str) -> int:
    """Renews so many periods that are over; how many it were."""
    return int(await database.call(RENEW_PERIODS, {"renewed_rows": renewed_rows, "request_id": request_id}))


async def expire_lots(database: Supabase, *, expired_rows: int, request_id: str) -> int:
    """Expires what is left of so many lots that have had their time; of how many it was."""
    return int(await database.call(EXPIRE_LOTS, {"expired_rows": expired_rows, "request_id": request_id}))


async def change_plan(
    database: Supabase,
    user_id: UUID,
    *,
    plan_id: str,
    takes_effect: str,
    idempotency_key: str,
    actor: str,
    reason: str,
    request_id: str,
) -> PlanChange:
    """Puts a user on another plan. Repeatable: the same key with the same content is the same change.

    Args:
        database: the Data API.
        user_id: who.
        plan_id: on which plan; the one they are on calls off a change that waits.
        takes_effect: ``now`` or ``period_end``.
        idempotency_key: names this change of this user; 1 to 180 characters.
        actor: who asked, for the ledger and the audit log.
        reason: why, shown to the user; 1 to 500 characters.
        request_id: for the ledger and the audit log.

    Raises:
        ProfileNotFound: no such user, or they were deleted.
        UnknownPlan, PlanInactive: nobody can come to this plan.
        PlanUnchanged: they are on it, and no change waits.
        NoPeriod: they are in no period that could end.
        PostingInvalid, IdempotencyKeyInvalid: another argument is missing or not possible.
        IdempotencyConflict: the key names another change.
    """
    (row,) = await _call(
        database,
        CHANGE_PLAN,
        {
            "user_id": str(user_id),
            "plan_id": plan_id,
            "takes_effect": takes_effect,
            "idempotency_key": idempotency_key,
            "actor": actor,
            "reason": reason,
            "request_id": request_id,
        },
    )
    ends_at = row["period_ends_at"]
    return PlanChange(
        plan_id=row["new_plan_id"],
        effective_at=datetime.fromisoformat(row["effective_at"]),
        period_ends_at=None if ends_at is None else datetime.fromisoformat(ends_at),
    )


async def _call(database: Supabase, rpc: Rpc, arguments: dict[str, Any]) -> Any:
    try:
        return await database.call(rpc, arguments)
    except DatabaseRefused as refusal:
        named = _REFUSALS_BY_WORD.get(refusal.word)
        if named is None:
            raise
        raise named(refusal.private) from None
