"""What happens to a key when its user is banned, deleted or comes back, on the running stack, by Auth's own API."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

from functions.provisioning.steps import LOST_KEY_FAILURES, Outcome
from infra.local.stack import Stack
from tests.support.scenes import Answer, Between, Scene, lose, named, once_after

MAX_POLLS = 300
POLL_SECONDS = 0.05


async def until(what: str, is_so: Callable[[], Awaitable[object]]) -> None:
    """Waits until something is so."""
    for _ in range(MAX_POLLS):
        if await is_so():
            return
        await asyncio.sleep(POLL_SECONDS)
    pytest.fail(f"not so after {MAX_POLLS * POLL_SECONDS:.0f} s: {what}")


async def admin(scene: Scene, method: str, path: str = "", **body: Any) -> httpx.Response:
    """Auth's admin API, as an operator calls it."""
    answer = await scene.http.request(
        method,
        f"{scene.stack.supabase_url}/auth/v1/admin/users{path}",
        headers={"apikey": scene.stack.secrets.secret_key},
        json=body,
    )
    answer.raise_for_status()
    return answer


@pytest.fixture
async def scene(stack: Stack, http: httpx.AsyncClient) -> Scene:
    """Somebody with a key, made through Auth and the hint."""
    scene = Scene(stack, http, uuid.uuid4())
    email = f"{uuid.uuid4()}@example.com"
    made = await admin(scene, "POST", email=email, password="long-enough-password", email_confirm=True)
    scene.user_id = uuid.UUID(made.json()["id"])
    await until("the key is there", lambda: is_state(scene, "ready"))
    return scene


async def is_state(scene: Scene, state: str) -> bool:
    rows = await scene.sql("select state from doorkey.provisioning where user_id = %s", scene.user_id)
    return [row["state"] for row in rows] == [state]


async def is_disabled(scene: Scene) -> bool:
    """Whether the one key is switched off at OpenRouter; the list shows such keys only when asked."""
    (known,) = await scene.sql(
        "select key_hash from public.openrouter_user_keys where user_id = %s and status <> 'deleted'", scene.user_id
    )
    answer = await scene.http.get(
        f"{scene.stack.openrouter_url}/keys/{known['key_hash']}",
        headers={"Authorization": f"Bearer {scene.stack.secrets.management_key}"},
    )
    return bool(answer.raise_for_status().json()["data"]["disabled"])


async def profile_status(scene: Scene) -> list[str]:
    rows = await scene.sql(
        "select openrouter_provisioning_status as s from public.profiles where id = %s", scene.user_id
    )
    return [row["s"] for row in rows]


async def ban(scene: Scene, duration: str) -> None:
    await admin(scene, "PUT", f"/{scene.user_id}", ban_duration=duration)


async def test_a_deleted_user_leaves_no_key_and_the_books_stay(scene: Scene) -> None:
    await admin(scene, "DELETE", f"/{scene.user_id}")
    await until("gone", lambda: is_state(scene, "gone"))
    assert await scene.keys() == {}
    assert await scene.sql("select status from public.openrouter_user_keys where user_id = %s", scene.user_id) == [
        {"status": "deleted"}
    ]
    assert await scene.grants() == [5_000_000]
    assert await profile_status(scene) == []
    assert (
        await scene.sql(
            "select 1 as x from doorkey.sealed_secrets s join public.openrouter_user_keys k using (key_hash)"
            " where k.user_id = %s",
            scene.user_id,
        )
        == []
    )


async def test_a_soft_deleted_users_key_is_revoked(scene: Scene) -> None:
    await admin(scene, "DELETE", f"/{scene.user_id}", should_soft_delete=True)
    await until("gone", lambda: is_state(scene, "gone"))
    assert await scene.keys() == {}
    assert await profile_status(scene) == ["revoked"]


async def test_a_ban_switches_the_key_off_and_its_lifting_on_again(scene: Scene) -> None:
    await ban(scene, "24h")
    await until("switched off", lambda: is_disabled(scene))
    await until("settled", lambda: is_state(scene, "ready"))
    assert await profile_status(scene) == ["disabled"]
    assert (await scene.row())["revisit_at"] is not None
    await ban(scene, "none")
    await until("settled", lambda: is_state(scene, "ready"))
    await until("profile", lambda: _is(profile_status(scene), ["active"]))
    assert not await is_disabled(scene)
    assert (await scene.row())["revisit_at"] is None
    assert len(await scene.keys()) == 1


async def _is(found: Awaitable[object], wanted: object) -> bool:
    return await found == wanted


async def test_a_ban_that_ends_lifts_itself_when_somebody_looks(scene: Scene) -> None:
    await ban(scene, "24h")
    await until("switched off", lambda: is_disabled(scene))
    await until("settled", lambda: is_state(scene, "ready"))
    assert await scene.provision() is Outcome.NOTHING_TO_DO
    # Time passes: no update of the user says that the ban is over.
    await scene.sql("alter table auth.users disable trigger zz_doorkey_user_updated")
    await scene.sql("update auth.users set banned_until = now() - interval '1 s' where id = %s", scene.user_id)
    await scene.sql("alter table auth.users enable trigger zz_doorkey_user_updated")
    await scene.sql("update doorkey.provisioning set revisit_at = now() where user_id = %s", scene.user_id)
    assert await scene.provision() is Outcome.READY
    assert not await is_disabled(scene)


async def test_somebody_banned_before_they_had_a_key_gets_one_when_the_ban_is_lifted(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    scene = Scene(stack, http, uuid.uuid4())
    made = await admin(scene, "POST", email=f"{uuid.uuid4()}@example.com", password="long-enough-password")
    scene.user_id = uuid.UUID(made.json()["id"])
    await ban(scene, "24h")
    await admin(scene, "PUT", f"/{scene.user_id}", email_confirm=True)
    await until("looked at", lambda: is_state(scene, "due"))
    assert await scene.provision() is Outcome.NOTHING_TO_DO
    assert await scene.keys() == {}
    assert await scene.grants() == []
    await ban(scene, "none")
    await until("the key is there", lambda: is_state(scene, "ready"))
    assert len(await scene.keys()) == 1


async def test_another_address_is_shown_on_the_profile(scene: Scene) -> None:
    email = f"{uuid.uuid4()}@example.com"
    await admin(scene, "PUT", f"/{scene.user_id}", email=email, email_confirm=True)
    rows = await scene.sql("select email from public.profiles where id = %s", scene.user_id)
    assert rows == [{"email": email}]
    assert await is_state(scene, "ready")


async def test_a_key_deleted_by_hand_is_replaced_by_the_next_change(scene: Scene) -> None:
    (key,) = (await scene.keys()).values()
    await scene.http.delete(
        f"{scene.stack.openrouter_url}/keys/{key['hash']}",
        headers={"Authorization": f"Bearer {scene.stack.secrets.management_key}"},
    )
    await scene.sql("select doorkey.want(%s)", scene.user_id)
    # It may only be out of sight: it is looked for again before a second one is made.
    for _ in range(LOST_KEY_FAILURES):
        assert await scene.provision() is Outcome.DEFERRED
        assert await scene.keys() == {}
        await scene.make_due_now()
    assert await scene.provision() is Outcome.READY
    (new,) = (await scene.keys()).values()
    assert new["hash"] != key["hash"]
    assert new["limit"] == 5.0
    assert await scene.grants() == [5_000_000]


async def test_a_ban_that_comes_while_the_key_is_made_is_honoured(stack: Stack, http: httpx.AsyncClient) -> None:
    scene = await _due_user(stack, http)
    outcome = await scene.provision(Between(after=once_after("POST /keys", lambda: ban(scene, "24h"))))
    assert outcome is Outcome.READY
    assert await is_disabled(scene)
    assert (await scene.row())["state"] == "ready"


async def test_a_deletion_that_comes_while_the_key_is_updated_is_honoured(scene: Scene) -> None:
    await scene.sql("select doorkey.want(%s)", scene.user_id)
    outcome = await scene.provision(Between(after=once_after("PATCH /keys", scene.delete_user)))
    assert outcome is Outcome.GONE
    assert await scene.keys() == {}
    assert (await scene.row())["state"] == "gone"


async def test_a_late_update_is_set_right(scene: Scene) -> None:
    await scene.sql("select doorkey.want(%s)", scene.user_id)

    async def banned_meanwhile() -> None:
        """The late one stalls before its PATCH; its lease runs out, and another switches the key off."""
        await scene.expire_lease()
        await scene.sql("update auth.users set banned_until = now() + interval '1 day' where id = %s", scene.user_id)
        assert await scene.provision() is Outcome.READY
        assert await is_disabled(scene)

    stalled: list[str] = []

    async def stall(request: httpx.Request) -> None:
        if named(request) == "PATCH /keys" and not stalled:
            stalled.append("once")
            await banned_meanwhile()

    assert await scene.provision(Between(before=stall)) is Outcome.LEASE_LOST
    await until("looked at again", lambda: is_state(scene, "due"))
    assert not await is_disabled(scene)
    assert await scene.provision() is Outcome.READY
    assert await is_disabled(scene)


async def test_a_late_update_whose_worker_died_of_it_is_set_right_when_its_time_is_over(scene: Scene) -> None:
    await scene.sql("select doorkey.want(%s)", scene.user_id)

    async def banned_meanwhile(request: httpx.Request) -> None:
        if named(request) == "PATCH /keys":
            await scene.expire_lease()
            ban = "update auth.users set banned_until = now() + interval '1 day' where id = %s"
            await scene.sql(ban, scene.user_id)
            assert await scene.provision() is Outcome.READY
            assert await is_disabled(scene)

    async def die(request: httpx.Request, answer: Answer) -> Answer:
        if named(request) == "PATCH /keys":
            raise asyncio.CancelledError
        return answer

    with pytest.raises(asyncio.CancelledError):
        await scene.provision(Between(before=banned_meanwhile, after=die))
    assert not await is_disabled(scene)
    # It told nobody, and all looks well. But it was taken over, so when it must be over all is set again.
    row = await scene.row()
    assert (row["state"], row["now"] < row["revisit_at"] < row["now"] + timedelta(minutes=5)) == ("ready", True)
    await scene.sql("update public.openrouter_user_keys set confirm_at = now() where user_id = %s", scene.user_id)
    await scene.sql("update doorkey.provisioning set revisit_at = now() where user_id = %s", scene.user_id)
    assert await scene.provision() is Outcome.READY
    assert await is_disabled(scene)
    assert (await scene.row())["revisit_at"] > row["now"] + timedelta(hours=1)


async def test_a_ban_and_a_deletion_that_no_trigger_saw_are_found_by_the_sweep(
    scene: Scene, stack: Stack, http: httpx.AsyncClient
) -> None:
    other = await _due_user(stack, http)
    assert await other.provision() is Outcome.READY
    await scene.sql("alter table auth.users disable trigger zz_doorkey_user_updated")
    await scene.sql("alter table auth.users disable trigger zz_doorkey_user_deleted")
    await scene.sql("update auth.users set banned_until = now() + interval '1 day' where id = %s", scene.user_id)
    await other.delete_user()
    await scene.sql("alter table auth.users enable trigger zz_doorkey_user_updated")
    await scene.sql("alter table auth.users enable trigger zz_doorkey_user_deleted")
    assert await scene.provision() is Outcome.NOTHING_TO_DO
    await scene.sql("update doorkey.settings set heal_cursor = null")
    await scene.sql("select doorkey.start_sweep(10000)")
    assert await scene.provision() is Outcome.READY
    assert await is_disabled(scene)
    assert await other.provision() is Outcome.GONE
    assert await other.keys() == {}


async def test_deleting_is_asked_again_until_it_is_recorded(scene: Scene) -> None:
    await scene.sql("alter table auth.users disable trigger zz_doorkey_user_deleted")
    await scene.delete_user()
    await scene.sql("alter table auth.users enable trigger zz_doorkey_user_deleted")
    await scene.sql("select doorkey.look_again(%s, true)", scene.user_id)
    assert await scene.provision(Between(after=lose("DELETE /keys"))) is Outcome.DEFERRED
    await scene.make_due_now()
    assert await scene.provision(Between(after=lose("finish_key_deletion"))) is Outcome.GONE
    assert await scene.keys() == {}


async def _due_user(stack: Stack, http: httpx.AsyncClient) -> Scene:
    """Somebody who is due, of whom no hint was sent."""
    scene = Scene(stack, http, uuid.uuid4())
    await scene.sql("insert into auth.users (id, email) values (%s, %s)", scene.user_id, f"{scene.user_id}@example.com")
    await scene.sql("update doorkey.provisioning set state = 'due' where user_id = %s", scene.user_id)
    return scene
