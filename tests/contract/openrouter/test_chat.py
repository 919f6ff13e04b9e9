"""POST /chat/completions and the money behind it: what is charged, what a limit stops.

Facts: openrouter/facts.md 2.1 to 2.4.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest

MakeKey = Callable[..., Awaitable[dict[str, Any]]]
Chat = Callable[..., Awaitable[httpx.Response]]
ClientFor = Callable[[str], httpx.AsyncClient]

MANY_CHATS = 40
POLL_SECONDS = 1.0
ONE_CENT = "simulator/one-cent"
ROUND_SUMS = "models with round prices exist in the simulator only"


def exact(amount: float) -> Decimal:
    """A float of an answer, read as the decimal it stands for."""
    return Decimal(repr(amount))


def read_events(text: str) -> list[dict[str, Any]]:
    """The JSON chunks of a finished stream, whose end is checked."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert blocks[-1] == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


@pytest.fixture(scope="session")
def stored_key(management: httpx.AsyncClient) -> Callable[[str], Awaitable[dict[str, Any]]]:
    """Reads a key by its hash."""

    async def read(key_hash: str) -> dict[str, Any]:
        data: dict[str, Any] = (await management.get(f"/keys/{key_hash}")).raise_for_status().json()["data"]
        return data

    return read


StoredKey = Callable[[str], Awaitable[dict[str, Any]]]


@pytest.fixture(scope="session")
def settled_usage(stored_key: StoredKey, patience_seconds: float) -> Callable[[str, Decimal], Awaitable[Decimal]]:
    """Reads a key's usage, waiting for an expected sum as long as the target may need."""

    async def read(key_hash: str, expected: Decimal) -> Decimal:
        tries = 1 + int(patience_seconds / POLL_SECONDS)
        usage = Decimal(0)
        for left in range(tries, 0, -1):
            usage = exact((await stored_key(key_hash))["usage"])
            if usage == expected or left == 1:
                break
            await asyncio.sleep(POLL_SECONDS)
        return usage

    return read


SettledUsage = Callable[[str, Decimal], Awaitable[Decimal]]


async def test_answer_says_what_it_cost(make_key: MakeKey, chat: Chat) -> None:
    body = await make_key("answer")
    response = await chat(body["key"])
    answer = response.json()
    assert response.status_code == httpx.codes.OK
    assert answer["id"] == response.headers["X-Generation-Id"]
    assert answer["id"].startswith("gen-")
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["message"]["content"]
    usage = answer["usage"]
    assert usage["cost"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] <= 16


@pytest.mark.simulator_only(reason="prices and tokenisers of the real models are theirs")
async def test_cost_is_tokens_times_listed_price(make_key: MakeKey, chat: Chat, client_for: ClientFor) -> None:
    models = (await client_for("").get("/models")).json()["data"]
    body = await make_key("prices")
    for model in models:
        pricing = {part: Decimal(price) for part, price in model["pricing"].items()}
        usage = (await chat(body["key"], model=model["id"])).json()["usage"]
        cost = (
            pricing["request"]
            + usage["prompt_tokens"] * pricing["prompt"]
            + usage["completion_tokens"] * pricing["completion"]
        )
        paid = usage["cost_details"]["upstream_inference_cost"] if usage["is_byok"] else usage["cost"]
        assert exact(paid) == cost, model["id"]


async def test_longest_answer_is_respected(make_key: MakeKey, chat: Chat) -> None:
    body = await make_key("short")
    response = await chat(body["key"], "Count from one to one hundred, in words.", max_tokens=16, stream=False)
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] in ("length", "stop")
    assert response.json()["usage"]["completion_tokens"] <= 16


async def test_stream_ends_with_one_usage_chunk_without_choices(
    make_key: MakeKey, chat: Chat, settled_usage: SettledUsage, check_component: Callable[[str, object], None]
) -> None:
    body = await make_key("stream")
    response = await chat(body["key"], "Say hello to the world.", stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = read_events(response.text)
    for chunk in chunks:
        check_component("ChatStreamChunk", chunk)
    with_usage = [chunk for chunk in chunks if chunk.get("usage")]
    assert with_usage == [chunks[-1]]
    assert chunks[-1]["choices"] == []
    assert {chunk["id"] for chunk in chunks} == {response.headers["X-Generation-Id"]}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]]
    assert [reason for reason in reasons if reason] == [reasons[-1]]
    cost = exact(chunks[-1]["usage"]["cost"])
    assert cost > 0
    assert await settled_usage(body["data"]["hash"], cost) == cost


@pytest.mark.simulator_only(reason="a real model never says the same thing twice")
async def test_stream_and_whole_answer_say_and_cost_the_same(make_key: MakeKey, chat: Chat) -> None:
    body = await make_key("same")
    whole = (await chat(body["key"], "The same question.")).json()
    streamed = await chat(body["key"], "The same question.", stream=True)
    assert streamed.text.startswith(": OPENROUTER PROCESSING\n\n")
    chunks = read_events(streamed.text)
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks[:-1])
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"] == whole["usage"]


@pytest.mark.simulator_only(reason="whether a real provider stops is its own affair")
async def test_client_that_hangs_up_has_paid_for_the_whole_answer(
    make_key: MakeKey, chat: Chat, client_for: ClientFor, stored_key: StoredKey, model: str
) -> None:
    body = await make_key("hang-up")
    text = "A question with many words. " * 20
    whole = (await chat(body["key"], text, max_tokens=64)).json()["usage"]["cost"]
    request = {"model": model, "max_tokens": 64, "stream": True, "messages": [{"role": "user", "content": text}]}
    async with client_for(body["key"]).stream("POST", "/chat/completions", json=request) as response:
        assert response.status_code == httpx.codes.OK
    assert exact((await stored_key(body["data"]["hash"]))["usage"]) == 2 * exact(whole)


async def test_many_chats_add_up_exactly_however_many_at_once(
    make_key: MakeKey, chat: Chat, settled_usage: SettledUsage, stored_key: StoredKey
) -> None:
    body = await make_key("sums")
    questions = [(f"Question {number} " * (number % 5 + 1), number % 3 == 0) for number in range(MANY_CHATS)]
    started_on = datetime.now(UTC).date()
    answers = await asyncio.gather(*(chat(body["key"], text, stream=stream) for text, stream in questions))
    costs = [
        exact((read_events(answer.text)[-1] if stream else answer.json())["usage"]["cost"])
        for answer, (_, stream) in zip(answers, questions, strict=True)
    ]
    assert min(costs) > 0
    key_hash = body["data"]["hash"]
    assert await settled_usage(key_hash, sum(costs, Decimal(0))) == sum(costs)
    key = await stored_key(key_hash)
    assert key["last_used_at"] is not None
    assert key["byok_usage"] == 0
    _assert_windows_hold_everything(key, started_on)


def _assert_windows_hold_everything(key: dict[str, Any], started_on: date) -> None:
    if datetime.now(UTC).date() == started_on:  # else a window may have begun in between
        windows = ("usage_daily", "usage_weekly", "usage_monthly")
        assert {key[window] for window in windows} == {key["usage"]}


@pytest.mark.simulator_only(reason="somebody else may be spending from a real account")
async def test_account_pays_what_the_keys_spend_even_deleted_ones(
    make_key: MakeKey, chat: Chat, management: httpx.AsyncClient
) -> None:
    async def total() -> Decimal:
        return exact((await management.get("/credits")).json()["data"]["total_usage"])

    body = await make_key("credits")
    before = await total()
    await chat(body["key"], model=ONE_CENT)
    await management.delete(f"/keys/{body['data']['hash']}")
    assert await total() - before == Decimal("0.01")


async def test_ordinary_key_cannot_read_the_account(make_key: MakeKey, client_for: ClientFor) -> None:
    client = client_for((await make_key("curious"))["key"])
    for path in ("/credits", "/activity"):
        assert (await client.get(path)).status_code == httpx.codes.FORBIDDEN


async def test_generation_is_found_by_its_own_key_only(
    make_key: MakeKey, chat: Chat, client_for: ClientFor, patience_seconds: float
) -> None:
    mine, other = await make_key("mine"), await make_key("other")
    answer = (await chat(mine["key"], user="person-1")).json()
    query = {"id": answer["id"]}
    client = client_for(mine["key"])
    response = await client.get("/generation", params=query)
    for _ in range(int(patience_seconds / POLL_SECONDS)):  # the real one needs a moment
        if response.status_code != httpx.codes.NOT_FOUND:
            break
        await asyncio.sleep(POLL_SECONDS)
        response = await client.get("/generation", params=query)
    generation = response.json()["data"]
    assert generation["id"] == answer["id"]
    assert generation["total_cost"] == answer["usage"]["cost"]
    assert generation["tokens_completion"] == answer["usage"]["completion_tokens"]
    assert generation["external_user"] == "person-1"
    assert (await client_for(other["key"]).get("/generation", params=query)).status_code == httpx.codes.NOT_FOUND


@pytest.mark.simulator_only(reason=ROUND_SUMS)
async def test_limit_stops_spending_to_the_cent(
    make_key: MakeKey, chat: Chat, management: httpx.AsyncClient, stored_key: StoredKey
) -> None:
    body = await make_key("limited", limit=0.03)
    key_hash = body["data"]["hash"]
    for _ in range(3):
        assert (await chat(body["key"], model=ONE_CENT)).status_code == httpx.codes.OK
    refused = await chat(body["key"], model=ONE_CENT)
    assert refused.status_code == httpx.codes.FORBIDDEN
    error = refused.json()["error"]
    assert error["message"].startswith("Key limit exceeded (total limit)")
    assert error["metadata"]["limit_source"] == "openrouter_key_limit"
    assert (error["metadata"]["limit_usd"], error["metadata"]["spend_usd"]) == (0.03, 0.03)
    key = await stored_key(key_hash)
    assert (key["usage"], key["limit_remaining"]) == (0.03, 0)

    await management.patch(f"/keys/{key_hash}", json={"limit": 0.04})
    assert (await chat(body["key"], model=ONE_CENT)).status_code == httpx.codes.OK
    assert (await chat(body["key"], model=ONE_CENT)).status_code == httpx.codes.FORBIDDEN
    await management.patch(f"/keys/{key_hash}", json={"limit": None})
    assert (await chat(body["key"], model=ONE_CENT)).status_code == httpx.codes.OK
    lowered = await management.patch(f"/keys/{key_hash}", json={"limit": 0.01})
    assert lowered.json()["data"]["limit_remaining"] == -0.04
    assert (await stored_key(key_hash))["usage"] == 0.05


@pytest.mark.simulator_only(reason=ROUND_SUMS)
async def test_requests_at_once_cannot_share_the_last_cent(
    make_key: MakeKey, chat: Chat, stored_key: StoredKey
) -> None:
    body = await make_key("race", limit=0.05)
    answers = await asyncio.gather(*(chat(body["key"], model=ONE_CENT) for _ in range(20)))
    assert sum(answer.is_success for answer in answers) == 5
    assert (await stored_key(body["data"]["hash"]))["usage"] == 0.05


async def test_limit_of_zero_never_spends_until_it_is_raised(
    make_key: MakeKey, chat: Chat, management: httpx.AsyncClient, stored_key: StoredKey
) -> None:
    body = await make_key("zero", limit=0)
    refused = await chat(body["key"])
    assert refused.status_code in (httpx.codes.FORBIDDEN, httpx.codes.PAYMENT_REQUIRED)
    assert (await stored_key(body["data"]["hash"]))["usage"] == 0
    await management.patch(f"/keys/{body['data']['hash']}", json={"limit": 1})
    assert (await chat(body["key"])).status_code == httpx.codes.OK


async def test_more_than_the_rest_can_pay_is_refused_beforehand(
    make_key: MakeKey, chat: Chat, stored_key: StoredKey
) -> None:
    body = await make_key("rest", limit=0.0001)
    refused = await chat(body["key"], max_tokens=16_000)
    assert refused.status_code == httpx.codes.PAYMENT_REQUIRED
    assert "fewer max_tokens" in refused.json()["error"]["message"]
    assert (await stored_key(body["data"]["hash"]))["usage"] == 0
    assert (await chat(body["key"], max_tokens=16)).status_code == httpx.codes.OK


@pytest.mark.simulator_only(reason="needs a provider key of one's own")
async def test_own_provider_key_costs_no_credits_and_counts_only_if_asked(
    make_key: MakeKey, chat: Chat, management: httpx.AsyncClient, stored_key: StoredKey
) -> None:
    body = await make_key("byok", limit=0.01)
    path = f"/keys/{body['data']['hash']}"
    for _ in range(2):
        usage = (await chat(body["key"], model="simulator/own-key")).json()["usage"]
        assert (usage["cost"], usage["is_byok"]) == (0, True)
    key = await stored_key(body["data"]["hash"])
    assert (key["usage"], key["byok_usage"], key["limit_remaining"]) == (0, 0.02, 0.01)
    counted = await management.patch(path, json={"include_byok_in_limit": True})
    assert counted.json()["data"]["limit_remaining"] == -0.01
    assert (await chat(body["key"], model="simulator/own-key")).status_code == httpx.codes.FORBIDDEN


async def test_management_key_buys_no_inference(management_key: str, chat: Chat) -> None:
    response = await chat(management_key)
    assert response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)


@pytest.mark.parametrize(
    "fields",
    [{"model": "nobody/nothing"}, {"messages": []}, {"messages": "hello"}, {"messages": [{"role": "ghost"}]}],
    ids=["unknown model", "no messages", "messages are text", "unknown role"],
)
async def test_wrong_chat_request_costs_nothing(
    make_key: MakeKey, chat: Chat, stored_key: StoredKey, fields: dict[str, object]
) -> None:
    body = await make_key("wrong")
    assert (await chat(body["key"], **fields)).status_code == httpx.codes.BAD_REQUEST
    assert (await stored_key(body["data"]["hash"]))["usage"] == 0


async def test_models_are_paged_and_priced_in_text(client_for: ClientFor) -> None:
    stranger = client_for("")
    whole = (await stranger.get("/models")).json()
    assert whole["total_count"] == len(whole["data"])
    assert all(Decimal(model["pricing"]["prompt"]) >= -1 for model in whole["data"])
    page = (await stranger.get("/models", params={"offset": 1, "limit": 2})).json()
    assert [model["id"] for model in page["data"]] == [model["id"] for model in whole["data"][1:3]]
    assert page["links"]["next"]
