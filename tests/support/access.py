"""The matrix of the access ladder: keys of every state, tokens of every kind, each operation, and what came of it.

Everything is real but the sandbox: the functions run in the test's own process, one fresh sandbox for each cell, and
what they call is heard on the wire. So the rung is read off from what was sent, not from what the code says of itself.
"""

from __future__ import annotations

import json
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx

from functions import admin, api, sweep, webhook
from functions.clients.outside import Clients, build_clients
from functions.clients.supabase import (
    DatabaseBusy,
    ProofRejected,
    PublishableKeyRejected,
    Rpc,
    ServiceKeyRejected,
    SupabaseAnswerLost,
    SupabaseUnreachable,
)
from functions.credits import store as credits_store
from functions.health.doors import declared_doors
from functions.kit.errors import DoorkeyError, RlsDenied, UserTokenRejected
from functions.kit.settings import Settings
from functions.provisioning.steps import Provisioner
from functions.web.sessions import Sessions
from infra.local.stack import Stack
from tests.support.lambda_events import SCHEDULED, event
from tests.support.people import Person, database_of, token_for
from tests.support.secrets_used import remember

WRONG_KEY = "sb_secret_of-nobody-at-all-here"
NOBODY = ""
OWN_DOORS = {rpc.own_door for rpc in declared_doors() if rpc.own_door}
# Own doors are reached by the service doors that name them.
DECLARED = tuple(rpc for rpc in declared_doors() if rpc.name not in OWN_DOORS)
SERVICE_DOORS = {rpc.name for rpc in DECLARED if rpc.role == "service_role"}


@dataclass(frozen=True)
class Heard:
    """One call to the Data API: the door, the key, whether a token came with it, and the status (None: no answer)."""

    door: str
    key: str = field(repr=False)
    has_token: bool
    status: int | None


# What is heard is somebody's: each act that listens hears its own calls, whatever else goes over the wire.
LISTENING: ContextVar[list[Heard]] = ContextVar("listening")
# Made once: it takes longer than most calls.
TLS = ssl.create_default_context()


class Wire(httpx.AsyncBaseTransport):
    """Passes everything on, and remembers what went to the Data API."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self._inner = httpx.AsyncHTTPTransport(verify=TLS)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        status = None
        # What is slow here answers late, and can be reached; and that is the Data API alone. So a connection is waited
        # for, and so are Auth's keys, however busy the machine is.
        patient = ("connect", "pool") if "/rest/v1/rpc/" in request.url.path else ("connect", "pool", "read", "write")
        request.extensions["timeout"] |= dict.fromkeys(patient, 30.0)
        try:
            answer = await self._inner.handle_async_request(request)
            status = answer.status_code
            return answer
        finally:
            if "/rest/v1/rpc/" in request.url.path:
                has_token = "authorization" in request.headers
                door = request.url.path.rpartition("/")[2]
                LISTENING.get(self.heard).append(Heard(door, request.headers["apikey"], has_token, status))

    async def aclose(self) -> None:
        await self._inner.aclose()

    def rung(self, first_key: str) -> str:
        """Which rung carried it, as far as it got; `own`: their own door from the start; empty: none."""
        let_in = [call for call in LISTENING.get(self.heard) if call.status != 401]
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


@dataclass(frozen=True)
class Cell:
    """What came of one operation. Of a door by itself: `let in`, if it said anything at all."""

    status: int | str
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


async def _sign_up(made: Sandbox, _headers: dict[str, str], _user: uuid.UUID) -> tuple[int, str, str]:
    email, password = f"{uuid.uuid4()}@example.com", str(uuid.uuid4())
    remember("an e-mail address of a person", email)
    remember("a password of a person", password)
    answer = await made.api.post("/v1/auth/signup", json={"email": email, "password": password})
    # Auth's answer is that person's session, which is theirs to have.
    return answer.status_code, answer.json().get("code", ""), ""


async def _readiness(made: Sandbox, _headers: dict[str, str], _user: uuid.UUID) -> tuple[int, str, str]:
    token = {"Authorization": f"Bearer {made.stack.secrets.operator_token}"}
    answer = await made.api.get("/health/ready", headers=token)
    return answer.status_code, "" if answer.status_code == 200 else answer.json()["status"], answer.text


def _of_operators(method: str, path: str, wish: dict[str, Any] | None = None) -> Operation:
    async def call(made: Sandbox, headers: dict[str, str], user_id: uuid.UUID) -> tuple[int, str, str]:
        transport = httpx.ASGITransport(admin.build(made.settings, made.clients))
        sent = {**headers, "Idempotency-Key": str(uuid.uuid4())}
        where = f"{admin.PREFIX}{path.format(id=user_id)}"
        async with httpx.AsyncClient(transport=transport, base_url="http://admin.example") as client:
            answer = await client.request(method, where, headers=sent, json=wish)
        return answer.status_code, answer.json().get("code", ""), answer.text

    return call


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
}
# What needs no account, and walks no ladder: Auth takes the publishable key, and what examines tries them all.
BESIDE_THE_LADDER: dict[str, Operation] = {
    "`POST /v1/auth/signup`": _sign_up,
    "`GET /health/ready`": _readiness,
}
# For operators, and tried by everybody else.
OF_OPERATORS: dict[str, Operation] = {
    "`GET /v1/admin/users/{id}`": _of_operators("GET", "/users/{id}"),
    "`POST /v1/admin/users/{id}/credits`": _of_operators(
        "POST", "/users/{id}/credits", {"type": "bonus", "amount_micros": 1, "reason": "matrix"}
    ),
    "`POST /v1/admin/users/{id}/plan`": _of_operators(
        "POST", "/users/{id}/plan", {"plan": "starter", "reason": "matrix"}
    ),
    "`GET /v1/admin/reports/drift`": _of_operators("GET", "/reports/drift?day=2026-01-01"),
}


async def play(made: Sandbox, operation: Operation, token: str | None, user_id: uuid.UUID) -> Cell:
    """One cell."""
    LISTENING.set([])
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    status, code, body = await operation(made, headers, user_id)
    return Cell(status, code, made.rung, body)


# What a call without any content says of whose credentials carried it, and how far; all else is the door's own word.
VERDICTS = (
    ServiceKeyRejected, PublishableKeyRejected, ProofRejected, UserTokenRejected, RlsDenied, SupabaseAnswerLost,
    SupabaseUnreachable, DatabaseBusy,
)  # fmt: skip
LET_IN = "let in"


async def play_door(made: Sandbox, rpc: Rpc, token: str | None, user_id: uuid.UUID) -> Cell:
    """One call of a door without any content, as whoever this token is of; no token: nobody asked."""
    LISTENING.set([])
    try:
        session = None if token is None else await made.sessions.verify(f"Bearer {token}")
        about = user_id if session is None else session.user_id
        arguments = {name: str(about) if name == "user_id" else None for name in rpc.arguments}
        await made.clients.supabase.call(rpc, arguments, session=session)
    except VERDICTS as error:
        return Cell(error.status, error.code, made.rung)
    except DoorkeyError:
        pass
    return Cell(LET_IN, "", made.rung)
