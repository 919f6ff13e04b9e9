"""An hour with the service key wrong: who brings a token is served and charged, the rest waits, and one sweep makes all
good once the key is mended.

The clock is moved, by a minute at a time. The sweep and the webhook, which nobody in particular asks, live through it
in one sandbox each. Those that people ask get a fresh one each time: a proof is made by the clock of the database.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx
import pytest

from functions import sweep, webhook
from functions.clients.outside import build_clients
from functions.credits import store as credit_store
from functions.kit.observability import logger, start_logging
from functions.kit.settings import Settings
from functions.web.sessions import Session
from infra.local.faults import EDGE
from infra.local.stack import Stack, StackOptions, running_stack
from tests.support.access import WRONG_KEY, Sandbox, newcomer, sandbox, settled
from tests.support.credit_doors import Credits
from tests.support.lambda_events import SCHEDULED, event
from tests.support.people import Person, database_of
from tests.support.scenes import Scene
from tests.support.secrets_used import leaks

MINUTES = 60
WELCOME_MICROS = 5_000_000
PRESENT_MICROS = 1_000_000
COST = Decimal("1234.5")
RESERVED_MICROS = 2_000
REJECTED = {"SUPABASE_SECRET_KEY": WRONG_KEY}
# Everything that is waited for.
A_MINUTE_LATER = (
    "update doorkey.provisioning set due_at = due_at - interval '1 min',"
    " lease_expires_at = lease_expires_at - interval '1 min', revisit_at = revisit_at - interval '1 min'",
    "update doorkey.credit_holds set created_at = created_at - interval '1 min',"
    " expires_at = expires_at - interval '1 min'",
    "update doorkey.used_proofs set expires_at = expires_at - interval '1 min'",
)


@pytest.fixture
async def place() -> AsyncIterator[Stack]:
    """A stack of this test's own, in which nobody rings."""
    async with running_stack(StackOptions(sweep_seconds=0, forgets=True)) as stack:
        await database_of(stack).run("update doorkey.settings set webhook_url = null, max_keys_per_hour = null")
        yield stack


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the functions log, as on Lambda."""
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    stream = io.StringIO()
    start_logging(stream, metrics_stage="prod")
    yield stream
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate


@dataclass
class Hour:
    """The hour, and what was seen of it."""

    stack: Stack
    http: httpx.AsyncClient
    log: io.StringIO
    started: float = field(default_factory=time.time)
    minute: int = 0
    calls: int = 0

    def now(self) -> float:
        """By the moved clock."""
        return self.started + 60 * self.minute

    async def pass_a_minute(self) -> None:
        """Everywhere."""
        self.minute += 1
        for statement in A_MINUTE_LATER:
            await database_of(self.stack).run(statement)

    def alarms(self) -> int:
        """How often the metric behind the alarm was written."""
        return len([line for line in map(json.loads, self.log.getvalue().splitlines()) if line.get("KeysRejected")])

    async def call(self, person: Person) -> None:
        """They ask who they are, and have a call made that is charged, one that fails, and one that nobody ends."""
        async with sandbox(self.stack, REJECTED) as made:
            answer = await made.api.get("/v1/me", headers=person.headers)
            assert (answer.status_code, answer.json()["status"]) == (200, "active")
            charged, failed, _ = [await self._hold(made, person, f"{self.minute} {number}") for number in range(3)]
            database, session = made.clients.supabase, session_of(person)
            for _ in range(2):  # asked again, it is charged once all the same
                await credit_store.settle(
                    database, charged, cost_micros=COST, provider=None, model=None, generation_id=None,
                    request_id="hour", session=session,
                )  # fmt: skip
            await credit_store.release(database, failed, request_id="hour", session=session)
            balance = await made.api.get("/v1/credits/balance", headers=person.headers)
            assert balance.status_code == 200
            assert made.rung == "3"
        self.calls += 1

    async def _hold(self, made: Sandbox, person: Person, key: str) -> Any:
        hold = await credit_store.reserve(
            made.clients.supabase, person.user_id, amount_micros=RESERVED_MICROS, ttl_seconds=120, idempotency_key=key,
            key_hash=None, request_id="hour", session=session_of(person),
        )  # fmt: skip
        return hold.hold_id

    def scene(self, person: Person) -> Scene:
        """Of somebody."""
        return Scene(self.stack, self.http, person.user_id)


def session_of(person: Person) -> Session:
    """By their token."""
    return Session(person.user_id, person.token, is_anonymous=False)


async def ring(handle: Callable[[Any], Any], stack: Stack, person: Person) -> int:
    """A hint of a signup, by the dashboard's webhook."""
    body = {
        "type": "INSERT",
        "table": "users",
        "schema": "auth",
        "record": {"id": str(person.user_id)},
        "old_record": None,
    }
    secret = {"x-webhook-secret": stack.secrets.webhook_shared_secret}
    answer = await handle(event("/webhooks/supabase", "POST", json.dumps(body).encode(), secret))
    return int(answer["statusCode"])


async def mend(stack: Stack, http: httpx.AsyncClient) -> None:
    """The key that everybody has is a good one from now on."""
    answer = await http.post(
        f"{stack.supabase_url}/edge/secret-keys", json={"key": WRONG_KEY}, headers={EDGE.header: "1"}
    )
    assert answer.status_code == 204


@pytest.mark.timeout(300)
async def test_an_hour_with_the_service_key_wrong_loses_nothing_and_does_nothing_twice(
    place: Stack, http: httpx.AsyncClient, log: io.StringIO
) -> None:
    hour = Hour(place, http, log)
    # People from before: one who calls, one who is given credits, one who leaves.
    calling, given, leaving = [await settled(place) for _ in range(3)]
    waiting = [await newcomer(place) for _ in range(3)]
    asking = [await newcomer(place) for _ in range(3)]
    settings = Settings.from_environment({**place.functions_environment, **REJECTED})
    clients = build_clients(settings, clock=hour.now)
    hints = build_clients(settings, clock=hour.now)
    async with clients.http, hints.http:
        handle, take_hint = sweep.build(settings, clients, hour.now), webhook.build(settings, hints)
        for minute in range(MINUTES):
            before = hour.alarms()
            assert (await handle(SCHEDULED))["error"] == "service_key_rejected"
            assert hour.alarms() == before + 1, "the alarm's metric, once a minute"
            assert await ring(take_hint, place, waiting[minute % 3]) == 503
            assert await ring(take_hint, place, waiting[minute % 3]) == 503
            assert hour.alarms() == before + 2, "and once for each sandbox"
            if minute % 6 == 0:
                await hour.call(calling)
                await hour.call(asking[minute // 6 % 3])
            if minute == 20:
                await grant(place, given)
                await database_of(place).run("delete from auth.users where id = %s", (leaving.user_id,))
            await hour.pass_a_minute()
        for person in waiting:
            assert await hour.scene(person).known_hashes() == []
        assert len(await hour.scene(leaving).keys()) == 1
        await mend(place, http)
        line = await handle(SCHEDULED)
        # The very same sandbox, by the very next sweep.
        assert (line["outcome"], line["is_everything_done"], line["dead"]) == ("finished", True, 0)
    await assert_all_is_done(hour, [*waiting, *asking, calling], given, leaving)
    assert leaks(log.getvalue().encode()) == set()


async def grant(stack: Stack, person: Person) -> None:
    """As an operator does."""
    await database_of(stack).run(
        "select doorkey.grant_credits(%s, 'bonus', %s, 'present', 'A present', 'operator', null, 'hour')",
        (person.user_id, PRESENT_MICROS),
    )


async def assert_all_is_done(hour: Hour, people: list[Person], given: Person, leaving: Person) -> None:
    """One key and one welcome each, what waited is done, every call charged once, and the ledger adds up."""
    database = database_of(hour.stack)
    for person in people:
        keys = await hour.scene(person).keys()
        assert [key["hash"] for key in keys.values()] == await hour.scene(person).known_hashes()
        assert len(keys) == 1
        assert (await hour.scene(person).row())["state"] == "ready"
        assert [micros for micros in await hour.scene(person).grants() if micros > 0] == [WELCOME_MICROS]
    (raised,) = (await hour.scene(given).keys()).values()
    assert raised["limit"] == (WELCOME_MICROS + PRESENT_MICROS) / 1_000_000
    assert await hour.scene(leaving).keys() == {}
    states = await database.rows("select state::text, count(*) from doorkey.credit_holds group by 1 order by 1")
    assert {row["state"]: row["count"] for row in states} == dict.fromkeys(
        ("expired", "released", "settled"), hour.calls
    )
    costs = await database.value(
        "select sum(charged_micros) + (select sum(remainder_micros) from public.credit_accounts)"
        "  from doorkey.credit_holds"
    )
    assert costs == COST * hour.calls
    assert await Credits(database).broken_rules() == []
    # Each call leaves less than it finds; no sweep has seen to that until now.
    assert await database.value("select count(*) from doorkey.used_proofs") < 6 * hour.calls
