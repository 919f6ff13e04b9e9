"""The database through Supabase's Data API, and Auth's sign-up.

One RPC is one transaction. A call that failed is named by whether the transaction may have happened: before it
(retry freely), at it (the answer was lost, nobody knows), or refused.

httpx and not `postgrest`: its errors carry no HTTP status, and the status is what tells a rejected key from a
refusal. See docs/decisions/0003.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from functions.kit.errors import DoorkeyError, RlsDenied, UserTokenRejected
from functions.kit.settings import Settings

Json = Any

REFUSAL_PREFIX = "PT"
INSUFFICIENT_PRIVILEGE = "42501"
# Deadlock, serialization failure, lock not available, statement cancelled: rolled back, and worth another try.
BUSY_CODES = ("40P01", "40001", "55P03", "57014")
BAD_TOKEN_CODES = ("PGRST300", "PGRST301", "PGRST302", "PGRST303")
CALLER_ADDRESS_HEADER = "Sb-Forwarded-For"


class SupabaseError(DoorkeyError):
    """Supabase did not do what was asked."""

    code = "supabase_failed"
    status = 502


class SupabaseUnreachable(SupabaseError):
    """The database can't be reached at the moment. Try again shortly; nothing was lost."""

    code = "supabase_unreachable"
    status = 503


class SupabaseAnswerLost(SupabaseError):
    """The database did not answer in time. What you asked for may have happened."""

    code = "supabase_answer_lost"
    status = 504


class DatabaseBusy(SupabaseError):
    """The database is too busy at the moment. Nothing happened; try again shortly."""

    code = "database_busy"
    status = 503


class ServiceKeyRejected(SupabaseError):
    """The server's key for the database is not accepted. Its operators have been told; nothing was lost."""

    code = "service_key_rejected"
    status = 503
    is_key_rejected = True


class PublishableKeyRejected(SupabaseError):
    """The server's public key for the database is not accepted. Its operators have been told."""

    code = "publishable_key_rejected"
    status = 503
    is_key_rejected = True


class DatabaseRefused(SupabaseError):
    """The database refused, with a word that says why.

    Attributes:
        word: the stable word, such as ``lease_lost``.
        hint: what goes with it.
    """

    code = "database_refused"
    status = 409

    def __init__(self, word: str, status: int, hint: str = "") -> None:
        super().__init__(f"{word} ({status})")
        self.word = word
        self.hint = hint
        self.http_status = status


@dataclass(frozen=True)
class Rpc:
    """A door in the database, declared once in the `store.py` of its noun.

    Attributes:
        name: of the function in `public`.
        arguments: their names, all of them; scalars and arrays only.
        role: who may call it, and so whose credentials carry the call.
        own_door: the person's own way to the same, when the service key is rejected; None: there is none. It takes
            the same arguments but `user_id`, and the proof of a function of ours (proofs.py).
    """

    name: str
    arguments: tuple[str, ...]
    role: Literal["service_role", "authenticated"]
    own_door: str | None = None


@dataclass(frozen=True)
class AuthAnswer:
    """What Auth answered, to be passed on unchanged."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str]


class Supabase:
    """One project. The httpx client is shared; credentials are put on each request and nowhere else."""

    def __init__(self, http: httpx.AsyncClient, settings: Settings) -> None:
        self._http = http
        self._url = settings.supabase_url
        self._publishable_key = settings.supabase_publishable_key.get_secret_value()
        self._secret_key = settings.supabase_secret_key.get_secret_value()
        self._forwards_caller_address = settings.doorkey_forwards_caller_address

    async def call(self, rpc: Rpc, arguments: Mapping[str, Json], *, user_token: str | None = None) -> Json:
        """Calls a door and returns its result; None for an empty answer.

        Args:
            rpc: which.
            arguments: exactly those it declares.
            user_token: the person's own JWT, for doors that are theirs.

        Raises:
            DatabaseRefused: the door said no (PT4xx); `word` says why.
            ServiceKeyRejected, PublishableKeyRejected, UserTokenRejected, RlsDenied: whose credentials failed.
            SupabaseUnreachable: nothing happened.
            SupabaseAnswerLost: it may have happened.
            SupabaseError: anything else.
        """
        if set(arguments) != set(rpc.arguments):
            raise TypeError(f"{rpc.name} takes {rpc.arguments}, not {tuple(arguments)}")
        response = await self._send(
            f"{self._url}/rest/v1/rpc/{rpc.name}", self._credentials(rpc, user_token), arguments
        )
        if not response.is_success:
            raise _named(response, rpc)
        try:
            return response.json() if response.content else None
        except ValueError:
            raise SupabaseAnswerLost(f"{rpc.name}: {response.status_code}, but no JSON") from None

    async def fetch_jwks(self) -> Json:
        """The public keys that sign access tokens.

        Raises:
            SupabaseUnreachable: or no usable answer; safe to repeat.
        """
        try:
            response = await self._http.get(f"{self._url}/auth/v1/.well-known/jwks.json")
            response.raise_for_status()
            document = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise SupabaseUnreachable(f"JWKS: {type(error).__name__}") from error
        if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
            # Somebody else's 200: what is known stays known.
            raise SupabaseUnreachable("JWKS: no set of keys")
        return document

    async def sign_up(
        self,
        body: bytes,
        query: str,
        caller_address: str | None,
        redirect_headers: Mapping[str, str],
    ) -> AuthAnswer:
        """Passes a sign-up on to Auth, with the caller's address.

        Auth heeds the address only from holders of the secret key, and asks them for no CAPTCHA. So the publishable
        key carries the call, unless the settings say otherwise.

        Raises:
            ServiceKeyRejected, PublishableKeyRejected: it was not Auth that answered.
            SupabaseUnreachable, SupabaseAnswerLost: as for `call`.
        """
        headers = {
            **redirect_headers,
            **_key_headers(self._secret_key if self._forwards_caller_address else self._publishable_key),
            "Content-Type": "application/json",
        }
        if caller_address:
            headers[CALLER_ADDRESS_HEADER] = caller_address
        url = f"{self._url}/auth/v1/signup" + (f"?{query}" if query else "")
        response = await self._send(url, headers, body)
        if response.status_code == 401 and not _has_code(response):
            # About our key, and no business of the caller's.
            kind = ServiceKeyRejected if self._forwards_caller_address else PublishableKeyRejected
            raise kind("signup: 401 without a code")
        return AuthAnswer(
            status=response.status_code,
            content_type=response.headers.get("content-type", "application/json"),
            body=response.content,
            headers={n: v for n, v in response.headers.items() if n in ("retry-after", "x-supabase-api-version")},
        )

    def _credentials(self, rpc: Rpc, user_token: str | None) -> dict[str, str]:
        if rpc.role == "service_role":
            return _key_headers(self._secret_key)
        if user_token is None:
            raise TypeError(f"{rpc.name} is a person's own door and needs their token")
        return {"apikey": self._publishable_key, "Authorization": f"Bearer {user_token}"}

    async def _send(self, url: str, headers: Mapping[str, str], content: Mapping[str, Json] | bytes) -> httpx.Response:
        try:
            if isinstance(content, bytes):
                return await self._http.post(url, headers=dict(headers), content=content)
            return await self._http.post(url, headers=dict(headers), json=dict(content))
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise SupabaseUnreachable(type(error).__name__) from error
        except httpx.HTTPError as error:
            raise SupabaseAnswerLost(type(error).__name__) from error


def _key_headers(key: str) -> dict[str, str]:
    # A legacy key is a JWT that the Data API itself must see; an sb_ key is not one and belongs in `apikey` alone.
    headers = {"apikey": key}
    if key.startswith("eyJ"):
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _has_code(response: httpx.Response) -> bool:
    """Whether an answer has a code of Auth's: the gateway speaks without one (supabase.md 3)."""
    try:
        body = response.json()
    except ValueError:
        return False
    return isinstance(body, dict) and ("code" in body or "error_code" in body)


def _named(response: httpx.Response, rpc: Rpc) -> SupabaseError | RlsDenied | UserTokenRejected:
    """The error that a failed answer stands for; sources: supabase.md 3."""
    status = response.status_code
    try:
        body = response.json()
    except ValueError:
        body = {}
    code = body.get("code") if isinstance(body, dict) else None
    message = str(body.get("message", "")) if isinstance(body, dict) else ""
    where = f"{rpc.name}: {status} {code or 'without a code'}"
    if isinstance(code, str) and code.startswith(REFUSAL_PREFIX):
        return DatabaseRefused(message, status, str(body.get("hint") or ""))
    if code == INSUFFICIENT_PRIVILEGE:
        return RlsDenied(where)
    if code in BUSY_CODES:
        return DatabaseBusy(where)
    if status == 401 and code is None:
        # The gateway speaks without a code, and only about API keys.
        return ServiceKeyRejected(where) if rpc.role == "service_role" else PublishableKeyRejected(where)
    if status == 401 and code in BAD_TOKEN_CODES:
        return ServiceKeyRejected(where) if rpc.role == "service_role" else UserTokenRejected(where)
    if status in (502, 503, 504, 520, 522, 524) or code in (
        "PGRST000",
        "PGRST001",
        "PGRST002",
        "PGRST003",
    ):
        # A gateway's words for "no answer": the transaction may have happened.
        return SupabaseAnswerLost(where)
    return SupabaseError(where)
