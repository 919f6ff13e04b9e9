"""The webhook meets everything but a proper hint: on the running stack by HTTP, and as Lambda calls it.

Whatever is refused is refused in one way, changes nothing and is repeated nowhere.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from functions import webhook
from functions.clients.outside import build_clients
from functions.kit.settings import Settings, decode_webhook_secret
from functions.web.entry import LambdaEntry
from infra.local.stack import Stack
from tests.support.people import database_of, insert_person, new_signup, sign_up, until_state
from tests.support.secrets_used import remember

MAX_BODY_BYTES = 256 * 1024
REFUSAL = {
    "type": "urn:doorkey:error:webhook_refused",
    "title": "This webhook is not signed as it must be, too old, or not understandable.",
    "status": 401,
    "code": "webhook_refused",
}


@dataclass(frozen=True)
class Answer:
    """What the caller sees."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]


Knock = Callable[[dict[str, str], bytes], Awaitable[Answer]]


def lambda_knock(settings: Settings) -> tuple[Knock, ThreadPoolExecutor]:
    """Calls a `LambdaEntry` with events, on a thread of its own: it runs its own loop."""
    entry = LambdaEntry(lambda: webhook.build(settings, build_clients(settings)))
    thread = ThreadPoolExecutor(1)

    async def knock(headers: dict[str, str], body: bytes, method: str = "POST") -> Answer:
        event = {
            "version": "2.0",
            "rawPath": "/webhooks/supabase",
            "rawQueryString": "",
            "headers": headers,
            "requestContext": {"http": {"method": method, "path": "/webhooks/supabase", "sourceIp": "203.0.113.7"}},
            "body": base64.b64encode(body).decode(),
            "isBase64Encoded": True,
        }
        answer = await asyncio.get_running_loop().run_in_executor(thread, entry, event)
        return Answer(answer["statusCode"], answer["headers"], json.loads(answer["body"]))

    return knock, thread


@pytest.fixture(params=["http", "lambda"])
async def knock(request: pytest.FixtureRequest, stack: Stack, http: httpx.AsyncClient) -> AsyncIterator[Knock]:
    """Sends a webhook, by either way in."""
    if request.param == "lambda":
        by_event, thread = lambda_knock(Settings.from_environment(stack.functions_environment))
        yield by_event
        thread.shutdown()
        return

    async def by_http(headers: dict[str, str], body: bytes) -> Answer:
        answer = await http.post(f"{stack.functions_url}/webhooks/supabase", headers=headers, content=body)
        return Answer(answer.status_code, dict(answer.headers), answer.json())

    yield by_http


def hint(user_id: object, **changes: Any) -> dict[str, Any]:
    return {
        "type": "INSERT", "table": "users", "schema": "auth", "record": {"id": str(user_id)}, "old_record": None,
        **changes,
    }  # fmt: skip


def signed(
    stack: Stack, payload: object, *, key: bytes | None = None, age_seconds: float = 0
) -> tuple[dict[str, str], bytes]:
    """Headers and body, signed as the database signs."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    message_id, timestamp = f"msg_{uuid.uuid4()}", str(int(time.time() - age_seconds))
    secret = decode_webhook_secret(stack.secrets.webhook_secret) if key is None else key
    digest = hmac.digest(secret, f"{message_id}.{timestamp}.".encode() + body, "sha256")
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }, body


async def row_of(stack: Stack, user_id: uuid.UUID) -> dict[str, Any]:
    (row,) = await database_of(stack).rows(
        """select p.state::text, p.attempt, p.wanted, p.claimed, p.due_at, p.updated_at, p.key_hash,
                  (select count(*) from public.openrouter_user_keys as k where k.user_id = p.user_id) as keys,
                  (select count(*) from public.credit_transactions as t where t.user_id = p.user_id) as transactions
             from doorkey.provisioning as p where p.user_id = %s""",
        (user_id,),
    )
    return row


@pytest.fixture
async def victim(stack: Stack) -> uuid.UUID:
    """Somebody who is due and of whom nobody has heard: any hint that gets through gives them a key."""
    person = await insert_person(stack, confirmed=False)
    await database_of(stack).run(
        "update doorkey.provisioning set state = 'due', due_at = now() where user_id = %s", (person.user_id,)
    )
    return person.user_id


def refused_hints(stack: Stack, user_id: uuid.UUID) -> dict[str, tuple[dict[str, str], bytes]]:
    """Every kind of hint that must be refused, all of them about the same user."""
    good = hint(user_id)
    headers, body = signed(stack, good)

    def without(name: str) -> dict[str, str]:
        return {key: value for key, value in headers.items() if key != name}

    found = {
        "unsigned": ({"content-type": "application/json"}, body),
        "no id of the message": (without("webhook-id"), body),
        "no timestamp": (without("webhook-timestamp"), body),
        "no signature": (without("webhook-signature"), body),
        "empty signature": ({**headers, "webhook-signature": ""}, body),
        "garbage for a signature": ({**headers, "webhook-signature": "v1,\x7f v1 , ,v1,=="}, body),
        "signed with another secret": signed(stack, good, key=os.urandom(32)),
        "signed with an empty secret": signed(stack, good, key=b""),
        "signed with the secret's text": signed(stack, good, key=stack.secrets.webhook_secret.encode()),
        "signed for another body": (headers, json.dumps(hint(uuid.uuid4())).encode()),
        "signed for other spaces": (headers, body + b"\n"),
        "older than five minutes": signed(stack, good, age_seconds=310),
        "newer than five minutes": signed(stack, good, age_seconds=-310),
        "a fresh timestamp on an old signature": (
            {**signed(stack, good, age_seconds=310)[0], "webhook-timestamp": str(int(time.time()))}, body,
        ),
        "another shared secret": ({"x-webhook-secret": "x" * 32}, body),
        "an empty shared secret": ({"x-webhook-secret": ""}, body),
        "an empty shared secret beside a good signature": ({**headers, "x-webhook-secret": ""}, body),
        "the shared secret cut short": ({"x-webhook-secret": stack.secrets.webhook_shared_secret[:-1]}, body),
        "the shared secret as bearer": ({"authorization": f"Bearer {stack.secrets.webhook_shared_secret}"}, body),
    }  # fmt: skip
    malformed: dict[str, object] = {
        "broken JSON": b'{"type": "INSERT"',
        "broken UTF-8": json.dumps(good).encode().replace(b"INSERT", b"\xff\xfe"),
        "nothing": b"",
        "deeply nested": b"[" * 100_000,
        "a huge number": b"9" * 10_000,
        "null": None,
        "a list": [good],
        "a string": "INSERT",
        "a number": 5,
        "no table": {key: value for key, value in good.items() if key != "table"},
        "no type": {key: value for key, value in good.items() if key != "type"},
        "no record": {key: value for key, value in good.items() if key != "record"},
        "a record that is null": hint(user_id, record=None),
        "a record that is a list": hint(user_id, record=[str(user_id)]),
        "a record that is text": hint(user_id, record=str(user_id)),
        "no id": hint(user_id, record={}),
        "an id that is null": hint(user_id, record={"id": None}),
        "an id that is empty": hint(user_id, record={"id": ""}),
        "an id that is a number": hint(user_id, record={"id": user_id.int}),
        "an id that is a list": hint(user_id, record={"id": [str(user_id)]}),
        "an id that is no UUID": hint(user_id, record={"id": f"{user_id}' or '1'='1"}),
        "an id with a bit too much": hint(user_id, record={"id": f"{user_id}0"}),
        "a deletion that does not say of whom": hint(user_id, type="DELETE"),
    }
    for name, payload in malformed.items():
        found[f"signed: {name}"] = signed(
            stack, json.dumps(payload).encode() if not isinstance(payload, bytes) else payload
        )
    return found


async def test_all_that_is_refused_is_refused_in_one_way_and_changes_nothing(
    stack: Stack, knock: Knock, victim: uuid.UUID
) -> None:
    before = await row_of(stack, victim)
    for name, (headers, body) in refused_hints(stack, victim).items():
        answer = await knock(headers, body)
        request_id = answer.body.pop("request_id")
        assert answer.body == REFUSAL, name
        assert answer.status == 401, name
        assert answer.headers["content-type"] == "application/problem+json", name
        assert answer.headers["x-request-id"] == request_id, name
        assert set(answer.headers) <= {"content-type", "x-request-id", "cache-control", "content-length", "date"}, name
    assert await row_of(stack, victim) == before
    # The same user with a proper hint: what was refused would have had an effect.
    answer = await knock(*signed(stack, hint(victim)))
    assert (answer.status, answer.body) == (200, {"outcome": "ready"})
    assert (await row_of(stack, victim))["keys"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"table": "identities"}, {"table": "profiles", "schema": "public"}, {"schema": "public"}, {"schema": "AUTH"},
        {"table": None}, {"table": ["users"]}, {"schema": {"auth": 1}},
        {"type": "TRUNCATE"}, {"type": "insert"}, {"type": None}, {"type": ["INSERT"]}, {"type": {}},
    ],
)  # fmt: skip
async def test_what_is_about_something_else_is_ignored_without_a_look_at_the_database(
    stack: Stack, knock: Knock, victim: uuid.UUID, changes: dict[str, Any]
) -> None:
    before = await row_of(stack, victim)
    answer = await knock(*signed(stack, hint(victim, **changes)))
    assert (answer.status, answer.body) == (200, {"outcome": "ignored"})
    assert await row_of(stack, victim) == before


async def test_a_body_may_have_256_kilobytes_and_no_more(stack: Stack, knock: Knock, victim: uuid.UUID) -> None:
    before = await row_of(stack, victim)
    body = json.dumps(hint(victim)).encode()
    largest = body + b" " * (MAX_BODY_BYTES - len(body))
    for headers in ({}, signed(stack, largest + b" ")[0]):
        answer = await knock(headers, largest + b" ")
        assert (answer.status, answer.body["code"]) == (413, "body_too_large")
    assert await row_of(stack, victim) == before
    assert (await knock(*signed(stack, largest))).body == {"outcome": "ready"}


async def test_a_hint_that_is_replayed_does_nothing_more(stack: Stack, knock: Knock, victim: uuid.UUID) -> None:
    headers, body = signed(stack, hint(victim))
    at_once = await asyncio.gather(*(knock(headers, body) for _ in range(5)))
    assert {answer.status for answer in at_once} == {200}
    outcomes = sorted(str(answer.body["outcome"]) for answer in at_once)
    assert outcomes == ["nothing_to_do"] * 4 + ["ready"]
    after = await row_of(stack, victim)
    assert (after["attempt"], after["keys"], after["transactions"]) == (1, 1, 1)
    for _ in range(3):
        assert (await knock(headers, body)).body == {"outcome": "nothing_to_do"}
    assert await row_of(stack, victim) == after


@pytest.mark.parametrize("kind", ["INSERT", "UPDATE", "DELETE"])
async def test_a_user_who_is_gone_gets_nothing(stack: Stack, knock: Knock, victim: uuid.UUID, kind: str) -> None:
    database = database_of(stack)
    await database.run("delete from auth.users where id = %s", (victim,))
    never_there = uuid.uuid4()
    for user_id in (victim, never_there):
        payload = hint(user_id, type=kind, old_record={"id": str(user_id)})
        assert (await knock(*signed(stack, payload))).body == {"outcome": "nothing_to_do"}
        keys = "select count(*) from public.openrouter_user_keys where user_id = %s"
        assert await database.value(keys, (user_id,)) == 0
    assert await database.value("select count(*) from doorkey.provisioning where user_id = %s", (never_there,)) == 0


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
async def test_only_post_is_taken(stack: Stack, http: httpx.AsyncClient, method: str, victim: uuid.UUID) -> None:
    headers, body = signed(stack, hint(victim))
    answer = await http.request(method, f"{stack.functions_url}/webhooks/supabase", headers=headers, content=body)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.json()["code"] == "method_not_allowed"
    assert (await row_of(stack, victim))["attempt"] == 0


async def test_the_dashboards_own_webhook_works_and_nothing_of_its_row_is_kept(
    stack: Stack, http: httpx.AsyncClient, knock: Knock
) -> None:
    # Its record is the whole row of auth.users, with the password's hash.
    person = await sign_up(stack, http, data={"full_name": "Nobody To-Be-Logged"})
    database = database_of(stack)
    await until_state(stack, person.user_id)
    confirmation = remember_token()
    await database.run("update auth.users set confirmation_token = %s where id = %s", (confirmation, person.user_id))
    (row,) = await database.rows("select to_jsonb(u) as r from auth.users as u where id = %s", (person.user_id,))
    remember("a password's hash of a person", row["r"]["encrypted_password"])
    remember("a name of a person", "Nobody To-Be-Logged")
    assert row["r"]["encrypted_password"].startswith("$2")
    assert row["r"]["email"] == person.email
    await database.run(
        "update doorkey.provisioning set state = 'due', wanted = wanted + 1, due_at = now() where user_id = %s",
        (person.user_id,),
    )
    body = json.dumps(hint(person.user_id, record=row["r"], old_record=row["r"])).encode()
    shared = {"content-type": "application/json", "X-Webhook-Secret": stack.secrets.webhook_shared_secret}
    assert (await knock({name.lower(): value for name, value in shared.items()}, body)).body == {"outcome": "ready"}
    log = (stack.log_folder / "functions.log").read_text()
    for value in (person.email, row["r"]["encrypted_password"], confirmation, "To-Be-Logged"):
        assert value not in log


def remember_token() -> str:
    token = uuid.uuid4().hex
    remember("a confirmation token", token)
    return token


async def test_without_a_configured_secret_everything_is_refused(stack: Stack, victim: uuid.UUID) -> None:
    nothing = {"DOORKEY_WEBHOOK_SECRETS": "", "DOORKEY_WEBHOOK_SHARED_SECRET": ""}
    closed, thread = lambda_knock(Settings.from_environment({**stack.functions_environment, **nothing}))
    before = await row_of(stack, victim)
    headers, body = signed(stack, hint(victim))
    for sent in (
        headers,
        signed(stack, hint(victim), key=b"")[0],
        {},
        {"x-webhook-secret": ""},
        {"x-webhook-secret": stack.secrets.webhook_shared_secret},
    ):
        answer = await closed(sent, body)
        assert (answer.status, answer.body["code"]) == (401, "webhook_refused")
    assert await row_of(stack, victim) == before
    thread.shutdown()


async def test_nothing_of_what_was_refused_stands_in_the_log(stack: Stack, http: httpx.AsyncClient) -> None:
    mark = f"mark{uuid.uuid4().hex}"
    remember("a mark in a refused webhook", mark)
    headers, _ = signed(stack, hint(mark))
    address = f"{stack.functions_url}/webhooks/supabase?{mark}={mark}"
    for sent, body in (
        ({**headers, "webhook-id": mark}, mark.encode()),
        ({"x-webhook-secret": mark, "x-request-id": f"{mark} {mark}"}, mark.encode()),
        ({"webhook-signature": mark, "webhook-timestamp": mark, "authorization": f"Bearer {mark}"}, b"{}"),
        signed(stack, hint(mark)),
        signed(stack, {mark: mark}),
        signed(stack, hint(uuid.uuid4(), table=mark, schema=mark)),
    ):
        answer = await http.post(address, headers=sent, content=body)
        assert mark not in answer.text
        assert mark not in str(answer.headers)
    log = (stack.log_folder / "functions.log").read_text()
    assert '"webhook.refused"' in log
    assert mark not in log


async def test_while_the_service_key_is_rejected_the_row_waits(stack: Stack, victim: uuid.UUID) -> None:
    wrong = {"SUPABASE_SECRET_KEY": "sb_secret_of-nobody-at-all-here"}
    knock, thread = lambda_knock(Settings.from_environment({**stack.functions_environment, **wrong}))
    before = await row_of(stack, victim)
    answer = await knock(*signed(stack, hint(victim)))
    assert (answer.status, answer.body["code"]) == (503, "service_key_rejected")
    assert "sb_secret" not in json.dumps(answer.body)
    assert await row_of(stack, victim) == before
    thread.shutdown()


PEOPLE: dict[str, dict[str, Any]] = {
    "phone only": {"phone": f"4915{uuid.uuid4().int % 10**9:09}"},
    "300 characters of unicode": {"metadata": {"full_name": "Ω🔑ß" * 100}},
    "right to left and zero width": {"metadata": {"full_name": "\u202eevil\u200b\ufeff‮" * 10}},
    "a megabyte for a name": {"metadata": {"full_name": "x" * 1_000_000}},
    "an object for a name": {"metadata": {"full_name": {"$ne": None}, "name": ["a"]}},
    "a number for a name": {"metadata": {"full_name": 1e300, "name": False}},
    "statements": {"metadata": {"full_name": "'; drop table public.profiles; --", "id": "x", "role": "service_role"}},
    "markup": {"metadata": {"full_name": "<script>alert(1)</script>{{7*7}}%s%n$1"}},
    "a list for metadata": {"metadata": [1, 2, 3]},
    "deep metadata": {"metadata": {"a": json.loads("[" * 500 + "]" * 500)}},
    "keys of ours": {"metadata": {"openrouter_key_limit": 10**9, "plan": "unlimited", "is_uncapped": True}},
}


@pytest.mark.parametrize("kind", sorted(PEOPLE))
async def test_whoever_signs_up_gets_their_key(stack: Stack, http: httpx.AsyncClient, kind: str) -> None:
    person = await insert_person(stack, **PEOPLE[kind])
    await until_state(stack, person.user_id)
    me = (await http.get(f"{stack.functions_url}/v1/me", headers=person.headers)).json()
    assert me["user_id"] == str(person.user_id)
    assert me["status"] == "active"
    assert me["key"]["limit_micros"] == me["balance"]["available_micros"] == 5_000_000
    if kind == "phone only":
        assert me["email"] is None
    if kind == "300 characters of unicode":
        assert me["full_name"] == "Ω🔑ß" * 100
        assert len(me["full_name"]) == 300


async def test_hostile_metadata_through_the_door_of_auth(stack: Stack, http: httpx.AsyncClient) -> None:
    body = new_signup(data={"full_name": "Ω🔑ß" * 100, "role": "service_role", "nested": {"a": [None, "\u2028"]}})
    answer = await http.post(f"{stack.functions_url}/v1/auth/signup", json=body)
    assert answer.status_code == 200
    user_id = uuid.UUID(answer.json()["user"]["id"])
    remember("an access token", answer.json()["access_token"])
    remember("a refresh token", answer.json()["refresh_token"])
    await until_state(stack, user_id)
