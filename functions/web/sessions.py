"""Who is calling: verifies the access tokens that Supabase Auth issues.

Stricter than the SDK's `get_claims`: algorithm from a fixed list, key chosen by `kid` and of the algorithm's own
kind, issuer and audience checked, role `authenticated`, subject a UUID. The anon and service_role keys are JWTs too,
and are nobody's session. Public keys reach this module through a function that is passed in: it never calls out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import jwt

from functions.kit.clock import Clock, system_clock
from functions.kit.errors import UserTokenRejected

ASYMMETRIC = {"ES256": "EC", "RS256": "RSA"}
# Supabase's own limits: a key revoked longer ago than this must not be believed any more.
JWKS_MAX_AGE_SECONDS = 600.0
# An unknown `kid` costs a request to Auth; anybody can send one.
JWKS_MIN_AGE_SECONDS = 10.0
# One answer that was lost must not lock everybody out for long; nor may a crowd ask one after the other.
JWKS_RETRY_SECONDS = 1.0
LEEWAY_SECONDS = 30.0
MAX_TOKEN_CHARACTERS = 16_384


@dataclass(frozen=True, repr=False)
class Session:
    """A signed-in user. `token` is their own JWT, to be passed on explicitly and never kept."""

    user_id: UUID
    token: str
    is_anonymous: bool
    is_admin: bool = False


class Sessions:
    """Verifies tokens of one project.

    Args:
        issuer: what `iss` must be: the project's address and ``/auth/v1``.
        fetch_jwks: gets the project's public keys.
        hs256_secret: for projects that still sign with it; None: HS256 is refused.
        clock: the time.
    """

    def __init__(
        self,
        issuer: str,
        fetch_jwks: Callable[[], Awaitable[Any]],
        hs256_secret: str | None = None,
        clock: Clock = system_clock,
    ) -> None:
        self._issuer = issuer
        self._fetch_jwks = fetch_jwks
        self._hs256_secret = hs256_secret
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = float("-inf")
        self._asked_at = float("-inf")
        self._failure: Exception | None = None
        self._fetching = asyncio.Lock()

    async def verify(self, authorization: str | None) -> Session:
        """The session behind an Authorization header.

        Raises:
            UserTokenRejected: missing, malformed, expired, foreign, or not a user's.
            SupabaseUnreachable: the public keys are needed and can't be had.
        """
        token = _bearer(authorization)
        try:
            # Only the header: given the whole token, PyJWT would decode all of it, and then again below.
            header = jwt.get_unverified_header(f"{token.partition('.')[0]}..")
            key = await self._key(header.get("alg"), header.get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=[header["alg"]],
                issuer=self._issuer,
                audience="authenticated",
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "sub", "aud", "iss"], "verify_iat": False},
            )
            if claims.get("role") != "authenticated":
                raise UserTokenRejected("not a user's role")
            return Session(
                user_id=UUID(str(claims["sub"])),
                token=token,
                is_anonymous=bool(claims.get("is_anonymous", False)),
                is_admin=_is_admin(claims),
            )
        except jwt.PyJWTError as error:
            raise UserTokenRejected(type(error).__name__) from None
        except ValueError:
            raise UserTokenRejected("the subject is no user") from None

    async def _key(self, algorithm: object, key_id: object) -> jwt.PyJWK | str:
        if algorithm == "HS256":
            if not self._hs256_secret:
                raise UserTokenRejected("HS256 is not configured")
            return self._hs256_secret
        if not isinstance(algorithm, str) or algorithm not in ASYMMETRIC or not isinstance(key_id, str):
            raise UserTokenRejected("not an accepted algorithm, or no key id")
        await self._see_to_key(key_id)
        key = self._keys.get(key_id)
        if key is None or key.key_type != ASYMMETRIC[algorithm]:
            raise UserTokenRejected("signed with an unknown key")
        return key

    async def _see_to_key(self, key_id: str) -> None:
        """Has the keys fetched if that may help; one caller at a time, the others wait for its outcome."""
        async with self._fetching:
            now = self._clock()
            is_stale = now - self._fetched_at > JWKS_MAX_AGE_SECONDS
            if not is_stale and key_id in self._keys:
                return
            pause_seconds = JWKS_MIN_AGE_SECONDS if self._failure is None else JWKS_RETRY_SECONDS
            if now - self._asked_at <= pause_seconds:
                if is_stale and self._failure is not None:
                    raise self._failure
                return
            self._asked_at, self._failure = now, None
            try:
                await self._refresh()
            except Exception as error:
                self._failure = error
                raise

    async def _refresh(self) -> None:
        document = await self._fetch_jwks()
        entries = document.get("keys") if isinstance(document, dict) else None
        keys = {}
        for entry in entries if isinstance(entries, list) else []:
            # Only public keys of the accepted kinds; a set may hold kinds that are newer than this code.
            if (
                isinstance(entry, dict)
                and entry.get("kty") in ASYMMETRIC.values()
                and isinstance(entry.get("kid"), str)
            ):
                try:
                    keys[entry["kid"]] = jwt.PyJWK(entry)
                except (jwt.PyJWTError, NotImplementedError, TypeError):
                    continue  # what PyJWT raises for a key that it can't read
        self._keys = keys
        self._fetched_at = self._clock()


def _is_admin(claims: Mapping[str, Any]) -> bool:
    """By `app_metadata`, which only servers write; a user writes their `user_metadata` themselves."""
    metadata = claims.get("app_metadata")
    return isinstance(metadata, dict) and metadata.get("role") == "admin" and claims.get("is_anonymous") is not True


def _bearer(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_CHARACTERS:
        raise UserTokenRejected("no bearer token")
    return token
