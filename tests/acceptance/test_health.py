"""Alive, ready, and what to do when it is not."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import httpx
import pytest

from functions.health.examination import JUDGES
from infra.local.stack import Stack
from tests.support.apps import api_with
from tests.support.people import insert_person


def operator(stack: Stack) -> dict[str, str]:
    return {"Authorization": f"Bearer {stack.secrets.operator_token}"}


def by_name(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in body["checks"]}


@pytest.mark.parametrize("path", ["/health", "/api/health"])
async def test_anybody_may_ask_whether_it_is_alive(stack: Stack, http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(stack.functions_url + path)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_whether_it_is_ready_is_for_operators(stack: Stack, http: httpx.AsyncClient) -> None:
    person = await insert_person(stack)
    token = stack.secrets.operator_token
    for headers in (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {token}"},
        {"Authorization": f"Bearer {token}x"},
        {"Authorization": f"Bearer {sha256(token.encode()).hexdigest()}"},
        {"Authorization": f"Bearer {stack.secrets.secret_key}"},
        {"Authorization": b"Bearer \xff\xfe"},
        {"X-Operator-Token": token},
        person.headers,
    ):
        answer = await http.get(f"{stack.functions_url}/health/ready", headers=headers)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["code"]) == (401, "operator_token_rejected")
        assert "checks" not in answer.text


async def test_without_an_operator_token_nobody_may_ask(stack: Stack) -> None:
    async with api_with(stack, {"DOORKEY_OPERATOR_TOKEN_SHA256": ""}) as client:
        for headers in (operator(stack), {"Authorization": "Bearer "}, {}):
            assert (await client.get("/health/ready", headers=headers)).status_code == 401


# What other tests on the same stack may have left: who was given up, who is late; and nobody sweeps there by the clock.
OTHERS = {"queue", "dead_rows", "held_queue", "sweep", "sealing_keys", "openrouter_credits"}


async def test_a_stack_that_runs_is_ready(stack: Stack, http: httpx.AsyncClient) -> None:
    answer = await http.get(f"{stack.functions_url}/health/ready", headers=operator(stack))
    checks = by_name(answer.json())
    assert list(checks) == list(JUDGES)
    assert {name for name, check in checks.items() if check["state"] != "ok"} <= OTHERS


@pytest.mark.parametrize(
    ("changes", "broken", "mend"),
    [
        ({"SUPABASE_SECRET_KEY": "sb_secret_tell-no-one-of-this"}, {"secret_key"}, "SUPABASE_SECRET_KEY"),
        ({"OPENROUTER_MANAGEMENT_KEY": "sk-or-v1-tell-no-one-of-this"}, {"openrouter"}, "OPENROUTER_MANAGEMENT_KEY"),
        ({"OPENROUTER_BASE_URL": "http://127.0.0.1:1/tell-no-one"}, {"openrouter"}, "OPENROUTER_BASE_URL"),
        ({"SUPABASE_URL": "http://127.0.0.1:1/tell-no-one"}, {"supabase"}, "SUPABASE_URL"),
    ],
)
async def test_what_is_broken_is_named_with_what_to_do_and_nothing_is_shown(
    stack: Stack, changes: dict[str, str], broken: set[str], mend: str
) -> None:
    async with api_with(stack, changes) as client:
        answer = await client.get("/health/ready", headers=operator(stack))
    assert answer.status_code == 503
    assert answer.json()["status"] == "broken"
    checks = by_name(answer.json())
    assert {name for name, check in checks.items() if check["state"] == "broken"} - OTHERS == broken
    assert all(mend in checks[name]["mend"] for name in broken)
    assert "no-one" not in answer.text
    assert "127.0.0.1" not in answer.text
    assert [check["finding"] for check in checks.values() if not check["finding"].endswith(".")] == []


async def test_an_api_without_the_signing_secret_is_warned_that_own_doors_are_shut(stack: Stack) -> None:
    async with api_with(stack, {"DOORKEY_WEBHOOK_SECRETS": ""}) as client:
        checks = by_name((await client.get("/health/ready", headers=operator(stack))).json())
    assert checks["webhook_secret"]["state"] == "warning"
    assert "own doors are shut" in checks["webhook_secret"]["finding"]
    assert "docs/operations.md#the-signing-secret" in checks["webhook_secret"]["mend"]


@pytest.mark.parametrize(
    ("changes", "rung"),
    [
        ({}, "rung 3"),
        ({"DOORKEY_WEBHOOK_SECRETS": ""}, "rung 4"),
        ({"SUPABASE_PUBLISHABLE_KEY": "sb_publishable_of-nobody-at-all"}, "rung 4"),
    ],
)
async def test_with_the_secret_key_rejected_the_rung_that_serves_people_is_named(
    stack: Stack, changes: dict[str, str], rung: str
) -> None:
    async with api_with(stack, {"SUPABASE_SECRET_KEY": "sb_secret_of-nobody-at-all", **changes}) as client:
        check = by_name((await client.get("/health/ready", headers=operator(stack))).json())["secret_key"]
    assert check["state"] == "broken"
    assert rung in check["finding"]
    assert "Supabase rejects SUPABASE_SECRET_KEY" in check["finding"]


async def test_both_keys_wrong_are_reported_together(stack: Stack) -> None:
    wrong = {"SUPABASE_SECRET_KEY": "sb_secret_of-nobody-at-all", "OPENROUTER_MANAGEMENT_KEY": "sk-or-v1-of-nobody"}
    async with api_with(stack, wrong) as client:
        checks = by_name((await client.get("/health/ready", headers=operator(stack))).json())
    assert {name for name, check in checks.items() if check["state"] == "broken"} == {"secret_key", "openrouter"}
    assert {checks[name]["state"] for name in ("supabase", "publishable_key", "access_tokens")} == {"ok"}


async def test_a_project_without_signing_keys_is_broken_unless_its_secret_is_known(stack: Stack) -> None:
    class Symmetric(httpx.AsyncBaseTransport):
        """The stack, as if its Auth published no keys: projects that sign with HS256 don't."""

        def __init__(self) -> None:
            self._inner = httpx.AsyncHTTPTransport()

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("/jwks.json"):
                return httpx.Response(200, json={"keys": []})
            return await self._inner.handle_async_request(request)

    for secret, state in (("", "broken"), (stack.secrets.legacy_jwt_secret, "ok")):
        async with api_with(stack, {"SUPABASE_JWT_SECRET": secret}, listening=Symmetric()) as client:
            checks = by_name((await client.get("/health/ready", headers=operator(stack))).json())
        assert checks["access_tokens"]["state"] == state
        assert state == "ok" or "SUPABASE_JWT_SECRET" in checks["access_tokens"]["mend"]
