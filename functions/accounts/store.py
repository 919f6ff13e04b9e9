"""The whole SQL vocabulary of what a person may see of their own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

from functions.clients.supabase import DatabaseRefused, Rpc, Supabase
from functions.kit.errors import KeyDisabled, NoKey, RotatedTooOften
from functions.web.sessions import Session

GET_ACCOUNT = Rpc("get_account", ("user_id",), "service_role")
GET_MY_ACCOUNT = Rpc("get_my_account", (), "authenticated", service_door=GET_ACCOUNT.name)
REVEAL_KEY = Rpc("reveal_key", ("user_id", "request_id"), "service_role", own_door="reveal_my_key")
REQUEST_ROTATION = Rpc(
    "request_key_rotation",
    ("user_id", "grace_seconds", "request_id"),
    "service_role",
    own_door="request_my_key_rotation",
)
_PAGE_OF_TRANSACTIONS = ("types", "since", "until", "before_at", "before_id", "transaction_rows")
LIST_TRANSACTIONS = Rpc("list_transactions", ("user_id", *_PAGE_OF_TRANSACTIONS), "service_role")
LIST_MY_TRANSACTIONS = Rpc(
    "list_my_transactions", _PAGE_OF_TRANSACTIONS, "authenticated", service_door=LIST_TRANSACTIONS.name
)
_PAGE_OF_USAGE = ("first_day", "last_day", "after_day", "after_model", "usage_rows")
GET_USAGE = Rpc("get_usage", ("user_id", *_PAGE_OF_USAGE), "service_role")
GET_MY_USAGE = Rpc("get_my_usage", _PAGE_OF_USAGE, "authenticated", service_door=GET_USAGE.name)
CREATE_MY_PROFILE = Rpc("create_my_profile", (), "authenticated")


@dataclass(frozen=True, repr=False)
class SealedKey:
    """The sealed secret of a live key; None: it was shown before, and is shown only once."""

    key_hash: str
    sealed_secret: str | None


async def get_my_account(database: Supabase, session: Session) -> dict[str, Any] | None:
    """Profile, credits, key and provisioning of the caller, under their own token; None: not served here."""
    account: dict[str, Any] | None = await database.call(GET_MY_ACCOUNT, {}, session=session)
    return account


async def get_account(database: Supabase, user_id: UUID) -> dict[str, Any] | None:
    """The same of anybody, for operators."""
    account: dict[str, Any] | None = await database.call(GET_ACCOUNT, {"user_id": str(user_id)})
    return account


async def create_my_profile(database: Supabase, session: Session) -> bool:
    """Enrols the caller, if they are served, and makes their missing profile; whether there is one now."""
    return bool(await database.call(CREATE_MY_PROFILE, {}, session=session))


async def reveal_key(database: Supabase, session: Session, *, request_id: str) -> SealedKey | None:
    """The sealed secret of the caller's key, noted as shown; None: no key."""
    arguments = {"user_id": str(session.user_id), "request_id": request_id}
    rows = await database.call(REVEAL_KEY, arguments, session=session)
    if not rows:
        return None
    return SealedKey(rows[0]["revealed_key_hash"], rows[0]["sealed_secret"])


async def list_my_transactions(
    database: Supabase,
    session: Session,
    *,
    types: list[str] | None,
    since: datetime | None,
    until: datetime | None,
    before_at: str | None,
    before_id: int | None,
    rows: int,
) -> list[dict[str, Any]]:
    """What happened to the caller's credits, newest first.

    Args:
        database: the Data API.
        session: whose.
        types: only these; None: all.
        since: from then on.
        until: before then.
        before_at: with `before_id`, the last one that was seen; None: from the newest on.
        before_id: see there.
        rows: at most so many; 1 to 1000.
    """
    arguments = {
        "types": types,
        "since": since and since.isoformat(),
        "until": until and until.isoformat(),
        "before_at": before_at,
        "before_id": before_id,
        "transaction_rows": rows,
    }
    return list(await database.call(LIST_MY_TRANSACTIONS, arguments, session=session))


async def get_my_usage(
    database: Supabase,
    session: Session,
    *,
    first_day: date,
    last_day: date,
    after_day: date | None,
    after_model: str | None,
    rows: int,
) -> list[dict[str, Any]]:
    """What the caller was charged, by day and model, the newest day first.

    Args:
        database: the Data API.
        session: whose.
        first_day: in UTC.
        last_day: in it too; at most 92 days in all.
        after_day: with `after_model`, the last one that was seen; None: from the last day on.
        after_model: see there; empty: no model.
        rows: at most so many; 1 to 1000.
    """
    arguments = {
        "first_day": first_day.isoformat(),
        "last_day": last_day.isoformat(),
        "after_day": after_day and after_day.isoformat(),
        "after_model": after_model,
        "usage_rows": rows,
    }
    return list(await database.call(GET_MY_USAGE, arguments, session=session))


async def request_rotation(database: Supabase, session: Session, *, grace_seconds: int | None, request_id: str) -> None:
    """Wishes for another key in the place of the caller's; provisioning makes it.

    Args:
        database: the Data API.
        session: whose key.
        grace_seconds: how long the old one may finish what it began; None: as the setting says.
        request_id: for the audit log.

    Raises:
        NoKey: there is none to be replaced.
        KeyDisabled: the user is banned.
        RotatedTooOften: with the seconds to wait in Retry-After.
    """
    try:
        arguments = {"user_id": str(session.user_id), "grace_seconds": grace_seconds, "request_id": request_id}
        await database.call(REQUEST_ROTATION, arguments, session=session)
    except DatabaseRefused as refusal:
        match refusal.word:
            case "no_key":
                raise NoKey(refusal.private) from None
            case "key_disabled":
                raise KeyDisabled(refusal.private) from None
            case "rotated_too_often":
                raise RotatedTooOften(refusal.private, headers={"retry-after": refusal.hint}) from None
        raise
