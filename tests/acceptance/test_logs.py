"""No log of any part shows a secret or an e-mail address, whatever makes the parts talkative.

The same search ends every shared stack (`tests/conftest.py`), over all that any test did with it.
"""

from __future__ import annotations

import asyncio
import json
import uuid

import httpx
import psycopg
import pytest

from infra.local.stack import Stack
from tests.support.logs import search_logs
from tests.support.people import database_of, new_signup, person_from, sign_up, token_for, until_state
from tests.support.secrets_used import PATTERNS, leaks, remember

EXAMPLES = {
    "a JWT": "token=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln",
    "an OpenRouter key": "sk-or-v1-" + "0a" * 32,
    "a Supabase secret key": '"sb_secret_abc-DEF"',
    "a webhook secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "an e-mail address": "Key (email)=(ada.lovelace@example.com) already exists.",
    "a password in an address": "postgresql://postgres:tell-nobody@127.0.0.1:5432/postgres",
    "a private key": "-----BEGIN PRIVATE KEY-----",
    "a password's hash": "$2a$10$N9qo8uLOickgx2ZMRZoMye",
}


def test_the_search_finds_what_it_looks_for() -> None:
    assert set(EXAMPLES) == set(PATTERNS)
    for kind, example in EXAMPLES.items():
        assert kind in leaks(f"2026 INFO request.answered {example} status=200".encode())
    harmless = (
        "POST /rest/v1/rpc/claim_provisioning 200 node_modules/@supabase/lite/dist/cli/index.js:12:3 http://127.0.0.1:1"
    )
    assert leaks(harmless.encode()) == set()
    mark = f"mark {uuid.uuid4()} «ü»"
    remember("a mark of this test", mark)
    assert leaks(f"before {mark} after".encode()) == {"a mark of this test"}
    assert leaks(json.dumps({"detail": mark}).encode()) == {"a mark of this test"}


async def make_trouble(stack: Stack, http: httpx.AsyncClient) -> None:
    """Whatever makes servers and libraries talkative, at every part of the stack."""
    secrets = stack.secrets
    auth = {"apikey": secrets.publishable_key}
    person = await sign_up(stack, http, data={"full_name": "Nobody To-Be-Logged"})
    remember("a name of a person", "To-Be-Logged")
    await until_state(stack, person.user_id)
    mine = (await http.get(f"{stack.functions_url}/v1/me/key", headers=person.headers)).json()
    remember("a user's OpenRouter key", mine["secret"])
    again = {"email": person.email, "password": person.password}
    bad = {"email": person.email, "password": "not my password"}
    remember("a password of a person", "not my password")
    for url, body in (
        ("/auth/v1/signup", again),
        ("/auth/v1/signup", {**again, "password": "short"}),
        ("/auth/v1/signup", {**new_signup(), "data": {"a": "\x00"}}),
        ("/auth/v1/token?grant_type=password", bad),
        ("/auth/v1/recover", {"email": person.email}),
        ("/auth/v1/otp", {"email": person.email}),
    ):
        await http.post(stack.supabase_url + url, json=body, headers=auth)
    signed_in = await http.post(f"{stack.supabase_url}/auth/v1/token?grant_type=password", json=again, headers=auth)
    person_from(again, signed_in.json())
    refresh = {"refresh_token": signed_in.json()["refresh_token"]}
    renewed = await http.post(
        f"{stack.supabase_url}/auth/v1/token?grant_type=refresh_token", json=refresh, headers=auth
    )
    person_from(again, renewed.json())
    service = {"apikey": secrets.secret_key}
    rest = f"{stack.supabase_url}/rest/v1"
    for headers in (service, auth, {**auth, "Authorization": f"Bearer {token_for(stack, person.user_id, exp=1)}"}):
        await http.get(f"{rest}/profiles?email=eq.{person.email}&apikey={secrets.secret_key}", headers=headers)
        await http.get(f"{rest}/profiles?nothing=eq.{person.email}", headers=headers)
        await http.post(f"{rest}/profiles", json={"id": str(person.user_id), "email": person.email}, headers=headers)
        await http.post(
            f"{rest}/rpc/reveal_key", json={"user_id": person.email, "request_id": mine["secret"]}, headers=headers
        )
        await http.post(f"{rest}/rpc/nothing", json={"email": person.email}, headers=headers)
    users = f"{stack.supabase_url}/auth/v1/admin/users"
    await http.post(users, json={"email": person.email, "password": person.password}, headers=service)
    await http.put(f"{users}/{person.user_id}", json={"email": person.email, "phone": "1"}, headers=service)
    for key in (mine["secret"], secrets.management_key, person.token, "sk-or-v1-" + "f" * 64):
        headers = {"Authorization": f"Bearer {key}"}
        await http.get(f"{stack.openrouter_url}/keys?name={person.email}", headers=headers)
        await http.post(f"{stack.openrouter_url}/keys", json={"name": person.email, "limit": "x"}, headers=headers)
        await http.post(f"{stack.openrouter_url}/chat/completions", json={"user": person.email}, headers=headers)
        await http.get(f"{stack.functions_url}/v1/me?apikey={key}", headers=headers)
        await http.get(f"{stack.functions_url}/{key}/{person.email}", headers={"X-Request-Id": person.email})
    database = database_of(stack)
    for statement in (
        "insert into auth.users (id, email) select id, email from auth.users where email = %s",
        "select %s::uuid", "select %s::json", "select 1 / length(replace(%s, '@', '')) - 1",
        "do $$ begin raise warning 'careful'; end $$; select %s",
    ):  # fmt: skip
        try:
            await database.run(statement, (person.email,))
        except psycopg.Error:
            continue
    # A hint that reaches nobody: what pg_net says of it.
    await database.run(
        "select net.http_post('http://127.0.0.1:1/' || %s, %s::jsonb)", (person.email, json.dumps(again))
    )
    await asyncio.sleep(1.5)  # a round of pg_net


async def test_no_log_of_any_part_shows_a_secret_even_in_trouble(stack: Stack, http: httpx.AsyncClient) -> None:
    await make_trouble(stack, http)
    await search_logs(stack)


@pytest.mark.parametrize("part", ["functions", "edge", "openrouter", "pg_net", "postgres"])
def test_there_is_something_in_the_log_that_was_searched(stack: Stack, part: str) -> None:
    assert (stack.log_folder / f"{part}.log").stat().st_size > 0
