"""OpenRouter's key management.

Making a key is the irreversible act: there is no idempotency key, and the secret is shown once. Errors are named by
their side of it (openrouter_errors.py; the names can be had here too). Nothing here repeats a POST; the official SDK
does, for an hour (facts.md 3), which is why it is only used in tests.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import urlencode
from uuid import UUID

import httpx
from pydantic import SecretStr

from functions.clients.openrouter_errors import (
    AccountEmpty,
    KeyNotFound,
    LimitNotTaken,
    ManagementKeyForbidden,
    ManagementKeyRejected,
    OpenRouterAnswerInvalid,
    OpenRouterAnswerLate,
    OpenRouterAnswerLost,
    OpenRouterError,
    OpenRouterFault,
    OpenRouterLimited,
    OpenRouterPage,
    OpenRouterRefused,
    OpenRouterUnreachable,
)

__all__ = [
    "MICROS_PER_DOLLAR",
    "PAGE_KEYS",
    "AccountCredits",
    "AccountEmpty",
    "CreatedKey",
    "KeyNotFound",
    "KeyUsage",
    "LimitNotTaken",
    "ListedKey",
    "ManagementKeyForbidden",
    "ManagementKeyRejected",
    "OpenRouter",
    "OpenRouterAccount",
    "OpenRouterAnswerInvalid",
    "OpenRouterAnswerLate",
    "OpenRouterAnswerLost",
    "OpenRouterError",
    "OpenRouterFault",
    "OpenRouterLimited",
    "OpenRouterPage",
    "OpenRouterRefused",
    "OpenRouterUnreachable",
]

MICROS_PER_DOLLAR = 1_000_000
# Of a figure, before its point: more is beyond all reason.
MAX_DIGITS = 30
# facts.md 1.5: fixed by OpenRouter.
PAGE_KEYS = 100
# facts.md 2.4: how far back what was spent can be asked for by day.
ACTIVITY_DAYS = 30
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, repr=False)
class CreatedKey:
    """A key just made. `secret` is shown by OpenRouter this once."""

    key_hash: str
    name: str
    label: str | None
    limit_micros: int | None
    secret: str


@dataclass(frozen=True)
class ListedKey:
    """A key as the list shows it."""

    key_hash: str
    name: str
    created_at: datetime


@dataclass(frozen=True)
class KeyUsage:
    """What the list says a key has spent, in micro-dollars and exact, and how it is limited.

    Attributes:
        key_hash: which key.
        usage_micros: OpenRouter credits spent in its life.
        daily_micros: of it, those of the present UTC day.
        byok_micros: spent in its life at providers through the account's own keys there.
        limit_micros: its lifetime limit; None: no limit. Rounded, as in the answer to a change of it.
        is_enabled: whether it may be used.
    """

    key_hash: str
    usage_micros: Decimal
    daily_micros: Decimal
    byok_micros: Decimal
    limit_micros: int | None
    is_enabled: bool


@dataclass(frozen=True)
class AccountCredits:
    """What the account has bought and spent since it exists, in micro-dollars."""

    bought_micros: int
    used_micros: int


class OpenRouterAccount(Protocol):
    """What it takes to manage an account's keys; the functions' settings have it."""

    @property
    def openrouter_base_url(self) -> str:
        """Its address."""

    @property
    def openrouter_management_key(self) -> SecretStr:
        """What lets us in."""

    @property
    def openrouter_workspace_id(self) -> UUID | None:
        """Where keys are made; None: in the default workspace."""


class OpenRouter:
    """The management side of one OpenRouter account."""

    def __init__(self, http: httpx.AsyncClient, settings: OpenRouterAccount) -> None:
        self._http = http
        self._url = settings.openrouter_base_url
        self._headers = {"Authorization": f"Bearer {settings.openrouter_management_key.get_secret_value()}"}
        self._workspace_id = settings.openrouter_workspace_id

    async def create_key(self, name: str, limit_micros: int | None) -> CreatedKey:
        """Makes a key with a lifetime limit; None is no limit.

        Raises:
            OpenRouterError: `is_outcome_unknown` tells whether a key may have been made.
        """
        body: dict[str, Any] = {
            "name": name,
            "limit": _dollars(limit_micros),
            "include_byok_in_limit": False,
        }
        if self._workspace_id is not None:
            body["workspace_id"] = str(self._workspace_id)
        answer = await self._send("POST", "/keys", body, expected=201)
        return _read_created(answer)

    async def update_key(self, key_hash: str, *, limit_micros: int | None, is_enabled: bool) -> Decimal:
        """Sets the lifetime limit of a key, and whether it may be used. Repeatable.

        Returns:
            What the key has spent in its life as OpenRouter knows it now, in micro-dollars, exact.

        Raises:
            KeyNotFound: it does not exist (any more).
            OpenRouterError: anything else.
        """
        body = {"limit": _dollars(limit_micros), "disabled": not is_enabled}
        answer = await self._send("PATCH", f"/keys/{key_hash}", body, expected=200)
        try:
            taken = (_micros(answer["data"]["limit"]), answer["data"]["disabled"])
            usage_micros = max(Decimal(0), _exact_micros(answer["data"]["usage"]))
        except (KeyError, TypeError, ValueError, ArithmeticError):
            raise OpenRouterAnswerInvalid("PATCH keys: 200, but without the key") from None
        if taken != (limit_micros, not is_enabled):
            raise LimitNotTaken("PATCH keys: 200, but another limit or switch than asked for")
        return usage_micros

    async def list_keys(self, offset: int) -> list[ListedKey]:
        """A page of keys of the workspace, newest first, disabled and expired ones too.

        Shorter than PAGE_KEYS: the last. Keys made meanwhile push others to the next page: one may come twice.

        Raises:
            OpenRouterError: no answer that could be understood.
        """
        try:
            return [
                ListedKey(
                    key_hash=str(item["hash"]),
                    name=str(item["name"]),
                    created_at=datetime.fromisoformat(item["created_at"]).astimezone(UTC),
                )
                for item in await self._list(offset)
            ]
        except (KeyError, TypeError, ValueError):
            raise OpenRouterAnswerInvalid("GET keys: 200, but no list of keys") from None

    async def list_usage(self, offset: int) -> list[KeyUsage]:
        """The same page, with what each key has spent.

        Raises:
            OpenRouterError: no answer that could be understood.
        """
        try:
            return [_read_usage(item) for item in await self._list(offset)]
        except (KeyError, TypeError, ValueError, ArithmeticError):
            raise OpenRouterAnswerInvalid("GET keys: 200, but no list of keys with their usage") from None

    async def _list(self, offset: int) -> Any:
        query = {"offset": str(offset), "include_disabled": "true", "include_expired": "true"}
        if self._workspace_id is not None:
            query["workspace_id"] = str(self._workspace_id)
        return (await self._send("GET", f"/keys?{urlencode(query)}", None, expected=200))["data"]

    async def read_activity(self, key_hash: str) -> dict[date, Decimal]:
        """What was spent through a key on each of the last ACTIVITY_DAYS UTC days that are over, in micro-dollars.

        Of a key that was deleted too. What is not in it, nothing was spent on.

        Raises:
            OpenRouterError: no answer that could be understood.
        """
        answer = await self._send("GET", f"/activity?{urlencode({'api_key_hash': key_hash})}", None, expected=200)
        spent: dict[date, Decimal] = {}
        try:
            for item in answer["data"]:
                day = date.fromisoformat(item["date"][:10])
                spent[day] = spent.get(day, Decimal(0)) + _exact_micros(item["usage"])
        except (KeyError, TypeError, ValueError, ArithmeticError):
            raise OpenRouterAnswerInvalid("GET activity: 200, but no activity") from None
        return spent

    async def delete_key(self, key_hash: str) -> None:
        """Deletes a key. One that does not exist counts as deleted.

        Raises:
            OpenRouterError: it may still exist.
        """
        try:
            await self._send("DELETE", f"/keys/{key_hash}", None, expected=200)
        except KeyNotFound:
            return

    async def read_credits(self) -> AccountCredits:
        """What the account has: the cheapest call that only a management key may make.

        Raises:
            OpenRouterError: the key is not good, or nobody can tell.
        """
        answer = await self._send("GET", "/credits", None, expected=200)
        try:
            bought, used = (
                round(Decimal(str(answer["data"][name])) * MICROS_PER_DOLLAR)
                for name in ("total_credits", "total_usage")
            )
        except (KeyError, TypeError, ValueError, ArithmeticError):
            raise OpenRouterAnswerInvalid("GET credits: 200, but no credits") from None
        return AccountCredits(bought_micros=bought, used_micros=used)

    async def _send(self, method: str, path: str, body: dict[str, Any] | None, expected: int) -> Any:
        try:
            response = await self._http.request(method, f"{self._url}{path}", headers=self._headers, json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise OpenRouterUnreachable(f"{method} keys: {type(error).__name__}") from error
        except httpx.TimeoutException as error:
            raise OpenRouterAnswerLate(f"{method} keys: no answer in time, {type(error).__name__}") from error
        except httpx.HTTPError as error:
            raise OpenRouterAnswerLost(f"{method} keys: the connection broke, {type(error).__name__}") from error
        if response.status_code != expected:
            raise _named(method, response, expected)
        try:
            # As it is written: a double would lose what stands behind its last place.
            return response.json(parse_float=Decimal)
        except (ValueError, RecursionError):
            if _is_page(response):
                raise OpenRouterPage(f"{method} keys: {expected}, but a web page") from None
            raise OpenRouterAnswerInvalid(f"{method} keys: {expected}, but no JSON") from None


def _dollars(micros: int | None) -> float | None:
    """JSON has no decimals; a double keeps micro-dollars exact up to four billion dollars."""
    return None if micros is None else micros / MICROS_PER_DOLLAR


def _exact_micros(dollars: Decimal | int) -> Decimal:
    exact = Decimal(str(dollars))
    if not exact.is_finite():
        raise ValueError("not an amount")
    # Written out it would fill the memory; that it is beyond all reason is all that matters.
    return exact.scaleb(6) if exact.adjusted() < MAX_DIGITS else Decimal(10**MAX_DIGITS).copy_sign(exact)


def _micros(dollars: Decimal | int | None) -> int | None:
    return None if dollars is None else round(Decimal(str(dollars)) * MICROS_PER_DOLLAR)


def _read_usage(item: dict[str, Any]) -> KeyUsage:
    limit = item["limit"]
    return KeyUsage(
        key_hash=str(item["hash"]),
        usage_micros=_exact_micros(item["usage"]),
        daily_micros=_exact_micros(item["usage_daily"]),
        byok_micros=_exact_micros(item["byok_usage"]),
        limit_micros=None if limit is None else round(_exact_micros(limit)),
        is_enabled=not item["disabled"],
    )


def _read_created(answer: Any) -> CreatedKey:
    try:
        data, secret = answer["data"], answer["key"]
        created = CreatedKey(
            key_hash=str(data["hash"]),
            name=str(data["name"]),
            label=data.get("label"),
            limit_micros=_micros(data["limit"]),
            secret=secret,
        )
    except (KeyError, TypeError, ValueError, ArithmeticError):
        raise OpenRouterAnswerInvalid("POST keys: 201, but without a key") from None
    if not isinstance(secret, str) or not secret:
        raise OpenRouterAnswerInvalid("POST keys: 201, but without a secret")
    # facts.md 1.4 says it is the SHA-256 of the secret. PATCH and DELETE take the API's word for it, so that counts.
    if not _HASH.fullmatch(created.key_hash):
        raise OpenRouterAnswerInvalid("POST keys: 201, but the hash is none")
    return created


def _named(method: str, response: httpx.Response, expected: int) -> OpenRouterError:
    status = response.status_code
    where = f"{method} keys: {status}"
    retry_after = _retry_after_seconds(response)
    if status == 401:
        return ManagementKeyRejected(where)
    if status == 402:
        return AccountEmpty(where, retry_after)
    if status == 403 and method in ("GET", "POST"):
        # Nothing in these is about one user: whoever asks next is told the same.
        return ManagementKeyForbidden(where, retry_after)
    if status == 404 and method != "POST":
        return KeyNotFound(where)
    if status == 429:
        return OpenRouterLimited(where, retry_after)
    if 400 <= status < 500:
        return OpenRouterRefused(where, retry_after)
    # 5xx and anything that is no refusal: on a POST the key may have been made behind a broken proxy.
    if _is_page(response):
        return OpenRouterPage(f"{where}, a web page", retry_after)
    if status >= 500:
        return OpenRouterFault(f"{where}, a fault of its own", retry_after)
    return OpenRouterAnswerInvalid(f"{where}, not {expected}", retry_after)


def _is_page(response: httpx.Response) -> bool:
    return bool(response.headers.get("content-type", "").lower().startswith("text/html"))


def _retry_after_seconds(response: httpx.Response) -> float | None:
    """Retry-After as seconds; it may be a number or a date, and is ignored when it is neither."""
    text = response.headers.get("retry-after", "")
    try:
        seconds = float(text)
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(text)
        sent = parsedate_to_datetime(response.headers["date"])
        return max(0.0, (at - sent).total_seconds())
    except (ValueError, TypeError, KeyError, OverflowError, IndexError):  # what the parser raises for garbage
        return None
