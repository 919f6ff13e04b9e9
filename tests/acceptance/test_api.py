"""What a signed-in user is told, and what everybody else is."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from infra.local.edge import legacy_key
from infra.local.stack import Stack
from tests.support.apps import Listening, api_with
from tests.support.people import Person, database_of, insert_person, signer_of, token_for, until_state
from tests.support.secrets_used import remember

OWN_ROUTES = ["/v1/me", "/v1/me/key", "/v1/credits/balance", "/api/v1/credits/balance"]
PROBLEM_MEMBERS = {"type", "title", "status", "code", "request_id"}


def assert_problem(answer: httpx.Response, status: int, code: str) -> None:
    """RFC 9457, and nothing but its members."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == PROBLEM_MEMBERS
    assert (body["status"], body["code"], body["type"]) == (status, code, f"urn:doorkey:error:{code}")
    assert body["title"].endswith(".")
    assert body["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["cache-control"] == "no-store"


@pytest.fixture(scope="module")
async def person(stack: Stack) -> Person:
    """Somebody who has their key."""
    somebody = await insert_person(stack, metadata={"full_name": "Ada Lovelace"})
    await until_state(stack, somebody.user_id)
    return somebody


@pytest.fixture
async def api(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """The API on the running stack."""
    async with httpx.AsyncClient(base_url=stack.functions_url, timeout=30, trust_env=False) as client:
        yield client


async def test_me_is_my_profile_my_credits_and_my_key(stack: Stack, api: httpx.AsyncClient, person: Person) -> None:
    answer = await api.get("/v1/me", headers=person.headers)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    me = answer.json()
    assert set(me) == {"user_id", "email", "full_name", "created_at", "status", "referral_code", "balance", "key"}
    assert (me["user_id"], me["email"], me["full_name"]) == (str(person.user_id), person.email, "Ada Lovelace")
    assert me["status"] == me["key"]["status"] == "active"
    (key,) = await database_of(stack).rows(
        "select key_hash, key_name, limit_micros from public.openrouter_user_keys where user_id = %s", (person.user_id,)
    )
    assert set(me["key"]) == {"hash", "name", "label", "limit_micros", "status", "created_at"}
    assert (me["key"]["hash"], me["key"]["name"]) == (key["key_hash"], key["key_name"])
    assert key["key_name"] == f"doorkey-local-{person.user_id}-1"
    assert me["key"]["limit_micros"] == key["limit_micros"] == me["balance"]["available_micros"]


async def test_my_keys_secret_buys_a_chat(stack: Stack, api: httpx.AsyncClient, person: Person) -> None:
    mine = (await api.get("/v1/me/key", headers=person.headers)).json()
    assert set(mine) == {"status", "key", "secret", "is_rotating", "previous_key"}
    remember("a user's OpenRouter key", mine["secret"])
    body = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    headers = {"Authorization": f"Bearer {mine['secret']}"}
    chat = await api.post(f"{stack.openrouter_url}/chat/completions", json=body, headers=headers)
    assert chat.status_code == 200, chat.text
    again = (await api.get("/v1/me/key", headers=person.headers)).json()
    assert again["secret"] == mine["secret"], "shown always, unless set otherwise"
    assert mine["secret"] not in (await api.get("/v1/me", headers=person.headers)).text


async def test_a_secret_that_is_shown_once_is_shown_once(stack: Stack, api: httpx.AsyncClient) -> None:
    somebody = await insert_person(stack)
    await until_state(stack, somebody.user_id)
    database = database_of(stack)
    await database.run("update doorkey.settings set key_reveal = 'once'")
    try:
        first = (await api.get("/v1/me/key", headers=somebody.headers)).json()
        second = (await api.get("/v1/me/key", headers=somebody.headers)).json()
    finally:
        await database.run("update doorkey.settings set key_reveal = 'always'")
    remember("a user's OpenRouter key", first["secret"])
    assert first["secret"].startswith("sk-or-v1-")
    assert second == {**first, "secret": None}


async def test_the_balance_in_both_forms(stack: Stack, api: httpx.AsyncClient, person: Person) -> None:
    balance = (await api.get("/v1/credits/balance", headers=person.headers)).json()
    assert set(balance) == {
        "plan", "available_micros", "held_micros", "debt_micros", "credits", "is_uncapped", "period_ends_at",
        "lots",
    }  # fmt: skip
    (account,) = await database_of(stack).rows(
        "select * from public.credit_accounts where user_id = %s", (person.user_id,)
    )
    assert balance["available_micros"] == account["available_micros"] == 5_000_000
    assert (balance["credits"], balance["plan"], balance["is_uncapped"]) == ("5", account["plan_id"], False)
    (lot,) = balance["lots"]
    assert (lot["type"], lot["amount_micros"], lot["remaining_micros"]) == ("bonus", 5_000_000, 5_000_000)
    lasts = datetime.fromisoformat(lot["expires_at"]) - datetime.fromisoformat(lot["granted_at"])
    assert lasts == timedelta(days=30)
    legacy = (await api.get("/api/v1/credits/balance", headers=person.headers)).json()
    assert set(legacy) == {
        "credits_remaining", "credits_allocated", "tier", "last_reset", "created_at", "updated_at",
    }  # fmt: skip
    assert Decimal(legacy["credits_remaining"]) == Decimal(legacy["credits_allocated"]) == 5
    assert legacy["tier"] == account["plan_id"]
    assert datetime.fromisoformat(legacy["created_at"]) == account["created_at"]
    for name in ("last_reset", "updated_at"):
        assert datetime.fromisoformat(legacy[name]).tzinfo is not None


def bad_headers(stack: Stack, user_id: uuid.UUID) -> dict[str, dict[str, str]]:
    """Authorization of everybody who is not that user."""
    elsewhere = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    issuer = f"{stack.supabase_url}/auth/v1"
    usual = {"sub": str(user_id), "aud": "authenticated", "role": "authenticated", "exp": int(time.time()) + 60}
    secrets = stack.secrets
    good = token_for(stack, user_id)
    head, body, signature = good.split(".")
    mine = signer_of(stack, issuer)
    theirs = signer_of(stack, issuer, elsewhere.decode())
    tokens = {
        "expired": token_for(stack, user_id, exp=int(time.time()) - 60),
        "for later": token_for(stack, user_id, nbf=int(time.time()) + 600),
        "another project's issuer": token_for(stack, user_id, iss="https://elsewhere.example/auth/v1"),
        "another audience": token_for(stack, user_id, aud="elsewhere"),
        "signed by another project": theirs.sign(usual),
        "signed by another project with our key id": jwt.encode(
            {**usual, "iss": issuer}, elsewhere.decode(), "ES256", headers={"kid": mine.kid}
        ),
        "without a signature": f"{head}.{body}.",
        "unsigned": jwt.encode({**usual, "iss": issuer}, "", "none", headers={"kid": mine.kid}),
        "with another subject put in": ".".join([head, token_for(stack, uuid.uuid4()).split(".")[1], signature]),
        "of role anon": token_for(stack, user_id, role="anon"),
        "of role service_role": token_for(stack, user_id, role="service_role"),
        "without a subject": token_for(stack, user_id, sub=None),
        "of nobody": token_for(stack, "somebody"),
        "signed with the legacy secret, which is not configured": jwt.encode(
            {**usual, "iss": issuer}, secrets.legacy_jwt_secret, "HS256"
        ),
        "the legacy anon key": legacy_key(secrets.legacy_jwt_secret, "anon"),
        "the legacy service_role key": legacy_key(secrets.legacy_jwt_secret, "service_role"),
        "the publishable key": secrets.publishable_key,
        "the secret key": secrets.secret_key,
        "the operator token": secrets.operator_token,
        "garbage": "garbage",
        "much garbage": "ey" * 9000,
        "dots": "..",
        "a user id": str(user_id),
    }
    for token in tokens.values():
        if token.startswith("eyJ"):
            remember("a bad access token", token)
    found = {name: {"Authorization": f"Bearer {token}"} for name, token in tokens.items()}
    return found | {
        "nothing": {},
        "an empty header": {"Authorization": ""},
        "no token": {"Authorization": "Bearer"},
        "another scheme": {"Authorization": f"Basic {good}"},
        "a token in the wrong header": {"apikey": good, "X-Access-Token": good},
        "a cookie": {"Cookie": f"sb-access-token={good}"},
    }


@pytest.mark.parametrize("route", OWN_ROUTES)
async def test_whoever_is_nobodys_session_is_told_to_sign_in_and_nothing_else(
    stack: Stack, api: httpx.AsyncClient, person: Person, route: str
) -> None:
    assert (await api.get(route, headers=person.headers)).status_code == 200
    bodies = set()
    for name, headers in bad_headers(stack, person.user_id).items():
        answer = await api.get(route, headers=headers)
        assert answer.status_code == 401, name
        assert_problem(answer, 401, "user_token_rejected")
        assert answer.headers["www-authenticate"] == "Bearer", name
        bodies.add(json.dumps({**answer.json(), "request_id": ""}))
    assert len(bodies) == 1
    query = {"access_token": person.token, "apikey": person.token}
    assert (await api.get(route, params=query)).status_code == 401


async def test_hs256_tokens_are_accepted_only_where_they_are_configured(stack: Stack, person: Person) -> None:
    secret = stack.secrets.legacy_jwt_secret
    claims = {
        "iss": f"{stack.supabase_url}/auth/v1", "sub": str(person.user_id), "aud": "authenticated",
        "role": "authenticated", "exp": int(time.time()) + 60,
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {jwt.encode(claims, secret, 'HS256')}"}
    async with api_with(stack) as client:
        assert_problem(await client.get("/v1/me", headers=headers), 401, "user_token_rejected")
    async with api_with(stack, {"SUPABASE_JWT_SECRET": secret}) as client:
        assert (await client.get("/v1/me", headers=headers)).json()["user_id"] == str(person.user_id)
        # The legacy API keys are signed with the very same secret.
        for role in ("anon", "service_role"):
            key = {"Authorization": f"Bearer {legacy_key(secret, role)}"}
            assert_problem(await client.get("/v1/me", headers=key), 401, "user_token_rejected")


@pytest.mark.parametrize("route", OWN_ROUTES)
async def test_another_users_data_is_never_visible(
    stack: Stack, api: httpx.AsyncClient, person: Person, route: str
) -> None:
    other = await insert_person(stack)
    await until_state(stack, other.user_id)
    mine = (await api.get(route, headers=person.headers)).json()
    theirs = (await api.get("/v1/me", headers=other.headers)).json()
    asked = await api.get(
        route,
        headers={**person.headers, "X-User-Id": str(other.user_id), "X-Forwarded-User": str(other.user_id)},
        params={"user_id": str(other.user_id), "id": str(other.user_id), "sub": str(other.user_id)},
    )
    assert asked.json() == mine
    for value in (str(other.user_id), other.email, theirs["key"]["hash"], theirs["key"]["name"]):
        assert value not in asked.text


async def test_my_own_data_is_read_with_my_own_token(stack: Stack, person: Person) -> None:
    listening = Listening()
    async with api_with(stack, listening=listening) as client:
        await client.get("/v1/me", headers=person.headers)
    (read,) = [request for request in listening.requests if "/rest/" in str(request.url)]
    assert read.headers["authorization"] == f"Bearer {person.token}"
    assert stack.secrets.secret_key not in str(read.headers.raw)


@pytest.mark.parametrize("route", OWN_ROUTES)
async def test_a_user_from_before_the_installation_is_told_that_there_is_no_account(
    stack: Stack, api: httpx.AsyncClient, route: str
) -> None:
    older = await insert_person(stack, created_at="2020-01-01T00:00:00Z")
    never_there = Person(uuid.uuid4(), "")
    for headers in (older.headers, {"Authorization": f"Bearer {token_for(stack, never_there.user_id)}"}):
        assert_problem(await api.get(route, headers=headers), 404, "profile_not_found")
    rows = "select count(*) from doorkey.provisioning where user_id = %s"
    assert await database_of(stack).value(rows, (older.user_id,)) == 0


async def test_while_the_key_is_not_there_yet_the_caller_is_told_when_to_ask_again(
    stack: Stack, api: httpx.AsyncClient
) -> None:
    waiting = await insert_person(stack, confirmed=False)
    key = await api.get("/v1/me/key", headers=waiting.headers)
    assert (key.status_code, key.json()) == (
        202,
        {
            "status": "pending",
            "key": None,
            "secret": None,
            "is_rotating": False,
            "previous_key": None,
        },
    )
    assert int(key.headers["retry-after"]) > 0
    me = (await api.get("/v1/me", headers=waiting.headers)).json()
    assert (me["status"], me["balance"], me["key"]) == ("pending", None, None)
    for route in ("/v1/credits/balance", "/api/v1/credits/balance"):
        assert_problem(await api.get(route, headers=waiting.headers), 404, "profile_not_found")


async def test_a_key_that_was_given_up_is_shown_as_failed_and_a_disabled_one_as_disabled(
    stack: Stack, api: httpx.AsyncClient
) -> None:
    somebody = await insert_person(stack, confirmed=False)
    database = database_of(stack)
    dead = "update doorkey.provisioning set state = 'dead', last_error = 'openrouter_refused' where user_id = %s"
    await database.run(dead, (somebody.user_id,))
    try:
        assert (await api.get("/v1/me", headers=somebody.headers)).json()["status"] == "failed"
    finally:
        await database.run("delete from doorkey.provisioning where user_id = %s", (somebody.user_id,))
    other = await insert_person(stack)
    await until_state(stack, other.user_id)
    disable = "update public.openrouter_user_keys set status = 'disabled' where user_id = %s"
    await database.run(disable, (other.user_id,))
    assert (await api.get("/v1/me", headers=other.headers)).json()["status"] == "disabled"


async def test_a_rejected_key_of_ours_is_named_by_which_it_was(stack: Stack, person: Person) -> None:
    wrong_public = {"SUPABASE_PUBLISHABLE_KEY": "sb_publishable_of-nobody-at-all"}
    async with api_with(stack, wrong_public) as client:
        for route in OWN_ROUTES:
            assert (await client.get(route, headers=person.headers)).status_code == 200, route
    wrong = {"SUPABASE_SECRET_KEY": "sb_secret_of-nobody-at-all-here"}
    async with api_with(stack, {**wrong, **wrong_public}) as client:
        for route in OWN_ROUTES:
            assert_problem(await client.get(route, headers=person.headers), 503, "publishable_key_rejected")
    async with api_with(stack, wrong) as client:
        for route in OWN_ROUTES:
            assert (await client.get(route, headers=person.headers)).status_code == 200, route
    # Nothing to prove with, and so no other way to the secret.
    async with api_with(stack, {**wrong, "DOORKEY_WEBHOOK_SECRETS": ""}) as client:
        assert (await client.get("/v1/me", headers=person.headers)).status_code == 200
        assert_problem(await client.get("/v1/me/key", headers=person.headers), 503, "service_key_rejected")


async def test_a_secret_that_no_configured_key_opens_is_our_problem_and_says_nothing(
    stack: Stack, person: Person, caplog: pytest.LogCaptureFixture
) -> None:
    another = "k9:" + stack.secrets.sealing_key.partition(":")[2]
    async with api_with(stack, {"DOORKEY_SEALING_KEYS": another}) as client:
        answer = await client.get("/v1/me/key", headers=person.headers)
    assert_problem(answer, 500, "internal_error")
    assert "seal" not in answer.text.lower()
    assert "sk-or" not in caplog.text


async def test_the_time_of_an_answer_is_in_utc(api: httpx.AsyncClient, person: Person) -> None:
    me = (await api.get("/v1/me", headers=person.headers)).json()
    created = datetime.fromisoformat(me["created_at"])
    assert abs((datetime.now(UTC) - created).total_seconds()) < 3600
    assert isinstance(me["balance"], dict)


def fields(value: Any) -> set[str]:
    """The names in an answer, of every depth."""
    if isinstance(value, dict):
        return set(value).union(*(fields(inner) for inner in value.values()))
    return set().union(*(fields(inner) for inner in value)) if isinstance(value, list) else set()


async def test_nothing_internal_is_among_what_is_shown(api: httpx.AsyncClient, person: Person) -> None:
    for route in OWN_ROUTES:
        shown = fields((await api.get(route, headers=person.headers)).json())
        assert not shown & {"last_error", "attempt", "sealed_secret", "wanted", "provisioning", "plan_id"}
