"""The one path of a signup, which does everything at once: it says what its parts say, which work where it can't.

Its parts are what is called for a user who confirms later, and after a fault.
"""

from __future__ import annotations

import json

import pytest
from standardwebhooks.webhooks import Webhook

from tests.support.databases import Database
from tests.support.doors import Doors
from tests.support.signups import HOSTILE, SECRET, URL, insert, ring_types, rings


@pytest.fixture
async def connected(database: Database) -> Database:
    """doorkey, told where to ring."""
    await database.run("update doorkey.settings set webhook_url = %s, webhook_secret = %s", (URL, SECRET))
    return database


@pytest.mark.parametrize("mode", ["confirmed", "created", "manual"])
@pytest.mark.parametrize("serves_anonymous", [False, True])
async def test_the_one_path_of_a_signup_begins_in_the_state_that_its_parts_say(
    connected: Database, mode: str, serves_anonymous: bool
) -> None:
    await connected.run(
        "update doorkey.settings set provision_on = %s, provision_anonymous = %s", (mode, serves_anonymous)
    )
    for is_anonymous in (False, True):
        for confirmed in ({}, {"email_confirmed_at": "now"}, {"phone_confirmed_at": "now"}):
            user_id = await insert(connected, is_anonymous=is_anonymous, **confirmed)
            said = await connected.value("select doorkey.first_state(%s, %s)", (is_anonymous, bool(confirmed)))
            assert await Doors(connected).state(user_id) == said


@pytest.mark.parametrize("kind", HOSTILE)
async def test_the_one_path_of_a_signup_fills_the_profile_as_its_parts_do(connected: Database, kind: str) -> None:
    user_id = await insert(connected, email="ada@example.com", raw_user_meta_data=json.dumps(HOSTILE[kind]))
    assert await Doors(connected).notes(user_id) == set()
    (at_once,) = await connected.rows("delete from public.profiles where id = %s returning *", (user_id,))
    await connected.run("select doorkey.fill_profile(%s)", (user_id,))
    (by_parts,) = await connected.rows("select * from public.profiles where id = %s", (user_id,))
    of_row = {"created_at", "updated_at"}
    assert {**at_once, **dict.fromkeys(of_row)} == {**by_parts, **dict.fromkeys(of_row)}


async def test_the_one_path_of_a_signup_rings_as_its_parts_do(connected: Database) -> None:
    user_id = await insert(connected, email="ada@example.com", email_confirmed_at="now")
    await connected.run("select doorkey.ring(%s, 'INSERT')", (user_id,))
    at_once, by_parts = await rings(connected, user_id)
    for hint in (at_once, by_parts):
        Webhook(SECRET).verify(bytes(hint["body"]), hint["headers"])
    assert at_once["headers"]["webhook-id"] != by_parts["headers"]["webhook-id"]
    for same in ("method", "url", "timeout_milliseconds", "body"):
        assert at_once[same] == by_parts[same]
    assert set(at_once["headers"]) == set(by_parts["headers"])
    assert await Doors(connected).notes(user_id) == set()


@pytest.mark.parametrize("missing", ["webhook_url", "webhook_secret"])
async def test_the_one_path_of_a_signup_rings_nowhere_before_it_is_connected(connected: Database, missing: str) -> None:
    await connected.run(f"update doorkey.settings set {missing} = null")
    user_id = await insert(connected, email_confirmed_at="now")
    assert (await Doors(connected).state(user_id), await rings(connected, user_id)) == ("due", [])
    assert await Doors(connected).notes(user_id) == set()


async def test_a_profile_that_a_trigger_of_the_host_wrote_stays_and_the_signup_is_whole(connected: Database) -> None:
    await connected.run(
        "create function public.host_profile() returns trigger language plpgsql security definer set search_path = ''"
        " as $$ begin insert into public.profiles (id, full_name) values (new.id, 'the host''s'); return null; end $$;"
        "create trigger host_profile after insert on auth.users for each row execute function public.host_profile()"
    )
    user_id = await insert(connected, email_confirmed_at="now", raw_user_meta_data=json.dumps({"full_name": "Ada"}))
    name = await connected.value("select full_name from public.profiles where id = %s", (user_id,))
    assert (name, await ring_types(connected, user_id)) == ("the host's", ["INSERT"])
    assert await Doors(connected).notes(user_id) == set()


async def test_a_deferred_constraint_on_our_own_profiles_stops_no_signup(connected: Database) -> None:
    await connected.run("alter table public.profiles add unique (full_name) deferrable initially deferred")
    named = {"raw_user_meta_data": json.dumps({"full_name": "Ada"}), "email_confirmed_at": "now"}
    first, second = [await insert(connected, **named) for _ in range(2)]
    assert await connected.value("select count(*) from public.profiles where id in (%s, %s)", (first, second)) == 1
    assert await Doors(connected).notes(second) == {"profile.not_filled"}
    await Doors(connected).make_ready(second)
