"""The signup door: Auth's answers, unchanged, by either address."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx
import pytest

from infra.local.stack import Stack
from tests.support.apps import Listening, api_with
from tests.support.people import new_signup, person_from, until_state
from tests.support.secrets_used import remember

ROUTES = ["/v1/auth/signup", "/core/v1/auth/signup"]
BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


def shape(value: Any) -> Any:
    """The names and kinds of an answer, without its values."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return type(value).__name__


async def direct(stack: Stack, http: httpx.AsyncClient, content: bytes) -> httpx.Response:
    headers = {"apikey": stack.secrets.publishable_key, "content-type": "application/json"}
    return await http.post(f"{stack.supabase_url}/auth/v1/signup", content=content, headers=headers)


@pytest.mark.parametrize("route", ROUTES)
async def test_a_signup_returns_what_auth_returns(stack: Stack, http: httpx.AsyncClient, route: str) -> None:
    body, other = new_signup(data={"full_name": "Ada"}), new_signup(data={"full_name": "Ada"})
    ours = await http.post(stack.functions_url + route, json=body)
    theirs = await direct(stack, http, json.dumps(other).encode())
    assert ours.status_code == theirs.status_code == 200
    assert ours.headers["content-type"] == theirs.headers["content-type"]
    assert shape(ours.json()) == shape(theirs.json())
    assert ours.json()["user"]["email"] == body["email"]
    person_from(other, theirs.json())
    person = person_from(body, ours.json())
    await until_state(stack, person.user_id)
    me = await http.get(f"{stack.functions_url}/v1/me", headers=person.headers)
    assert (me.json()["email"], me.json()["full_name"]) == (body["email"], "Ada")


@pytest.mark.parametrize("route", ROUTES)
async def test_what_auth_refuses_is_refused_in_its_own_words(stack: Stack, http: httpx.AsyncClient, route: str) -> None:
    taken = new_signup()
    person_from(taken, (await direct(stack, http, json.dumps(taken).encode())).json())
    remember("a password of a person", "another password")
    for status, content in (
        (422, json.dumps({**new_signup(), "password": "short"}).encode()),
        (422, json.dumps({**taken, "password": "another password"}).encode()),
        (400, b'{"email": '),
        (400, b"\xff\xfe"),
        (400, b"[]"),
        (400, json.dumps({"phone": "+15550100", "password": "a password"}).encode()),
    ):
        ours = await http.post(stack.functions_url + route, content=content)
        theirs = await direct(stack, http, content)
        assert ours.status_code == theirs.status_code == status
        assert ours.content == theirs.content
        assert ours.headers["content-type"] == theirs.headers["content-type"]


@pytest.mark.parametrize("route", ROUTES)
async def test_a_form_in_a_browser_signs_up(stack: Stack, http: httpx.AsyncClient, route: str) -> None:
    # The gateway refuses a secret key that comes with a browser's User-Agent, and ours may carry the call.
    body = new_signup()
    headers = {"User-Agent": BROWSER, "Origin": "http://localhost:3000", "apikey": stack.secrets.publishable_key}
    answer = await http.post(stack.functions_url + route, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    person_from(body, answer.json())


async def test_auth_is_told_who_really_calls_and_nobody_can_pretend(stack: Stack) -> None:
    listening = Listening()
    body = new_signup()
    pretended = {
        "Sb-Forwarded-For": "198.51.100.1", "X-Forwarded-For": "198.51.100.1", "Forwarded": "for=198.51.100.1",
        "apikey": "sb_publishable_of-the-caller", "Authorization": "Bearer of-the-caller", "X-Client-Info": "my-app/1",
    }  # fmt: skip
    forwarding = {"DOORKEY_FORWARDS_CALLER_ADDRESS": "true"}
    async with api_with(stack, forwarding, listening=listening, caller_address="203.0.113.9") as client:
        answer = await client.post("/v1/auth/signup?redirect_to=http://localhost:3000/in", json=body, headers=pretended)
    person_from(body, answer.json())
    (sent,) = listening.requests
    assert sent.headers.get_list("sb-forwarded-for") == ["203.0.113.9"]
    assert "198.51.100.1" not in str(sent.headers.raw)
    assert "of-the-caller" not in str(sent.headers.raw)
    assert sent.headers["apikey"] == stack.secrets.secret_key
    assert sent.headers["x-client-info"] == "my-app/1"
    assert dict(sent.url.params) == {"redirect_to": "http://localhost:3000/in"}
    assert json.loads(sent.content) == body


async def test_a_body_that_no_signup_needs_is_refused_before_auth_hears_of_it(stack: Stack) -> None:
    listening = Listening()
    async with api_with(stack, listening=listening) as client:
        answer = await client.post("/v1/auth/signup", content=b" " * (64 * 1024 + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert listening.requests == []


async def test_a_rejected_service_key_is_not_put_on_the_caller(stack: Stack) -> None:
    body = new_signup()
    wrong = {"SUPABASE_SECRET_KEY": "sb_secret_of-nobody-at-all-here", "DOORKEY_FORWARDS_CALLER_ADDRESS": "true"}
    async with api_with(stack, wrong) as client:
        answer = await client.post("/v1/auth/signup", json=body)
    assert (answer.status_code, answer.json()["code"]) == (503, "service_key_rejected")
    assert "API key" not in answer.text


async def test_a_rejected_service_key_locks_nobody_out_of_signing_up(stack: Stack) -> None:
    body = new_signup()
    async with api_with(stack, {"SUPABASE_SECRET_KEY": "sb_secret_of-nobody-at-all-here"}) as client:
        answer = await client.post("/v1/auth/signup", json=body)
    assert answer.status_code == 200
    person_from(body, answer.json())


async def test_while_auth_is_away_the_caller_is_told_to_come_back(stack: Stack) -> None:
    async with api_with(stack, {"SUPABASE_URL": "http://127.0.0.1:1"}) as client:
        answer = await client.post("/v1/auth/signup", json=new_signup())
    assert (answer.status_code, answer.json()["code"]) == (503, "supabase_unreachable")
    assert "127.0.0.1" not in answer.text


async def test_nothing_of_a_signup_stands_in_the_log(stack: Stack, http: httpx.AsyncClient) -> None:
    body = new_signup()
    mark = uuid.uuid4().hex
    remember("a mark in a query", mark)
    answer = await http.post(f"{stack.functions_url}/v1/auth/signup?redirect_to=http://{mark}.example", json=body)
    person = person_from(body, answer.json())
    log = (stack.log_folder / "functions.log").read_text()
    for value in (body["email"], body["password"], person.token, mark):
        assert value not in log
