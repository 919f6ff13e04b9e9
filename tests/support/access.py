"""The matrix of the access ladder: keys of every state, tokens of every kind, each operation, and what came of it.

Everything is real but the sandbox: the functions run in the test's own process, one fresh sandbox for each cell, and
what they call is heard on the wire. So the rung is read off from what was sent, not from what the code says of itself.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx
import jwt

from functions import admin, api, sweep, webhook
from functions.clients.outside import Clients, build_clients
from functions.credits import store as credits_store
from functions.health.doors import declared_doors
from functions.kit.errors import DoorkeyError
from functions.kit.settings import Settings
from functions.provisioning.steps import Provisioner
from functions.web.sessions import Sessions
from infra.local.edge import legacy_key
from infra.local.stack import Stack
from tests.support.lambda_events import SCHEDULED, event
from tests.support.people import Person, database_of, token_for
from tests.support.secrets_used import remember

WRONG_KEY = "sb_secret_of-nobody-at-all-here"
NOBODY = ""
DECLARED = declared_doors()
OWN_DOORS = {rpc.own_door for rpc in DECLARED if rpc.own_door}
SERVICE_DOORS = {rpc.name for rpc in DECLARED if rpc.role == "service_role"}


@dataclass(frozen=True)
class Heard:
    """One call to the Data API: the door, the key, whether a token came with it, and the status (None: no answer)."""

    door: str
    key: str = field(repr=False)
    has_token: bool
    status: int | None


class Wire(httpx.AsyncBaseTransport):
    """Passes everything on, and remembers what went to the Data API."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self._inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        status = None
        try:
            answer = await self._inner.handle_async_request(request)
            status = answer.status_code
            return answer
        finally:
            if "/rest/v1/rpc/" in request.url.path:
                has_token = "authorization" in request.headers
                door = request.url.path.rpartition("/")[2]
                self.heard.append(Heard(door, request.headers["apikey"], has_token, status))

    async def aclose(self) -> None:
        await self._inner.aclose()

    def rung(self, first_key: str) -> str:
        """Which rung carried it, as far as it got; `own`: their own door from the start; empty: none."""
        let_in = [call for call in self.heard if call.status != 401]
        if any(call.door in OWN_DOORS for call in let_in):
            return "3"
        by_service = [call for call in let_in if call.door in SERVICE_DOORS]
        if by_service:
            return "1" if all(call.key == first_key for call in by_service) else "2"
        return "own" if any(call.door not in SERVICE_DOORS for call in let_in) else NOBODY


@dataclass
class Sandbox:
    """The functions with these settings, fresh."""

    stack: Stack
    settings: Settings
    clients: Clients
    wire: Wire
    sessions: Sessions
    api: httpx.AsyncClient

    @property
    def rung(self) -> str:
        """See `Wire.rung`."""
        return self.wire.rung(self.settings.supabase_secret_key.get_secret_value())


@asynccontextmanager
async def sandbox(stack: Stack, changes: dict[str, str] | None = None) -> AsyncIterator[Sandbox]:
    """Builds one against the running stack. Tokens signed with HS256 are accepted, too."""
    given = {**stack.functions_environment, "SUPABASE_JWT_SECRET": stack.secrets.legacy_jwt_secret, **(changes or {})}
    settings = Settings.from_environment(given)
    wire = Wire()
    clients = build_clients(settings, wire)
    sessions = Sessions(
        f"{settings.supabase_url}/auth/v1", clients.supabase.fetch_jwks, hs256_secret=stack.secrets.legacy_jwt_secret
    )
    transport = httpx.ASGITransport(api.build(settings, clients), client=("203.0.113.7", 1))
    async with clients.http, httpx.AsyncClient(transport=transport, base_url="http://api.example") as client:
        yield Sandbox(stack, settings, clients, wire, sessions, client)


async def newcomer(stack: Stack) -> Person:
    """Somebody whom no trigger saw: they have nothing at all."""
    user_id = await database_of(stack).insert_user()
    database = database_of(stack)
    for table in ("doorkey.provisioning", "public.profiles"):
        column = "id" if table == "public.profiles" else "user_id"
        await database.run(f"delete from {table} where {column} = %s", (user_id,))
    remember("an e-mail address of a person", f"{user_id}@example.com")
    return Person(user_id, token_for(stack, user_id))


async def settled(stack: Stack) -> Person:
    """Somebody who has their key and their credits, made with a good key."""
    person = await newcomer(stack)
    async with sandbox(stack) as made:
        provisioner = Provisioner.build(made.settings, made.clients)
        assert await provisioner.provision(person.user_id, request_id="matrix") == "ready"
    return person


def hs256_token(stack: Stack, user_id: uuid.UUID) -> str:
    """As a project signs that has no asymmetric keys yet."""
    claims = {
        "iss": f"{stack.supabase_url}/auth/v1", "sub": str(user_id), "aud": "authenticated",
        "role": "authenticated", "exp": int(time.time()) + 3600,
    }  # fmt: skip
    token = jwt.encode(claims, stack.secrets.legacy_jwt_secret, "HS256")
    remember("an access token", token)
    return token


def _remembered(token: str) -> str:
    remember("a bad access token", token)
    return token


# What a client sends for a user, by kind; None: nothing.
TOKENS: dict[str, Callable[[Stack, uuid.UUID], str | None]] = {
    "a good JWT, ES256": token_for,
    "a good JWT, HS256": hs256_token,
    "no JWT": lambda _stack, _user: None,
    "an expired JWT": lambda stack, user: token_for(stack, user, exp=int(time.time()) - 60),
    "the anon key as JWT": lambda stack, _: _remembered(legacy_key(stack.secrets.legacy_jwt_secret, "anon")),
    "the service_role key as JWT": lambda stack, _: _remembered(
        legacy_key(stack.secrets.legacy_jwt_secret, "service_role")
    ),
    "a JWT of role service_role": lambda stack, user: token_for(stack, user, role="service_role"),
}
GOOD_TOKENS = ("a good JWT, ES256", "a good JWT, HS256")
ANOTHER_USERS = "another user's good JWT"


@dataclass(frozen=True)
class Cell:
    """What came of one operation."""

    status: int
    code: str
    rung: str
    body: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        words = f"{self.status} `{self.code}`" if self.code else str(self.status)
        return words if self.rung == NOBODY else f"{words}, rung {self.rung}" if self.rung != "own" else f"{words}, own"


Operation = Callable[[Sandbox, dict[str, str], uuid.UUID], Awaitable[tuple[int, str, str]]]


def _route(method: str, path: str) -> Operation:
    async def call(made: Sandbox, headers: dict[str, str], _user: uuid.UUID) -> tuple[int, str, str]:
        answer = await made.api.request(method, path, headers=headers)
        body = answer.json()
        return answer.status_code, body.get("code", ""), answer.text

    return call


def _credits(what: str) -> Operation:
    """Credit processing as a handler does it: verify, reserve, and settle or release."""

    async def call(made: Sandbox, headers: dict[str, str], _user: uuid.UUID) -> tuple[int, str, str]:
        database, request_id = made.clients.supabase, "matrix"
        try:
            session = await made.sessions.verify(headers.get("Authorization"))
            hold = await credits_store.reserve(
                database, session.user_id, amount_micros=1000, ttl_seconds=60, idempotency_key=str(uuid.uuid4()),
                key_hash=None, request_id=request_id, session=session,
            )  # fmt: skip
            if what == "settle":
                await credits_store.settle(
                    database, hold.hold_id, cost_micros=Decimal(10), provider=None, model=None, generation_id=None,
                    request_id=request_id, session=session,
                )  # fmt: skip
            else:
                await credits_store.release(database, hold.hold_id, request_id=request_id, session=session)
        except DoorkeyError as error:
            return error.status, error.code, ""
        return 200, "", str(session.user_id)

    return call


async def _hint(made: Sandbox, _headers: dict[str, str], user_id: uuid.UUID) -> tuple[int, str, str]:
    body = {"type": "INSERT", "table": "users", "schema": "auth", "record": {"id": str(user_id)}, "old_record": None}
    secret = {"x-webhook-secret": made.stack.secrets.webhook_shared_secret}
    handle = webhook.build(made.settings, made.clients)
    answer = await handle(event("/webhooks/supabase", "POST", json.dumps(body).encode(), secret))
    return answer["statusCode"], json.loads(answer["body"]).get("code", ""), answer["body"]


async def _sweep(made: Sandbox, _headers: dict[str, str], _user: uuid.UUID) -> tuple[int, str, str]:
    answer: dict[str, Any] = await sweep.build(made.settings, made.clients)(SCHEDULED)
    return (200 if answer["outcome"] == "finished" else 503), answer.get("error") or "", ""


async def _operator(made: Sandbox, _headers: dict[str, str], user_id: uuid.UUID) -> tuple[int, str, str]:
    transport = httpx.ASGITransport(admin.build(made.settings, made.clients))
    headers = {"Authorization": f"Bearer {made.stack.secrets.operator_token}", "Idempotency-Key": str(uuid.uuid4())}
    wish = {"type": "bonus", "amount_micros": 1, "reason": "matrix"}
    async with httpx.AsyncClient(transport=transport, base_url="http://admin.example") as client:
        answer = await client.post(f"{admin.PREFIX}/users/{user_id}/credits", headers=headers, json=wish)
    return answer.status_code, answer.json().get("code", ""), answer.text


# By what a person asks for; whether it needs somebody of its own who has nothing, or somebody of its own at all.
OPERATIONS: dict[str, Operation] = {
    "`GET /v1/me`": _route("GET", "/v1/me"),
    "`GET /v1/credits/balance`": _route("GET", "/v1/credits/balance"),
    "`GET /api/v1/credits/balance`": _route("GET", "/api/v1/credits/balance"),
    "`GET /v1/credits/transactions`": _route("GET", "/v1/credits/transactions"),
    "`GET /v1/usage`": _route("GET", "/v1/usage"),
    "`GET /v1/me/key`": _route("GET", "/v1/me/key"),
    "`POST /v1/me/key/rotate`": _route("POST", "/v1/me/key/rotate"),
    "`GET /v1/me`, who has nothing yet": _route("GET", "/v1/me"),
    "`GET /v1/me/key`, who has nothing yet": _route("GET", "/v1/me/key"),
    "`GET /v1/credits/balance`, who has nothing yet": _route("GET", "/v1/credits/balance"),
    "reserve and settle credits": _credits("settle"),
    "reserve and release credits": _credits("release"),
}
NOBODYS: dict[str, Operation] = {
    "the hint of a signup": _hint,
    "a sweep": _sweep,
    "`POST /v1/admin/users/{id}/credits`, an operator": _operator,
}


async def play(
    stack: Stack, changes: dict[str, str], operation: Operation, token: str | None, user_id: uuid.UUID
) -> Cell:
    """One cell, in a sandbox of its own."""
    async with sandbox(stack, changes) as made:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        status, code, body = await operation(made, headers, user_id)
        return Cell(status, code, made.rung, body)
