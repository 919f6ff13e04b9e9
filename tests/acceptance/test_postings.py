"""What operators post, over the Data API and by the code that ships: amounts that are none are refused by one name."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from functions.clients.outside import Clients, build_clients
from functions.credits import store
from functions.kit.errors import (
    AlreadyReversed,
    AmountOutOfRange,
    DoorkeyError,
    IdempotencyConflict,
    IdempotencyKeyInvalid,
    PostingInvalid,
    ProfileNotFound,
    TransactionNotFound,
    TransactionNotReversible,
)
from functions.kit.settings import Settings
from functions.provisioning.steps import Provisioner
from infra.local.stack import Stack
from tests.support.scenes import Scene

CREDITS = 5_000_000
LATER = datetime.now(UTC) + timedelta(days=3)


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
    await provision(scene, clients)
    return scene


async def provision(scene: Scene, clients: Clients) -> None:
    settings = Settings.from_environment(scene.stack.functions_environment)
    await Provisioner.build(settings, clients).provision(scene.user_id, request_id="test")


async def post(clients: Clients, user_id: uuid.UUID, amount_micros: Any, **others: Any) -> store.Posting:
    arguments: dict[str, Any] = {
        "type": "adjustment",
        "idempotency_key": uuid.uuid4().hex,
        "reason": "A reason",
        "actor": "an operator",
        "expires_at": None,
        "request_id": "test",
    }
    return await store.post(clients.supabase, user_id, amount_micros=amount_micros, **(arguments | others))


async def reverse(clients: Clients, transaction_id: int, key: str | None = None) -> store.Posting:
    return await store.reverse(
        clients.supabase,
        transaction_id,
        idempotency_key=key or uuid.uuid4().hex,
        reason="A mistake",
        actor="an operator",
        request_id="test",
    )


async def test_what_is_given_and_taken_arrives_at_the_key_and_leaves_the_ledger(scene: Scene, clients: Clients) -> None:
    given = await post(clients, scene.user_id, 1_000_000, type="purchase", expires_at=LATER)
    assert (given.available_after_micros, given.owed_micros) == (CREDITS + 1_000_000, 0)
    await provision(scene, clients)
    assert (await scene.keys())[1]["limit"] == 6.0
    taken = await reverse(clients, given.transaction_id, "r:" + scene.user_id.hex)
    assert await reverse(clients, given.transaction_id, "r:" + scene.user_id.hex) == taken
    (account,) = await scene.sql("select * from public.credit_accounts where user_id = %s", scene.user_id)
    assert (account["available_micros"], account["leaving_micros"]) == (CREDITS, 1_000_000)
    await provision(scene, clients)
    assert (await scene.keys())[1]["limit"] == 5.0
    (account,) = await scene.sql("select * from public.credit_accounts where user_id = %s", scene.user_id)
    assert (account["available_micros"], account["leaving_micros"]) == (CREDITS, 0)


@pytest.mark.parametrize(
    "amount", [0, 10**12 + 1, 10**18, 10**30, -(10**30), 1.5, 0.5, 1e30, float("nan"), float("inf"), "much", "", None]
)
async def test_an_amount_that_is_none_is_refused_by_one_name(scene: Scene, clients: Clients, amount: object) -> None:
    with pytest.raises(AmountOutOfRange):
        await post(clients, scene.user_id, amount)
    with pytest.raises(AmountOutOfRange):
        await post(clients, scene.user_id, -1, type="purchase")
    (account,) = await scene.sql("select * from public.credit_accounts where user_id = %s", scene.user_id)
    assert account["available_micros"] == CREDITS


@pytest.mark.parametrize("amount", ["1e30", "NaN", "1.5", "1000000000000000000000000000000", '"NaN"', '"1e30"'])
async def test_straight_at_the_data_api_such_an_amount_is_a_bad_request(
    scene: Scene, http: httpx.AsyncClient, amount: str
) -> None:
    answer = await http.post(
        f"{scene.stack.supabase_url}/rest/v1/rpc/post_credits",
        headers={"apikey": scene.stack.secrets.secret_key, "content-type": "application/json"},
        content=f"""{{"user_id": "{scene.user_id}", "type": "adjustment", "amount_micros": {amount},
                      "idempotency_key": "k", "reason": "r", "actor": "a", "expires_at": null, "request_id": "r"}}""",
    )
    assert 400 <= answer.status_code < 500, answer.text


async def test_refusals_have_names(scene: Scene, clients: Clients) -> None:
    known = "p:" + scene.user_id.hex
    first = await post(clients, scene.user_id, 5, idempotency_key=known)
    assert await post(clients, scene.user_id, 5, idempotency_key=known) == first
    taken = await post(clients, scene.user_id, -5)
    await reverse(clients, first.transaction_id)
    refusals: list[tuple[type[DoorkeyError], Any]] = [
        (IdempotencyConflict, post(clients, scene.user_id, 6, idempotency_key=known)),
        (IdempotencyKeyInvalid, post(clients, scene.user_id, 6, idempotency_key="")),
        (PostingInvalid, post(clients, scene.user_id, 6, type="usage")),
        (PostingInvalid, post(clients, scene.user_id, 6, type="a pony")),
        (ProfileNotFound, post(clients, uuid.uuid4(), 6)),
        (AlreadyReversed, reverse(clients, first.transaction_id)),
        (TransactionNotFound, reverse(clients, 0)),
        (TransactionNotReversible, reverse(clients, taken.transaction_id)),
    ]
    for refusal, asked in refusals:
        with pytest.raises(refusal):
            await asked
