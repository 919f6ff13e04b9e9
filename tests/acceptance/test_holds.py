"""Credits over the Data API, by the code that ships: held once, charged exactly, and given back by the sweep."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable
from decimal import Decimal
from typing import Any

import httpx
import pytest

from functions import sweep
from functions.clients.outside import Clients, build_clients
from functions.clients.supabase import DatabaseRefused
from functions.credits import holds, store
from functions.kit.errors import (
    AmountOutOfRange,
    DoorkeyError,
    HoldNotFound,
    IdempotencyConflict,
    InsufficientCredits,
    KeyReplaced,
    ProfileNotFound,
)
from functions.kit.settings import Settings
from functions.provisioning.steps import Provisioner
from infra.local.stack import Stack
from tests.support.scenes import Between, Scene, instead

CREDITS = 5_000_000
CROWD = 64


@pytest.fixture
async def clients(stack: Stack) -> AsyncIterator[Clients]:
    clients = build_clients(Settings.from_environment(stack.functions_environment))
    async with clients.http:
        yield clients


@pytest.fixture
async def scene(stack: Stack, http: httpx.AsyncClient, clients: Clients) -> Scene:
    """Somebody with a key."""
    scene = Scene(stack, http, uuid.uuid4())
    await scene.sql("insert into auth.users (id, email) values (%s, %s)", scene.user_id, f"{scene.user_id}@example.com")
    await scene.sql("update doorkey.provisioning set state = 'due' where user_id = %s", scene.user_id)
    settings = Settings.from_environment(stack.functions_environment)
    await Provisioner.build(settings, clients).provision(scene.user_id, request_id="test")
    return scene


async def reserve(
    clients: Clients, user_id: uuid.UUID, amount_micros: int, key: str | None = None, through: str | None = None
) -> store.Hold:
    return await store.reserve(
        clients.supabase,
        user_id,
        amount_micros=amount_micros,
        ttl_seconds=60,
        idempotency_key=key or uuid.uuid4().hex,
        key_hash=through,
        request_id="test",
    )


async def settle(clients: Clients, hold_id: uuid.UUID, cost_micros: str, tokens: int | None = None) -> store.Settlement:
    return await store.settle(
        clients.supabase,
        hold_id,
        cost_micros=Decimal(cost_micros),
        tokens=tokens,
        provider="a provider",
        model="a/model",
        generation_id="gen-1",
        request_id="test",
    )


async def test_of_64_holds_at_once_exactly_those_are_given_that_the_balance_covers(
    scene: Scene, clients: Clients
) -> None:
    answers = await asyncio.gather(
        *(reserve(clients, scene.user_id, CREDITS // 10) for _ in range(CROWD)), return_exceptions=True
    )
    assert sum(isinstance(answer, store.Hold) for answer in answers) == 10
    assert sum(isinstance(answer, InsufficientCredits) for answer in answers) == CROWD - 10


@pytest.mark.parametrize("cost", ["123456.123456789012345678901234567890", "1E-7", "0"])
async def test_a_cost_is_stored_to_its_last_place(scene: Scene, clients: Clients, cost: str) -> None:
    """More places than a binary fraction keeps; and as small as costs are, it is written with an exponent."""
    hold = await reserve(clients, scene.user_id, 1)
    settlement = await settle(clients, hold.hold_id, cost)
    assert settlement == store.Settlement(int(Decimal(cost)), 0)
    assert await settle(clients, hold.hold_id, cost) == settlement
    (row,) = await scene.sql("select * from doorkey.credit_holds where id = %s", hold.hold_id)
    assert (row["cost_micros"], row["expires_at"]) == (Decimal(cost), hold.expires_at)
    assert await store.release(clients.supabase, hold.hold_id, request_id="test") == "settled"


async def test_tokens_are_charged_at_the_plans_price_for_them(scene: Scene, clients: Clients) -> None:
    """On a plan that others are not offered."""
    await scene.sql(
        "insert into public.plans (id, name, charges_by, token_price_micros_per_1k, is_active)"
        " values ('by_tokens', 'By tokens', 'tokens', 1500, false) on conflict do nothing"
    )
    await scene.sql("update public.credit_accounts set plan_id = 'by_tokens' where user_id = %s", scene.user_id)
    for tokens, charged in ((2001, 3001), (1, 2), (None, 7)):
        hold = await reserve(clients, scene.user_id, 10)
        settlement = await settle(clients, hold.hold_id, "7", tokens)
        assert settlement == store.Settlement(charged, 0)
        assert await settle(clients, hold.hold_id, "7", tokens) == settlement


async def test_refusals_have_names(scene: Scene, clients: Clients) -> None:
    hold = await reserve(clients, scene.user_id, 1, "h:" + scene.user_id.hex)
    await settle(clients, hold.hold_id, "1")
    refusals: list[tuple[type[DoorkeyError], Awaitable[object]]] = [
        (InsufficientCredits, reserve(clients, scene.user_id, CREDITS + 1)),
        (IdempotencyConflict, reserve(clients, scene.user_id, 2, "h:" + scene.user_id.hex)),
        (IdempotencyConflict, settle(clients, hold.hold_id, "2")),
        (AmountOutOfRange, reserve(clients, scene.user_id, -1)),
        (AmountOutOfRange, settle(clients, hold.hold_id, "NaN")),
        (AmountOutOfRange, settle(clients, hold.hold_id, "1", -1)),
        (KeyReplaced, reserve(clients, scene.user_id, 1, through="0" * 64)),
        (ProfileNotFound, reserve(clients, uuid.uuid4(), 1)),
        (HoldNotFound, settle(clients, uuid.uuid4(), "1")),
        (HoldNotFound, store.release(clients.supabase, uuid.uuid4(), request_id="test")),
    ]
    for refusal, asked in refusals:
        with pytest.raises(refusal):
            await asked
    # What only a fault of ours can ask for keeps its word.
    with pytest.raises(DatabaseRefused, match="page_out_of_range"):
        await store.expire_holds(clients.supabase, expired_rows=0, request_id="test")
    # Nor is a fraction of a micro-dollar held.
    with pytest.raises(AmountOutOfRange):
        await reserve(clients, scene.user_id, 1.5)  # type: ignore[arg-type]


# -- the sweep --------------------------------------------------------------------------------------------------------


async def expired_hold(scene: Scene, clients: Clients) -> store.Hold:
    hold = await reserve(clients, scene.user_id, 1)
    await scene.sql(
        "update doorkey.credit_holds set created_at = created_at - interval '1 day',"
        " expires_at = expires_at - interval '1 day' where id = %s",
        hold.hold_id,
    )
    return hold


async def run_sweep(stack: Stack, transport: Between | None = None) -> dict[str, Any]:
    settings = Settings.from_environment(stack.functions_environment)
    clients = build_clients(settings, transport=transport or Between())
    async with clients.http:
        return await sweep.build(settings, clients)({})


async def test_a_sweep_gives_back_what_expired_page_after_page_and_says_how_much(
    scene: Scene, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds, "ROWS_PER_PAGE", 2)
    expired = [await expired_hold(scene, clients) for _ in range(3)]
    kept = await reserve(clients, scene.user_id, 1)
    # More than a page; and those of other tests may be among them.
    assert (await run_sweep(scene.stack))["expired_holds"] >= 3
    for hold, state in [*((hold, "expired") for hold in expired), (kept, "open")]:
        (row,) = await scene.sql("select state from doorkey.credit_holds where id = %s", hold.hold_id)
        assert row["state"] == state


async def test_a_sweep_that_cannot_expire_holds_does_all_else(scene: Scene, clients: Clients) -> None:
    hold = await expired_hold(scene, clients)
    await scene.sql("update doorkey.provisioning set state = 'due', due_at = now() where user_id = %s", scene.user_id)
    line = await run_sweep(scene.stack, Between(before=instead("expire_holds", 503)))
    assert (line["outcome"], line["expired_holds_error"]) == ("finished", "supabase_answer_lost")
    assert (await scene.row())["state"] == "ready"
    assert (await run_sweep(scene.stack))["expired_holds"] >= 1
    (row,) = await scene.sql("select state from doorkey.credit_holds where id = %s", hold.hold_id)
    assert row["state"] == "expired"
