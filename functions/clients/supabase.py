"""The database through Supabase's Data API, and Auth's sign-up.

One RPC is one transaction. Whose credentials carry it, the access ladder decides (access.py); what an answer stands for
is said in data_api.py, whose names can be had here too.

httpx and not `postgrest`: its errors carry no HTTP status, and the status is what tells a rejected key from a
refusal. See docs/decisions/0003.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

import httpx

from functions.clients.access import AccessLadder, Caller, ProjectKeys, ReadSecret, key_headers
from functions.clients.data_api import (
    DatabaseBusy,
    DatabaseRefused,
    Json,
    ProofRejected,
    PublishableKeyRejected,
    Role,
    Rpc,
    ServiceKeyRejected,
    SupabaseAnswerLost,
    SupabaseError,
    SupabaseUnreachable,
    ValueRefused,
    body_of,
    failure,
    gateway_says,
)
from functions.clients.proofs import Proofs
from functions.clients.secrets_manager import read_secret
from functions.kit.clock import Clock, system_clock
from functions.kit.settings import Settings

__all__ = [
    "AuthAnswer",
    "Caller",
    "DatabaseBusy",
    "DatabaseRefused",
    "Json",
    "ProofRejected",
    "PublishableKeyRejected",
    "Rpc",
    "ServiceKeyRejected",
    "Supabase",
    "SupabaseAnswerLost",
    "SupabaseError",
    "SupabaseUnreachable",
    "ValueRefused",
]

CALLER_ADDRESS_HEADER = "Sb-Forwarded-For"


@dataclass(frozen=True)
class AuthAnswer:
    """What Auth answered, to be passed on unchanged."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str]


class Supabase:
    """One project. The httpx client is shared; credentials are put on each request and nowhere else.

    Args:
        http: the shared client.
        settings: the address and the keys.
        clock: the time.
        reading: reads a secret of Secrets Manager.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        settings: Settings,
        clock: Clock = system_clock,
        reading: ReadSecret = read_secret,
    ) -> None:
        self._http = http
        self._url = settings.supabase_url
        self._keys = ProjectKeys(settings, clock, reading)
        secrets = settings.webhook_secrets
        self._access = AccessLadder(self._keys, Proofs(secrets, clock) if secrets else None)
        self._forwards_caller_address = settings.doorkey_forwards_caller_address

    async def call(self, rpc: Rpc, arguments: Mapping[str, Json], *, session: Caller | None = None) -> Json:
        """Calls a door and returns its result; None for an empty answer.

        Args:
            rpc: which.
            arguments: exactly those it declares.
            session: the person who asks, where one does: needed for doors that are theirs, and what carries the call
                when the service key is rejected.

        Raises:
            DatabaseRefused: the door said no (PT4xx); `word` says why.
            ServiceKeyRejected, PublishableKeyRejected, ProofRejected, UserTokenRejected, RlsDenied: whose credentials
                failed.
            SupabaseUnreachable: nothing happened.
            SupabaseAnswerLost: it may have happened.
            SupabaseError: anything else.
        """
        if set(arguments) != set(rpc.arguments):
            raise TypeError(f"{rpc.name} takes {rpc.arguments}, not {tuple(arguments)}")
        ask = partial(self._ask, parse_float=Decimal) if rpc.is_exact else self._ask
        return await self._access.call(rpc, arguments, session, ask)

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
        url = f"{self._url}/auth/v1/signup" + (f"?{query}" if query else "")
        address = {CALLER_ADDRESS_HEADER: caller_address} if caller_address else {}
        rejection = ServiceKeyRejected if self._forwards_caller_address else PublishableKeyRejected

        async def send(key: str) -> httpx.Response:
            headers = {**redirect_headers, **key_headers(key), "Content-Type": "application/json", **address}
            response = await self._send(url, headers, body)
            if response.status_code == 401:
                meaning = gateway_says(body_of(response))
                if meaning is not None:
                    # About our key, and no business of the caller's.
                    raise rejection(f"signup: 401 without a code: {meaning}")
            return response

        keys = self._keys
        response = await (keys.service if self._forwards_caller_address else keys.publishable).use(send)
        return AuthAnswer(
            status=response.status_code,
            content_type=response.headers.get("content-type", "application/json"),
            body=response.content,
            headers={n: v for n, v in response.headers.items() if n in ("retry-after", "x-supabase-api-version")},
        )

    async def find_publishable_key(self, is_accepted: Callable[[str], Awaitable[bool]]) -> None:
        """Looks for a publishable key that is accepted, as a call with somebody's token does.

        That is the one that is known, else the one in the stage's secret, which is used from then on.

        Raises:
            PublishableKeyRejected: neither is.
            whatever `is_accepted` raises.
        """

        async def send(key: str) -> None:
            if not await is_accepted(key):
                raise PublishableKeyRejected("tried by the doctor")

        await self._keys.publishable.use(send)

    async def keys_in_secret(self) -> frozenset[str] | None:
        """Which of its keys the stage's secret holds, by their variables; None: no secret is named. Uses none of them.

        Raises:
            SecretUnreadable: it can't be had, or is none; the message says why.
            SettingsInvalid: what it holds can't be used.
        """
        read = await self._keys.read_secret()
        return None if read is None else read[1]

    async def _ask(
        self,
        door: str,
        arguments: Mapping[str, Json],
        headers: Mapping[str, str],
        role: Role,
        parse_float: Callable[[str], Json] | None = None,
    ) -> Json:
        response = await self._send(f"{self._url}/rest/v1/rpc/{door}", headers, arguments)
        if not response.is_success:
            raise failure(response, door, role)
        try:
            return response.json(parse_float=parse_float) if response.content else None
        except ValueError:
            raise SupabaseAnswerLost(f"{door}: {response.status_code}, but no JSON") from None

    async def _send(self, url: str, headers: Mapping[str, str], content: Mapping[str, Json] | bytes) -> httpx.Response:
        try:
            if not isinstance(content, bytes):
                headers = {"Content-Type": "application/json", **headers}
                # In ASCII: what is no text reaches the database as such, and is refused there by name.
                content = json.dumps(dict(content), allow_nan=False).encode("ascii")
            return await self._http.post(url, headers=dict(headers), content=content)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise SupabaseUnreachable(type(error).__name__) from error
        except httpx.HTTPError as error:
            raise SupabaseAnswerLost(type(error).__name__) from error
