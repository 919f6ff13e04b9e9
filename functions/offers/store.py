"""The whole SQL vocabulary of offers: what operators offer, promises that come true, and welcomes that are held until
an operator has looked.

The surprising thing: how a user is welcomed is nowhere here. That is decided by the claim, in the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from functions.clients.supabase import DatabaseRefused, Rpc, Supabase
from functions.kit.errors import (
    ArmInvalid,
    DomainInvalid,
    DoorkeyError,
    OfferExists,
    OfferInvalid,
    OfferNotFound,
    ReviewNotFound,
    ReviewOver,
)

GRANT_PROMISED = Rpc("grant_promised_credits", ("promised_rows", "request_id"), "service_role")
LIST_REVIEWS = Rpc("list_reviews", ("after_user", "review_rows"), "service_role")
LIST_OFFERS = Rpc("list_welcome_offers", ("after_code", "offer_rows"), "service_role")
ADD_OFFER = Rpc(
    "add_welcome_offer",
    ("code", "amount_micros", "days", "ends_at", "max_grants", "actor", "request_id"),
    "service_role",
)
LIST_ARMS = Rpc("list_welcome_arms", ("after_experiment", "after_arm", "arm_rows"), "service_role")
SET_ARM = Rpc(
    "set_welcome_arm",
    ("experiment", "arm", "weight", "amount_micros", "days", "actor", "request_id"),
    "service_role",
)
LIST_DOMAINS = Rpc("list_disposable_domains", ("after_domain", "domain_rows"), "service_role")
SET_DOMAIN = Rpc("set_disposable_domain", ("domain", "is_disposable", "actor", "request_id"), "service_role")
END_OFFER = Rpc("end_welcome_offer", ("code", "actor", "request_id"), "service_role")
RELEASE = Rpc("release_welcome", ("user_id", "actor", "request_id"), "service_role")
CLAW_BACK = Rpc("claw_back_welcome", ("user_id", "reason", "actor", "request_id"), "service_role")

_REFUSALS_BY_WORD: dict[str, type[DoorkeyError]] = {
    kind.code: kind
    for kind in (ReviewNotFound, ReviewOver, OfferNotFound, OfferExists, OfferInvalid, ArmInvalid, DomainInvalid)
}


@dataclass(frozen=True)
class HeldWelcome:
    """A welcome that waits for an operator.

    Attributes:
        user_id: whose.
        created_at: since when.
        amount_micros: what they would get in all, without what a referral brings.
        reasons: what speaks against it: aliased_mail, disposable_mail, same_person, address_range, anonymous,
            not_checked.
        offer_code, experiment, arm: what chose the amount; None: something else did.
        referrer_id: who brought them.
    """

    user_id: UUID
    created_at: datetime
    amount_micros: int
    reasons: tuple[str, ...]
    offer_code: str | None
    experiment: str | None
    arm: str | None
    referrer_id: UUID | None


@dataclass(frozen=True)
class WelcomeOffer:
    """What whoever names the code at their signup gets.

    Attributes:
        code: as it is compared, in small letters.
        amount_micros: instead of what the plan gives.
        days: how long it lasts; None: for ever.
        starts_at: from when on.
        ends_at: until when; None: no end.
        max_grants: for so many; None: no bound.
        granted: how many have it; counted only where there is a bound.
        standing: open, to_come, over or used_up.
        is_switched_on: whether offers are looked at, all of them.
    """

    code: str
    amount_micros: int
    days: int | None
    starts_at: datetime
    ends_at: datetime | None
    max_grants: int | None
    granted: int
    standing: str
    is_switched_on: bool


@dataclass(frozen=True)
class WelcomeArm:
    """What some of those get who are in an experiment.

    Attributes:
        experiment, arm: their names.
        weight: how many of all weights' sum come to it; 0: nobody does.
        amount_micros: instead of what the plan gives.
        days: how long it lasts; None: for ever.
        is_running: whether new users are shared out among this experiment's arms.
    """

    experiment: str
    arm: str
    weight: int
    amount_micros: int
    days: int | None
    is_running: bool


async def list_arms(database: Supabase, *, after: WelcomeArm | None, arm_rows: int) -> list[WelcomeArm]:
    """So many arms by their experiments and names, after that one; 1 to 1000 at once."""
    arguments = {
        "after_experiment": after and after.experiment,
        "after_arm": after and after.arm,
        "arm_rows": arm_rows,
    }
    return [WelcomeArm(**row) for row in await _call(database, LIST_ARMS, arguments)]


async def set_arm(
    database: Supabase,
    experiment: str,
    arm: str,
    *,
    weight: int,
    amount_micros: int,
    days: int | None,
    actor: str,
    request_id: str,
) -> bool:
    """Has an arm be so for who comes from now on; whether its experiment is the one that runs. Repeatable.

    Raises:
        ArmInvalid: names or figures that make no arm.
    """
    arguments = {
        "experiment": experiment,
        "arm": arm,
        "weight": weight,
        "amount_micros": amount_micros,
        "days": days,
        "actor": actor,
        "request_id": request_id,
    }
    return bool(await _call(database, SET_ARM, arguments))


async def list_domains(database: Supabase, *, after_domain: str | None, domain_rows: int) -> list[str]:
    """So many domains of throw-away mail by their names, after that one; 1 to 1000 at once."""
    return list(await _call(database, LIST_DOMAINS, {"after_domain": after_domain, "domain_rows": domain_rows}))


async def set_domain(database: Supabase, domain: str, *, is_disposable: bool, actor: str, request_id: str) -> bool:
    """Has mail there count as throw-away, or not, for who comes from now on; whether that is new. Repeatable.

    Raises:
        DomainInvalid: it is none.
    """
    arguments = {"domain": domain, "is_disposable": is_disposable, "actor": actor, "request_id": request_id}
    return bool(await _call(database, SET_DOMAIN, arguments))


async def list_offers(database: Supabase, *, after_code: str | None, offer_rows: int) -> list[WelcomeOffer]:
    """So many offers by their codes, after that one; 1 to 1000 at once."""
    rows = await _call(database, LIST_OFFERS, {"after_code": after_code, "offer_rows": offer_rows})
    return [
        WelcomeOffer(
            **{
                **row,
                "starts_at": datetime.fromisoformat(row["starts_at"]),
                "ends_at": datetime.fromisoformat(row["ends_at"]) if row["ends_at"] else None,
            }
        )
        for row in rows
    ]


async def add_offer(
    database: Supabase,
    code: str,
    *,
    amount_micros: int,
    days: int | None,
    ends_at: datetime | None,
    max_grants: int | None,
    actor: str,
    request_id: str,
) -> bool:
    """Offers it from now on; whether offers are switched on. Repeatable with the same content.

    Raises:
        OfferExists: the code is taken, by another content or one that is over.
        OfferInvalid: no code, or an end that is no more to come.
    """
    arguments = {
        "code": code,
        "amount_micros": amount_micros,
        "days": days,
        "ends_at": ends_at.isoformat() if ends_at else None,
        "max_grants": max_grants,
        "actor": actor,
        "request_id": request_id,
    }
    return bool(await _call(database, ADD_OFFER, arguments))


async def end_offer(database: Supabase, code: str, *, actor: str, request_id: str) -> datetime:
    """Nobody is welcomed by it any more; since when.

    Raises:
        OfferNotFound: there is none with this code.
    """
    ended_at = await _call(database, END_OFFER, {"code": code, "actor": actor, "request_id": request_id})
    return datetime.fromisoformat(ended_at)


async def grant_promised(database: Supabase, *, promised_rows: int, request_id: str) -> int:
    """Looks at the next so many promises and gives what has come true; how many."""
    return int(await database.call(GRANT_PROMISED, {"promised_rows": promised_rows, "request_id": request_id}))


async def list_reviews(database: Supabase, *, after_user: UUID | None, review_rows: int) -> list[HeldWelcome]:
    """So many of the welcomes that are held, who waits longest first.

    Args:
        database: the Data API.
        after_user: with whom the page before ended; None: the first page.
        review_rows: 1 to 1000.

    Raises:
        ReviewNotFound: no welcome of `after_user` was ever looked at.
    """
    arguments = {"after_user": str(after_user) if after_user else None, "review_rows": review_rows}
    rows = await _call(database, LIST_REVIEWS, arguments)
    return [
        HeldWelcome(
            user_id=UUID(row["user_id"]),
            created_at=datetime.fromisoformat(row["created_at"]),
            amount_micros=row["amount_micros"],
            reasons=tuple(row["reasons"]),
            offer_code=row["offer_code"],
            experiment=row["experiment"],
            arm=row["arm"],
            referrer_id=UUID(row["referrer_id"]) if row["referrer_id"] else None,
        )
        for row in rows
    ]


async def release_welcome(database: Supabase, user_id: UUID, *, actor: str, request_id: str) -> int:
    """Gives a held welcome; what was given, in micro-dollars, and 0 if it was given before.

    Raises:
        ReviewNotFound: no welcome of this user was ever looked at.
        ReviewOver: it was never held, or was taken back.
    """
    arguments = {"user_id": str(user_id), "actor": actor, "request_id": request_id}
    return int(await _call(database, RELEASE, arguments))


async def claw_back_welcome(database: Supabase, user_id: UUID, *, reason: str, actor: str, request_id: str) -> int:
    """Takes a welcome back, held or given; what was reversed, in micro-dollars, and 0 if nothing was given.

    Raises:
        ReviewNotFound: no welcome of this user was ever looked at.
    """
    arguments = {"user_id": str(user_id), "reason": reason, "actor": actor, "request_id": request_id}
    return int(await _call(database, CLAW_BACK, arguments))


async def _call(database: Supabase, rpc: Rpc, arguments: dict[str, Any]) -> Any:
    try:
        return await database.call(rpc, arguments)
    except DatabaseRefused as refusal:
        kind = _REFUSALS_BY_WORD.get(refusal.word)
        if kind is None:
            raise
        raise kind(refusal.private) from None
