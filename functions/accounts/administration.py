"""What operators ask for and are told. These models are the admin API's documentation.

The surprising thing: an amount is judged before anything else is, and by its own code, because a fraction, NaN or 10^30
is a mistake about money and no slip of the syntax.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from functions.accounts.answers import Me, me_of
from functions.accounts.moments import Moment
from functions.kit.errors import AmountOutOfRange, IdempotencyKeyInvalid

MAX_MICROS = 10**12
# Visible ASCII: it is a header.
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,180}")


def read_micros(value: object) -> int:
    """Whole micro-dollars, of either sign.

    Raises:
        AmountOutOfRange: no whole number, zero, or more than 10^12.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= abs(value) <= MAX_MICROS:
        raise AmountOutOfRange(type(value).__name__)
    return value


def read_storable(text: str) -> str:
    """A text that the database can hold.

    Raises:
        ValueError: it has a NUL.
    """
    if "\0" in text:
        raise ValueError("NUL")
    return text


def read_idempotency_key(header: str | None) -> str:
    """The key that a request is repeated by.

    Raises:
        IdempotencyKeyInvalid: there is none, or it is none.
    """
    if header is None or not _IDEMPOTENCY_KEY.fullmatch(header):
        raise IdempotencyKeyInvalid("none" if header is None else "not visible ASCII of that length")
    return header


Micros = Annotated[int, BeforeValidator(read_micros)]
Reason = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(read_storable)]


class CreditsWish(BaseModel):
    """Credits to be given, or taken."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["purchase", "bonus", "refund", "adjustment"]
    amount_micros: Micros = Field(
        description="Whole micro-dollars, up to 10^12; negative takes, which a purchase can't. What is spent is owed."
    )
    reason: Reason = Field(description="For people: the user sees it among their transactions.")
    expires_at: Moment | None = Field(default=None, description="Of what is given; null: never.")


class PostedCredits(BaseModel):
    """What was posted; the same answer to the same request. The key's limit follows within a minute."""

    transaction_id: int
    available_after_micros: int = Field(description="What the user could spend right after it.")
    owed_micros: int = Field(description="What of it was spent already, so that the user came to owe it.")


class PlanWish(BaseModel):
    """Another plan for a user."""

    model_config = ConfigDict(extra="forbid")

    plan: Annotated[str, Field(min_length=1, max_length=63), AfterValidator(read_storable)]
    when: Literal["now", "period_end"] = "now"
    reason: Reason = Field(description="For people.")


class ChangedPlan(BaseModel):
    """What was changed; the same answer to the same request."""

    plan: str
    effective_at: datetime
    period_ends_at: datetime | None


class Account(Me):
    """A user, as operators see them."""

    state: str = Field(description="Of the key: due, working, ready, waiting, dead, gone, manual.")
    last_error: str | None = Field(description="What the last attempt met.")


def account_of(account: dict[str, Any]) -> Account:
    """Everything about a user."""
    provisioning = account["provisioning"]
    return Account(**me_of(account).model_dump(), state=provisioning["state"], last_error=provisioning["last_error"])
