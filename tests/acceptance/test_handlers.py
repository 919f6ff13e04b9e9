"""The handlers as Lambda has them: a process of their own, settings from the environment, events of every kind.

They run in a child process: a handler makes one event loop and keeps it, and what it imports can be seen.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import uuid
from typing import Any

import pytest

from infra.local.stack import CHECKOUT, Stack
from tests.support.lambda_events import event, garbage
from tests.support.people import insert_person, new_signup, person_from, until_state
from tests.support.secrets_used import leaks, remember

CHILD_SECONDS = 60
# Reads events, answers them with the handler of that module, says which loops were used and what was imported.
CHILD = """
import asyncio, json, sys
from importlib import import_module
module = import_module(sys.argv[1])
watched = json.loads(sys.argv[2])
at_import = [name for name in watched if name in sys.modules]
loops, new = [], asyncio.new_event_loop
asyncio.new_event_loop = lambda: loops.append(new()) or loops[-1]
answers = [module.handler(event, None) for event in json.load(sys.stdin)]
print(json.dumps({"at_import": at_import, "loops": len(loops), "answers": answers,
                  "after": [name for name in watched if name in sys.modules]}))
"""
HEAVY = ["fastapi", "starlette", "mangum", "jwt", "supabase", "postgrest", "boto3", "psycopg", "uvicorn", "openrouter"]


def invoke(module: str, events: list[Any], environment: dict[str, str]) -> tuple[dict[str, Any], str]:
    """What the handler answers to these events, one after the other, and what it logs."""
    outcome = run(module, events, environment)
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    return json.loads(outcome.stdout), outcome.stderr


def run(module: str, events: list[Any], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-c", CHILD, module, json.dumps(HEAVY)],
        input=json.dumps(events),
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
        cwd=CHECKOUT,
        env={**kept, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        check=False,
    )


def body_of(answer: dict[str, Any]) -> Any:
    text = base64.b64decode(answer["body"]) if answer.get("isBase64Encoded") else answer["body"]
    return json.loads(text)


async def test_the_api_answers_events_one_after_the_other_on_one_loop(stack: Stack) -> None:
    person = await insert_person(stack)
    await until_state(stack, person.user_id)
    signup = new_signup(data={"full_name": "Ω🔑ß"})
    mine = f"caller.{uuid.uuid4()}"
    events = [
        event("/health", headers={"x-request-id": mine}),
        event("/api/health"),
        event("/v1/me", headers=person.headers),
        event("/v1/me", headers=person.headers),
        event("/v1/me"),
        event("/nowhere"),
        event("/core/v1/auth/signup?a=b", "POST", json.dumps(signup).encode()),
        event("/v1/auth/signup", "POST", b"\xff\xfe"),
    ]
    found, log = invoke("functions.api", events, stack.functions_environment)
    assert found["loops"] == 1
    answers = found["answers"]
    assert [answer["statusCode"] for answer in answers] == [200, 200, 200, 200, 401, 404, 200, 400]
    assert answers[0]["headers"]["x-request-id"] == mine
    assert body_of(answers[0]) == body_of(answers[1]) == {"status": "ok"}
    assert body_of(answers[2]) == body_of(answers[3])
    assert body_of(answers[2])["user_id"] == str(person.user_id)
    assert body_of(answers[4])["code"] == "user_token_rejected"
    assert not any(answer["isBase64Encoded"] for answer in answers)
    newcomer = person_from(signup, body_of(answers[6]))
    await until_state(stack, newcomer.user_id)
    assert body_of(answers[7])["error_code"] == "bad_json"
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["status"] for line in lines if line["event"] == "request.handled"] == [
        answer["statusCode"] for answer in answers
    ]
    assert leaks(log.encode()) == set()


@pytest.mark.parametrize("module", ["functions.api", "functions.admin", "functions.webhook"])
def test_what_is_no_request_is_refused_and_the_next_one_is_served(stack: Stack, module: str) -> None:
    mark = f"mark{uuid.uuid4().hex}"
    remember("a mark in an event", mark)
    events = [*garbage(), {mark: mark}, {**event(), "headers": [mark]}, event()]
    found, log = invoke(module, events, stack.functions_environment)
    *refused, last = found["answers"]
    assert found["loops"] == 1 or module != "functions.webhook"
    for number, answer in enumerate(refused):
        assert answer["statusCode"] in (400, 401, 404, 405), (number, answer)
        assert answer["headers"]["content-type"] == "application/problem+json"
        assert body_of(answer)["request_id"] == answer["headers"]["x-request-id"]
    if module == "functions.api":
        # One of them has an address, of a kind.
        assert {body_of(answer)["code"] for answer in refused} == {"request_invalid", "route_not_found"}
        assert (last["statusCode"], body_of(last)) == (200, {"status": "ok"})
    else:
        assert last["statusCode"] == (404 if module == "functions.admin" else 405)
    assert mark not in log
    assert "Traceback" not in log
    assert leaks(log.encode()) == set()


def test_importing_the_webhook_costs_nothing_that_only_the_api_needs(stack: Stack) -> None:
    # A cold start is a budget: these packages are most of it.
    found, _ = invoke("functions.webhook", [event()], stack.functions_environment)
    assert found["at_import"] == []
    assert found["after"] == []


def test_importing_the_api_brings_no_package_of_the_laptop(stack: Stack) -> None:
    found, _ = invoke("functions.api", [], {})
    assert set(found["at_import"]) == {"fastapi", "starlette", "mangum", "jwt"}
    assert found["loops"] == 0, "importing builds nothing and reads no setting"
    assert stack.functions_environment


@pytest.mark.parametrize("module", ["functions.api", "functions.admin", "functions.webhook"])
def test_settings_that_are_wrong_are_all_listed_and_no_secret_is_printed(stack: Stack, module: str) -> None:
    wrong = {
        **stack.functions_environment,
        "SUPABASE_URL": "project.example",
        "SUPABASE_PUBLISHABLE_KEY": stack.secrets.secret_key,
        "SUPABASE_SECRET_KEY": stack.secrets.publishable_key,
        "OPENROUTER_MANAGEMENT_KEY": stack.secrets.management_key + "\n\n x",
        "DOORKEY_SEALING_KEYS": stack.secrets.sealing_key[:-3],
        "DOORKEY_WEBHOOK_SECRETS": stack.secrets.webhook_secret.removeprefix("whsec_"),
        "DOORKEY_WEBHOOK_SHARED_SECRET": "short-one",
        "DOORKEY_PROJECT": "",
    }
    outcome = run(module, [event()], wrong)
    assert outcome.returncode != 0
    said = outcome.stdout + outcome.stderr
    for name in (
        "SUPABASE_URL", "SUPABASE_PUBLISHABLE_KEY", "SUPABASE_SECRET_KEY", "OPENROUTER_MANAGEMENT_KEY",
        "DOORKEY_SEALING_KEYS", "DOORKEY_WEBHOOK_SECRETS", "DOORKEY_WEBHOOK_SHARED_SECRET", "DOORKEY_PROJECT",
    ):  # fmt: skip
        assert f"- {name}: " in said
    assert "- DOORKEY_PROJECT: is not set" in said
    for secret in (*stack.secrets.all_values(), "short-one", stack.secrets.webhook_secret[6:30]):
        assert secret not in said


def test_the_local_server_lists_what_is_wrong_in_plain_words(stack: Stack) -> None:
    wrong = {**stack.functions_environment, "SUPABASE_SECRET_KEY": stack.secrets.publishable_key, "DOORKEY_PROJECT": ""}
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    outcome = subprocess.run(
        [sys.executable, "-m", "infra.local.functions", "--port", "0"],
        capture_output=True, text=True, timeout=CHILD_SECONDS, cwd=CHECKOUT, env={**kept, **wrong}, check=False,
    )  # fmt: skip
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines() == [
        "The settings can't be used:",
        "- SUPABASE_SECRET_KEY: holds a publishable key",
        "- DOORKEY_PROJECT: is not set",
    ]
