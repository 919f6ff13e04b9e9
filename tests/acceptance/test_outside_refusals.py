"""What OpenRouter can do instead of making a key, over real HTTP: what the row, the log and the key come to.

On a stack of this module's own, because some of it holds the queue for everybody. The hint goes through the real
webhook; then OpenRouter is well again, and one sweep must heal it: exactly one key, and the stray collected. For the
answer that does not come for 30 s the functions wait two seconds here (`DOORKEY_OUTSIDE_TIMEOUT_SECONDS`, 10 by
default).
"""

from __future__ import annotations

import base64
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from functions import sweep
from functions.clients.outside import build_clients
from functions.kit.settings import Settings, decode_webhook_secret
from infra.local.faults import OPENROUTER, FaultControl
from infra.local.functions import WEBHOOK_PATH
from infra.local.stack import Stack, StackOptions, running_stack
from tests.support.scenes import Scene
from tests.support.secrets_used import leaks

TIMEOUT_SECONDS = 2
STALL_SECONDS = 30
# By then every key that was left is old enough to be collected.
LATER_SECONDS = 3_600
WELCOME_MICROS = 5_000_000

NOBODY_KNOWS = "whether it did what was asked, nobody knows."
LOST = ("openrouter_answer_lost", f"The connection to OpenRouter broke before its answer; {NOBODY_KNOWS}")
LATE = ("openrouter_answer_late", f"OpenRouter gave no answer in time; {NOBODY_KNOWS}")
FAULT = ("openrouter_fault", f"OpenRouter answered with a fault of its own; {NOBODY_KNOWS}")
PAGE = ("openrouter_page", f"A web page came instead of OpenRouter's answer; {NOBODY_KNOWS}")
INVALID = (
    "openrouter_answer_invalid",
    "OpenRouter's answer lacks what was asked for; whether it was done, nobody knows.",
)
UNKNOWN = (LOST, LATE, FAULT, PAGE, INVALID)
LIMITED = ("openrouter_limited", "OpenRouter asks to slow down.")
REJECTED = ("management_key_rejected", "OpenRouter does not accept the management key.")
FORBIDDEN = (
    "management_key_forbidden",
    "OpenRouter does not let this key make keys: it is no management key, or the account's rules forbid it.",
)
EMPTY = ("openrouter_account_empty", "The OpenRouter account has no credits left.")


@dataclass(frozen=True)
class Trouble:
    """One way to go wrong, and what it must come to.

    Attributes:
        plan: the faults that make it.
        error: the stable code and the sentence.
        detail: how the log's private detail begins.
        is_held: whether the queue is held, and no attempt burnt.
        strays: keys made that nobody holds.
        at_least_seconds: how long the row must wait.
    """

    plan: dict[str, Any]
    error: tuple[str, str]
    detail: str
    is_held: bool = False
    strays: int = 0
    at_least_seconds: int = 0


HTML_DETAIL = "POST keys: 502, a web page"
BROKEN = "POST keys: the connection broke"
TROUBLES = {
    "html": Trouble({"html_errors": 1}, PAGE, HTML_DETAIL),
    "html after the work": Trouble({"html_errors": 1, "errors_after_work": True}, PAGE, HTML_DETAIL, strays=1),
    "200 without a key": Trouble({"empty_answers": 1}, INVALID, "POST keys: 200, not 201", strays=1),
    "401": Trouble({"refuse_status": 401}, REJECTED, "POST keys: 401", is_held=True),
    "402": Trouble({"refuse_status": 402}, EMPTY, "POST keys: 402", is_held=True),
    "403": Trouble({"refuse_status": 403}, FORBIDDEN, "POST keys: 403", is_held=True),
    "429 with Retry-After": Trouble(
        {"rate_limited": 1, "retry_after_seconds": 1234}, LIMITED, "POST keys: 429", at_least_seconds=1234
    ),
    "429 without": Trouble({"rate_limited": 1}, LIMITED, "POST keys: 429"),
    "500": Trouble({"errors": 1, "error_status": 500}, FAULT, "POST keys: 500, a fault of its own"),
    "502 after the work": Trouble(
        {"errors": 1, "errors_after_work": True}, FAULT, "POST keys: 502, a fault of its own", strays=1
    ),
    "503 with Retry-After": Trouble(
        {"errors": 1, "error_status": 503, "retry_after_seconds": 77}, FAULT, "POST keys: 503", at_least_seconds=77
    ),
    "nothing in time": Trouble(
        {"stall": 1, "stall_seconds": STALL_SECONDS}, LATE, "POST keys: no answer in time, ReadTimeout", strays=1
    ),
    "the request is lost": Trouble({"lose_requests": 1}, LOST, BROKEN),
    "the answer is lost": Trouble({"lose_answers": 1}, LOST, BROKEN, strays=1),
    "away": Trouble({"is_away": True}, LOST, BROKEN),
}


@dataclass
class Place:
    """The stack, and OpenRouter's switch."""

    stack: Stack
    faults: FaultControl

    def lines_of(self, user_id: uuid.UUID) -> list[dict[str, Any]]:
        """What the functions logged about a user's provisioning."""
        log = (self.stack.log_folder / "functions.log").read_text().splitlines()
        lines = [json.loads(line) for line in log if str(user_id) in line]
        return [line for line in lines if line["event"] == "provisioning.finished"]


@pytest.fixture(scope="module")
async def place() -> AsyncIterator[Place]:
    """A stack of this module's own, without a schedule."""
    options = StackOptions(
        sweep_seconds=0, forgets=True, functions_environment={"DOORKEY_OUTSIDE_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS)}
    )
    async with running_stack(options) as stack:
        yield Place(stack, FaultControl(OPENROUTER, stack.openrouter_url))
        assert leaks((stack.log_folder / "functions.log").read_bytes()) == set()


@pytest.fixture
async def scene(place: Place, http: httpx.AsyncClient) -> AsyncIterator[Scene]:
    """Somebody who is due, of whom no hint was sent."""
    scene = Scene(place.stack, http, uuid.uuid4())
    await scene.sql("insert into auth.users (id, email) values (%s, %s)", scene.user_id, f"{scene.user_id}@example.com")
    await scene.sql("update doorkey.provisioning set state = 'due' where user_id = %s", scene.user_id)
    yield scene
    await place.faults.clear()
    await scene.release_queue()


async def pass_a_minute_of_holding(scene: Scene) -> None:
    """A refusal holds everybody; so do ten failures in a row, which one patient sweep may reach by itself."""
    await scene.sql("update doorkey.settings set held_until = now() - interval '1 s' where held_reason is not null")


async def ring(scene: Scene) -> str:
    """Sends the hint, as the database does; the outcome that the webhook answers."""
    body = json.dumps(
        {"type": "INSERT", "schema": "auth", "table": "users", "record": {"id": str(scene.user_id)}, "old_record": None}
    ).encode()
    message_id, timestamp = f"msg_{uuid.uuid4()}", str(int(time.time()))
    digest = hmac.digest(
        decode_webhook_secret(scene.stack.secrets.webhook_secret),
        f"{message_id}.{timestamp}.".encode() + body,
        "sha256",
    )
    answer = await scene.http.post(
        scene.stack.functions_url + WEBHOOK_PATH,
        content=body,
        headers={
            "webhook-id": message_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": "v1," + base64.b64encode(digest).decode(),
        },
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["outcome"])


async def sweep_later(stack: Stack) -> dict[str, Any]:
    """One sweep, an hour later by its own clock; as patient as by default, because a busy machine is slow."""
    environment = {**stack.functions_environment}
    del environment["DOORKEY_OUTSIDE_TIMEOUT_SECONDS"]
    settings = Settings.from_environment(environment)
    clients = build_clients(settings)
    async with clients.http:
        handle = sweep.build(settings, clients, clock=lambda: time.time() + LATER_SECONDS)
        return await handle({"source": "aws.events"})


async def assert_healed(scene: Scene, trouble: Trouble, line: dict[str, Any]) -> None:
    assert (line["outcome"], line["outcome_ready"]) == ("finished", 1)
    assert (line["stray_keys"], line["strays_deleted"]) == (trouble.strays, trouble.strays)
    await scene.assert_one_key(attempt=2)
    row = await scene.row()
    assert (row["failures"], row["last_error"]) == (0, None)
    assert await scene.grants() == [WELCOME_MICROS]


@pytest.mark.parametrize("name", list(TROUBLES))
async def test_what_openrouter_does_instead_of_a_key_is_said_and_healed(place: Place, scene: Scene, name: str) -> None:
    trouble = TROUBLES[name]
    code, sentence = trouble.error
    await place.faults.order(only=["POST /keys"], **trouble.plan)
    outcome = "held" if trouble.is_held else "limited" if trouble.error == LIMITED else "deferred"
    assert await ring(scene) == outcome
    assert (await place.faults.report()).requests == 1, "a POST is never repeated"

    row = await scene.row()
    assert (row["state"], row["last_error"], row["key_hash"], row["attempt"]) == ("due", code, None, 1)
    assert row["failures"] == (1 if outcome == "deferred" else 0)
    waits_seconds = (row["due_at"] - row["updated_at"]).total_seconds()
    assert trouble.at_least_seconds <= waits_seconds <= trouble.at_least_seconds + 2
    assert await scene.known_hashes() == []
    assert len(await scene.keys()) == trouble.strays

    (line,) = place.lines_of(scene.user_id)
    assert (line["level"], line["outcome"]) == ("warning", outcome)
    assert (line["error"], line["sentence"]) == (code, sentence)
    assert line["detail"].startswith(trouble.detail)
    assert line["is_outcome_unknown"] == (trouble.error in UNKNOWN)

    await place.faults.clear()
    await scene.make_due_now()
    await pass_a_minute_of_holding(scene)
    await assert_healed(scene, trouble, await sweep_later(place.stack))


async def test_while_everything_at_openrouter_fails_a_sweep_ends_well_and_the_next_heals(
    place: Place, scene: Scene
) -> None:
    """The sweep's own way: the key, and the list by which strays are found."""
    await place.faults.order(lose_answers=1)
    line = await sweep_later(place.stack)
    assert line["outcome"] == "finished"
    assert line["outcome_deferred"] >= 1
    assert line["strays_error"] == "openrouter_answer_lost"
    await place.faults.clear()
    await scene.make_due_now()
    await pass_a_minute_of_holding(scene)
    line = await sweep_later(place.stack)
    assert line["outcome_ready"] == 1
    # The sweep stayed for its retries, and each of them left a key.
    attempts = (await scene.row())["attempt"]
    assert (line["stray_keys"], line["strays_deleted"]) == (attempts - 1, attempts - 1)
    await scene.assert_one_key(attempt=attempts)


async def test_a_key_that_shows_late_is_collected_by_a_later_sweep(place: Place, scene: Scene) -> None:
    await place.faults.order(lose_answers=1, at_most=1, only=["POST /keys"])
    assert await ring(scene) == "deferred"
    await place.faults.order(hide_new_keys_seconds=600)
    await scene.make_due_now()
    assert (await sweep_later(place.stack))["stray_keys"] == 0
    assert (await scene.row())["state"] == "ready"
    await place.faults.clear()
    assert (await sweep_later(place.stack))["strays_deleted"] == 1
    await scene.assert_one_key(attempt=2)
