"""People on the running stack: some sign up through Auth, most are inserted as Auth inserts them and get a token.

The tokens are signed with the stack's own signing key, as Auth would; hashing passwords is what makes Auth slow.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx

from infra.local.edge.tokens import TokenTranslator
from infra.local.stack import Stack
from tests.support.databases import Database
from tests.support.secrets_used import remember

READY_SECONDS = 30.0
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Person:
    """Somebody with a session."""

    user_id: uuid.UUID
    token: str = field(repr=False)
    email: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What their app sends."""
        return {"Authorization": f"Bearer {self.token}"}


def database_of(stack: Stack) -> Database:
    """The stack's own database."""
    return Database("postgres", stack.superuser_url, stack.secrets.role_password)


def new_signup(**more: Any) -> dict[str, Any]:
    """The body of a sign-up that nobody made before."""
    body = {"email": f"{uuid.uuid4().hex}@example.com", "password": secrets.token_urlsafe(12), **more}
    remember("an e-mail address of a person", body["email"])
    remember("a password of a person", body["password"])
    return body


def person_from(body: dict[str, Any], session: dict[str, Any]) -> Person:
    """The person behind the answer to a sign-up."""
    remember("an access token", session["access_token"])
    remember("a refresh token", session["refresh_token"])
    return Person(uuid.UUID(session["user"]["id"]), session["access_token"], body["email"], body["password"])


async def sign_up(stack: Stack, http: httpx.AsyncClient, **more: Any) -> Person:
    """Signs somebody up at Auth."""
    body = new_signup(**more)
    headers = {"apikey": stack.secrets.publishable_key}
    answer = await http.post(f"{stack.supabase_url}/auth/v1/signup", json=body, headers=headers)
    assert answer.status_code == 200, answer.status_code
    return person_from(body, answer.json())


async def insert_person(stack: Stack, **user: Any) -> Person:
    """Inserts somebody as Auth does, and signs them in."""
    user_id = await database_of(stack).insert_user(**user)
    email = user.get("email") or f"{user_id}@example.com"
    remember("an e-mail address of a person", email)
    return Person(user_id, token_for(stack, user_id), email)


def token_for(stack: Stack, user_id: uuid.UUID | str, **claims: Any) -> str:
    """An access token of this project; claims replace the usual ones, and None takes one away."""
    now = int(time.time())
    usual = {
        "sub": str(user_id), "aud": "authenticated", "role": "authenticated", "iat": now, "exp": now + 3600,
        "is_anonymous": False, "session_id": str(uuid.uuid4()), "app_metadata": {}, "user_metadata": {},
    }  # fmt: skip
    # The issuer is set below, so that another one can be asked for.
    issuer = str(claims.pop("iss", f"{stack.supabase_url}/auth/v1"))
    wanted = {name: value for name, value in {**usual, **claims}.items() if value is not None}
    token = signer_of(stack, issuer).sign(wanted)
    remember("an access token", token)
    return token


def signer_of(stack: Stack, issuer: str, signing_key_pem: str | None = None) -> TokenTranslator:
    """Signs as the stack's Auth does, or as somebody else would."""
    return TokenTranslator(
        signing_key_pem=signing_key_pem or stack.secrets.signing_key_pem,
        legacy_jwt_secret=stack.secrets.legacy_jwt_secret,
        inner_jwt_secret=stack.secrets.lite_keys.jwt_secret,
        issuer=issuer,
        project_ref="local",
    )


async def until_state(stack: Stack, user_id: uuid.UUID, state: str = "ready") -> None:
    """Waits until the user's row is in that state."""
    database = database_of(stack)
    deadline = time.monotonic() + READY_SECONDS
    rows = []
    while time.monotonic() < deadline:
        rows = await database.rows(
            "select state::text, attempt, last_error from doorkey.provisioning where user_id = %s", (user_id,)
        )
        if rows and rows[0]["state"] == state:
            return
        await asyncio.sleep(POLL_SECONDS)
    raise AssertionError(f"not {state} after {READY_SECONDS} s: {rows}")
