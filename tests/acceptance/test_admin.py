"""What operators may do over HTTP: who is one, what is refused and in which words, and what is noted."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from infra.local.stack import Stack
from tests.acceptance.test_api import assert_problem
from tests.support.people import Person, database_of, insert_person, token_for, until_state

GIFT = {"type": "bonus", "amount_micros": 250_000, "reason": "Thanks for the report"}


@pytest.fixture
async def api(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """The functions on the running stack, as the operator calls them unless told otherwise."""
    headers = {"Authorization": f"Bearer {stack.secrets.operator_token}"}
    async with httpx.AsyncClient(base_url=stack.functions_url, timeout=30, trust_env=False, headers=headers) as client:
        yield client


@pytest.fixture
async def person(stack: Stack) -> Person:
    """Somebody who has their key."""
    somebody = await insert_person(stack)
    await until_state(stack, somebody.user_id)
    return somebody


def path_of(person: Person, what: str = "credits") -> str:
    return f"/v1/admin/users/{person.user_id}/{what}"


def once(**more: str) -> dict[str, str]:
    """Headers of a request that nobody made before."""
    return {"Idempotency-Key": uuid.uuid4().hex, **more}


async def lines_of(stack: Stack, person: Person, action: str) -> list[dict[str, Any]]:
    return await database_of(stack).rows(
        "select actor, request_id, detail from doorkey.audit_log where user_id = %s and action = %s order by id",
        (person.user_id, action),
    )


async def available(stack: Stack, person: Person) -> int:
    balance: int = await database_of(stack).value(
        "select available_micros from public.credit_accounts where user_id = %s", (person.user_id,)
    )
    return balance


def admin_token(stack: Stack, user_id: uuid.UUID, **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token_for(stack, user_id, **({'app_metadata': {'role': 'admin'}} | claims))}"}


async def test_credits_are_given_once_and_noted_with_who_what_before_and_after(
    stack: Stack, api: httpx.AsyncClient, person: Person
) -> None:
    headers = once(**{"X-Request-Id": f"admin.{uuid.uuid4()}"})
    first = await api.post(path_of(person), json=GIFT, headers=headers)
    assert first.status_code == 200, first.text
    assert first.json() == {
        "transaction_id": first.json()["transaction_id"], "available_after_micros": 5_250_000, "owed_micros": 0,
    }  # fmt: skip
    again = await asyncio.gather(*(api.post(path_of(person), json=GIFT, headers=headers) for _ in range(5)))
    assert {answer.text for answer in again} == {first.text}
    assert await available(stack, person) == 5_250_000
    (line,) = await lines_of(stack, person, "credits.posted")
    assert (line["actor"], line["request_id"]) == ("operator", headers["X-Request-Id"])
    detail = line["detail"]
    assert (detail["available_before_micros"], detail["available_after_micros"]) == (5_000_000, 5_250_000)
    assert (detail["type"], detail["amount_micros"], detail["reason"]) == ("bonus", 250_000, GIFT["reason"])
    other = await api.post(path_of(person), json={**GIFT, "amount_micros": 1}, headers=headers)
    assert_problem(other, 409, "idempotency_conflict")
    told = (await api.get("/v1/credits/transactions?limit=1", headers=person.headers)).json()["transactions"][0]
    assert (told["id"], told["reason"]) == (first.json()["transaction_id"], GIFT["reason"])


async def test_credits_that_are_given_may_expire_and_credits_may_be_taken(
    api: httpx.AsyncClient, person: Person
) -> None:
    ends = (datetime.now(UTC) + timedelta(days=3)).replace(microsecond=0)
    given = await api.post(path_of(person), json={**GIFT, "expires_at": ends.isoformat()}, headers=once())
    assert given.status_code == 200
    lots = (await api.get("/v1/credits/balance", headers=person.headers)).json()["lots"]
    assert ends in {datetime.fromisoformat(lot["expires_at"]) for lot in lots}
    taking = {"type": "adjustment", "amount_micros": -5_250_001, "reason": "A mistake"}
    taken = await api.post(path_of(person), json=taking, headers=once())
    assert (taken.json()["available_after_micros"], taken.json()["owed_micros"]) == (0, 1)
    past = {**GIFT, "expires_at": "2020-01-01T00:00:00Z"}
    assert_problem(await api.post(path_of(person), json=past, headers=once()), 422, "posting_invalid")
    buying = {**GIFT, "type": "purchase", "amount_micros": -1}
    assert_problem(await api.post(path_of(person), json=buying, headers=once()), 422, "amount_out_of_range")


@pytest.mark.parametrize(
    "amount",
    [
        "0", "-0", "1000000000001", "-1000000000001", "0.5", "1.0", "1e3", "1e30", "1" + "0" * 30, "-1e400", "NaN",
        "Infinity", "-Infinity", '"5"', '"NaN"', '""', "null", "true", "[5]", "{}", "9" * 4_000,
    ],
)  # fmt: skip
async def test_an_amount_that_is_none_is_refused_by_its_own_code(
    stack: Stack, api: httpx.AsyncClient, person: Person, amount: str
) -> None:
    body = f'{{"type": "bonus", "reason": "r", "amount_micros": {amount}}}'
    headers = once(**{"Content-Type": "application/json"})
    assert_problem(await api.post(path_of(person), content=body, headers=headers), 422, "amount_out_of_range")
    assert await available(stack, person) == 5_000_000
    assert await lines_of(stack, person, "credits.posted") == []


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"amount_micros": 5}', b'{"type": "bonus", "reason": "r"}',
        b'{"type": "usage", "amount_micros": 5, "reason": "r"}', b'{"type": "bonus", "amount_micros": 5, "reason": ""}',
        b'{"type": "bonus", "amount_micros": 5, "reason": "r", "actor": "somebody else"}',
        b'{"type": "bonus", "amount_micros": 5, "reason": "a\\u0000b"}',
        b'{"type": "bonus", "amount_micros": 5, "reason": "\\ud800"}',
        b'{"type": "bonus", "amount_micros": 5, "reason": "' + b"r" * 501 + b'"}',
        b'{"type": "bonus", "amount_micros": 5, "reason": "r", "expires_at": "soon"}',
        b'{"type": "bonus", "amount_micros": 5, "reason": "r", "expires_at": "2030-01-01T00:00:00"}',
        b'{"type": "bonus", "amount_micros": ' + b"9" * 5_000 + b', "reason": "r"}',
    ],
)  # fmt: skip
async def test_a_body_that_makes_no_sense_is_refused(
    stack: Stack, api: httpx.AsyncClient, person: Person, body: bytes
) -> None:
    headers = once(**{"Content-Type": "application/json"})
    assert_problem(await api.post(path_of(person), content=body, headers=headers), 400, "request_invalid")
    assert await available(stack, person) == 5_000_000


@pytest.mark.parametrize("key", [None, "", "a b", "k" * 181, b"\xc3\xa9"])
async def test_a_change_needs_an_idempotency_key(
    stack: Stack, api: httpx.AsyncClient, person: Person, key: str | bytes | None
) -> None:
    headers: dict[str, Any] = {} if key is None else {"Idempotency-Key": key}
    assert_problem(await api.post(path_of(person), json=GIFT, headers=headers), 422, "idempotency_key_invalid")
    assert await available(stack, person) == 5_000_000


async def test_a_user_who_is_not_there_is_named_so(stack: Stack, api: httpx.AsyncClient) -> None:
    older = await insert_person(stack, created_at="2020-01-01T00:00:00Z")
    for user_id in (uuid.uuid4(), older.user_id):
        nobody = Person(user_id, "")
        assert_problem(await api.post(path_of(nobody), json=GIFT, headers=once()), 404, "profile_not_found")
        assert_problem(await api.get(f"/v1/admin/users/{user_id}"), 404, "profile_not_found")
    for strange in ("x", "0", "null", f"{uuid.uuid4()}x", "%27"):
        answer = await api.post(f"/v1/admin/users/{strange}/credits", json=GIFT, headers=once())
        assert_problem(answer, 400, "request_invalid")


async def test_operators_see_a_user_and_no_secret(api: httpx.AsyncClient, person: Person) -> None:
    told = (await api.get(f"/v1/admin/users/{person.user_id}")).json()
    mine = (await api.get("/v1/me", headers=person.headers)).json()
    assert told == {**mine, "state": "ready", "last_error": None}
    assert "sk-or-v1-" not in str({**told, "key": {**told["key"], "label": ""}})


async def test_an_admin_is_an_operator_and_is_noted_by_their_id(
    stack: Stack, api: httpx.AsyncClient, person: Person
) -> None:
    boss = uuid.uuid4()
    answer = await api.post(path_of(person), json=GIFT, headers={**once(), **admin_token(stack, boss)})
    assert answer.status_code == 200, answer.text
    (line,) = await lines_of(stack, person, "credits.posted")
    assert line["actor"] == f"admin:{boss}"
    assert (await api.get(f"/v1/admin/users/{person.user_id}", headers=admin_token(stack, boss))).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_nobody_else_is_an_operator(stack: Stack, api: httpx.AsyncClient, person: Person, method: str) -> None:
    boss = uuid.uuid4()
    admin = {"role": "admin"}
    wrong: dict[str, tuple[dict[str, str], int, str]] = {
        "nobody": ({"Authorization": ""}, 401, "operator_token_rejected"),
        "the secret key": ({"Authorization": f"Bearer {stack.secrets.secret_key}"}, 401, "operator_token_rejected"),
        "the hash": (
            {"Authorization": f"Bearer {stack.functions_environment['DOORKEY_OPERATOR_TOKEN_SHA256']}"},
            401,
            "operator_token_rejected",
        ),
        "the token by another scheme": (
            {"Authorization": f"Basic {stack.secrets.operator_token}"}, 401, "operator_token_rejected",
        ),
        "the user": (person.headers, 403, "admin_required"),
        "a self-made admin": (
            admin_token(stack, boss, app_metadata={}, user_metadata=admin), 403, "admin_required",
        ),
        "an admin by claim": (admin_token(stack, boss, app_metadata={}, **admin), 401, "user_token_rejected"),
        "an admin among roles": (admin_token(stack, boss, app_metadata={"roles": ["admin"]}), 403, "admin_required"),
        "no object": (admin_token(stack, boss, app_metadata="admin"), 403, "admin_required"),
        "an anonymous admin": (admin_token(stack, boss, is_anonymous=True), 403, "admin_required"),
        "an admin of yesterday": (admin_token(stack, boss, exp=1_700_000_000), 401, "user_token_rejected"),
        "an admin of another project": (
            admin_token(stack, boss, iss="https://elsewhere.example/auth/v1"), 401, "user_token_rejected",
        ),
        "garbage": ({"Authorization": "Bearer a.b.c"}, 401, "user_token_rejected"),
    }  # fmt: skip
    path = path_of(person) if method == "POST" else f"/v1/admin/users/{person.user_id}"
    for name, (headers, status, code) in wrong.items():
        answer = await api.request(method, path, json=GIFT if method == "POST" else None, headers={**once(), **headers})
        assert answer.status_code == status, name
        assert_problem(answer, status, code)
    assert await available(stack, person) == 5_000_000


async def test_an_admins_token_opens_nothing_at_the_data_api(stack: Stack, person: Person) -> None:
    headers = {"apikey": stack.secrets.publishable_key, **admin_token(stack, uuid.uuid4())}
    arguments = {
        "user_id": str(person.user_id), "type": "bonus", "amount_micros": 1, "idempotency_key": uuid.uuid4().hex,
        "reason": "r", "actor": "me", "expires_at": None, "request_id": "r",
    }  # fmt: skip
    async with httpx.AsyncClient(base_url=stack.supabase_url, trust_env=False) as client:
        posted = await client.post("/rest/v1/rpc/post_credits", headers=headers, json=arguments)
        read = await client.post("/rest/v1/rpc/get_account", headers=headers, json={"user_id": str(person.user_id)})
    assert {posted.json()["code"], read.json()["code"]} == {"42501"}


PLAN = {"plan": "starter", "reason": "Paid by invoice"}


async def test_a_plan_is_changed_once_and_noted_with_who_what_before_and_after(
    stack: Stack, api: httpx.AsyncClient, person: Person
) -> None:
    boss, headers = uuid.uuid4(), once(**{"X-Request-Id": f"admin.{uuid.uuid4()}"})
    headers |= admin_token(stack, boss)
    first = await api.post(path_of(person, "plan"), json=PLAN, headers=headers)
    assert first.status_code == 200, first.text
    assert first.json()["plan"] == "starter"
    ends = datetime.fromisoformat(first.json()["period_ends_at"])
    assert ends - datetime.fromisoformat(first.json()["effective_at"]) == timedelta(days=30)
    again = await asyncio.gather(*(api.post(path_of(person, "plan"), json=PLAN, headers=headers) for _ in range(5)))
    assert {answer.text for answer in again} == {first.text}
    lines = await lines_of(stack, person, "plan.changed")
    (line,) = [line for line in lines if line["actor"] == f"admin:{boss}" and "reason" in line["detail"]]
    assert line["request_id"] == headers["X-Request-Id"]
    assert (line["detail"]["before"]["plan_id"], line["detail"]["after"]["plan_id"]) == ("trial", "starter")
    balance = (await api.get("/v1/credits/balance", headers=person.headers)).json()
    assert (balance["plan"], balance["available_micros"]) == ("starter", 25_000_000)
    assert datetime.fromisoformat(balance["period_ends_at"]) == ends
    other = await api.post(path_of(person, "plan"), json={**PLAN, "plan": "professional"}, headers=headers)
    assert_problem(other, 409, "idempotency_conflict")
    later = await api.post(
        path_of(person, "plan"), json={**PLAN, "plan": "trial", "when": "period_end"}, headers=once()
    )
    assert datetime.fromisoformat(later.json()["effective_at"]) == ends


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"plan": "golden"}, 404, "unknown_plan"), ({"plan": "'; drop table x"}, 404, "unknown_plan"),
        ({"plan": "trial"}, 409, "plan_unchanged"), ({"when": "period_end"}, 409, "no_period"),
        ({"when": "tomorrow"}, 400, "request_invalid"), ({"plan": ""}, 400, "request_invalid"),
        ({"plan": None}, 400, "request_invalid"), ({"plan": "a\0b"}, 400, "request_invalid"),
        ({"plan": 5}, 400, "request_invalid"), ({"reason": ""}, 400, "request_invalid"),
        ({"plan": "p" * 64}, 400, "request_invalid"), ({"price": 0}, 400, "request_invalid"),
    ],
)  # fmt: skip
async def test_a_change_of_plan_that_can_not_be_is_refused_by_its_own_code(
    stack: Stack, api: httpx.AsyncClient, person: Person, change: dict[str, Any], status: int, code: str
) -> None:
    answer = await api.post(path_of(person, "plan"), json={**PLAN, **change}, headers=once())
    assert_problem(answer, status, code)
    assert await lines_of(stack, person, "plan.changed") == []
    nobody = Person(uuid.uuid4(), "")
    assert_problem(await api.post(path_of(nobody, "plan"), json=PLAN, headers=once()), 404, "profile_not_found")
    assert_problem(await api.post(path_of(person, "plan"), json=PLAN), 422, "idempotency_key_invalid")
    mine = {**once(), **person.headers}
    assert_problem(await api.post(path_of(person, "plan"), json=PLAN, headers=mine), 403, "admin_required")


async def test_the_description_says_what_operators_may_do(api: httpx.AsyncClient) -> None:
    described = (await api.get("/v1/admin/openapi.json")).json()["paths"]
    assert {(path, method) for path, methods in described.items() for method in methods} == {
        ("/v1/admin/users/{user_id}", "get"), ("/v1/admin/users/{user_id}/credits", "post"),
        ("/v1/admin/users/{user_id}/plan", "post"), ("/v1/admin/reports/drift", "get"),
    }  # fmt: skip
    for path in ("/v1/admin", "/v1/admin/", "/v1/admin/users", "/v1/admin/me", "/v1/adminusers"):
        assert_problem(await api.get(path), 404, "route_not_found")
