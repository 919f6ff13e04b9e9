"""Plans and periods over the Data API, by the code that ships, to the limit that OpenRouter knows."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from functions import sweep
from functions.clients.outside import Clients, build_clients
from functions.credits import store as credits_store
from functions.kit.errors import (
    DoorkeyError,
    IdempotencyConflict,
    IdempotencyKeyInvalid,
    NoPeriod,
    PlanUnchanged,
    PostingInvalid,
    ProfileNotFound,
    UnknownPlan,
)
from functions.kit.settings import Settings
from functions.plans import periods, store
from functions.provisioning.steps import Provisioner
from infra.local.stack import Stack
from tests.support.scenes import Between, Scene, instead

CREDIT = 1_000_000


@pytest.fixture
async def clients(stack: Stack) -> AsyncIterator[Clients]:
    """What the functions speak through."""
    clients = build_clients(Settings.from_environment(stack.functions_environment))
    async with clients.http:
        yield clients


@pytest.fixture
async def scene(stack: Stack, http: httpx.AsyncClient, clients: Clients) -> AsyncIterator[Scene]:
    """Somebody with a key, on the trial plan."""
    scene = Scene(stack, http, uuid.uuid4())
    await scene.sql("insert into auth.users (id, email) values (%s, %s)", scene.user_id, f"{scene.user_id}@example.com")
    await scene.sql("update doorkey.provisioning set state = 'due' where user_id = %s", scene.user_id)
    settings = Settings.from_environment(stack.functions_environment)
    await Provisioner.build(settings, clients).provision(scene.user_id, request_id="test")
    yield scene
    await scene.release_queue()


async def change(clients: Clients, user_id: uuid.UUID, plan_id: str, takes_effect: str = "now", **more: Any) -> Any:
    arguments = {"idempotency_key": uuid.uuid4().hex, "actor": "test", "reason": "Asked for it", **more}
    return await store.change_plan(
        clients.supabase, user_id, plan_id=plan_id, takes_effect=takes_effect, request_id="test", **arguments
    )


async def run_sweep(stack: Stack, transport: Between | None = None) -> dict[str, Any]:
    settings = Settings.from_environment(stack.functions_environment)
    clients = build_clients(settings, transport=transport or Between())
    async with clients.http:
        return await sweep.build(settings, clients)({})


async def pass_days(scene: Scene, days: int) -> None:
    """So many days go by for this user's period and lots."""
    await scene.sql(
        "update public.credit_accounts set period_started_at = period_started_at - make_interval(hours => %s),"
        " period_ends_at = period_ends_at - make_interval(hours => %s) where user_id = %s",
        *(days * 24, days * 24, scene.user_id),
    )
    await scene.sql(
        "update doorkey.credit_lots set expires_at = expires_at - make_interval(hours => %s) where user_id = %s",
        *(days * 24, scene.user_id),
    )


async def limit_usd(scene: Scene) -> float:
    (key,) = (await scene.keys()).values()
    return float(key["limit"])


async def account(scene: Scene) -> tuple[int, int]:
    """Available and leaving."""
    (row,) = await scene.sql("select * from public.credit_accounts where user_id = %s", scene.user_id)
    return row["available_micros"], row["leaving_micros"]


async def test_one_sweep_renews_a_period_expires_the_trial_and_has_the_key_follow(
    scene: Scene, clients: Clients
) -> None:
    answer = await change(clients, scene.user_id, "starter")
    assert answer.plan_id == "starter"
    assert (answer.period_ends_at - answer.effective_at).total_seconds() == 30 * 86_400
    await run_sweep(scene.stack)
    assert await limit_usd(scene) == 25.0
    hold = await credits_store.reserve(
        clients.supabase, scene.user_id, amount_micros=7 * CREDIT, ttl_seconds=60, idempotency_key=uuid.uuid4().hex,
        key_hash=None, request_id="test",
    )  # fmt: skip
    await credits_store.settle(
        clients.supabase, hold.hold_id, cost_micros=Decimal(7 * CREDIT), provider=None, model=None,
        generation_id=None, request_id="test",
    )  # fmt: skip
    await pass_days(scene, 30)
    line = await run_sweep(scene.stack)
    assert line["renewed"] >= 1
    # Of the trial nothing was left: it is spent first.
    assert await account(scene) == (20 * CREDIT, 0)
    assert await limit_usd(scene) == 27.0


async def test_what_expired_has_left_when_openrouter_knows_the_lower_limit(scene: Scene) -> None:
    await pass_days(scene, 30)
    line = await run_sweep(scene.stack)
    assert line["expired_lots"] >= 1
    assert await account(scene) == (0, 0)
    assert await limit_usd(scene) == 0.0


async def test_what_expired_stays_leaving_while_openrouter_is_away(scene: Scene) -> None:
    await pass_days(scene, 30)
    await run_sweep(scene.stack, Between(before=instead("PATCH /keys", 503)))
    assert await account(scene) == (0, 5 * CREDIT)
    assert await limit_usd(scene) == 5.0
    # A patient sweep may have found it so ten times, and holds everybody then.
    await scene.release_queue()
    await scene.make_due_now()
    await run_sweep(scene.stack)
    assert await account(scene) == (0, 0)
    assert await limit_usd(scene) == 0.0


async def test_a_sweep_that_cannot_renew_does_all_else(scene: Scene) -> None:
    await pass_days(scene, 30)
    line = await run_sweep(scene.stack, Between(before=instead("renew_periods", 503)))
    assert (line["outcome"], line["renewed_error"]) == ("finished", "supabase_answer_lost")
    assert await account(scene) == (0, 0)


async def test_pages_follow_each_other_while_there_is_time(
    scene: Scene, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    await change(clients, scene.user_id, "starter")
    await pass_days(scene, 30)
    monkeypatch.setattr(periods, "ROWS_PER_PAGE", 1)
    left = iter([True, False])
    assert await periods.renew_periods(clients.supabase, request_id="t", is_time_left=lambda: False) == 0
    assert await periods.renew_periods(clients.supabase, request_id="t", is_time_left=lambda: next(left)) == 1


REFUSED: dict[type[DoorkeyError], dict[str, Any]] = {
    UnknownPlan: {"plan_id": "golden"},
    PlanUnchanged: {"plan_id": "trial"},
    NoPeriod: {"takes_effect": "period_end"},
    PostingInvalid: {"reason": ""},
    IdempotencyKeyInvalid: {"idempotency_key": ""},
    ProfileNotFound: {"user_id": uuid.UUID(int=0)},
}


@pytest.mark.parametrize("error", REFUSED)
async def test_a_refusal_has_its_name(scene: Scene, clients: Clients, error: type[DoorkeyError]) -> None:
    with pytest.raises(error):
        await change(clients, **{"user_id": scene.user_id, "plan_id": "starter", **REFUSED[error]})


async def test_a_change_whose_answer_was_lost_is_made_once(scene: Scene, clients: Clients) -> None:
    first = await change(clients, scene.user_id, "starter", idempotency_key="once")
    assert await change(clients, scene.user_id, "starter", idempotency_key="once") == first
    with pytest.raises(IdempotencyConflict):
        await change(clients, scene.user_id, "professional", idempotency_key="once")
