"""What a client may send as a user's token, by kind: those of users, and those that are nobody's session.

The anon and the service_role key are JWTs too, so whoever has one may try it. What is bad about a token is one thing
only; all else of it is right.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable
from typing import Any, Literal

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from infra.local.edge import legacy_key
from infra.local.stack import Stack
from tests.support.people import signer_of, token_for
from tests.support.secrets_used import remember

Make = Callable[[Stack, uuid.UUID], str | None]
A_MINUTE_AGO = -60
FOREIGN_KEY_PEM = (
    ec.generate_private_key(ec.SECP256R1())
    .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    .decode()
)


def _claims(stack: Stack, user_id: uuid.UUID, **changes: Any) -> dict[str, Any]:
    return {
        "iss": f"{stack.supabase_url}/auth/v1", "sub": str(user_id), "aud": "authenticated",
        "role": "authenticated", "exp": int(time.time()) + 3600, **changes,
    }  # fmt: skip


def hs256_token(stack: Stack, user_id: uuid.UUID, **changes: Any) -> str:
    """As a project signs that has no asymmetric keys yet."""
    return _remembered(jwt.encode(_claims(stack, user_id, **changes), stack.secrets.legacy_jwt_secret, "HS256"))


def admins_token(stack: Stack, user_id: uuid.UUID) -> str:
    """Of somebody whom a server made an admin of the project."""
    return token_for(stack, user_id, app_metadata={"role": "admin"})


def _of_another_project(stack: Stack, user_id: uuid.UUID) -> str:
    """With the right key id and all the right claims, by a key that is not this project's."""
    mine, _, _ = token_for(stack, user_id).partition(".")
    kid = json.loads(base64.urlsafe_b64decode(mine + "=="))["kid"]
    return _remembered(jwt.encode(_claims(stack, user_id), FOREIGN_KEY_PEM, "ES256", headers={"kid": kid}))


def _by_another_issuer(stack: Stack, user_id: uuid.UUID) -> str:
    return _remembered(signer_of(stack, "https://elsewhere.example/auth/v1").sign(_claims(stack, user_id)))


def _unsigned(stack: Stack, user_id: uuid.UUID) -> str:
    return _remembered(jwt.encode(_claims(stack, user_id), "", "none"))


def _legacy_key(role: Literal["anon", "service_role"]) -> Make:
    return lambda stack, _user: _remembered(legacy_key(stack.secrets.legacy_jwt_secret, role))


def _remembered(token: str) -> str:
    remember("an access token", token)
    return token


# Those of users, by kind; and for somebody else than the one it is about.
GOOD_TOKENS: dict[str, Callable[[Stack, uuid.UUID], str]] = {
    "a good JWT, ES256": token_for,
    "a good JWT, HS256": hs256_token,
}
ANOTHER_USERS: dict[str, Callable[[Stack, uuid.UUID], str]] = {
    "another user's good JWT, ES256": token_for,
    "another user's good JWT, HS256": hs256_token,
}
# Nobody's session. None: nothing is sent.
NO_TOKEN = "no JWT"
BAD_TOKENS: dict[str, Make] = {
    NO_TOKEN: lambda _stack, _user: None,
    "an expired JWT, ES256": lambda stack, user: token_for(stack, user, exp=int(time.time()) + A_MINUTE_AGO),
    "an expired JWT, HS256": lambda stack, user: hs256_token(stack, user, exp=int(time.time()) + A_MINUTE_AGO),
    "the anon key as JWT": _legacy_key("anon"),
    "the service_role key as JWT": _legacy_key("service_role"),
    "a JWT of role service_role, ES256": lambda stack, user: token_for(stack, user, role="service_role"),
    "a JWT of role service_role, HS256": lambda stack, user: hs256_token(stack, user, role="service_role"),
    "a JWT of another project's key": _of_another_project,
    "a JWT of another project's issuer": _by_another_issuer,
    "an unsigned JWT": _unsigned,
}
