"""Supabase's answers, each to its named error: the tables of supabase.md 3.

The wordings are the gateway's and PostgREST's own; behind the edge the whole stack says the same.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import pytest

from functions.clients.outside import build_clients
from functions.clients.supabase import (
    DatabaseBusy,
    DatabaseRefused,
    PublishableKeyRejected,
    Rpc,
    ServiceKeyRejected,
    Supabase,
    SupabaseAnswerLost,
    SupabaseError,
    SupabaseUnreachable,
)
from functions.kit.errors import DoorkeyError, RlsDenied, UserTokenRejected
from functions.kit.settings import Settings
from functions.web.sessions import Session
from tests.support.environment import COMPLETE, settings

SERVICE = Rpc("do_something", ("user_id",), "service_role")
OWN = Rpc("do_my_something", ("user_id",), "authenticated")
TOKEN = "eyJ.a-persons.token"
SOMEBODY = Session(UUID(int=7), TOKEN, is_anonymous=False)
HINT = {"hint": "Double check your API key."}

GATEWAY: dict[str, Any] = {
    "no key": {"message": "No API key found in request", "hint": "No `apikey` request header or url param was found."},
    "wrong key": {"message": "Invalid API key", **HINT},
    "wrong key, older": {"message": "Invalid API key", "hint": "... your Supabase `anon` or `service_role` API key."},
    "deleted key": {"message": "Unregistered API key", **HINT},
    "legacy keys off": {"message": "Legacy API keys are disabled", "hint": "Your legacy API keys were disabled on ..."},
    "publishable key where a secret is needed": {"message": "Secret API key required", "hint": "Only secret ..."},
    "browser": {"message": "Forbidden use of secret API key in browser"},
    "no hint": {"message": "Invalid API key"},
    "words that are new": {"message": "This API key has been paused"},
}
# No verdict on a key: whoever said it, it was not Supabase's gateway about an API key.
NOT_THE_GATEWAY: dict[str, httpx.Response] = {
    "somebody else's words": httpx.Response(401, json={"message": "Unauthorized"}),
    "not an object": httpx.Response(401, json=["Invalid API key"]),
    "no JSON": httpx.Response(401, text="Unauthorized"),
    "a page": httpx.Response(401, text="<html>Invalid API key"),
    "nothing": httpx.Response(401),
    "with a code": httpx.Response(401, json={"code": "XX000", "message": "Invalid API key"}),
    "not a 401": httpx.Response(403, json={"message": "Invalid API key"}),
}
BAD_TOKENS = [
    ("PGRST301", "Expected 3 parts in JWT; got 1"), ("PGRST301", "No suitable key or wrong key type"),
    ("PGRST301", "JWT cryptographic operation failed"), ("PGRST301", "Empty JWT is sent in Authorization header"),
    ("PGRST302", "Anonymous access is disabled"), ("PGRST303", "JWT expired"), ("PGRST303", "JWT not yet valid"),
    ("PGRST303", "JWT issued at future"), ("PGRST303", "JWT not in audience"),
]  # fmt: skip


class Server:
    """Answers every request the same way, and keeps them."""

    def __init__(self, answer: httpx.Response | Exception) -> None:
        self.answer = answer
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def client(self, found: Settings | None = None) -> Supabase:
        return build_clients(found or settings(), httpx.MockTransport(self)).supabase


async def call(answer: httpx.Response | Exception, rpc: Rpc = SERVICE) -> Any:
    server = Server(answer)
    try:
        return await server.client().call(rpc, {"user_id": "u"}, session=SOMEBODY if rpc is OWN else None)
    finally:
        assert len(server.requests) == 1


async def error_of(answer: httpx.Response | Exception, rpc: Rpc = SERVICE) -> DoorkeyError:
    with pytest.raises(DoorkeyError) as caught:
        await call(answer, rpc)
    assert "somebody" not in f"{caught.value} {caught.value.private}"
    return caught.value


def postgrest(status: int, code: str, message: str = "") -> httpx.Response:
    return httpx.Response(status, json={"code": code, "message": message, "details": "somebody", "hint": None})


async def test_what_is_no_text_is_sent_for_the_database_to_refuse() -> None:
    server = Server(httpx.Response(200, json=None))
    await server.client().call(SERVICE, {"user_id": "half a pair: \ud800"})
    (request,) = server.requests
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.content) == {"user_id": "half a pair: \ud800"}


@pytest.mark.parametrize("case", sorted(GATEWAY))
async def test_the_gateways_401_is_about_the_key_that_was_sent(case: str) -> None:
    answer = httpx.Response(401, json=GATEWAY[case])
    assert type(await error_of(answer, SERVICE)) is ServiceKeyRejected
    assert type(await error_of(answer, OWN)) is PublishableKeyRejected


@pytest.mark.parametrize(("code", "message"), BAD_TOKENS)
async def test_a_rejected_jwt_is_the_services_own_key_or_the_persons_token(code: str, message: str) -> None:
    answer = postgrest(401, code, message)
    # "Anonymous access is disabled" is said to whoever sent no JWT: nothing of it is about a key.
    expected = SupabaseError if code == "PGRST302" else ServiceKeyRejected
    assert type(await error_of(answer, SERVICE)) is expected
    assert type(await error_of(answer, OWN)) is UserTokenRejected


@pytest.mark.parametrize("rpc", [SERVICE, OWN])
@pytest.mark.parametrize("case", sorted(NOT_THE_GATEWAY))
async def test_a_401_that_speaks_of_no_api_key_is_no_verdict(case: str, rpc: Rpc) -> None:
    assert type(await error_of(NOT_THE_GATEWAY[case], rpc)) is SupabaseError


@pytest.mark.parametrize("rpc", [SERVICE, OWN])
@pytest.mark.parametrize("status", [401, 403])
async def test_a_missing_grant_is_never_counted_as_a_rejected_key(status: int, rpc: Rpc) -> None:
    # 401 when the role is anon: it looks like an authentication failure and is none.
    error = await error_of(postgrest(status, "42501", "permission denied for function"), rpc)
    assert type(error) is RlsDenied


@pytest.mark.parametrize("rpc", [SERVICE, OWN])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # Not a 401: nothing of it is about a key.
        (httpx.Response(403, json=GATEWAY["wrong key"]), SupabaseError),
        (httpx.Response(400, json=GATEWAY["wrong key"]), SupabaseError),
        (postgrest(500, "PGRST300", "Server lacks JWT secret"), SupabaseError),
        (postgrest(400, "P0001", "somebody"), SupabaseError),
        (postgrest(404, "PGRST202", "somebody"), SupabaseError),
        (postgrest(406, "PGRST116"), SupabaseError),
        (postgrest(409, "23505", "somebody"), SupabaseError),
        (postgrest(409, "23503"), SupabaseError),
        (postgrest(500, "57014", "canceling statement due to statement timeout"), DatabaseBusy),
        (postgrest(500, "40P01", "deadlock detected"), DatabaseBusy),
        (postgrest(500, "55P03"), DatabaseBusy),
        (postgrest(500, "40001"), DatabaseBusy),
        (postgrest(500, "XX000"), SupabaseError),
        (httpx.Response(500, text="<html>"), SupabaseError),
        (httpx.Response(302, headers={"location": "https://elsewhere.example"}), SupabaseError),
        (httpx.Response(429, json={"message": "slow down"}), SupabaseError),
        # Nobody knows whether it happened.
        (postgrest(503, "53300"), SupabaseAnswerLost),
        (postgrest(503, "PGRST000"), SupabaseAnswerLost),
        (postgrest(503, "PGRST001"), SupabaseAnswerLost),
        (postgrest(503, "PGRST002"), SupabaseAnswerLost),
        (postgrest(504, "PGRST003"), SupabaseAnswerLost),
        (httpx.Response(502, text="<html>"), SupabaseAnswerLost),
        (httpx.Response(503), SupabaseAnswerLost),
        (httpx.Response(504, json={"message": "The upstream server is timing out"}), SupabaseAnswerLost),
        (httpx.Response(520), SupabaseAnswerLost),
        (httpx.Response(522), SupabaseAnswerLost),
        (httpx.Response(524), SupabaseAnswerLost),
        (httpx.Response(200, text="<html>"), SupabaseAnswerLost),
        (httpx.Response(200, text="["), SupabaseAnswerLost),
        (httpx.ConnectError("somebody"), SupabaseUnreachable),
        (httpx.ConnectTimeout("somebody"), SupabaseUnreachable),
        (httpx.PoolTimeout("somebody"), SupabaseUnreachable),
        (httpx.ReadTimeout("somebody"), SupabaseAnswerLost),
        (httpx.WriteTimeout("somebody"), SupabaseAnswerLost),
        (httpx.ReadError("somebody"), SupabaseAnswerLost),
        (httpx.WriteError("somebody"), SupabaseAnswerLost),
        (httpx.RemoteProtocolError("somebody"), SupabaseAnswerLost),
    ],
)
async def test_what_is_no_verdict_on_a_key_is_never_taken_for_one(
    answer: httpx.Response | Exception, expected: type[SupabaseError], rpc: Rpc
) -> None:
    assert type(await error_of(answer, rpc)) is expected


@pytest.mark.parametrize("status", [402, 404, 409, 410, 422])
async def test_a_refusal_of_ours_says_its_word(status: int) -> None:
    error = await error_of(postgrest(status, f"PT{status}", "lease_lost"))
    assert isinstance(error, DatabaseRefused)
    assert (error.word, error.http_status) == ("lease_lost", status)


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (httpx.Response(200, json=[{"a": 1}]), [{"a": 1}]), (httpx.Response(200, json=[]), []),
        (httpx.Response(200, json=None), None), (httpx.Response(204), None),
        (httpx.Response(200, json="ready"), "ready"),
    ],
)  # fmt: skip
async def test_a_result_is_what_the_door_returned(answer: httpx.Response, result: object) -> None:
    assert await call(answer) == result


async def test_a_service_door_is_opened_with_the_secret_key_alone() -> None:
    server = Server(httpx.Response(200, json=[]))
    await server.client().call(SERVICE, {"user_id": str(SOMEBODY.user_id)}, session=SOMEBODY)
    (request,) = server.requests
    assert str(request.url) == COMPLETE["SUPABASE_URL"] + "/rest/v1/rpc/do_something"
    assert request.headers["apikey"] == COMPLETE["SUPABASE_SECRET_KEY"]
    assert "authorization" not in request.headers
    assert json.loads(request.content) == {"user_id": str(SOMEBODY.user_id)}


async def test_a_legacy_key_is_sent_where_the_data_api_looks_for_it() -> None:
    server = Server(httpx.Response(200, json=[]))
    legacy = "eyJhbGciOiJIUzI1NiJ9.legacy.key"
    await server.client(settings(SUPABASE_SECRET_KEY=legacy)).call(SERVICE, {"user_id": "u"})
    assert server.requests[0].headers["apikey"] == legacy
    assert server.requests[0].headers["authorization"] == f"Bearer {legacy}"


async def test_an_own_door_is_opened_with_the_persons_token_and_never_with_the_secret_key() -> None:
    server = Server(httpx.Response(200, json=[]))
    client = server.client()
    await client.call(OWN, {"user_id": "u"}, session=SOMEBODY)
    (request,) = server.requests
    assert request.headers["apikey"] == COMPLETE["SUPABASE_PUBLISHABLE_KEY"]
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert COMPLETE["SUPABASE_SECRET_KEY"] not in str(request.headers.raw)
    with pytest.raises(TypeError, match="token"):
        await client.call(OWN, {"user_id": "u"})
    assert len(server.requests) == 1


async def test_one_persons_token_is_not_kept_for_the_next_call() -> None:
    server = Server(httpx.Response(200, json=[]))
    client = server.client()
    await client.call(OWN, {"user_id": "u"}, session=SOMEBODY)
    await client.call(SERVICE, {"user_id": "u"})
    assert TOKEN not in str(server.requests[1].headers.raw)


@pytest.mark.parametrize("arguments", [{}, {"user_id": "u", "more": 1}, {"user": "u"}])
async def test_arguments_that_a_door_does_not_declare_are_a_mistake_in_the_code(arguments: dict[str, Any]) -> None:
    server = Server(httpx.Response(200, json=[]))
    with pytest.raises(TypeError, match="do_something"):
        await server.client().call(SERVICE, arguments)
    assert server.requests == []


@pytest.mark.parametrize(
    "answer",
    [httpx.Response(500), httpx.Response(404, json={}), httpx.Response(200, text="<html>"), httpx.ReadTimeout("x"),
     httpx.ConnectError("x"), httpx.Response(302, headers={"location": "https://elsewhere.example"})],
)  # fmt: skip
async def test_public_keys_that_cannot_be_had_are_one_error(answer: httpx.Response | Exception) -> None:
    with pytest.raises(SupabaseUnreachable):
        await Server(answer).client().fetch_jwks()


async def test_amounts_with_fractions_are_read_as_they_are_written() -> None:
    """A double ends after 15 to 17 digits."""
    written = "1234567890123.000000000000000001"
    assert str(float(written)) != written
    body = f'[{{"ledger_micros": {written}, "users": 3, "seconds": 0.25}}]'.encode()
    exact = Rpc("report_something", ("user_id",), "service_role", is_exact=True)
    (row,) = await call(httpx.Response(200, content=body), exact)
    assert row == {"ledger_micros": Decimal(written), "users": 3, "seconds": Decimal("0.25")}
    (row,) = await call(httpx.Response(200, content=body))
    assert (row["seconds"], type(row["seconds"])) == (0.25, float)


@pytest.mark.parametrize("case", sorted(GATEWAY))
async def test_a_signup_that_the_gateway_turned_away_is_not_the_callers_fault(case: str) -> None:
    answer = httpx.Response(401, json=GATEWAY[case])
    with pytest.raises(PublishableKeyRejected):
        await Server(answer).client().sign_up(b"{}", "", None, {})
    with pytest.raises(ServiceKeyRejected):
        await Server(answer).client(settings(DOORKEY_FORWARDS_CALLER_ADDRESS="true")).sign_up(b"{}", "", None, {})


async def test_the_secret_key_carries_a_signup_only_where_that_was_asked_for() -> None:
    """Auth asks whoever has it for no CAPTCHA."""
    for given, key in ((None, "SUPABASE_PUBLISHABLE_KEY"), ("true", "SUPABASE_SECRET_KEY")):
        server = Server(httpx.Response(200, json={}))
        chosen = settings(**({"DOORKEY_FORWARDS_CALLER_ADDRESS": given} if given else {}))
        await server.client(chosen).sign_up(b"{}", "", "203.0.113.7", {})
        assert server.requests[0].headers["apikey"] == COMPLETE[key]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"user": {}}),
        (400, {"code": 400, "error_code": "bad_json"}),
        (401, {"code": 401, "error_code": "no_authorization"}),
        (422, {"code": "weak_password", "message": "..."}),
        (429, {"code": 429, "error_code": "over_email_send_rate_limit"}),
        (500, {"code": 500, "error_code": "unexpected_failure", "msg": "Database error saving new user"}),
    ],
)
async def test_whatever_auth_answers_is_passed_on(status: int, body: dict[str, Any]) -> None:
    headers = {"retry-after": "7", "x-supabase-api-version": "2024-01-01", "set-cookie": "a=b", "x-internal": "c"}
    server = Server(httpx.Response(status, json=body, headers=headers))
    answer = await server.client().sign_up(b'{"email": 1}', "redirect_to=x", "203.0.113.7", {"x-client-info": "app"})
    assert (answer.status, json.loads(answer.body), answer.content_type) == (status, body, "application/json")
    assert answer.headers == {"retry-after": "7", "x-supabase-api-version": "2024-01-01"}
    (request,) = server.requests
    assert str(request.url) == COMPLETE["SUPABASE_URL"] + "/auth/v1/signup?redirect_to=x"
    assert request.content == b'{"email": 1}'
    assert request.headers["sb-forwarded-for"] == "203.0.113.7"
    assert request.headers["x-client-info"] == "app"
    assert request.headers["apikey"] == COMPLETE["SUPABASE_PUBLISHABLE_KEY"]


async def test_nobodys_address_is_not_passed_on() -> None:
    server = Server(httpx.Response(200, json={}))
    await server.client().sign_up(b"{}", "", None, {})
    assert "sb-forwarded-for" not in server.requests[0].headers
    assert str(server.requests[0].url).endswith("/signup")


@pytest.mark.parametrize(
    ("error", "expected"),
    [(httpx.ConnectError("x"), SupabaseUnreachable), (httpx.ReadTimeout("x"), SupabaseAnswerLost)],
)
async def test_a_signup_whose_answer_was_lost_is_named_by_its_side(error: Exception, expected: type[Exception]) -> None:
    server = Server(error)
    with pytest.raises(expected):
        await server.client().sign_up(b"{}", "", None, {})
    assert len(server.requests) == 1
