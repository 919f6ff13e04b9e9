"""What the API says of an account. These models are the API's documentation."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from functions.provisioning.states import ProvisioningState

MICROS_PER_DOLLAR = 1_000_000

Status = Literal["pending", "active", "failed", "disabled", "revoked"]


class Key(BaseModel):
    """An OpenRouter key, without its secret."""

    hash: str = Field(description="OpenRouter's name for the key: SHA-256 of the secret.")
    name: str
    label: str | None = Field(description="OpenRouter's preview of the secret.")
    limit_micros: int | None = Field(description="Lifetime spend limit in micro-dollars; null: no limit.")
    status: Literal["active", "disabled", "deleted"]
    created_at: datetime


class Lot(BaseModel):
    """Credits that were given at once, and last as long."""

    type: str = Field(description="What gave them: purchase, bonus, renewal, ...")
    amount_micros: int = Field(description="As many they were, in micro-dollars.")
    remaining_micros: int = Field(description="As many are left, what is held among them.")
    expires_at: datetime | None = Field(description="Null: never.")
    granted_at: datetime


class Balance(BaseModel):
    """What the caller may spend."""

    plan: str
    available_micros: int = Field(description="Spendable now, in micro-dollars.")
    held_micros: int = Field(description="Kept for calls that are under way.")
    debt_micros: int = Field(description="Owed: what calls cost beyond what there was.")
    credits: Decimal = Field(description="available_micros in credits.")
    is_uncapped: bool = Field(description="Whether the plan bills afterwards instead of spending credits.")
    period_ends_at: datetime | None
    lots: list[Lot] = Field(description="What available and held are made of, in the order of spending; the first 100.")


class Me(BaseModel):
    """The caller: who they are, what they may spend, and where their key stands."""

    user_id: UUID
    email: str | None
    full_name: str | None
    created_at: datetime | None
    status: Status = Field(description="Where the key stands.")
    referral_code: str | None = Field(
        description="What others put into their sign-up metadata to say who brought them; null: not asked for here."
    )
    balance: Balance | None = Field(description="Null until the welcome credits were granted.")
    key: Key | None


class PreviousKey(BaseModel):
    """A key that another one took the place of: it finishes what it began, and is deleted then."""

    hash: str
    label: str | None
    retires_at: datetime


class MyKey(BaseModel):
    """The caller's key. `secret` is null where it is shown only once and was shown before."""

    status: Status
    key: Key | None
    secret: str | None
    is_rotating: bool = Field(default=False, description="Whether another key is being made in the place of this one.")
    previous_key: PreviousKey | None = None


class RotationWish(BaseModel):
    """How another key is to take the place of the caller's."""

    model_config = ConfigDict(extra="forbid")

    grace_seconds: int | None = Field(
        default=None,
        ge=0,
        le=604_800,
        description="How long the old key may finish what it began; null: as long as this installation gives.",
    )


class Pending(BaseModel):
    """There is no balance yet: the account is being made. Ask again when Retry-After says."""

    status: Literal["pending"]


class LegacyBalance(BaseModel):
    """The balance in the form that older clients know."""

    credits_remaining: Decimal
    credits_allocated: Decimal
    tier: str
    last_reset: datetime
    created_at: datetime
    updated_at: datetime


def status_of(account: dict[str, Any]) -> Status:
    """Where the key stands, in the word that people see."""
    if account["key"] is not None:
        # Also while its limit is being changed: it works.
        return "disabled" if account["key"]["status"] == "disabled" else "active"
    match ProvisioningState(account["provisioning"]["state"]):
        case ProvisioningState.DEAD:
            return "failed"
        case ProvisioningState.GONE:
            return "revoked"
        case _:
            return "pending"


def key_of(account: dict[str, Any], secret: str | None) -> MyKey:
    """The caller's key, with its secret if that may be shown."""
    previous = account["previous_key"]
    return MyKey(
        status=status_of(account),
        key=None if account["key"] is None else Key.model_validate(account["key"]),
        secret=secret,
        is_rotating=account["provisioning"]["is_rotating"],
        previous_key=None if previous is None else PreviousKey.model_validate(previous),
    )


def balance_of(account: dict[str, Any]) -> Balance | None:
    """The balance of an account; None: there is none yet."""
    purse = account["credits"]
    if purse is None:
        return None
    return Balance(
        plan=purse["plan_id"],
        available_micros=purse["available_micros"],
        held_micros=purse["held_micros"],
        debt_micros=purse["debt_micros"],
        credits=in_credits(purse["available_micros"], purse["micros_per_credit"]),
        is_uncapped=purse["is_uncapped"],
        period_ends_at=purse["period_ends_at"],
        lots=[Lot.model_validate(lot) for lot in purse["lots"]],
    )


def legacy_balance_of(account: dict[str, Any]) -> LegacyBalance | None:
    """The balance for older clients; None: there is none yet."""
    purse = account["credits"]
    if purse is None:
        return None
    return LegacyBalance(
        credits_remaining=in_credits(purse["available_micros"], purse["micros_per_credit"]),
        credits_allocated=in_credits(purse["granted_micros"], purse["micros_per_credit"]),
        tier=purse["plan_id"],
        last_reset=purse["period_started_at"] or purse["created_at"],
        created_at=purse["created_at"],
        updated_at=purse["updated_at"],
    )


def me_of(account: dict[str, Any]) -> Me:
    """Everything about the caller."""
    return Me(
        user_id=account["user_id"],
        email=account["email"],
        full_name=account["full_name"],
        created_at=account["created_at"],
        status=status_of(account),
        referral_code=account["credits"] and account["credits"]["referral_code"],
        balance=balance_of(account),
        key=None if account["key"] is None else Key.model_validate(account["key"]),
    )


def in_credits(micros: int, micros_per_credit: int) -> Decimal:
    """Micro-dollars as credits, exact, without trailing zeros."""
    amount = Decimal(micros) / Decimal(micros_per_credit)
    return amount.quantize(Decimal(1)) if amount == amount.to_integral_value() else amount.normalize()
