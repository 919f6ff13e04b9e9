"""What can go wrong at OpenRouter, named by its side of the irreversible act.

Whoever made a key and lost the answer must not make it again under the same name: `is_outcome_unknown` tells those
apart. Each way in which an answer is lost has a code of its own, because each is somebody else's to mend.
"""

from __future__ import annotations

from functions.kit.errors import DoorkeyError


class OpenRouterError(DoorkeyError):
    """OpenRouter did not do what was asked.

    Attributes:
        is_outcome_unknown: whether it may have happened all the same.
        is_everybodys: whether it is about the account and not about this key.
        is_outage: whether OpenRouter may be away: that several in a row meet the same would show it.
        retry_after_seconds: how long OpenRouter asked to be left alone.
    """

    code = "openrouter_failed"
    status = 502
    is_outcome_unknown = False
    # Whether it would have been refused to anybody: then trying others is pointless, and costs them nothing.
    is_everybodys = False
    is_outage = False

    def __init__(self, private: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(private)
        self.retry_after_seconds = retry_after_seconds


class OpenRouterUnreachable(OpenRouterError):
    """OpenRouter can't be reached; nothing was sent."""

    code = "openrouter_unreachable"
    is_outage = True


class OpenRouterAnswerLost(OpenRouterError):
    """The connection to OpenRouter broke before its answer; whether it did what was asked, nobody knows."""

    code = "openrouter_answer_lost"
    is_outcome_unknown = True
    is_outage = True


class OpenRouterAnswerLate(OpenRouterAnswerLost):
    """OpenRouter gave no answer in time; whether it did what was asked, nobody knows."""

    code = "openrouter_answer_late"


class OpenRouterFault(OpenRouterAnswerLost):
    """OpenRouter answered with a fault of its own; whether it did what was asked, nobody knows."""

    code = "openrouter_fault"


class OpenRouterPage(OpenRouterAnswerLost):
    """A web page came instead of OpenRouter's answer; whether it did what was asked, nobody knows."""

    code = "openrouter_page"


class OpenRouterAnswerInvalid(OpenRouterAnswerLost):
    """OpenRouter's answer lacks what was asked for; whether it was done, nobody knows."""

    code = "openrouter_answer_invalid"


class OpenRouterLimited(OpenRouterError):
    """OpenRouter asks to slow down."""

    code = "openrouter_limited"


class ManagementKeyRejected(OpenRouterError):
    """OpenRouter does not accept the management key."""

    code = "management_key_rejected"
    is_everybodys = True
    is_key_rejected = True


class ManagementKeyForbidden(ManagementKeyRejected):
    """OpenRouter does not let this key make keys: it is no management key, or the account's rules forbid it."""

    code = "management_key_forbidden"


class AccountEmpty(OpenRouterError):
    """The OpenRouter account has no credits left."""

    code = "openrouter_account_empty"
    is_everybodys = True


class OpenRouterRefused(OpenRouterError):
    """OpenRouter refused the request as it was made."""

    code = "openrouter_refused"


class LimitNotTaken(OpenRouterError):
    """OpenRouter answered with another limit than the one that was asked for."""

    code = "openrouter_limit_not_taken"


class KeyNotFound(OpenRouterError):
    """OpenRouter knows no such key."""

    code = "openrouter_key_not_found"
