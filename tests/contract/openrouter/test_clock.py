"""What only time brings: windows that end, limits that come back, days that are complete.

These tests serve the simulator in this process, with a clock of their own, and show on the way that
faults stand where they should.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from openrouter import OpenRouter, errors
from openrouter.utils import BackoffStrategy, RetryConfig

from infra.local.faults import OPENROUTER
from infra.local.openrouter.app import create_app
from infra.local.openrouter.config import Config

pytestmark = pytest.mark.simulator_only(reason="nobody sets the real one's clock")

MANAGEMENT_KEY = "sk-or-mgmt-clock"
BASE_URL = "http://simulator/api/v1"
SATURDAY = datetime(2026, 10, 31, 12, 0, tzinfo=UTC)
SUNDAY = datetime(2026, 11, 1, 23, 59, 59, 999_000, UTC)  # of another month than its Monday
CHAT = {"messages": [{"role": "user", "content": "Hello"}]}


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock(SATURDAY)


@pytest.fixture
async def management(clock: Clock, check_component: Callable[[str, object], None]) -> AsyncIterator[httpx.AsyncClient]:
    async def check_activity(response: httpx.Response) -> None:
        await response.aread()
        if response.request.url.path.endswith("/activity") and response.is_success:
            check_component("ActivityResponse", response.json())

    app = create_app(Config(MANAGEMENT_KEY, clock=clock))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url=BASE_URL,
        headers={"Authorization": f"Bearer {MANAGEMENT_KEY}"},
        event_hooks={"response": [check_activity]},
    ) as client:
        yield client


async def make(management: httpx.AsyncClient, **fields: object) -> tuple[str, str]:
    """Makes a key; its secret and its path."""
    body = (await management.post("/keys", json={"name": "clock", **fields})).raise_for_status().json()
    return body["key"], f"/keys/{body['data']['hash']}"


async def spend(management: httpx.AsyncClient, secret: str, model: str = "simulator/one-cent") -> httpx.Response:
    headers = {"Authorization": f"Bearer {secret}"}
    return await management.post("/chat/completions", json=CHAT | {"model": model}, headers=headers)


async def read_windows(management: httpx.AsyncClient, path: str) -> list[float]:
    key = (await management.get(path)).json()["data"]
    return [key["usage"], key["usage_daily"], key["usage_weekly"], key["usage_monthly"]]


async def test_usage_windows_begin_at_midnight_utc_on_monday_and_on_the_first(
    management: httpx.AsyncClient, clock: Clock
) -> None:
    secret, path = await make(management)
    await spend(management, secret)
    assert await read_windows(management, path) == [0.01, 0.01, 0.01, 0.01]
    clock.now = SUNDAY
    assert await read_windows(management, path) == [0.01, 0, 0.01, 0]
    await spend(management, secret)
    assert await read_windows(management, path) == [0.02, 0.01, 0.02, 0.01]
    clock.now = SUNDAY + timedelta(milliseconds=1)
    assert await read_windows(management, path) == [0.02, 0, 0, 0.01]
    clock.now = datetime(2026, 12, 1, tzinfo=UTC)
    assert await read_windows(management, path) == [0.02, 0, 0, 0]


@pytest.mark.parametrize(
    ("limit_reset", "end"),
    [
        ("daily", datetime(2026, 11, 1, tzinfo=UTC)),
        ("weekly", datetime(2026, 11, 2, tzinfo=UTC)),
        ("monthly", datetime(2026, 11, 1, tzinfo=UTC)),
        (None, None),
    ],
)
async def test_spent_limit_comes_back_exactly_when_its_window_ends(
    management: httpx.AsyncClient, clock: Clock, limit_reset: str | None, end: datetime | None
) -> None:
    secret, path = await make(management, limit=0.01, limit_reset=limit_reset)
    assert (await spend(management, secret)).status_code == httpx.codes.OK
    refused = await spend(management, secret)
    assert refused.status_code == httpx.codes.FORBIDDEN
    error = refused.json()["error"]
    assert f"({limit_reset or 'total'} limit)" in error["message"]
    if end is None:
        assert error["metadata"]["resets_at"] is None
        clock.now += timedelta(days=400)
        assert (await spend(management, secret)).status_code == httpx.codes.FORBIDDEN
        return
    assert datetime.fromisoformat(error["metadata"]["resets_at"]) == end
    clock.now = end - timedelta(milliseconds=1)
    assert (await spend(management, secret)).status_code == httpx.codes.FORBIDDEN
    clock.now = end
    assert (await management.get(path)).json()["data"]["limit_remaining"] == 0.01
    assert (await spend(management, secret)).status_code == httpx.codes.OK


async def test_key_ends_at_its_moment(management: httpx.AsyncClient, clock: Clock) -> None:
    secret, _ = await make(management, expires_at="2026-11-01T00:00:00Z")
    clock.now = datetime(2026, 10, 31, 23, 59, 59, 999_000, UTC)
    assert (await spend(management, secret)).status_code == httpx.codes.OK
    clock.now += timedelta(milliseconds=1)
    assert (await spend(management, secret)).status_code == httpx.codes.UNAUTHORIZED
    assert (await management.get("/keys")).json()["data"] == []


async def test_activity_tells_of_completed_days_only(management: httpx.AsyncClient, clock: Clock) -> None:
    async def read(**query: str) -> list[dict[str, Any]]:
        response = await management.get("/activity", params=query)
        items: list[dict[str, Any]] = response.raise_for_status().json()["data"]
        return items

    secret, path = await make(management)
    other, _ = await make(management)
    for spender in (secret, secret, other):
        await spend(management, spender)
    await spend(management, secret, "simulator/own-key")
    assert await read() == []
    clock.now += timedelta(days=1)
    items = {item["model"]: item for item in await read()}
    assert (items["simulator/one-cent"]["requests"], items["simulator/one-cent"]["usage"]) == (3, 0.03)
    assert items["simulator/own-key"]["usage"] == 0
    assert items["simulator/own-key"]["byok_usage_inference"] == 0.01
    mine = await read(api_key_hash=path.removeprefix("/keys/"), date="2026-10-31")
    assert sum(item["usage"] for item in mine) == 0.02
    assert "workspace_id" not in mine[0]
    assert "workspace_id" in (await read(group_by="workspace"))[0]
    for wrong in ({"date": "2026-11-01"}, {"date": "2026-09-01"}, {"date": "today"}, {"group_by": "key"}):
        refused = await management.get("/activity", params=wrong)
        assert refused.status_code == httpx.codes.BAD_REQUEST
    clock.now += timedelta(days=30)
    assert await read() == []


async def test_usage_can_show_an_hour_late_and_is_of_the_day_of_the_call() -> None:
    clock = Clock(datetime(2026, 11, 15, 23, 30, tzinfo=UTC))
    app = create_app(Config(MANAGEMENT_KEY, clock=clock, usage_delay=lambda _: timedelta(hours=1)))
    headers = {"Authorization": f"Bearer {MANAGEMENT_KEY}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE_URL, headers=headers) as management:
        secret, path = await make(management)
        (await spend(management, secret)).raise_for_status()
        assert await read_windows(management, path) == [0, 0, 0, 0]
        clock.now += timedelta(hours=1)
        assert (await read_windows(management, path))[:2] == [0.01, 0]


async def test_fault_can_lose_the_answer_of_work_that_was_done_and_is_not_repeated() -> None:
    transport = httpx.ASGITransport(create_app(Config(MANAGEMENT_KEY)))
    async with httpx.AsyncClient(transport=transport, headers={OPENROUTER.header: "1"}) as client:
        faults = f"http://127.0.0.1{OPENROUTER.path}"
        plan = {"errors": 1, "errors_after_work": True, "retry_after_seconds": 7, "only": ["POST /keys"]}
        (await client.put(faults, json=plan)).raise_for_status()
        sdk = OpenRouter(
            api_key=MANAGEMENT_KEY,
            server_url=BASE_URL,
            async_client=client,
            retry_config=RetryConfig("none", BackoffStrategy(0, 0, 1, 0), False),
        )
        with pytest.raises(errors.OpenRouterError) as lost:
            await asyncio.wait_for(sdk.api_keys.create_async(name="stray"), timeout=5)
        assert lost.value.headers["Retry-After"] == "7"
        assert [key.name for key in (await sdk.api_keys.list_async()).data] == ["stray"]
        assert (await client.get("http://simulator/simulator/health")).json()["keys"] == 1
        assert (await client.get(faults)).json()["counts"] == {"errors": 1}
