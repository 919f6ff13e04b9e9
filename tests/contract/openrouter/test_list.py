"""GET /keys: what is shown by default, in which order, and page by page while the list changes.

Facts: openrouter/facts.md 1.5.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

MakeKey = Callable[..., Awaitable[dict[str, Any]]]
ListAll = Callable[[], Awaitable[list[dict[str, Any]]]]
Chat = Callable[..., Awaitable[httpx.Response]]

PAGE_SIZE = 100
MANY_KEYS = 250
MAX_PAGES = 200
PARALLEL_REQUESTS = 8


async def read_page(management: httpx.AsyncClient, offset: int) -> list[dict[str, Any]]:
    response = await management.get("/keys", params={"offset": offset})
    page: list[dict[str, Any]] = response.raise_for_status().json()["data"]
    return page


async def hashes(management: httpx.AsyncClient, **query: str) -> set[str]:
    response = await management.get("/keys", params=query)
    return {key["hash"] for key in response.raise_for_status().json()["data"]}


@pytest.fixture(scope="module")
async def many_keys(make_key: MakeKey) -> list[str]:
    """More keys than two pages hold."""
    turns = asyncio.Semaphore(PARALLEL_REQUESTS)

    async def make() -> str:
        async with turns:
            body = await make_key("many")
        key_hash: str = body["data"]["hash"]
        return key_hash

    return list(await asyncio.gather(*(make() for _ in range(MANY_KEYS))))


async def test_newest_key_comes_first(make_key: MakeKey, management: httpx.AsyncClient) -> None:
    made = [(await make_key(f"order-{number}"))["data"]["hash"] for number in range(5)]
    page = await read_page(management, 0)
    assert [key["hash"] for key in page if key["hash"] in made] == made[::-1]
    moments = [datetime.fromisoformat(key["created_at"]) for key in page]
    assert moments == sorted(moments, reverse=True)


async def test_every_page_but_the_last_holds_a_hundred(management: httpx.AsyncClient, many_keys: list[str]) -> None:
    seen: list[str] = []
    for page_number in range(MAX_PAGES):
        page = await read_page(management, page_number * PAGE_SIZE)
        seen += [key["hash"] for key in page]
        if len(page) != PAGE_SIZE:
            assert len(page) < PAGE_SIZE
            break
    assert len(seen) == len(set(seen)), "without changes in between no key is shown twice"
    assert set(many_keys) <= set(seen)


async def test_offset_counts_single_keys(management: httpx.AsyncClient, many_keys: list[str]) -> None:
    first, shifted = await read_page(management, 0), await read_page(management, 7)
    assert len(many_keys) > PAGE_SIZE
    assert [key["hash"] for key in shifted[:-7]] == [key["hash"] for key in first[7:]]
    assert await read_page(management, 1_000_000) == []


async def test_keys_made_between_two_pages_shift_the_list_but_hide_nothing(
    make_key: MakeKey, management: httpx.AsyncClient, many_keys: list[str]
) -> None:
    first = [key["hash"] for key in await read_page(management, 0)]
    newcomers = [(await make_key("newcomer"))["data"]["hash"] for _ in range(3)]
    seen = [*first]
    for page_number in range(1, MAX_PAGES):
        page = await read_page(management, page_number * PAGE_SIZE)
        seen += [key["hash"] for key in page]
        if len(page) < PAGE_SIZE:
            break
    assert set(many_keys) <= set(seen)
    assert len(seen) - len(set(seen)) == len(newcomers), "as many are shown twice as came between"
    assert not set(newcomers) & set(seen)


@pytest.mark.parametrize("offset", ["-1", "x", "1.5"])
async def test_wrong_offset_is_refused(management: httpx.AsyncClient, offset: str) -> None:
    response = await management.get("/keys", params={"offset": offset})
    assert response.status_code == httpx.codes.BAD_REQUEST


async def test_disabled_key_shows_only_when_asked_for_and_can_come_back(
    make_key: MakeKey, management: httpx.AsyncClient, chat: Chat
) -> None:
    body = await make_key("disabled")
    key_hash = body["data"]["hash"]
    response = await management.patch(f"/keys/{key_hash}", json={"disabled": True})
    assert response.json()["data"]["disabled"] is True
    assert key_hash not in await hashes(management)
    assert key_hash not in await hashes(management, include_disabled="false")
    assert key_hash in await hashes(management, include_disabled="true")
    assert (await chat(body["key"])).status_code == httpx.codes.UNAUTHORIZED
    await management.patch(f"/keys/{key_hash}", json={"disabled": False})
    assert key_hash in await hashes(management)
    assert (await chat(body["key"])).status_code == httpx.codes.OK


async def test_expired_key_shows_only_when_asked_for_and_opens_nothing(
    make_key: MakeKey, management: httpx.AsyncClient, chat: Chat
) -> None:
    end = datetime.now(UTC) + timedelta(seconds=0.8)
    body = await make_key("expiring", expires_at=end.isoformat().replace("+00:00", "Z"))
    key_hash = body["data"]["hash"]
    assert key_hash in await hashes(management)
    await asyncio.sleep((end - datetime.now(UTC)).total_seconds() + 0.01)  # until it has expired
    assert key_hash not in await hashes(management)
    assert key_hash in await hashes(management, include_expired="true")
    refused = await chat(body["key"])
    assert refused.status_code == httpx.codes.UNAUTHORIZED
    assert refused.json()["error"]["message"] == "API key expired"


@pytest.mark.simulator_only(reason="an account there may have one workspace only")
async def test_list_shows_one_workspace_at_a_time(
    make_key: MakeKey, management: httpx.AsyncClient, list_all: ListAll
) -> None:
    elsewhere = str(uuid.uuid4())
    away = (await make_key("away", workspace_id=elsewhere))["data"]
    home = (await make_key("home"))["data"]
    assert away["workspace_id"] == elsewhere
    assert await hashes(management, workspace_id=elsewhere) == {away["hash"]}
    assert away["hash"] not in {key["hash"] for key in await list_all()}
    moved = await management.patch(f"/keys/{home['hash']}", json={"workspace_id": elsewhere})
    assert moved.json()["data"]["workspace_id"] == elsewhere
    assert await hashes(management, workspace_id=elsewhere) == {away["hash"], home["hash"]}
    wrong = await management.get("/keys", params={"workspace_id": "home"})
    assert wrong.status_code == httpx.codes.BAD_REQUEST
