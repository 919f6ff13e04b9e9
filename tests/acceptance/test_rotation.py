"""A user replaces their key: by the API, on the running stack, also when an answer is lost on the way."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from functions.provisioning.steps import Outcome
from infra.local.stack import Stack
from tests.acceptance.test_api import assert_problem
from tests.support.apps import api_with
from tests.support.people import Person, insert_person, until_state
from tests.support.scenes import Between, Scene, lose
from tests.support.secrets_used import remember

ROTATE = "/v1/me/key/rotate"


@pytest.fixture
async def person(stack: Stack) -> Person:
    """Somebody who has their key."""
    somebody = await insert_person(stack)
    await until_state(stack, somebody.user_id)
    return somebody


@pytest.fixture
def scene(stack: Stack, http: httpx.AsyncClient, person: Person) -> Scene:
    return Scene(stack, http, person.user_id)


async def secret_of(scene: Scene, person: Person) -> str:
    answer = await scene.http.get(f"{scene.stack.functions_url}/v1/me/key", headers=person.headers)
    return noted(answer.json()["secret"])


def noted(secret: str) -> str:
    remember("a user's OpenRouter key", secret)
    return secret


async def chat(scene: Scene, secret: str) -> int:
    """The status of a chat call with this key."""
    answer = await scene.http.post(
        f"{scene.stack.openrouter_url}/chat/completions",
        json={"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5},
        headers={"Authorization": f"Bearer {secret}"},
    )
    return answer.status_code


async def end_grace(scene: Scene) -> None:
    """Lets the time of the old key pass."""
    await scene.sql(
        "with k as (update public.openrouter_user_keys set retires_at = now()"
        " where user_id = %s and retires_at is not null)"
        " update doorkey.provisioning set revisit_at = now() where user_id = %s",
        scene.user_id,
        scene.user_id,
    )


async def test_a_new_key_takes_over_what_is_left_and_the_old_one_goes_after_its_grace(
    scene: Scene, person: Person
) -> None:
    old_secret = await secret_of(scene, person)
    assert await chat(scene, old_secret) == 200
    answer = await scene.http.post(scene.stack.functions_url + ROTATE, headers=person.headers)
    assert answer.status_code == 200, answer.text
    mine = answer.json()
    new_secret = noted(mine["secret"])
    keys = await scene.keys()
    assert sorted(keys) == [1, 2]
    spent_micros = round(keys[1]["usage"] * 1_000_000 + 0.499999)
    assert spent_micros > 0
    # What the old one has spent is not the new one's to spend again, although the ledger does not know of it yet.
    assert mine["key"]["limit_micros"] == 5_000_000 - spent_micros
    assert (keys[1]["limit"], keys[2]["limit"]) == (0, mine["key"]["limit_micros"] / 1_000_000)
    assert (mine["status"], mine["is_rotating"], mine["previous_key"]["hash"]) == ("active", False, keys[1]["hash"])
    assert (await chat(scene, new_secret), await chat(scene, old_secret)) == (200, 403)
    assert (await scene.row())["state"] == "ready"
    await end_grace(scene)
    assert await scene.provision() is Outcome.READY
    assert list(await scene.keys()) == [2]
    assert await chat(scene, old_secret) == 401
    answer = await scene.http.get(f"{scene.stack.functions_url}/v1/me/key", headers=person.headers)
    assert (answer.json()["secret"], answer.json()["previous_key"]) == (new_secret, None)


async def test_a_leaked_key_can_be_revoked_at_once(scene: Scene, person: Person) -> None:
    old_secret = await secret_of(scene, person)
    answer = await scene.http.post(
        scene.stack.functions_url + ROTATE, headers=person.headers, json={"grace_seconds": 0}
    )
    assert answer.status_code == 200, answer.text
    noted(answer.json()["secret"])
    assert answer.json()["previous_key"] is None
    assert await chat(scene, old_secret) == 401
    assert list(await scene.keys()) == [2]


@pytest.mark.parametrize("lost", ["POST /keys", "PATCH /keys", "claim_provisioning", "finish_key_update"])
async def test_an_answer_lost_on_the_way_leaves_a_key_that_works_and_ends_with_one(
    stack: Stack, scene: Scene, person: Person, lost: str
) -> None:
    old_secret = await secret_of(scene, person)
    times = 3 if lost.startswith("finish") else 1
    async with api_with(stack, listening=Between(after=lose(lost, times))) as api:
        answer = await api.post(ROTATE, headers=person.headers, json={"grace_seconds": 600})
    if lost == "POST /keys":
        # The new one is not there: what there is goes on working.
        assert answer.status_code == 202
        assert (answer.json()["is_rotating"], answer.json()["secret"]) == (True, None)
        assert answer.headers["retry-after"] == "2"
        assert await secret_of(scene, person) == old_secret
        assert await chat(scene, old_secret) == 200
    elif answer.status_code == 200:
        noted(answer.json()["secret"])
    for _ in range(4):
        await scene.expire_lease() if (await scene.row())["state"] == "working" else await scene.make_due_now()
        await scene.provision()
    assert (await scene.row())["state"] == "ready"
    known = await scene.sql(
        "select key_hash, retires_at is not null as retires from public.openrouter_user_keys"
        " where user_id = %s and status <> 'deleted'",
        scene.user_id,
    )
    assert sorted(key["retires"] for key in known) == [False, True]
    new_secret = await secret_of(scene, person)
    assert await chat(scene, new_secret) == 200
    # All others are strays, and by their names somebody's whose attempt is over.
    keys = await scene.keys()
    strays = [key for key in keys.values() if key["hash"] not in {row["key_hash"] for row in known}]
    assert len(strays) == (1 if lost == "POST /keys" else 0)
    assert all(key["limit"] == 0 for key in strays), "nobody holds it, and it could spend nothing either"


async def test_eight_at_once_make_one_new_key(scene: Scene, person: Person) -> None:
    answers = await asyncio.gather(
        *(scene.http.post(scene.stack.functions_url + ROTATE, headers=person.headers) for _ in range(8))
    )
    assert {answer.status_code for answer in answers} <= {200, 202}
    await until_state(scene.stack, person.user_id)
    for answer in answers:
        if answer.json()["secret"]:
            noted(answer.json()["secret"])
    made = len(await scene.known_hashes())
    # Whoever asks when the first one is done asks for another one; never is there more than one beside the old one.
    assert 2 <= made <= 6
    living = await scene.sql(
        "select 1 as x from public.openrouter_user_keys where user_id = %s and status <> 'deleted'", scene.user_id
    )
    assert len(living) == len(await scene.keys()) == 2


async def test_a_ban_ends_the_grace_and_disables_the_new_key(scene: Scene, person: Person) -> None:
    answer = await scene.http.post(scene.stack.functions_url + ROTATE, headers=person.headers)
    noted(answer.json()["secret"])
    await scene.sql("update auth.users set banned_until = now() + interval '1 day' where id = %s", scene.user_id)
    await scene.provision()
    await until_state(scene.stack, person.user_id)
    known = await scene.sql(
        "select status from public.openrouter_user_keys where user_id = %s order by attempt", scene.user_id
    )
    assert [row["status"] for row in known] == ["deleted", "disabled"]
    answer = await scene.http.post(scene.stack.functions_url + ROTATE, headers=person.headers)
    assert_problem(answer, 403, "key_disabled")


async def test_who_rotates_in_a_loop_is_told_when_to_come_back(scene: Scene, person: Person) -> None:
    for _ in range(4):
        answer = await scene.http.post(
            scene.stack.functions_url + ROTATE, headers=person.headers, json={"grace_seconds": 0}
        )
        assert answer.status_code == 200, answer.text
        noted(answer.json()["secret"])
    answer = await scene.http.post(scene.stack.functions_url + ROTATE, headers=person.headers)
    assert_problem(answer, 429, "rotated_too_often")
    assert 0 < int(answer.headers["retry-after"]) <= 3600


@pytest.mark.parametrize("body", [{"grace_seconds": -1}, {"grace_seconds": 604_801}, {"grace_hours": 1}, [], "soon"])
async def test_a_wish_that_is_none_is_refused(scene: Scene, person: Person, body: object) -> None:
    answer = await scene.http.post(scene.stack.functions_url + ROTATE, headers=person.headers, json=body)
    assert_problem(answer, 400, "request_invalid")
    assert len(await scene.keys()) == 1


async def test_nobody_rotates_without_a_key_or_a_token(stack: Stack, http: httpx.AsyncClient) -> None:
    answer = await http.post(stack.functions_url + ROTATE)
    assert_problem(answer, 401, "user_token_rejected")
    somebody = await insert_person(stack, confirmed=False)
    answer = await http.post(stack.functions_url + ROTATE, headers=somebody.headers)
    assert_problem(answer, 404, "no_key")
