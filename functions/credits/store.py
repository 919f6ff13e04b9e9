"""The whole SQL vocabulary of credits: keep some for a call, charge what it cost, give back what it did not need; and
what an operator gives and takes.

The surprising thing: a settlement is never refused for want of money, nor because its hold is over. What was spent was
spent, and the user may come to owe it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from functions.clients.supabase import Caller, DatabaseRefused, Json, Rpc, Supabase, ValueRefused
from functions.kit.errors import (
    AlreadyReversed,
    AmountOutOfRange,
    DoorkeyError,
    HoldNotFound,
    IdempotencyConflict,
    IdempotencyKeyInvalid,
    InsufficientCredits,
    KeyDisabled,
    KeyReplaced,
    NoKey,
    PostingInvalid,
    ProfileNotFound,
    TransactionNotFound,
    TransactionNotReversible,
)

RESERVE = Rpc(
    "reserve_credits",
    ("user_id", "amount_micros", "ttl_seconds", "idempotency_key", "key_hash", "request_id"),
    "service_role",
    own_door="reserve_my_credits",
)
SETTLE = Rpc(
    "settle_credits",
    ("hold_id", "cost_micros", "tokens", "provider", "model", "generation_id", "request_id"),
    "service_role",
    own_door="settle_my_hold",
)
RELEASE = Rpc("release_credits", ("hold_id", "request_id"), "service_role", own_door="release_my_hold")
EXPIRE_HOLDS = Rpc("expire_holds", ("expired_rows", "request_id"), "service_role")
POST = Rpc(
    "post_credits",
    ("user_id", "type", "amount_micros", "idempotency_key", "reason", "actor", "expires_at", "request_id"),
    "service_role",
)
REVERSE = Rpc(
    "reverse_transaction", ("transaction_id", "idempotency_key", "reason", "actor", "request_id"), "service_role"
)
VERIFY = Rpc(
    "verify_ledger", ("after_user", "after_transaction", "carried", "user_rows", "transaction_rows"), "service_role"
)
VERIFY_RECEIPTS = Rpc("verify_receipts", ("after_user", "after_key", "hold_rows"), "service_role")

_REFUSALS: tuple[type[DoorkeyError], ...] = (
    AlreadyReversed,
    AmountOutOfRange,
    HoldNotFound,
    IdempotencyConflict,
    IdempotencyKeyInvalid,
    InsufficientCredits,
    KeyDisabled,
    KeyReplaced,
    NoKey,
    PostingInvalid,
    ProfileNotFound,
    TransactionNotFound,
    TransactionNotReversible,
)
_REFUSALS_BY_WORD = {refusal.code: refusal for refusal in _REFUSALS}


@dataclass(frozen=True)
class Hold:
    """Credits kept for one call.

    Attributes:
        hold_id: what it is settled or released by.
        key_hash: the key that the call is to go through.
        expires_at: when it is given back, unless it is settled or released before.
        available_after_micros: what was left to spend beside it.
    """

    hold_id: UUID
    key_hash: str
    expires_at: datetime
    available_after_micros: int


@dataclass(frozen=True)
class Settlement:
    """What a call was charged.

    Attributes:
        charged_micros: in all, at the plan's price.
        owed_micros: the part of it that the user had no credits for.
    """

    charged_micros: int
    owed_micros: int


@dataclass(frozen=True)
class Posting:
    """Credits that an operator gave or took.

    Attributes:
        transaction_id: in the ledger.
        available_after_micros: what the user could spend right after it.
        owed_micros: what of it was spent already, so that the user came to owe it.
    """

    transaction_id: int
    available_after_micros: int
    owed_micros: int


async def reserve(
    database: Supabase,
    user_id: UUID,
    *,
    amount_micros: int,
    ttl_seconds: int,
    idempotency_key: str,
    key_hash: str | None,
    request_id: str,
    session: Caller | None = None,
) -> Hold:
    """Keeps credits for a call. Repeatable: the same key with the same content is the same hold.

    Args:
        database: the Data API.
        user_id: whose credits.
        amount_micros: what the call may cost at most; kept only where the plan has a cap.
        ttl_seconds: how long it is kept; 1 to 86400.
        idempotency_key: names this hold; 1 to 200 characters.
        key_hash: the key that the call is to go through; None: the one in use.
        request_id: for the ledger.
        session: the user's own, where they asked themselves: it carries on when the service key is rejected.

    Raises:
        InsufficientCredits: less is available.
        ProfileNotFound, NoKey, KeyDisabled: nobody, or no key, to make a call with.
        KeyReplaced: another key is in use by now.
        IdempotencyConflict: the key names another hold.
        AmountOutOfRange: not 1 to 10^12.
    """
    rows = await _call(
        database,
        RESERVE,
        {
            "user_id": str(user_id),
            "amount_micros": amount_micros,
            "ttl_seconds": ttl_seconds,
            "idempotency_key": idempotency_key,
            "key_hash": key_hash,
            "request_id": request_id,
        },
        session,
    )
    (row,) = rows
    return Hold(
        hold_id=UUID(row["hold_id"]),
        key_hash=row["bound_key_hash"],
        expires_at=datetime.fromisoformat(row["expires_at"]),
        available_after_micros=row["available_after_micros"],
    )


async def settle(
    database: Supabase,
    hold_id: UUID,
    *,
    cost_micros: Decimal,
    tokens: int | None = None,
    provider: str | None,
    model: str | None,
    generation_id: str | None,
    request_id: str,
    session: Caller | None = None,
) -> Settlement:
    """Charges a call, whatever became of its hold. Repeatable with the same arguments.

    Args:
        database: the Data API.
        hold_id: of the call.
        cost_micros: what it cost at the provider, exactly as received.
        tokens: how many it was, both ways; what it is charged by on a plan with a price for tokens. None: nobody knows,
            and it is charged by its cost; 10^9 at most.
        provider: who served it.
        model: which one.
        generation_id: what OpenRouter calls the call.
        request_id: for the ledger.
        session: as for `reserve`.

    Raises:
        HoldNotFound: there is none.
        IdempotencyConflict: it was settled with another content.
        AmountOutOfRange: not 0 to 10^12, or with more than 30 places.
    """
    (row,) = await _call(
        database,
        SETTLE,
        {
            "hold_id": str(hold_id),
            # As text: a JSON number would pass through somebody's binary fractions. And without an exponent: a proof is
            # over what Postgres writes. (Its zero has no sign.)
            "cost_micros": format(abs(cost_micros) if cost_micros.is_zero() else cost_micros, "f"),
            "tokens": tokens,
            "provider": provider,
            "model": model,
            "generation_id": generation_id,
            "request_id": request_id,
        },
        session,
    )
    return Settlement(**row)


async def release(database: Supabase, hold_id: UUID, *, request_id: str, session: Caller | None = None) -> str:
    """Gives a hold back whose call cost nothing. Says its state: one that is closed stays as it is. Repeatable.

    Raises:
        HoldNotFound: there is none.
    """
    state: str = await _call(database, RELEASE, {"hold_id": str(hold_id), "request_id": request_id}, session)
    return state


async def expire_holds(database: Supabase, *, expired_rows: int, request_id: str) -> int:
    """Gives so many holds back whose time is over; how many it were."""
    return int(await _call(database, EXPIRE_HOLDS, {"expired_rows": expired_rows, "request_id": request_id}))


async def post(
    database: Supabase,
    user_id: UUID,
    *,
    type: str,  # noqa: A002  the ledger's word
    amount_micros: int,
    idempotency_key: str,
    reason: str,
    actor: str,
    expires_at: datetime | None,
    request_id: str,
) -> Posting:
    """Gives a user credits, or takes them; the next sweep has their key's limit follow.

    Repeatable: the same key with the same content answers as it did the first time. (Who asks may be another one.)

    Args:
        database: the Data API.
        user_id: whose credits.
        type: purchase, bonus, refund or adjustment.
        amount_micros: what to give; with a minus sign, to take. 1 to 10^12. A purchase is given.
        idempotency_key: names this posting among those of its type, whoever's credits; 1 to 180 characters.
        reason: for people, and shown to the user; 1 to 500 characters.
        actor: who does it, for the ledger and the audit log.
        expires_at: of what is given; None: it doesn't expire.
        request_id: for the ledger and the audit log.

    Raises:
        ProfileNotFound: no such user.
        AmountOutOfRange: zero, more than that, not whole, or no number.
        PostingInvalid, IdempotencyKeyInvalid: another argument is missing or not possible.
        IdempotencyConflict: the key names another posting.
    """
    (row,) = await _call(
        database,
        POST,
        {
            "user_id": str(user_id),
            "type": type,
            # As text: the database judges what is no number, and no fraction of one is lost on the way there.
            "amount_micros": str(amount_micros),
            "idempotency_key": idempotency_key,
            "reason": reason,
            "actor": actor,
            "expires_at": expires_at.isoformat() if expires_at else None,
            "request_id": request_id,
        },
    )
    return Posting(**row)


async def reverse(
    database: Supabase, transaction_id: int, *, idempotency_key: str, reason: str, actor: str, request_id: str
) -> Posting:
    """Takes a whole grant back, once: what is left of it, and what is spent already is owed. Repeatable likewise.

    Raises:
        TransactionNotFound, TransactionNotReversible: it is none that gave credits, or they have left.
        AlreadyReversed: under another key.
        PostingInvalid, IdempotencyKeyInvalid, IdempotencyConflict: as for `post`.
    """
    (row,) = await _call(
        database,
        REVERSE,
        {
            "transaction_id": transaction_id,
            "idempotency_key": idempotency_key,
            "reason": reason,
            "actor": actor,
            "request_id": request_id,
        },
    )
    return Posting(row["reversing_id"], row["available_after_micros"], row["owed_micros"])


async def _call(database: Supabase, rpc: Rpc, arguments: Mapping[str, Json], session: Caller | None = None) -> Json:
    try:
        return await database.call(rpc, arguments, session=session)
    except DatabaseRefused as refusal:
        named = _REFUSALS_BY_WORD.get(refusal.word)
        if named is None:
            raise
        raise named(refusal.private) from None
    except ValueRefused as refusal:
        # All else has the type that it must have: only an amount can be a fraction, too large or no number.
        raise AmountOutOfRange(refusal.private) from None
