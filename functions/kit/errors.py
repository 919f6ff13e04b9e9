"""Every error that can reach a person, with its address, its status and its two messages.

    DoorkeyError
    ├── RequestInvalid            400  request_invalid
    ├── CursorInvalid             400  cursor_invalid
    ├── WebhookRefused            401  webhook_refused
    ├── UserTokenRejected         401  user_token_rejected
    ├── OperatorTokenRejected     401  operator_token_rejected
    ├── InsufficientCredits       402  insufficient_credits
    ├── RlsDenied                 403  rls_denied
    ├── AdminRequired             403  admin_required
    ├── KeyDisabled               403  key_disabled
    ├── RouteNotFound             404  route_not_found
    ├── ProfileNotFound           404  profile_not_found
    ├── NoKey                     404  no_key
    ├── HoldNotFound              404  hold_not_found
    ├── TransactionNotFound       404  transaction_not_found
    ├── ReviewNotFound            404  review_not_found
    ├── OfferNotFound             404  offer_not_found
    ├── UnknownPlan               404  unknown_plan
    ├── PlanInactive              409  plan_inactive
    ├── PlanUnchanged             409  plan_unchanged
    ├── PlanExists                409  plan_exists
    ├── PlanIsDefault             409  plan_is_default
    ├── NoPeriod                  409  no_period
    ├── MethodNotAllowed          405  method_not_allowed
    ├── IdempotencyConflict       409  idempotency_conflict
    ├── KeyReplaced               409  key_replaced
    ├── AlreadyReversed           409  already_reversed
    ├── TransactionNotReversible  409  transaction_not_reversible
    ├── ReviewOver                409  review_over
    ├── OfferExists               409  offer_exists
    ├── BodyTooLarge              413  body_too_large
    ├── AmountOutOfRange          422  amount_out_of_range
    ├── SpanOutOfRange            422  span_out_of_range
    ├── DayNotBegun               422  day_not_begun
    ├── IdempotencyKeyInvalid     422  idempotency_key_invalid
    ├── PostingInvalid            422  posting_invalid
    ├── OfferInvalid              422  offer_invalid
    ├── PlanInvalid               422  plan_invalid
    ├── ArmInvalid                422  arm_invalid
    ├── DomainInvalid             422  domain_invalid
    ├── RotatedTooOften           429  rotated_too_often
    ├── InternalError             500  internal_error
    ├── SupabaseError                  (clients/supabase.py)
    └── OpenRouterError                (clients/openrouter_errors.py)

The public sentence is the first paragraph of the class docstring: written once, shown to whoever meets the error.
What only the log may see goes into `private`, a separate argument, so that the two can't be mistaken for each other.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import ClassVar


class DoorkeyError(Exception):
    """Something went wrong.

    Attributes:
        code: the stable address of the error; clients branch on it.
        status: the HTTP status.
        is_key_rejected: whether one of the server's own keys was rejected; that is counted, and raises an alarm.
        private: a detail for the log; never shown, and never a secret, a token or an e-mail either.
        headers: HTTP headers that go with the answer.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    is_key_rejected: ClassVar[bool] = False

    def __init__(self, private: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{self.code}: {private}" if private else self.code)
        self.private = private
        self.headers = dict(headers or {})

    @property
    def sentence(self) -> str:
        """What a person is told."""
        return " ".join(inspect.getdoc(type(self)).split("\n\n")[0].split())  # type: ignore[union-attr]


class InternalError(DoorkeyError):
    """Something went wrong on our side. Quote the request id when you ask about it."""


class RequestInvalid(DoorkeyError):
    """The request can't be understood. See the documentation of this route."""

    code = "request_invalid"
    status = 400


class CursorInvalid(DoorkeyError):
    """This cursor is not one that this list gave. Begin again without it."""

    code = "cursor_invalid"
    status = 400


class WebhookRefused(DoorkeyError):
    """This webhook is not signed as it must be, too old, or not understandable."""

    code = "webhook_refused"
    status = 401


class UserTokenRejected(DoorkeyError):
    """Sign in again: the access token is missing, expired or not valid here."""

    code = "user_token_rejected"
    status = 401


class OperatorTokenRejected(DoorkeyError):
    """This route is for operators. Send the operator token as a bearer token."""

    code = "operator_token_rejected"
    status = 401


class InsufficientCredits(DoorkeyError):
    """You have not enough credits for this call. See your balance for what is available."""

    code = "insufficient_credits"
    status = 402


class RlsDenied(DoorkeyError):
    """The database does not allow this to you."""

    code = "rls_denied"
    status = 403


class AdminRequired(DoorkeyError):
    """This route is for operators, and your user is no admin."""

    code = "admin_required"
    status = 403


class RouteNotFound(DoorkeyError):
    """There is nothing at this address."""

    code = "route_not_found"
    status = 404


class ProfileNotFound(DoorkeyError):
    """There is no account for you here. Users from before the installation come in by a backfill."""

    code = "profile_not_found"
    status = 404


class NoKey(DoorkeyError):
    """There is no key for you yet. It is usually made within seconds; try again shortly."""

    code = "no_key"
    status = 404


class KeyDisabled(DoorkeyError):
    """Your key is disabled: no call goes through it, and no other one is made."""

    code = "key_disabled"
    status = 403


class KeyReplaced(DoorkeyError):
    """The key of this call has been replaced by another one. Make the call again, with the new key."""

    code = "key_replaced"
    status = 409


class HoldNotFound(DoorkeyError):
    """There is no hold of this name."""

    code = "hold_not_found"
    status = 404


class TransactionNotFound(DoorkeyError):
    """There is no transaction of this number."""

    code = "transaction_not_found"
    status = 404


class UnknownPlan(DoorkeyError):
    """There is no plan of this name."""

    code = "unknown_plan"
    status = 404


class PlanInactive(DoorkeyError):
    """Nobody comes to this plan any more; whoever is on it stays."""

    code = "plan_inactive"
    status = 409


class PlanUnchanged(DoorkeyError):
    """The user is on this plan already, and no other one waits."""

    code = "plan_unchanged"
    status = 409


class PlanExists(DoorkeyError):
    """There is a plan of this name already, with another content."""

    code = "plan_exists"
    status = 409


class PlanIsDefault(DoorkeyError):
    """New users come to this plan, so it can't be closed. Set another default_plan_id in doorkey.settings first."""

    code = "plan_is_default"
    status = 409


class PlanInvalid(DoorkeyError):
    """This makes no plan. An allowance and a cap need a period, an uncapped plan has no cap, and charging by tokens
    needs a token price. An id begins with a small letter; small letters, digits, dashes and underscores follow.
    """

    code = "plan_invalid"
    status = 422


class NoPeriod(DoorkeyError):
    """The user is in no period that could end. Change the plan now."""

    code = "no_period"
    status = 409


class TransactionNotReversible(DoorkeyError):
    """This transaction gave nobody credits, or all of them have left already: there is nothing to take back."""

    code = "transaction_not_reversible"
    status = 409


class AlreadyReversed(DoorkeyError):
    """This transaction was reversed before. It can be done once."""

    code = "already_reversed"
    status = 409


class IdempotencyConflict(DoorkeyError):
    """This idempotency key was used for another request. Use a new key for a new request."""

    code = "idempotency_conflict"
    status = 409


class AmountOutOfRange(DoorkeyError):
    """This amount is negative, zero where there must be something, or more than anything costs."""

    code = "amount_out_of_range"
    status = 422


class SpanOutOfRange(DoorkeyError):
    """This span of time is empty, or longer than may be asked for at once."""

    code = "span_out_of_range"
    status = 422


class DayNotBegun(DoorkeyError):
    """This day has not begun yet. Days are UTC days."""

    code = "day_not_begun"
    status = 422


class IdempotencyKeyInvalid(DoorkeyError):
    """An idempotency key is needed, of 1 to 180 characters."""

    code = "idempotency_key_invalid"
    status = 422


class PostingInvalid(DoorkeyError):
    """This can't be done: its type, its reason, who does it, or when, is missing or not possible."""

    code = "posting_invalid"
    status = 422


class RotatedTooOften(DoorkeyError):
    """You had several new keys within this hour. Try again later; Retry-After says when."""

    code = "rotated_too_often"
    status = 429


class ReviewNotFound(DoorkeyError):
    """No welcome of this user was ever looked at."""

    code = "review_not_found"
    status = 404


class OfferNotFound(DoorkeyError):
    """There is no offer with this code."""

    code = "offer_not_found"
    status = 404


class OfferExists(DoorkeyError):
    """This code is taken, by another offer or one that is over. An offer is not changed: take another code."""

    code = "offer_exists"
    status = 409


class ArmInvalid(DoorkeyError):
    """This makes no arm: names have 1 to 63 characters, a weight is 0 to 1000000, and days are positive."""

    code = "arm_invalid"
    status = 422


class DomainInvalid(DoorkeyError):
    """This is no domain of mail, such as mailinator.com."""

    code = "domain_invalid"
    status = 422


class OfferInvalid(DoorkeyError):
    """This can't be offered: a code is of small letters, digits, dots and dashes, and an end is to come."""

    code = "offer_invalid"
    status = 422


class MethodNotAllowed(DoorkeyError):
    """This address does not take this method."""

    code = "method_not_allowed"
    status = 405


class ReviewOver(DoorkeyError):
    """This welcome is not held: it was given at once, or taken back."""

    code = "review_over"
    status = 409


class BodyTooLarge(DoorkeyError):
    """The request is too large."""

    code = "body_too_large"
    status = 413
