"""`doorkey review ...` as an operator runs it, on the running stack: held, released, taken back, at OpenRouter too."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator

import httpx
import pytest

from functions import sweep
from functions.clients.outside import build_clients
from functions.kit.settings import Settings
from functions.offers.reviews import read_reviews
from infra.local.stack import Stack
from tests.support.commands import run_doorkey
from tests.support.people import Person, database_of, insert_person, until_state
from tests.support.scenes import Scene


async def review(stack: Stack, *words: str) -> tuple[int, str]:
    """The command's exit code and all that it printed."""
    return await run_doorkey(stack, "review", *words)


@pytest.fixture
async def held(stack: Stack) -> AsyncIterator[Person]:
    """Somebody with an aliased address, who came in an ordinary way; and nobody else's welcome is held."""
    database = database_of(stack)
    await database.run("update doorkey.settings set reviews_mail = true")
    try:
        person = await insert_person(stack, email=f"ada+{uuid.uuid4().hex}@example.com")
        await until_state(stack, person.user_id)
        yield person
    finally:
        await database.run("update doorkey.settings set reviews_mail = false")


async def limit_of(stack: Stack, http: httpx.AsyncClient, person: Person) -> float:
    """What OpenRouter has as the limit of their key, after a sweep."""
    settings = Settings.from_environment(stack.functions_environment)
    clients = build_clients(settings)
    async with clients.http:
        await sweep.build(settings, clients)({"source": "aws.events", "detail-type": "Scheduled Event"})
    (key,) = (await Scene(stack, http, person.user_id).keys()).values()
    return float(key["limit"])


async def test_a_held_welcome_is_shown_released_and_taken_back_down_to_the_keys_limit(
    stack: Stack, http: httpx.AsyncClient, held: Person
) -> None:
    assert await limit_of(stack, http, held) == 0
    mine = (await http.get(f"{stack.functions_url}/v1/me", headers=held.headers)).json()
    assert (mine["status"], mine["balance"]["available_micros"], mine["referral_code"]) == ("active", 0, None)

    code, printed = await review(stack, "list", "--json")
    (shown,) = [welcome for welcome in json.loads(printed) if welcome["user_id"] == str(held.user_id)]
    assert (code, shown["reasons"], shown["amount_micros"]) == (0, ["aliased_mail"], 5_000_000)
    code, printed = await review(stack, "list")
    assert (code, str(held.user_id) in printed, held.email in printed) == (0, True, False)

    code, printed = await review(stack, "release", str(held.user_id))
    assert (code, "$5.00 given" in printed) == (0, True)
    assert await limit_of(stack, http, held) == 5
    code, printed = await review(stack, "release", str(held.user_id))
    assert (code, "$0.00 given" in printed) == (0, True)

    code, printed = await review(stack, "claw-back", str(held.user_id), "--reason", "Not new")
    assert (code, "$5.00 taken back" in printed) == (0, True)
    assert await limit_of(stack, http, held) == 0


async def test_however_many_are_held_all_are_listed_and_so_many_from_where_one_stopped(
    stack: Stack, held: Person
) -> None:
    people = [held] + [await insert_person(stack, email=f"ada+{uuid.uuid4().hex}@example.com") for _ in range(4)]
    for person in people:
        await until_state(stack, person.user_id)

    clients = build_clients(Settings.from_environment(stack.functions_environment))
    async with clients.http:
        pages = [page async for page in read_reviews(clients.supabase, rows=100, page_rows=2)]
        part = [page async for page in read_reviews(clients.supabase, rows=3, page_rows=2)]
    everybody = [welcome.user_id for page in pages for welcome in page]
    assert {len(page) for page in pages[:-1]} == {2}
    assert {person.user_id for person in people} <= set(everybody)
    assert len(everybody) == len(set(everybody))
    assert [welcome.user_id for page in part for welcome in page] == everybody[:3]

    code, printed = await review(stack, "list", "--rows", "2")
    assert (code, f"--after {everybody[1]}" in printed) == (0, True)
    code, printed = await review(stack, "list", "--after", str(everybody[1]), "--json")
    assert [welcome["user_id"] for welcome in json.loads(printed)] == [str(user_id) for user_id in everybody[2:]]


async def test_what_is_not_held_is_a_sentence(stack: Stack, held: Person) -> None:
    code, printed = await review(stack, "release", str(uuid.uuid4()))
    assert (code, "review_not_found" in printed, "Traceback" in printed) == (1, True, False)
    code, printed = await review(stack, "claw-back", str(held.user_id), "--reason", " ")
    assert (code, "--reason takes" in printed) == (2, True)
    await review(stack, "claw-back", str(held.user_id), "--reason", "Not new")
    code, printed = await review(stack, "release", str(held.user_id))
    assert (code, "review_over" in printed) == (1, True)


async def test_a_sweep_gives_what_was_promised_and_says_how_much(
    stack: Stack, http: httpx.AsyncClient, held: Person
) -> None:
    await Scene(stack, http, held.user_id).sql(
        "update doorkey.promised_credits set waits_for = 'key' where about_user_id = %s", held.user_id
    )
    await Scene(stack, http, held.user_id).sql(
        "update doorkey.welcomes set review = 'none' where user_id = %s", held.user_id
    )
    assert await limit_of(stack, http, held) == 5
