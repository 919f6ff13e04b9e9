"""The built tree under AWS's own runtime client: every kind of event, one loop, and a sandbox that was frozen.

A stand-in plays the Runtime API (tests/support/lambda_runtime.py). Not shown: Lambda's machine and its Python 3.13; the
packages are of the same versions, for this one.
"""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.local.stack import Stack
from tests.support.alarms import datapoints_of
from tests.support.lambda_events import SCHEDULED, event, garbage
from tests.support.lambda_runtime import FunctionFailed, Sandbox, sandbox
from tests.support.people import insert_person, new_signup, person_from, until_state
from tests.support.relay import relay_to
from tests.support.scenes import Scene
from tests.support.secrets_used import leaks

FROZEN_SECONDS = 2

Open = Callable[..., AbstractContextManager[Sandbox]]


@pytest.fixture
def opened(stack: Stack, local_tree: Path, runtime: Path, tmp_path: Path) -> Open:
    """Opens sandboxes with the stack's settings, and metrics as on Lambda."""

    def open_one(name: str, **changes: str) -> AbstractContextManager[Sandbox]:
        environment = {**stack.functions_environment, "DOORKEY_METRICS_STAGE": "prod", **changes}
        return sandbox(local_tree, runtime, f"functions.{name}.handler", environment, tmp_path)

    return open_one


@pytest.fixture
def api(opened: Open) -> Iterator[Sandbox]:
    with opened("api") as running:
        yield running


def hint(stack: Stack, user_id: uuid.UUID, kind: str = "INSERT") -> dict[str, Any]:
    """What the database rings with, as the gateway passes it on."""
    body = {"type": kind, "table": "users", "schema": "auth", "record": {"id": str(user_id)}, "old_record": None}
    headers = {"x-webhook-secret": stack.secrets.webhook_shared_secret}
    return event("/webhooks/supabase", "POST", json.dumps(body).encode(), headers)


def body_of(answer: dict[str, Any]) -> Any:
    text = base64.b64decode(answer["body"]) if answer.get("isBase64Encoded") else answer["body"]
    return json.loads(text)


async def invoke(running: Sandbox, what: Any) -> Any:
    return await asyncio.to_thread(running.invoke, what)


async def test_the_api_answers_requests_with_and_without_base64(api: Sandbox, stack: Stack) -> None:
    assert body_of(await invoke(api, event("/health"))) == {"status": "ok"}
    in_base64 = await invoke(api, event("/v1/auth/signup", "POST", b"\xff\xfe"))
    assert (in_base64["statusCode"], body_of(in_base64)["error_code"]) == (400, "bad_json")
    signup = new_signup(data={"full_name": "Ω🔑ß"})
    as_text = {**event("/v1/auth/signup", "POST"), "body": json.dumps(signup), "isBase64Encoded": False}
    newcomer = person_from(signup, body_of(await invoke(api, as_text)))
    await until_state(stack, newcomer.user_id)
    person = await insert_person(stack)
    await until_state(stack, person.user_id)
    mine = await invoke(api, event("/v1/me", headers=person.headers))
    assert body_of(mine)["user_id"] == str(person.user_id)
    assert leaks(api.log().encode()) == set()


@pytest.mark.parametrize("name", ["api", "admin", "webhook", "sweep"])
async def test_garbage_is_answered_and_the_next_event_is_served(opened: Open, stack: Stack, name: str) -> None:
    with opened(name) as running:
        for number, rubbish in enumerate([*garbage(), SCHEDULED]):
            answer = await invoke(running, rubbish)
            if name == "sweep":
                # The clock says nothing that matters, whatever it says.
                assert answer["outcome"] == "finished", number
                if number == 2:
                    return
            else:
                assert answer["statusCode"] in (400, 401, 404, 405), (number, answer)
        if name == "admin":
            assert (await invoke(running, event("/v1/admin/users/x")))["statusCode"] == 401
        elif name == "api":
            assert (await invoke(running, event("/health")))["statusCode"] == 200
        else:
            person = await insert_person(stack)
            assert (await invoke(running, hint(stack, person.user_id)))["statusCode"] == 200
            await until_state(stack, person.user_id)
        assert "Traceback" not in running.log()


async def test_the_schedule_provisions_whoever_is_due_and_the_line_carries_the_metrics(
    opened: Open, stack: Stack, http: httpx.AsyncClient
) -> None:
    scene = Scene(stack, http, uuid.uuid4())
    await scene.sql("insert into auth.users (id, email) values (%s, %s)", scene.user_id, f"{scene.user_id}@example.com")
    await scene.sql("update doorkey.provisioning set state = 'due' where user_id = %s", scene.user_id)
    with opened("sweep") as running:
        assert (await invoke(running, SCHEDULED))["outcome"] == "finished"
        log = running.log()
    await scene.assert_one_key(attempt=1)
    points = {point.name: point for point in datapoints_of(log)}
    assert set(points) >= {
        "SweepsFinished", "OldestDueSeconds", "DeadRows", "QueueHeld", "HourlyBrake", "StrayKeys", "OldestStraySeconds",
    }  # fmt: skip
    assert {point.namespace for point in points.values()} == {"doorkey"}
    assert {point.dimensions for point in points.values()} == {(("Stage", "prod"),)}


async def test_two_calls_share_a_loop_and_a_connection(opened: Open, stack: Stack) -> None:
    person = await insert_person(stack)
    await until_state(stack, person.user_id)
    async with relay_to(stack.supabase_url) as relay:
        with opened("webhook", SUPABASE_URL=relay.url) as running:
            for _ in range(3):
                answer = await invoke(running, hint(stack, person.user_id))
                assert body_of(answer) == {"outcome": "nothing_to_do"}
        # A loop for each call would need a connection for each, or fail on the closed one.
        assert relay.connections == 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells when a process stands still")
@pytest.mark.parametrize("with_reset", [False, True], ids=["closed", "reset"])
async def test_a_sandbox_that_was_frozen_serves_the_next_call_though_its_connections_are_gone(
    opened: Open, stack: Stack, *, with_reset: bool
) -> None:
    person = await insert_person(stack)
    await until_state(stack, person.user_id)
    async with relay_to(stack.supabase_url) as relay:
        with opened("webhook", SUPABASE_URL=relay.url) as running:
            assert (await invoke(running, hint(stack, person.user_id)))["statusCode"] == 200
            running.freeze()
            assert relay.cut(with_reset=with_reset) == 1
            # Nothing of it reaches a process that stands still; it finds out when it wakes.
            await asyncio.sleep(FROZEN_SECONDS)
            running.thaw()
            answer = await invoke(running, hint(stack, person.user_id))
            assert (answer["statusCode"], body_of(answer)) == (200, {"outcome": "nothing_to_do"})
            assert relay.connections == 2


async def test_settings_that_are_wrong_end_in_a_list_without_a_value(opened: Open, stack: Stack) -> None:
    with opened(
        "webhook", DOORKEY_PROJECT="Not A Name", SUPABASE_SECRET_KEY="sb_publishable_of-nobody-at-all"
    ) as wrong:
        with pytest.raises(FunctionFailed) as failure:
            await invoke(wrong, hint(stack, uuid.uuid4()))
        said = str(failure.value) + wrong.log()
    assert "DOORKEY_PROJECT" in said
    assert "SUPABASE_SECRET_KEY: holds a publishable key" in said
    assert "of-nobody-at-all" not in said
    assert "Not A Name" not in said
    assert leaks(said.encode()) == set()
