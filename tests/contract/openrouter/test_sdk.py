"""The official SDK against the target, sync and async: it must read every answer without a complaint.

It is lax about types and deaf to order, page size and meaning: those are asserted in the other
modules. Facts: openrouter/facts.md 3, "Conformance checks".
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from openrouter import OpenRouter, components, errors

MakeKey = Callable[..., Awaitable[dict[str, Any]]]
SdkFor = Callable[[str], OpenRouter]

UNKNOWN_HASH = "0" * 64
PAGE_SIZE = 100
MESSAGES: list[components.ChatMessagesTypedDict] = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def sdk(sdk_for: SdkFor, management_key: str, management: httpx.AsyncClient) -> OpenRouter:
    """The SDK with the management key; depends on the client that cleans up."""
    assert management.headers["Authorization"].endswith(management_key)
    return sdk_for(management_key)


def test_sdk_walks_through_the_life_of_a_key(sdk: OpenRouter, run_name: str) -> None:
    made = sdk.api_keys.create(
        name=f"{run_name}-sdk", limit=5, limit_reset="monthly", expires_at=datetime(2035, 1, 31, tzinfo=UTC)
    )
    key_hash = made.data.hash
    assert key_hash == hashlib.sha256(made.key.encode()).hexdigest()
    assert made.data.expires_at == datetime(2035, 1, 31, tzinfo=UTC)
    assert (made.data.limit, made.data.limit_reset) == (5, "monthly")
    assert key_hash in {key.hash for key in sdk.api_keys.list().data}
    assert sdk.api_keys.get(hash=key_hash).data == sdk.api_keys.get(hash=key_hash).data

    endless = sdk.api_keys.update(hash=key_hash, limit=None).data
    assert (endless.limit, endless.limit_reset, endless.name) == (None, "monthly", f"{run_name}-sdk")
    assert sdk.api_keys.update(hash=key_hash).data.limit_reset == "monthly"
    assert sdk.api_keys.update(hash=key_hash, disabled=True).data.disabled is True
    assert key_hash not in {key.hash for key in sdk.api_keys.list().data}
    shown = sdk.api_keys.list(include_disabled=True, include_expired=True).data
    assert key_hash in {key.hash for key in shown}
    stays = sdk.api_keys.update(hash=key_hash, workspace_id=made.data.workspace_id).data
    assert stays.workspace_id == made.data.workspace_id
    assert key_hash in {
        key.hash for key in sdk.api_keys.list(workspace_id=made.data.workspace_id, include_disabled=True).data
    }

    assert sdk.api_keys.delete(hash=key_hash).DELETED is True
    with pytest.raises(errors.NotFoundResponseError):
        sdk.api_keys.delete(hash=key_hash)


async def test_async_sdk_walks_through_many_lives_at_once(sdk: OpenRouter, run_name: str) -> None:
    async def live(number: int) -> str:
        made = await sdk.api_keys.create_async(name=f"{run_name}-async-{number}", limit=number)
        changed = await sdk.api_keys.update_async(hash=made.data.hash, limit=number + 0.5)
        assert changed.data.limit == number + 0.5
        read = await sdk.api_keys.get_async(hash=made.data.hash)
        assert read.data.model_dump() == changed.data.model_dump()
        assert (await sdk.api_keys.delete_async(hash=made.data.hash)).DELETED is True
        return made.data.hash

    hashes = await asyncio.gather(*(live(number) for number in range(8)))
    assert len(set(hashes)) == 8
    for key_hash in hashes[:2]:
        with pytest.raises(errors.NotFoundResponseError):
            await sdk.api_keys.get_async(hash=key_hash)


def test_sdk_pages_by_offset(sdk: OpenRouter) -> None:
    first = sdk.api_keys.list().data
    assert len(first) <= PAGE_SIZE
    assert [key.hash for key in sdk.api_keys.list(offset=1).data][: len(first) - 1] == [key.hash for key in first][1:]


async def test_sdk_reads_both_kinds_of_current_key(sdk: OpenRouter, sdk_for: SdkFor, make_key: MakeKey) -> None:
    assert sdk.api_keys.get_current_key_metadata().data.is_management_key is True
    ordinary = sdk_for((await make_key("sdk-self", limit=2))["key"])
    current = (await ordinary.api_keys.get_current_key_metadata_async()).data
    assert (current.is_management_key, current.limit_remaining) == (False, 2)
    assert current.effective_budget is not None
    assert current.effective_budget.remaining_usd == 2


async def test_sdk_knows_every_refusal_by_its_class(sdk: OpenRouter, sdk_for: SdkFor, make_key: MakeKey) -> None:
    with pytest.raises(errors.BadRequestResponseError) as refused:
        sdk.api_keys.create(name="")
    assert refused.value.status_code == httpx.codes.BAD_REQUEST
    with pytest.raises(errors.BadRequestResponseError):  # sent without Z, as the SDK does
        sdk.api_keys.create(name="doorkey-contract-refused", expires_at=datetime(2035, 1, 31))  # noqa: DTZ001
    with pytest.raises(errors.UnauthorizedResponseError):
        sdk_for("sk-or-v1-unknown").api_keys.list()
    ordinary = sdk_for((await make_key("sdk-refused"))["key"])
    with pytest.raises(errors.ForbiddenResponseError) as forbidden:
        await ordinary.api_keys.create_async(name="doorkey-contract-refused")
    assert forbidden.value.data.error.code == httpx.codes.FORBIDDEN
    with pytest.raises(errors.OpenRouterDefaultError) as undeclared:  # facts.md 1.2: 403 isn't declared for lists
        ordinary.api_keys.list()
    assert undeclared.value.status_code == httpx.codes.FORBIDDEN
    with pytest.raises(errors.NotFoundResponseError):
        await sdk.api_keys.update_async(hash=UNKNOWN_HASH, disabled=True)


async def test_sdk_reads_a_whole_answer_and_its_generation(
    sdk_for: SdkFor, make_key: MakeKey, model: str, patience_seconds: float
) -> None:
    client = sdk_for((await make_key("sdk-chat"))["key"])
    answer = client.chat.send(model=model, messages=MESSAGES, max_tokens=16)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.cost
    if patience_seconds == 0:  # elsewhere it is only there after a while: test_chat.py waits
        generation = client.generations.get_generation(id=answer.id).data
        assert generation.total_cost == answer.usage.cost


async def test_sdk_reads_a_stream_sync_and_async(sdk_for: SdkFor, make_key: MakeKey, model: str) -> None:
    client = sdk_for((await make_key("sdk-stream"))["key"])
    with client.chat.send(model=model, messages=MESSAGES, max_tokens=16, stream=True) as stream:
        chunks = list(stream)
    async with await client.chat.send_async(model=model, messages=MESSAGES, max_tokens=16, stream=True) as later:
        later_chunks = [chunk async for chunk in later]
    for read in (chunks, later_chunks):
        assert "".join(choice.delta.content or "" for chunk in read for choice in chunk.choices)
        assert [bool(chunk.usage) for chunk in read] == [False] * (len(read) - 1) + [True]
        assert read[-1].choices == []


async def test_sdk_tells_a_spent_limit_from_missing_money(sdk_for: SdkFor, make_key: MakeKey, model: str) -> None:
    spent = sdk_for((await make_key("sdk-spent", limit=0))["key"])
    with pytest.raises((errors.ForbiddenResponseError, errors.PaymentRequiredResponseError)):
        spent.chat.send(model=model, messages=MESSAGES, max_tokens=16)
    nearly = sdk_for((await make_key("sdk-nearly", limit=0.0001))["key"])
    with pytest.raises(errors.PaymentRequiredResponseError):
        nearly.chat.send(model=model, messages=MESSAGES, max_tokens=16_000)


def test_sdk_reads_the_reports(sdk: OpenRouter) -> None:
    assert sdk.credits.get_credits().data.total_credits >= 0
    assert isinstance(sdk.analytics.get_user_activity().data, list)
    listed = sdk.models.list()
    assert listed is not None
    assert listed.result.total_count == len(listed.result.data)
