"""Inside somebody else's signup: who becomes due when, what rings, and that nothing of ours can make a signup fail."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from tests.support.databases import Database
from tests.support.doors import Doors
from tests.support.signups import HOSTILE, SECRET, URL, insert, ring_types, rings, update

# Two triggers wait a second for each thing that is locked. Auth itself gives up after ten.
MAX_SIGNUP_SECONDS = 8.0


@pytest.fixture
async def connected(database: Database) -> Database:
    """doorkey, told where to ring."""
    await database.run("update doorkey.settings set webhook_url = %s, webhook_secret = %s", (URL, SECRET))
    return database


async def test_the_hint_is_a_signed_database_webhook_that_holds_nothing_but_the_id(connected: Database) -> None:
    user_id = await connected.insert_user(email="ada@example.com", metadata={"full_name": "Ada"})
    (hint,) = await rings(connected, user_id)
    assert hint["json"] == {
        "type": "UPDATE",
        "table": "users",
        "schema": "auth",
        "record": {"id": str(user_id)},
        "old_record": None,
    }
    assert (hint["method"], hint["url"], hint["timeout_milliseconds"]) == ("POST", URL, 1000)
    assert set(hint["headers"]) == {"Content-Type", "webhook-id", "webhook-timestamp", "webhook-signature"}
    assert abs(time.time() - int(hint["headers"]["webhook-timestamp"])) < 60
    Webhook(SECRET).verify(bytes(hint["body"]), hint["headers"])
    sent = json.dumps(hint["headers"]) + bytes(hint["body"]).decode()
    for told in (SECRET, SECRET.removeprefix("whsec_"), "ada@example.com", "Ada"):
        assert told not in sent


async def test_every_hint_has_an_id_of_its_own(connected: Database) -> None:
    first, second = [(await rings(connected, await connected.insert_user()))[0] for _ in range(2)]
    assert first["headers"]["webhook-id"] != second["headers"]["webhook-id"]


@pytest.mark.parametrize("missing", ["webhook_url", "webhook_secret"])
async def test_without_url_or_secret_nobody_rings_and_the_row_waits_for_the_sweep(
    connected: Database, missing: str
) -> None:
    await connected.run(f"update doorkey.settings set {missing} = null")
    user_id = await connected.insert_user()
    assert await rings(connected, user_id) == []
    assert await Doors(connected).state(user_id) == "due"
    assert await Doors(connected).notes(user_id) == set()


async def test_a_signup_that_is_rolled_back_leaves_and_rings_nothing(connected: Database) -> None:
    user_id = uuid.uuid4()
    async with connected.connect("supabase_auth_admin", autocommit=False) as auth:
        await auth.execute("insert into users (id, email_confirmed_at) values (%s, now())", (user_id,))
        await auth.rollback()
    assert await rings(connected, user_id) == []
    assert await Doors(connected).state(user_id) is None


# Who: columns at the insert, what happens next, and for each mode the state and the rings after both.
CONFIRM = "email_confirmed_at = now()"
KINDS: dict[str, tuple[dict[str, Any], str | None, dict[str, tuple[str, list[str]]]]] = {
    "unconfirmed": (
        {"email": "a@example.com"},
        None,
        {"confirmed": ("waiting", []), "created": ("due", ["INSERT"]), "manual": ("waiting", [])},
    ),
    "confirmed_later": (
        {"email": "a@example.com"},
        CONFIRM,
        {"confirmed": ("due", ["UPDATE"]), "created": ("due", ["INSERT", "UPDATE"]), "manual": ("waiting", [])},
    ),
    "confirmed_at_once": (
        {"email": "a@example.com", "email_confirmed_at": "now"},
        None,
        {"confirmed": ("due", ["INSERT"]), "created": ("due", ["INSERT"]), "manual": ("waiting", [])},
    ),
    "phone_only": ({"phone": "4912345"}, "phone_confirmed_at = now()", {"confirmed": ("due", ["UPDATE"])}),
    "single_sign_on": (
        {"email": "a@example.com", "is_sso_user": True, "email_confirmed_at": "now"},
        None,
        {"confirmed": ("due", ["INSERT"])},
    ),
    "invited": ({"email": "a@example.com", "invited_at": "now"}, None, {"confirmed": ("waiting", [])}),
    "invited_and_came": ({"email": "a@example.com", "invited_at": "now"}, CONFIRM, {"confirmed": ("due", ["UPDATE"])}),
    "neither_email_nor_phone": ({}, None, {"confirmed": ("waiting", []), "created": ("due", ["INSERT"])}),
    "anonymous": ({"is_anonymous": True}, None, {"confirmed": ("waiting", []), "created": ("waiting", [])}),
    "anonymous_with_an_address": ({"is_anonymous": True}, CONFIRM, {"confirmed": ("waiting", [])}),
    "signed_in": (
        {"email": "a@example.com", "email_confirmed_at": "now"},
        "last_sign_in_at = now()",
        {"confirmed": ("due", ["INSERT"])},
    ),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind in KINDS for mode in KINDS[kind][2]])
async def test_who_is_due_and_rung_for_and_when(connected: Database, kind: str, mode: str) -> None:
    columns, then, expected = KINDS[kind]
    await connected.run("update doorkey.settings set provision_on = %s", (mode,))
    user_id = await insert(connected, **columns)
    if then:
        await update(connected, user_id, then)
    assert (await Doors(connected).state(user_id), await ring_types(connected, user_id)) == expected[mode]
    assert await Doors(connected).notes(user_id) == set()
    if expected[mode][0] == "waiting":
        assert await Doors(connected).claim(user_id) is None


async def test_an_anonymous_user_who_becomes_somebody_is_due_and_rung_for(connected: Database) -> None:
    user_id = await insert(connected, is_anonymous=True)
    await update(connected, user_id, CONFIRM)
    await update(connected, user_id, "is_anonymous = false")
    assert await Doors(connected).state(user_id) == "due"
    assert await ring_types(connected, user_id) == ["UPDATE"]


async def test_anonymous_users_are_served_where_that_was_asked_for(connected: Database) -> None:
    await connected.run("update doorkey.settings set provision_anonymous = true, provision_on = 'created'")
    user_id = await insert(connected, is_anonymous=True)
    assert (await Doors(connected).make_ready(user_id))["limit_micros"] == 5_000_000


async def test_somebody_who_was_deleted_before_confirming_is_not_served(connected: Database) -> None:
    user_id = await insert(connected, email="a@example.com")
    await update(connected, user_id, "deleted_at = now()")
    await update(connected, user_id, CONFIRM)
    assert await Doors(connected).claim(user_id) is None
    assert await Doors(connected).state(user_id) == "gone"


async def test_users_imported_with_their_old_date_wait_for_a_backfill(connected: Database) -> None:
    user_id = await connected.insert_user(created_at="2020-01-01")
    assert await Doors(connected).claim(user_id) is None
    assert (await Doors(connected).state(user_id), await rings(connected, user_id)) == (None, [])


async def test_a_thousand_signups_in_one_statement_are_a_thousand_hints(connected: Database) -> None:
    await connected.run(
        "insert into auth.users (id, email_confirmed_at) select gen_random_uuid(), now() from generate_series(1, 1000)",
        role="supabase_auth_admin",
    )
    assert await connected.value("select count(*) from doorkey.provisioning where state = 'due'") == 1000
    assert await connected.value("select count(distinct body) from net.http_request_queue") == 1000


@pytest.mark.parametrize("kind", HOSTILE)
async def test_no_metadata_stops_a_signup(connected: Database, kind: str) -> None:
    user_id = await connected.insert_user(metadata=HOSTILE[kind])
    doors = Doors(connected)
    assert await doors.notes(user_id) == set()
    await doors.make_ready(user_id)
    (profile,) = await connected.rows("select * from public.profiles where id = %s", (user_id,))
    assert profile["openrouter_provisioning_status"] == "active"
    assert len(profile["full_name"] or "") <= 500
    assert len((await rings(connected, user_id))[0]["body"]) < 300


async def test_a_row_that_was_there_before_its_user_is_woken_and_rung_for(connected: Database) -> None:
    user_id = uuid.uuid4()
    await connected.run("insert into doorkey.provisioning (user_id, state) values (%s, 'waiting')", (user_id,))
    await connected.run(
        "insert into auth.users (id, email_confirmed_at) values (%s, now())", (user_id,), role="supabase_auth_admin"
    )
    assert (await Doors(connected).state(user_id), await ring_types(connected, user_id)) == ("due", ["INSERT"])
    assert await connected.value("select count(*) from public.profiles where id = %s", (user_id,)) == 1
    assert await Doors(connected).notes(user_id) == set()


NOT_ENROLLED, NOT_FILLED, NOT_SENT = "user.not_enrolled", "profile.not_filled", "hint.not_sent"
ALL = {NOT_ENROLLED, NOT_FILLED}
RAISE = "returns {0} language plpgsql as $$ begin raise exception 'broken'; end $$"
# What is broken, and what the audit log then says; None: it can't say anything.
BREAKS: dict[str, tuple[str, set[str] | None]] = {
    "pg_net_absent": ("drop schema net cascade", {NOT_SENT}),
    "pg_net_raises": (
        "create or replace function net._enqueue(method text, url text, params jsonb, headers jsonb, body jsonb,"
        f" timeout_milliseconds int) {RAISE.format('bigint')}",
        {NOT_SENT},
    ),
    "pg_net_without_rights": ("drop function net.http_post", {NOT_SENT}),
    "secret_that_is_no_base64": (
        f"update doorkey.settings set webhook_secret = 'whsec_{'a' * 33}'",
        {NOT_SENT},
    ),
    "enrol": (
        f"create or replace function doorkey.enrol(p_user_id uuid) {RAISE.format('doorkey.provisioning_state')}",
        {NOT_ENROLLED},
    ),
    "enrol_missing": ("drop function doorkey.enrol", {NOT_ENROLLED}),
    "fill_profile": (
        f"create or replace function doorkey.fill_profile(p_user_id uuid) {RAISE.format('void')};"
        "update doorkey.settings set owns_profiles = false",
        {NOT_FILLED},
    ),
    "ring": (
        f"create or replace function doorkey.ring(p_user_id uuid, p_event text) {RAISE.format('void')}",
        {NOT_SENT},
    ),
    "profiles_dropped": ("drop table public.profiles", {NOT_FILLED}),
    "provisioning_dropped": ("drop table doorkey.provisioning cascade", {NOT_ENROLLED}),
    "settings_dropped": ("drop table doorkey.settings cascade", ALL),
    "settings_emptied": ("delete from doorkey.settings", set()),
    "state_type_dropped": ("drop type doorkey.provisioning_state cascade", {NOT_ENROLLED}),
    "audit_log_dropped": ("drop table doorkey.audit_log; drop schema net cascade", None),
    "audit_log_refuses": (
        "alter table doorkey.audit_log add check (false) not valid; drop table doorkey.provisioning cascade",
        set(),
    ),
    "note_trouble_dropped": ("drop function doorkey.note_trouble; drop schema net cascade", set()),
    "schema_closed": (
        "revoke all on schema doorkey from postgres, public; alter schema doorkey owner to supabase_admin",
        set(),
    ),
    "everything_dropped": (
        "drop table doorkey.provisioning, doorkey.settings, doorkey.audit_log, public.profiles,"
        " public.openrouter_user_keys cascade; drop schema net cascade",
        None,
    ),
}


@pytest.mark.parametrize("what", BREAKS)
async def test_nothing_of_ours_that_is_broken_stops_a_signup(connected: Database, what: str) -> None:
    statement, notes = BREAKS[what]
    await connected.run(statement)
    user_id = await connected.insert_user()
    assert await connected.value("select count(*) from auth.users where id = %s", (user_id,)) == 1
    if notes is not None:
        assert await Doors(connected).notes(user_id) == notes


# What the one path of a signup has no need of, and so never finds broken.
UNUSED_AT_ONCE = {"enrol", "enrol_missing", "ring", "note_trouble_dropped"}


@pytest.mark.parametrize("what", BREAKS)
async def test_nothing_of_ours_that_is_broken_stops_a_signup_that_is_confirmed_at_once(
    connected: Database, what: str
) -> None:
    statement, notes = BREAKS[what]
    await connected.run(statement)
    user_id = await insert(connected, email="ada@example.com", email_confirmed_at="now")
    assert await connected.value("select count(*) from auth.users where id = %s", (user_id,)) == 1
    if notes is not None:
        assert await Doors(connected).notes(user_id) == (set() if what in UNUSED_AT_ONCE else notes)


@pytest.mark.parametrize("what", ["pg_net_absent", "secret_that_is_no_base64", "fill_profile", "profiles_dropped"])
async def test_what_is_broken_beside_the_promise_does_not_cost_the_key(connected: Database, what: str) -> None:
    await connected.run(BREAKS[what][0])
    await Doors(connected).make_ready(await connected.insert_user())


async def test_whoever_signed_up_while_we_were_broken_is_enrolled_by_the_next_claim(connected: Database) -> None:
    await connected.run("alter table doorkey.provisioning add constraint broken check (false) not valid")
    user_id = await connected.insert_user()
    assert await Doors(connected).state(user_id) is None
    await connected.run("alter table doorkey.provisioning drop constraint broken")
    await Doors(connected).make_ready(user_id)


@pytest.mark.parametrize(
    ("table", "notes"),
    [
        ("doorkey.provisioning", {NOT_ENROLLED}),
        ("public.profiles", {NOT_FILLED}),
        ("doorkey.provisioning, doorkey.audit_log", set()),
        ("net.http_request_queue", {NOT_SENT}),
        ("doorkey.settings, doorkey.provisioning, doorkey.audit_log, public.profiles, net.http_request_queue", set()),
    ],
)
async def test_a_lock_on_our_tables_delays_a_signup_by_seconds_only(
    connected: Database, table: str, notes: set[str]
) -> None:
    async with connected.connect(autocommit=False) as other:
        await other.execute(f"lock table {table} in access exclusive mode")
        started = time.monotonic()
        user_id = await connected.insert_user()
        assert time.monotonic() - started < MAX_SIGNUP_SECONDS
    assert await Doors(connected).notes(user_id) == notes
    await Doors(connected).make_ready(user_id)


async def test_the_audit_log_holds_no_values_of_the_users(connected: Database) -> None:
    await connected.run("alter table public.profiles add constraint no check (email <> 'ada@example.com')")
    user_id = await connected.insert_user(email="ada@example.com", metadata={"full_name": "Ada Lovelace"})
    rows = await connected.rows("select detail::text from doorkey.audit_log where user_id = %s", (user_id,))
    assert [json.loads(row["detail"]) for row in rows] == [{"sqlstate": "23514"}]
