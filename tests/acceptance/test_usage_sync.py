"""The hourly sync on the running stack: what a key spent without a receipt is charged to its owner."""

from __future__ import annotations

from decimal import Decimal

import httpx
import pytest

from infra.local.stack import Stack
from tests.acceptance.test_sweep import run_sweep
from tests.support.people import Person, sign_up, until_state
from tests.support.scenes import Answer, Between, Scene, named
from tests.support.secrets_used import remember


@pytest.fixture
async def person(stack: Stack, http: httpx.AsyncClient) -> Person:
    """Somebody with a key."""
    somebody = await sign_up(stack, http)
    await until_state(stack, somebody.user_id)
    return somebody


@pytest.fixture
def scene(stack: Stack, http: httpx.AsyncClient, person: Person) -> Scene:
    """Them on the stack."""
    return Scene(stack, http, person.user_id)


async def spend(scene: Scene, person: Person) -> Decimal:
    """One call straight through the key; what it cost, in micro-dollars."""
    shown = await scene.http.get(f"{scene.stack.functions_url}/v1/me/key", headers=person.headers)
    secret = shown.json()["secret"]
    remember("a user's OpenRouter key", secret)
    answer = await scene.http.post(
        f"{scene.stack.openrouter_url}/chat/completions",
        json={"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5},
        headers={"Authorization": f"Bearer {secret}"},
    )
    return Decimal(str(answer.raise_for_status().json()["usage"]["cost"])) * 1_000_000


async def new_round(scene: Scene) -> None:
    """Makes it time for the next."""
    await scene.sql("update doorkey.usage_sync set started_at = now() - interval '2 hours', finished_at = now()")


async def test_what_a_key_spent_without_a_receipt_is_charged_by_the_next_round(scene: Scene, person: Person) -> None:
    cost = await spend(scene, person)
    await new_round(scene)
    line = await run_sweep(scene.stack)
    assert line.get("usage_keys", 0) >= 1, str(line)
    assert line["usage_unseen_micros"] >= 1
    (key,) = await scene.sql("select * from doorkey.key_costs where user_id = %s", scene.user_id)
    assert key["cost_micros"] == cost
    assert "usage_keys" not in await run_sweep(scene.stack)


async def test_a_page_takes_two_round_trips(scene: Scene) -> None:
    await new_round(scene)
    transport = Between()
    await run_sweep(scene.stack, transport)
    sync = transport.calls[transport.calls.index("begin_usage_sync") + 1 :]
    pages = sync.count("record_usage")
    assert pages >= 1
    assert sync[: 2 * pages] == ["GET /keys", "record_usage"] * pages


async def test_a_round_that_broke_off_goes_on_where_it_was(scene: Scene) -> None:
    await new_round(scene)

    async def broken(request: httpx.Request) -> Answer | None:
        return Answer(500) if named(request) == "GET /keys" else None

    line = await run_sweep(scene.stack, Between(before=broken))
    assert line["usage_error"] == "openrouter_fault"
    assert line["outcome"] == "finished"
    assert (await run_sweep(scene.stack))["usage_keys"] >= 1
