"""With the service key gone: what people can still do, what waits, and how it heals. And the first request of those
whom no trigger saw."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator

import httpx
import pytest

from functions.accounts.arrivals import Arrivals
from functions.clients.outside import build_clients
from functions.credits import store as credits_store
from functions.kit.errors import InsufficientCredits
from functions.kit.settings import Settings
from functions.provisioning import store as provisioning
from functions.provisioning.states import Chance
from functions.provisioning.steps import Outcome, Provisioner
from functions.web.sessions import Session
from infra.local.stack import CHECKOUT, Stack, StackOptions, running_stack
from tests.acceptance.test_api import assert_problem
from tests.support.access import WRONG_KEY, Sandbox, newcomer, sandbox, settled
from tests.support.people import Person, database_of, token_for
from tests.support.scenes import MAX_POLLS, POLL_SECONDS, Between, Scene, instead, named

WELCOME_MICROS = 5_000_000
REJECTED = {"SUPABASE_SECRET_KEY": WRONG_KEY}
RUNGS = pytest.mark.parametrize("changes", [{}, REJECTED], ids=["good key", "rejected key"])


@pytest.fixture(scope="module")
async def place() -> AsyncIterator[Stack]:
    """A stack of this module's own, in which nobody rings."""
    async with running_stack(StackOptions(sweep_seconds=0, forgets=True)) as stack:
        await database_of(stack).run("update doorkey.settings set webhook_url = null, max_keys_per_hour = null")
        yield stack


def session_of(person: Person) -> Session:
    return Session(person.user_id, person.token, is_anonymous=False)


async def assert_provisioned_once(place: Stack, http: httpx.AsyncClient, person: Person) -> None:
    """One key, known and limited; one welcome."""
    scene = Scene(place, http, person.user_id)
    keys = await scene.keys()
    assert len(keys) == 1
    assert await scene.known_hashes() == [key["hash"] for key in keys.values()]
    assert (await scene.row())["state"] == "ready"
    assert await scene.grants() == [WELCOME_MICROS]


async def profile_of(place: Stack, person: Person) -> list[object]:
    rows = await database_of(place).rows(
        "select openrouter_provisioning_status as status from public.profiles where id = %s", (person.user_id,)
    )
    return [row["status"] for row in rows]


async def mine(made: Sandbox, person: Person, path: str = "/v1/me") -> httpx.Response:
    return await made.api.get(path, headers=person.headers)


@RUNGS
async def test_the_first_request_of_somebody_whom_no_trigger_saw_makes_all_they_need(
    place: Stack, http: httpx.AsyncClient, changes: dict[str, str]
) -> None:
    for path, member, expected in (
        ("/v1/me", "status", "active"),
        ("/v1/me/key", "status", "active"),
        ("/v1/credits/balance", "available_micros", WELCOME_MICROS),
        ("/api/v1/credits/balance", "credits_remaining", "5"),
    ):
        person = await newcomer(place)
        async with sandbox(place, changes) as made:
            answer = await mine(made, person, path)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body[member] == expected, path
        assert path != "/v1/me/key" or body["secret"].startswith("sk-or-v1-")
        assert await profile_of(place, person) == ["active"]
        await assert_provisioned_once(place, http, person)


@RUNGS
async def test_many_first_requests_at_once_make_one_key_and_one_grant(
    place: Stack, http: httpx.AsyncClient, changes: dict[str, str]
) -> None:
    person = await newcomer(place)
    paths = ["/v1/me", "/v1/me/key", "/v1/credits/balance", "/api/v1/credits/balance"] * 4
    async with sandbox(place, changes) as one, sandbox(place, REJECTED) as another:
        answers = await asyncio.gather(
            *(mine((one, another)[number % 2], person, path) for number, path in enumerate(paths))
        )
    assert {answer.status_code for answer in answers} <= {200, 202}
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 202)
    await assert_provisioned_once(place, http, person)


async def test_who_is_due_and_was_forgotten_is_served_by_their_request(place: Stack, http: httpx.AsyncClient) -> None:
    user_id = await database_of(place).insert_user()
    assert (await Scene(place, http, user_id).row())["state"] == "due"
    person = Person(user_id, token_for(place, user_id))
    async with sandbox(place) as made:
        assert (await mine(made, person)).json()["status"] == "active"
    await assert_provisioned_once(place, http, person)


@RUNGS
async def test_whose_worker_died_is_served_by_their_next_request(
    place: Stack, http: httpx.AsyncClient, changes: dict[str, str]
) -> None:
    """With the service key dead no sweep would come by."""
    person = await newcomer(place)
    scene = Scene(place, http, person.user_id)
    async with sandbox(place, changes) as made:
        for _ in range(2):
            await provisioning.claim(
                made.clients.supabase, person.user_id, lease_seconds=60, request_id="dies", chance=Chance.LAZY,
                session=session_of(person),
            )  # fmt: skip
            # Alive, as far as anybody knows.
            assert (await mine(made, person)).status_code == 202
            await scene.expire_lease()
        assert (await mine(made, person)).json()["status"] == "active"
    await assert_provisioned_once(place, http, person)


@RUNGS
async def test_a_user_from_before_the_installation_gets_nothing_by_asking(
    place: Stack, changes: dict[str, str]
) -> None:
    person = await newcomer(place)
    database = database_of(place)
    await database.run("update auth.users set created_at = '2020-01-01' where id = %s", (person.user_id,))
    async with sandbox(place, changes) as made:
        for path in ("/v1/me", "/v1/me/key", "/v1/credits/balance", "/api/v1/credits/balance"):
            assert_problem(await mine(made, person, path), 404, "profile_not_found")
    rows = "select count(*) from doorkey.provisioning where user_id = %s"
    assert await database.value(rows, (person.user_id,)) == 0


async def test_while_openrouter_is_slow_the_answer_goes_out_and_the_attempt_goes_on(
    place: Stack, http: httpx.AsyncClient
) -> None:
    person = await newcomer(place)
    released = asyncio.Event()

    async def wait(request: httpx.Request) -> None:
        if named(request) == "POST /keys":
            await released.wait()

    settings = Settings.from_environment(place.functions_environment)
    clients = build_clients(settings, Between(before=wait))
    async with clients.http:
        provisioner = Provisioner.build(settings, clients)
        arrivals = Arrivals(clients.supabase, provisioner, quick_seconds=0.2)
        account = await arrivals.account(session_of(person), request_id="slow")
        assert (account["provisioning"]["state"], account["key"]) == ("working", None)
        assert account["credits"]["available_micros"] == WELCOME_MICROS
        async with sandbox(place) as made:
            for path, status in (("/v1/me", 202), ("/v1/me/key", 202), ("/v1/credits/balance", 200)):
                answer = await mine(made, person, path)
                assert answer.status_code == status, path
                assert ("retry-after" in answer.headers) == (status == 202)
        released.set()
        for _ in range(MAX_POLLS):
            if (await arrivals.account(session_of(person), request_id="slow"))["key"] is not None:
                break
            await asyncio.sleep(POLL_SECONDS)
    await assert_provisioned_once(place, http, person)


async def test_before_there_are_credits_a_balance_is_no_zero(place: Stack) -> None:
    person = await newcomer(place)
    database = database_of(place)
    await database.run(
        "update doorkey.settings set held_reason = 'openrouter_account_empty', held_until = now() + interval '1 hour'"
    )
    try:
        async with sandbox(place) as made:
            for path in ("/v1/credits/balance", "/api/v1/credits/balance"):
                answer = await mine(made, person, path)
                assert (answer.status_code, answer.json()) == (202, {"status": "pending"})
                assert int(answer.headers["retry-after"]) > 0
            me = await mine(made, person)
            assert (me.status_code, me.json()["balance"]) == (202, None)
    finally:
        await database.run("update doorkey.settings set held_reason = null, held_until = null")


async def test_trouble_at_openrouter_does_not_fail_a_request_whose_answer_is_known(place: Stack) -> None:
    person = await newcomer(place)
    settings = Settings.from_environment(place.functions_environment)
    clients = build_clients(settings, Between(before=instead("POST /keys", 500)))
    async with clients.http:
        arrivals = Arrivals(clients.supabase, Provisioner.build(settings, clients))
        account = await arrivals.account(session_of(person), request_id="trouble")
    assert (account["provisioning"]["state"], account["provisioning"]["last_error"]) == (
        "due",
        "openrouter_fault",
    )


async def test_a_known_bad_key_costs_no_round_trip(place: Stack) -> None:
    person = await settled(place)
    counts = {}
    for name, changes in (("good", {}), ("rejected", REJECTED)):
        async with sandbox(place, changes) as made:
            await mine(made, person, "/v1/me/key")
            made.wire.heard.clear()
            for _ in range(5):
                assert (await mine(made, person, "/v1/me/key")).status_code == 200
            counts[name] = len(made.wire.heard)
    assert counts["rejected"] == counts["good"] == 10


async def test_a_key_is_rotated_with_a_dead_service_key(place: Stack, http: httpx.AsyncClient) -> None:
    person = await settled(place)
    async with sandbox(place, REJECTED) as made:
        before = (await mine(made, person, "/v1/me/key")).json()
        answer = await made.api.post("/v1/me/key/rotate", headers=person.headers, json={"grace_seconds": 0})
        assert answer.status_code == 200, answer.text
        assert answer.json()["secret"] not in (None, before["secret"])
        assert made.rung == "3"
    # Without a grace the old one goes at once, by the same token.
    assert list(await Scene(place, http, person.user_id).keys()) == [2]


@RUNGS
async def test_of_many_holds_at_once_only_what_the_balance_covers_is_given(
    place: Stack, changes: dict[str, str]
) -> None:
    person = await settled(place)
    async with sandbox(place, changes) as made:

        async def reserve(number: int) -> bool:
            try:
                await credits_store.reserve(
                    made.clients.supabase, person.user_id, amount_micros=WELCOME_MICROS // 10, ttl_seconds=60,
                    idempotency_key=f"{person.user_id} {number}", key_hash=None, request_id="holds",
                    session=session_of(person),
                )  # fmt: skip
            except InsufficientCredits:
                return False
            return True

        given = await asyncio.gather(*(reserve(number) for number in range(64)))
    assert sum(given) == 10


async def test_a_token_that_runs_out_on_the_way_leaves_the_row_to_the_next(
    place: Stack, http: httpx.AsyncClient
) -> None:
    person = await newcomer(place)
    settings = Settings.from_environment({**place.functions_environment, **REJECTED})
    expired = json.dumps({"code": "PGRST303", "message": "JWT expired", "details": None, "hint": None})
    clients = build_clients(settings, Between(before=instead("finish_my_provisioning", 401, expired)))
    async with clients.http:
        provisioner = Provisioner.build(settings, clients)
        outcome = await provisioner.provision(person.user_id, request_id="late", session=session_of(person))
    assert outcome is Outcome.UNFINISHED
    scene = Scene(place, http, person.user_id)
    await scene.expire_lease()
    assert await scene.provision() is Outcome.READY
    assert await scene.grants() == [WELCOME_MICROS]


def test_the_aws_sdk_is_not_imported_until_a_key_is_rejected() -> None:
    """Its import takes longer than all else of a cold start."""
    shown = subprocess.run(
        [sys.executable, "-c", "import sys, functions.api, functions.webhook, functions.sweep; print(*sys.modules)"],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert "functions.clients.secrets_manager" in shown
    assert not {"boto3", "botocore"} & set(shown)
