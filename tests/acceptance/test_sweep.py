"""The sweep is the guarantee: whoever was missed is found, whatever was left is done, strays are collected."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from functions import sweep
from functions.clients.outside import Clients, build_clients
from functions.kit.settings import Settings
from functions.provisioning import redriving, store, strays
from functions.provisioning.names import KeyName
from functions.provisioning.retry import MAX_FAILURES
from functions.provisioning.strays import StrayReport, collect_strays
from infra.local.stack import Stack
from tests.support.scenes import Answer, Between, Scene, instead, named

MIN_AGE = timedelta(minutes=15)


@pytest.fixture
async def scene(stack: Stack, http: httpx.AsyncClient) -> Scene:
    """Somebody who is due, of whom no hint was sent."""
    scene = await due_user(stack, http)
    await scene.release_queue()
    return scene


async def due_user(stack: Stack, http: httpx.AsyncClient) -> Scene:
    scene = Scene(stack, http, uuid.uuid4())
    await scene.sql("insert into auth.users (id, email) values (%s, %s)", scene.user_id, f"{scene.user_id}@example.com")
    await scene.sql("update doorkey.provisioning set state = 'due' where user_id = %s", scene.user_id)
    return scene


async def run_sweep(stack: Stack, transport: Between | None = None, **settings: str) -> dict[str, Any]:
    """One sweep, as the schedule runs it; what its line says."""
    read = Settings.from_environment({**stack.functions_environment, **settings})
    clients = build_clients(read, transport=transport or Between())
    async with clients.http:
        return await sweep.build(read, clients)({"source": "aws.events", "detail-type": "Scheduled Event"})


async def test_whoever_is_due_gets_their_key_though_the_hint_was_lost(scene: Scene) -> None:
    line = await run_sweep(scene.stack)
    assert line["outcome"] == "finished"
    assert line["outcome_ready"] >= 1
    assert line["is_everything_done"] is True
    await scene.assert_one_key(attempt=1)


async def test_whom_the_trigger_missed_is_enrolled(scene: Scene) -> None:
    await scene.sql("alter table auth.users disable trigger zz_doorkey_user_updated")
    await scene.sql("update auth.users set email_confirmed_at = now() where id = %s", scene.user_id)
    await scene.sql("alter table auth.users enable trigger zz_doorkey_user_updated")
    await scene.sql("delete from doorkey.provisioning where user_id = %s", scene.user_id)
    await scene.sql("update doorkey.settings set sweep_cursor = null")
    assert (await run_sweep(scene.stack))["enrolled"] >= 1
    await scene.assert_one_key(attempt=1)


async def test_two_sweeps_at_once_make_one_key_each(stack: Stack, http: httpx.AsyncClient) -> None:
    await run_sweep(stack)  # whatever others left
    scenes = [await due_user(stack, http) for _ in range(12)]
    lines = await asyncio.gather(run_sweep(stack), run_sweep(stack))
    # Others' users may be due as well; that nobody was done twice is in the attempts.
    assert sum(line.get("outcome_ready", 0) for line in lines) >= len(scenes)
    for scene in scenes:
        await scene.assert_one_key(attempt=1)
        assert await scene.grants() == [5_000_000]


async def test_what_a_dead_worker_left_is_taken_over(scene: Scene) -> None:
    await scene.sql("select doorkey.claim_provisioning(%s, 60, 'died')", scene.user_id)
    await run_sweep(scene.stack)
    assert (await scene.row())["state"] == "working"
    await scene.expire_lease()
    await run_sweep(scene.stack)
    await scene.assert_one_key(attempt=2)
    assert await scene.grants() == [5_000_000]


async def test_a_ban_that_has_ended_is_lifted(scene: Scene) -> None:
    await scene.sql("update auth.users set banned_until = now() + interval '1 day' where id = %s", scene.user_id)
    await run_sweep(scene.stack)
    assert await scene.keys() == {}
    await scene.sql("update doorkey.provisioning set due_at = now() where user_id = %s", scene.user_id)
    await scene.sql("update auth.users set banned_until = now() - interval '1 s' where id = %s", scene.user_id)
    await run_sweep(scene.stack)
    assert (await scene.row())["state"] == "ready"


async def test_nothing_is_begun_when_the_time_is_up(scene: Scene) -> None:
    slow = Between(after=lambda _, answer: _late(answer))
    line = await run_sweep(scene.stack, slow, DOORKEY_SWEEP_BUDGET_SECONDS="0.01")
    assert line["is_everything_done"] is False
    assert await scene.keys() == {}
    assert (await scene.row())["state"] == "due"


async def _late(answer: Answer) -> Answer:
    await asyncio.sleep(0.05)
    return answer


async def test_strays_are_looked_for_though_somebody_is_due_all_the_time(stack: Stack) -> None:
    newcomers = [uuid.uuid4() for _ in range(redriving.MAX_PAGES)]

    async def a_newcomer_each_time(request: httpx.Request) -> Answer | None:
        if named(request) == "list_due_provisioning":
            return Answer(200, json=[str(newcomers.pop())])
        if named(request) != "claim_provisioning":
            return None
        # Their key is made, and that takes a moment.
        await asyncio.sleep(0.1)
        return Answer(409, json={"code": "PT409", "message": "lease_lost"})

    line = await run_sweep(stack, Between(before=a_newcomer_each_time), DOORKEY_SWEEP_BUDGET_SECONDS="2")
    assert newcomers
    assert line["is_everything_done"] is False
    assert "stray_keys" in line


async def test_one_users_trouble_does_not_stop_the_others(stack: Stack, http: httpx.AsyncClient) -> None:
    first, second = await due_user(stack, http), await due_user(stack, http)

    async def lose_the_firsts(request: httpx.Request, answer: Answer) -> Answer:
        if named(request) == "POST /keys" and str(first.user_id).encode() in request.content:
            raise httpx.ReadTimeout("lost on purpose", request=request)
        return answer

    line = await run_sweep(stack, Between(after=lose_the_firsts))
    assert line["outcome_deferred"] >= 1
    assert [(await one.row())["state"] for one in (first, second)] == ["due", "ready"]


async def test_a_database_that_is_away_is_said_and_waits_for_the_next_minute(scene: Scene) -> None:
    line = await run_sweep(scene.stack, Between(before=instead("start_sweep", 503)))
    assert line == {"outcome": "failed", "error": "supabase_answer_lost"}


async def test_strays_that_cannot_be_listed_cost_nothing_else(scene: Scene) -> None:
    line = await run_sweep(scene.stack, Between(before=instead("GET /keys", 502)))
    assert line["strays_error"] == "openrouter_fault"
    await scene.assert_one_key(attempt=1)


@pytest.fixture
async def nothing_held(scene: Scene) -> AsyncIterator[None]:
    """The queue is everybody's: whatever happens, it is let go."""
    yield
    await scene.sql("update doorkey.settings set held_reason = null, held_until = null, max_keys_per_hour = null")


@pytest.mark.usefixtures("nothing_held")
@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, "management_key_rejected"), (402, "openrouter_account_empty"), (403, "management_key_forbidden")],
)
async def test_what_is_refused_to_everybody_holds_the_queue_and_burns_no_attempts(
    scene: Scene, http: httpx.AsyncClient, status: int, reason: str
) -> None:
    others = [await due_user(scene.stack, http) for _ in range(20)]
    refusing = Between(before=instead("POST /keys", status, '{"error": {"code": 401}}'))
    first = await run_sweep(scene.stack, refusing)
    # Those who were at it already when the first was refused; nobody after them.
    assert 1 <= first["outcome_held"] <= redriving.CONCURRENCY
    assert first["held_reason"] is None
    again = Between(before=instead("POST /keys", status, '{"error": {"code": 401}}'))
    second = await run_sweep(scene.stack, again)
    assert second["held_reason"] == reason
    assert "POST /keys" not in again.calls
    for one in (scene, *others):
        row = await one.row()
        assert (row["state"], row["failures"]) == ("due", 0)
    # A minute later one probe is let through; it fails, and the minute begins again.
    await scene.sql("update doorkey.settings set held_until = now() - interval '1 s'")
    probe = Between(before=instead("POST /keys", status, '{"error": {"code": 401}}'))
    third = await run_sweep(scene.stack, probe)
    assert probe.calls.count("POST /keys") == third["outcome_held"] == 1
    # Mended: the probe succeeds and the others follow in the same sweep.
    await scene.sql("update doorkey.settings set held_until = now() - interval '1 s'")
    await run_sweep(scene.stack)
    await run_sweep(scene.stack)
    for one in (scene, *others):
        assert (await one.row())["state"] == "ready"
        assert await one.grants() == [5_000_000]
    held = await scene.sql("select count(*) from doorkey.audit_log where action = 'provisioning.held'")
    assert held[0]["count"] >= 1


@pytest.mark.usefixtures("nothing_held")
async def test_when_the_hour_is_full_the_rest_wait_for_their_turn(scene: Scene, http: httpx.AsyncClient) -> None:
    other = await due_user(scene.stack, http)
    # Whoever is still to be tried again after another test would take the place of one of these two.
    await scene.sql(
        "update doorkey.provisioning set due_at = now() + interval '1 day' where state = 'due' and user_id <> all(%s)",
        [scene.user_id, other.user_id],
    )
    (made,) = await scene.sql(
        "select count(*) from doorkey.key_requests where requested_at > now() - interval '1 hour'"
    )
    await scene.sql("update doorkey.settings set max_keys_per_hour = %s", made["count"] + 1)
    await run_sweep(scene.stack)
    states = {(await one.row())["state"]: one for one in (scene, other)}
    assert set(states) == {"ready", "due"}
    assert (await run_sweep(scene.stack))["is_braked"] is True
    waiting = await states["due"].row()
    assert waiting["due_at"] > waiting["now"]
    assert waiting["attempt"] == 0
    await scene.sql("update doorkey.settings set max_keys_per_hour = null")
    await states["due"].make_due_now()
    await run_sweep(scene.stack)
    await states["due"].assert_one_key(attempt=1)


async def test_redriving_gives_dead_rows_another_chance(scene: Scene, http: httpx.AsyncClient) -> None:
    other = await due_user(scene.stack, http)
    for one in (scene, other):
        await one.sql("update doorkey.provisioning set failures = %s where user_id = %s", MAX_FAILURES - 1, one.user_id)
    await run_sweep(scene.stack, Between(before=instead("POST /keys", 500)))
    assert [(await one.row())["state"] for one in (scene, other)] == ["dead", "dead"]
    async with scene.provisioner(Between()) as provisioner:
        database = provisioner.database

        async def redrive(**which: Any) -> int:
            chosen: dict[str, Any] = {"user_id": None, "error": None, **which}
            return await store.redrive(database, redriven_rows=100, request_id="test", **chosen)

        assert await redrive(user_id=scene.user_id) == 1
        assert await redrive(error="nothing_like_it") == 0
        assert await redrive(error="openrouter_fault") >= 1
    await run_sweep(scene.stack)
    assert [(await one.row())["state"] for one in (scene, other)] == ["ready", "ready"]


class Collection:
    """Keys under a project name of the test's own, and collections among them."""

    def __init__(self, clients: Clients, user_id: uuid.UUID) -> None:
        self.clients = clients
        self.user_id = user_id
        self.project = f"p{uuid.uuid4().hex[:8]}"
        self.attempt = 0

    def name(self, project: str | None = None) -> str:
        """The name of the key of another attempt for the same user."""
        self.attempt += 1
        return str(KeyName(project or self.project, self.user_id, self.attempt))

    async def make(self, name: str) -> str:
        return (await self.clients.openrouter.create_key(name, 0)).key_hash

    async def collect(self, age: timedelta = timedelta(hours=1), *, is_dry_run: bool = False) -> StrayReport:
        """A collection at a time when every key is so old."""
        return await collect_strays(
            self.clients.openrouter,
            self.clients.supabase,
            project=self.project,
            now=datetime.fromtimestamp(time.time(), UTC) + age,
            min_age=MIN_AGE,
            is_dry_run=is_dry_run,
        )

    async def are_there(self, *key_hashes: str) -> list[bool]:
        listed: set[str] = set()
        for page in range(50):
            keys = await self.clients.openrouter.list_keys(page * 100)
            listed |= {key.key_hash for key in keys}
            if len(keys) < 100:
                break
        return [key_hash in listed for key_hash in key_hashes]


@pytest.fixture
async def collection(stack: Stack, scene: Scene) -> AsyncIterator[Collection]:
    await many_attempts(scene)
    clients = build_clients(Settings.from_environment(stack.functions_environment))
    async with clients.http:
        yield Collection(clients, scene.user_id)


async def many_attempts(scene: Scene) -> None:
    """As if a thousand attempts had been made for this user."""
    await scene.sql("update doorkey.provisioning set attempt = 1000 where user_id = %s", scene.user_id)


async def test_a_stray_is_deleted_and_nothing_else_is_touched(collection: Collection, scene: Scene) -> None:
    await scene.provision()
    (known,) = await scene.known_hashes()
    stray = await collection.make(collection.name())
    kept = [
        await collection.make(collection.name(f"{collection.project}-eu")),
        await collection.make(collection.name(f"eu-{collection.project}")),
        await collection.make("made by hand"),
        await collection.make(f"doorkey-{collection.project}-by-hand-1"),
        # Of another database that goes by the same name: a user, and an attempt, that this one doesn't have.
        await collection.make(str(KeyName(collection.project, uuid.uuid4(), 1))),
        await collection.make(str(KeyName(collection.project, scene.user_id, 5000))),
        known,
    ]
    report = await collection.collect()
    assert (len(report.strays), report.deleted, report.foreign_keys, report.is_complete) == (1, 1, 2, True)
    assert report.oldest_stray_seconds >= 3600
    assert await collection.are_there(stray, *kept) == [False] + [True] * len(kept)


async def test_a_known_key_is_never_a_stray(collection: Collection, scene: Scene) -> None:
    await scene.provision()
    (known,) = await scene.known_hashes()
    collection.project = "local"
    await collection.collect()
    assert await collection.are_there(known) == [True]


async def test_a_young_key_may_still_be_registered(collection: Collection) -> None:
    young = await collection.make(collection.name())
    report = await collection.collect(age=MIN_AGE - timedelta(seconds=30))
    assert report.strays == ()
    assert await collection.are_there(young) == [True]


async def test_a_dry_run_only_looks(collection: Collection) -> None:
    stray = await collection.make(collection.name())
    report = await collection.collect(is_dry_run=True)
    assert (len(report.strays), report.deleted) == (1, 0)
    assert await collection.are_there(stray) == [True]


async def test_a_run_deletes_a_bounded_number_and_the_next_the_rest(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strays, "MAX_DELETED", 2)
    made = [await collection.make(collection.name()) for _ in range(3)]
    assert (await collection.collect()).deleted == 2
    assert sum(await collection.are_there(*made)) == 1
    assert (await collection.collect()).deleted == 1
    assert sum(await collection.are_there(*made)) == 0


async def test_keys_made_between_two_pages_hide_no_stray(stack: Stack, scene: Scene) -> None:
    await many_attempts(scene)
    made: list[str] = []

    async def shift(request: httpx.Request, answer: Answer) -> Answer:
        if named(request) == "GET /keys" and "offset=0" in str(request.url):
            made.extend([await plain.make(plain.name("another")) for _ in range(5)])
        return answer

    settings = Settings.from_environment(stack.functions_environment)
    calm, shifting = build_clients(settings), build_clients(settings, transport=Between(after=shift))
    async with calm.http, shifting.http:
        plain, collection = Collection(calm, scene.user_id), Collection(shifting, scene.user_id)
        collection.project = plain.project
        wanted = [await plain.make(plain.name()) for _ in range(120)]
        report = await collection.collect()
        assert len(report.strays) == len(wanted)
        assert len(made) == 5
        assert await plain.are_there(*made) == [True] * 5
        await collection.collect()
        assert sum(await plain.are_there(*wanted)) == 0
