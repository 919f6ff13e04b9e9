"""Races and lost answers around the making of a key, on the running stack.

The code under test is what ships, with a transport in between that can stall, lose or replace any answer and let
others move meanwhile. Users are entered without a hint, so that nobody but the test works on them.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import UTC, datetime

import httpx
import psycopg
import pytest
from standardwebhooks.webhooks import Webhook

from functions.clients.supabase import SupabaseAnswerLost
from functions.provisioning import store
from functions.provisioning.states import Chance
from functions.provisioning.steps import FINISH_TRIES, Outcome
from infra.local.functions import WEBHOOK_PATH
from infra.local.stack import Stack
from tests.support.scenes import Answer, Between, Scene, instead, lose, named, once_after, until_blocked

HINTS = 32
WELCOME_MICROS = 5_000_000
HTML = {"content-type": "text/html"}


@pytest.fixture
async def scene(stack: Stack, http: httpx.AsyncClient) -> Scene:
    """Somebody who is due, of whom no hint was sent."""
    scene = Scene(stack, http, uuid.uuid4())
    await scene.sql("insert into auth.users (id, email) values (%s, %s)", scene.user_id, f"{scene.user_id}@example.com")
    await scene.sql("update doorkey.provisioning set state = 'due' where user_id = %s", scene.user_id)
    await scene.release_queue()
    return scene


async def test_32_concurrent_hints_make_one_key_and_one_grant(scene: Scene) -> None:
    body = json.dumps(
        {"type": "INSERT", "schema": "auth", "table": "users", "record": {"id": str(scene.user_id)}, "old_record": None}
    )

    async def ring(number: int) -> str:
        now = datetime.now(UTC)
        answer = await scene.http.post(
            scene.stack.functions_url + WEBHOOK_PATH,
            content=body,
            headers={
                "webhook-id": f"msg_{number}",
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": Webhook(scene.stack.secrets.webhook_secret).sign(f"msg_{number}", now, body),
            },
        )
        assert answer.status_code == 200
        return str(answer.json()["outcome"])

    outcomes = await asyncio.gather(*(ring(number) for number in range(HINTS)))
    assert sorted(outcomes) == ["nothing_to_do"] * (HINTS - 1) + ["ready"]
    assert await scene.grants() == [WELCOME_MICROS]
    await scene.assert_one_key(attempt=1)


async def test_a_late_finish_is_refused_and_its_key_deleted(scene: Scene) -> None:
    async def somebody_else_wins() -> None:
        await scene.expire_lease()
        assert await scene.provision() is Outcome.READY
        assert set(await scene.keys()) == {1, 2}

    late = Between(after=once_after("POST /keys", somebody_else_wins))
    assert await scene.provision(late) is Outcome.LEASE_LOST
    assert late.calls[-1] == "DELETE /keys"
    await scene.assert_one_key(attempt=2)
    assert await scene.grants() == [WELCOME_MICROS]


async def test_a_late_finish_while_the_winner_is_still_at_work_leaves_the_winner_alone(scene: Scene) -> None:
    async def somebody_else_takes_over() -> None:
        await scene.expire_lease()
        async with scene.provisioner(Between()) as other:
            claim = await store.claim(
                other.database, scene.user_id, lease_seconds=60, request_id="races", chance=Chance.EAGER
            )
            assert claim is not None
            assert claim.attempt == 2

    late = Between(after=once_after("POST /keys", somebody_else_takes_over))
    assert await scene.provision(late) is Outcome.LEASE_LOST
    assert ((await scene.row())["state"], await scene.keys()) == ("working", {})
    await scene.expire_lease()
    assert await scene.provision() is Outcome.READY
    await scene.assert_one_key(attempt=3)


async def test_an_expired_lease_that_nobody_took_over_is_still_finished(scene: Scene) -> None:
    assert await scene.provision(Between(after=once_after("POST /keys", scene.expire_lease))) is Outcome.READY
    await scene.assert_one_key(attempt=1)


async def test_the_key_of_a_user_deleted_meanwhile_is_deleted(scene: Scene) -> None:
    transport = Between(after=once_after("POST /keys", scene.delete_user))
    assert await scene.provision(transport) is Outcome.USER_GONE
    assert (await scene.keys(), await scene.known_hashes()) == ({}, [])
    await scene.expire_lease()
    assert await scene.provision() is Outcome.NOTHING_TO_DO
    assert (await scene.row())["state"] == "gone"


async def test_a_finish_whose_answer_is_lost_is_asked_for_again(scene: Scene) -> None:
    transport = Between(after=lose("finish_provisioning"))
    assert await scene.provision(transport) is Outcome.READY
    assert transport.calls == ["claim_provisioning", "POST /keys", "finish_provisioning", "finish_provisioning"]
    await scene.assert_one_key(attempt=1)


@pytest.mark.parametrize("code", ["40P01", "40001", "55P03", "57014"])
async def test_a_finish_that_the_database_rolled_back_is_asked_for_again(scene: Scene, code: str) -> None:
    transport = Between(before=instead("finish_provisioning", 500, f'{{"code": "{code}", "message": "x"}}', times=2))
    assert await scene.provision(transport) is Outcome.READY
    assert transport.calls == ["claim_provisioning", "POST /keys", *["finish_provisioning"] * 3]
    await scene.assert_one_key(attempt=1)


async def test_a_finish_asked_for_again_while_the_first_is_running_does_not_cost_the_key(scene: Scene) -> None:
    running: list[asyncio.Task[Answer]] = []
    async with await psycopg.AsyncConnection.connect(scene.stack.superuser_url) as other:

        async def stall_the_first(request: httpx.Request) -> Answer | None:
            if named(request) != "finish_provisioning":
                return None
            if not running:
                # It is held up in the middle of its transaction, and the caller stops waiting.
                await other.execute("select from auth.users where id = %s for update", (scene.user_id,))
                again = httpx.Request(request.method, request.url, headers=request.headers, content=request.content)
                running.append(asyncio.create_task(direct.handle_async_request(again)))
                await until_blocked(scene, 1)
                raise httpx.ReadTimeout("too slow", request=request)
            release.append(asyncio.create_task(release_when_blocked()))
            return None

        async def release_when_blocked() -> None:
            await until_blocked(scene, 2)
            await other.rollback()

        release: list[asyncio.Task[None]] = []
        direct = httpx.AsyncHTTPTransport()
        assert await scene.provision(Between(before=stall_the_first)) is Outcome.READY
        assert (await running[0]).status_code == 200
        await asyncio.gather(*release)
        await direct.aclose()
    await scene.assert_one_key(attempt=1)


@pytest.mark.parametrize("happens", [True, False])
async def test_a_time_out_on_finish_never_deletes_the_key(scene: Scene, happens: bool) -> None:
    async def never(request: httpx.Request) -> Answer | None:
        if named(request) == "finish_provisioning":
            raise httpx.ReadTimeout("lost on purpose", request=request)
        return None

    transport = Between(after=lose("finish_provisioning", FINISH_TRIES)) if happens else Between(before=never)
    assert await scene.provision(transport) is Outcome.UNFINISHED
    assert transport.calls.count("finish_provisioning") == FINISH_TRIES
    assert "DELETE /keys" not in transport.calls
    keys = await scene.keys()
    assert set(keys) == {1}
    assert await scene.known_hashes() == ([keys[1]["hash"]] if happens else [])
    if not happens:
        await scene.expire_lease()
        assert await scene.provision() is Outcome.READY
        # The stray keeps its name, by which it is found.
        assert set(await scene.keys()) == {1, 2}


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (401, '{"message": "Invalid API key"}'),
        (500, '{"code": "P0001", "message": "x"}'),
        (503, "<html>"),
        (409, '{"code": "23505", "message": "x"}'),
        (409, '{"message": "lease_lost"}'),
    ],
)
async def test_only_the_databases_own_word_deletes_a_key(scene: Scene, status: int, content: str) -> None:
    transport = Between(before=instead("finish_provisioning", status, content))
    assert await scene.provision(transport) is Outcome.UNFINISHED
    assert "DELETE /keys" not in transport.calls
    assert set(await scene.keys()) == {1}


async def test_a_key_whose_answer_is_lost_is_left_and_the_next_attempt_has_the_next_number(scene: Scene) -> None:
    transport = Between(after=lose("POST /keys"))
    assert await scene.provision(transport) is Outcome.DEFERRED
    assert transport.calls == ["claim_provisioning", "POST /keys", "defer_provisioning"]
    assert set(await scene.keys()) == {1}
    assert (await scene.row())["last_error"] == "openrouter_answer_late"
    await scene.make_due_now()
    assert await scene.provision() is Outcome.READY
    keys = await scene.keys()
    assert set(keys) == {1, 2}
    assert await scene.known_hashes() == [keys[2]["hash"]]


async def test_a_claim_whose_answer_is_lost_makes_nothing_and_its_lease_runs_out(scene: Scene) -> None:
    transport = Between(after=lose("claim_provisioning"))
    with pytest.raises(SupabaseAnswerLost):
        await scene.provision(transport)
    assert transport.calls == ["claim_provisioning"]
    assert await scene.provision() is Outcome.NOTHING_TO_DO
    await scene.expire_lease()
    assert await scene.provision() is Outcome.READY
    await scene.assert_one_key(attempt=2)
    assert await scene.grants() == [WELCOME_MICROS]


@pytest.mark.parametrize("call", ["POST /keys", "finish_provisioning"])
async def test_a_wish_that_changes_during_the_work_reaches_the_key(scene: Scene, call: str) -> None:
    async def a_grant_comes() -> None:
        await scene.sql(
            "select doorkey.grant_credits(%s, 'bonus', 2500000, %s, 'A present', 'test', null, 'races')",
            scene.user_id,
            str(scene.user_id),
        )

    assert await scene.provision(Between(after=once_after(call, a_grant_comes))) is Outcome.READY
    if (await scene.row())["state"] == "due":  # it came when the attempt was over: for the next hint or the sweep
        assert call == "finish_provisioning"
        assert await scene.provision() is Outcome.READY
    await scene.assert_one_key(attempt=1, limit_usd=7.5)
    assert (await scene.row())["attempt"] == 2


@pytest.mark.parametrize(
    ("status", "content", "headers", "error", "is_at_least_seconds"),
    [
        (429, '{"error": {"code": 429}}', {"retry-after": "1234"}, "openrouter_limited", 1234),
        (429, "<html>slow down</html>", {}, "openrouter_limited", 0),
        (400, '{"error": {"code": 400}}', {}, "openrouter_refused", 0),
        (502, "<html>bad gateway</html>", {"retry-after": "77", **HTML}, "openrouter_page", 77),
        (200, "<html>hello</html>", HTML, "openrouter_page", 0),
        (201, "<html>hello</html>", HTML, "openrouter_page", 0),
        (201, '{"data": {}}', {}, "openrouter_answer_invalid", 0),
        (201, '{"data": {"hash": "x", "name": "y"}, "key": "sk-or-v1-z"}', {}, "openrouter_answer_invalid", 0),
        (307, "", {"location": "http://127.0.0.1:9/"}, "openrouter_answer_invalid", 0),
    ],
)
async def test_what_openrouter_says_instead_of_a_key_is_recorded_and_tried_again_in_time(
    scene: Scene, status: int, content: str, headers: dict[str, str], error: str, is_at_least_seconds: int
) -> None:
    transport = Between(before=instead("POST /keys", status, content, headers))
    assert await scene.provision(transport) is (Outcome.LIMITED if status == 429 else Outcome.DEFERRED)
    assert transport.calls == ["claim_provisioning", "POST /keys", "defer_provisioning"]
    row = await scene.row()
    assert row["failures"] == (0 if status == 429 else 1)
    assert (row["state"], row["last_error"], row["key_hash"]) == ("due", error, None)
    delay = (row["due_at"] - row["updated_at"]).total_seconds()
    assert is_at_least_seconds <= delay <= is_at_least_seconds + 2
    await scene.make_due_now()
    assert await scene.provision() is Outcome.READY
    await scene.assert_one_key(attempt=2)


async def test_200_instead_of_201_is_an_answer_lost_and_the_key_is_left(scene: Scene) -> None:
    async def say_200(request: httpx.Request, answer: Answer) -> Answer:
        return Answer(200, content=answer.content) if named(request) == "POST /keys" else answer

    assert await scene.provision(Between(after=say_200)) is Outcome.DEFERRED
    assert set(await scene.keys()) == {1}
    assert await scene.known_hashes() == []


async def test_a_key_that_cannot_be_deleted_keeps_the_outcome(scene: Scene) -> None:
    transport = Between(
        before=instead("DELETE /keys", 503, "<html>"), after=once_after("POST /keys", scene.delete_user)
    )
    assert await scene.provision(transport) is Outcome.USER_GONE
    assert set(await scene.keys()) == {1}
