"""Whoever edits what operators keep as rows leaves a line: who, what, before, after. What doorkey moves leaves none."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from infra.local.postgres import SUPERUSER
from tests.database.test_offers import PLAN_MICROS, arrive, call_once, offer, sweep, switch
from tests.database.test_review import claw_back, release
from tests.support.databases import Database, Row
from tests.support.doors import Doors

# A row, what it is called, and an edit of it.
ROWS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "welcome_offers": ("offer", {"code": "launch26", "amount_micros": 100}, {"amount_micros": 200}),
    "welcome_arms": ("arm", {"experiment": "size", "arm": "a", "amount_micros": 100}, {"weight": 7}),
    "disposable_domains": ("disposable_domain", {"domain": "burner.example"}, {"domain": "burned.example"}),
}

# Another value for every setting that an operator edits.
EDITS: dict[str, Any] = {
    "installed_at": "2026-01-02T00:00:00+00:00",
    "provision_on": "manual",
    "provision_anonymous": True,
    "fills_host_profiles": True,
    "key_reveal": "once",
    "rotation_grace_seconds": 7,
    "micros_per_credit": 10,
    "default_plan_id": "starter",
    "max_keys_per_hour": None,
    "audit_days": 30,
    "webhook_url": "https://functions.example/webhooks/supabase",
    "welcome_offers": True,
    "welcome_experiment": "size",
    "referral_bonus_micros": 5,
    "referral_bonus_days": None,
    "max_referrals": 3,
    "welcome_at_once_percent": 40,
    "welcome_rest_on": "confirmed",
    "reviews_mail": True,
    "reviews_same_person": True,
    "max_signups_per_range": 3,
}
SECRETS = {"webhook_secret": f"whsec_{'c2VjcmV0' * 5}", "person_salt": "pepper-and-salt"}
# What doorkey writes there itself.
MARKS = {
    "only_row", "owns_profiles", "held_reason", "held_until", "outage_failures", "sweep_cursor", "heal_cursor",
    "last_sweep_at", "promise_cursor",
}  # fmt: skip


async def lines(database: Database, noun: str) -> list[Row]:
    return await database.rows(
        "select actor, action, user_id, detail -> 'before' as before, detail -> 'after' as after"
        "  from doorkey.audit_log where starts_with(action, %s) order by id",
        (f"{noun}.",),
    )


@pytest.mark.parametrize("table", ROWS)
async def test_every_edit_of_an_operators_row_leaves_who_what_before_and_after(database: Database, table: str) -> None:
    noun, row, edit = ROWS[table]
    insert = f"insert into doorkey.{table} ({', '.join(row)}) values ({', '.join(['%s'] * len(row))})"
    ((column, value),) = edit.items()
    update = f"update doorkey.{table} set {column} = %s where {next(iter(row))} = %s"
    name = next(iter(row.values()))
    for statement, values in (
        (insert, tuple(row.values())),
        (f"{insert} on conflict do nothing", tuple(row.values())),
        (update, (value, name)),
        # Nothing changes.
        (update, (value, edit.get(next(iter(row)), name))),
    ):
        await database.run(statement, values, role="postgres")
    await database.run(f"delete from doorkey.{table} where {column} = %s", (value,))
    added, edited, removed = await lines(database, noun)
    assert [line["actor"] for line in (added, edited, removed)] == ["postgres", "postgres", SUPERUSER]
    assert [line["action"] for line in (added, edited, removed)] == [
        f"{noun}.{word}" for word in ("added", "edited", "removed")
    ]
    assert row.items() <= added["after"].items()
    assert (added["before"], removed["after"]) == (None, None)
    assert added["after"] == edited["before"] == {**removed["before"], column: added["after"][column]}
    assert edited["after"] == removed["before"] == {**added["after"], column: value}


@pytest.mark.parametrize("table", ROWS)
async def test_emptying_a_table_leaves_what_deleting_its_rows_would(database: Database, table: str) -> None:
    noun, row, _ = ROWS[table]
    await database.run(
        f"insert into doorkey.{table} ({', '.join(row)}) values ({', '.join(['%s'] * len(row))})", tuple(row.values())
    )
    rows = {str(found["row"]) for found in await database.rows(f"select to_jsonb(t) as row from doorkey.{table} as t")}
    await database.run("delete from doorkey.audit_log")
    await database.run(f"truncate doorkey.{table}", role="postgres")
    assert await database.value(f"select count(*) from doorkey.{table}") == 0
    noted = await lines(database, noun)
    assert {(line["actor"], line["action"], line["after"]) for line in noted} == {("postgres", f"{noun}.removed", None)}
    assert {str(line["before"]) for line in noted} == rows
    assert len(noted) == len(rows) > 0


async def test_emptied_settings_are_noted_and_plans_go_no_more_than_the_ledger(database: Database) -> None:
    await database.run("update doorkey.settings set webhook_secret = %s", (SECRETS["webhook_secret"],))
    await database.run("delete from doorkey.audit_log")
    await database.run("truncate doorkey.settings", role="postgres")
    (line,) = await lines(database, "settings")
    assert (line["actor"], line["before"]["provision_on"], len(line["before"]["webhook_secret"])) == (
        *("postgres", "confirmed"),
        16,
    )
    assert set(line["after"].values()) == {None}
    await database.run("insert into doorkey.settings default values")
    for refused in ("truncate public.plans", "truncate public.plans cascade"):
        with pytest.raises(psycopg.Error):
            await database.run(refused, role="postgres")
    assert await database.value("select count(*) from public.plans") == 4


async def test_every_table_whose_edits_are_noted_says_so_of_being_emptied(database: Database) -> None:
    noted = """select distinct t.tgrelid::regclass::text as name
                 from pg_trigger as t join pg_proc as p on p.oid = t.tgfoid where p.proname = any (%s)"""
    edits = {row["name"] for row in await database.rows(noted, (["note_edit", "note_settings"],))}
    emptied = {row["name"] for row in await database.rows(noted, (["note_truncation"],))}
    assert edits - emptied == {"plans"}, "add a trigger like note_offers_emptied"


async def test_an_offer_that_is_taken_is_not_edited_and_one_that_is_opened_again_is(database: Database) -> None:
    await switch(database, welcome_offers=True)
    await offer(database, "summer", max_grants=1)
    await database.run("delete from doorkey.audit_log")
    await arrive(database, {"campaign": "summer"})
    assert await database.value("select granted from doorkey.welcome_offers") == 1
    assert await lines(database, "offer") == []
    await database.run("update doorkey.welcome_offers set granted = 0")
    (line,) = await lines(database, "offer")
    assert (line["before"]["granted"], line["after"]["granted"]) == (1, 0)


async def test_every_setting_is_an_operators_a_secret_or_a_mark_of_doorkeys(database: Database) -> None:
    columns = await database.rows(
        "select column_name from information_schema.columns where table_schema = 'doorkey' and table_name = 'settings'"
    )
    assert {row["column_name"] for row in columns} == EDITS.keys() | SECRETS.keys() | MARKS, (
        "say in EDITS, SECRETS or MARKS whose this setting is, and in doorkey.note_settings"
    )


@pytest.mark.parametrize("name", EDITS)
async def test_every_edit_of_a_setting_leaves_who_what_before_and_after(database: Database, name: str) -> None:
    before = await database.value(f"select to_jsonb({name}) from doorkey.settings")
    for _ in range(2):
        await database.run(
            f"update doorkey.settings set {name} = %s, last_sweep_at = now()", (EDITS[name],), role="postgres"
        )
    (line,) = await lines(database, "settings")
    assert (line["actor"], line["action"]) == ("postgres", "settings.edited")
    assert (line["before"], line["after"]) == ({name: before}, {name: EDITS[name]})


@pytest.mark.parametrize("name", SECRETS)
async def test_a_secret_is_noted_by_a_fingerprint(database: Database, name: str) -> None:
    fingerprint = f"select left(doorkey.digest_secret({name}), 16) from doorkey.settings"
    before, secret = [await database.value(query) for query in (fingerprint, f"select {name} from doorkey.settings")]
    await database.run(f"update doorkey.settings set {name} = %s", (SECRETS[name],), role="postgres")
    (line,) = await lines(database, "settings")
    assert line["before"] == {name: before}
    assert line["after"] == {name: await database.value(fingerprint)}
    for value in (SECRETS[name], secret):
        assert value is None or value not in str(await database.rows("select * from doorkey.audit_log"))


async def test_settings_that_are_removed_and_put_back_are_noted(database: Database) -> None:
    await database.run("delete from doorkey.settings", role="postgres")
    await database.run("insert into doorkey.settings (provision_on) values ('manual')")
    removed, added = await lines(database, "settings")
    assert (removed["actor"], added["actor"]) == ("postgres", SUPERUSER)
    assert (removed["before"]["provision_on"], removed["after"]["provision_on"]) == ("confirmed", None)
    assert (added["before"]["provision_on"], added["after"]["provision_on"]) == (None, "manual")


async def test_what_doorkey_writes_among_the_settings_leaves_no_line(database: Database) -> None:
    doors = Doors(database)
    await switch(database, welcome_at_once_percent=40)
    await database.run("delete from doorkey.audit_log where starts_with(action, 'settings.')")
    user_id = await arrive(database)
    await doors.wish(user_id)
    await doors.defer(await doors.claimed(user_id), is_outage=True)
    assert await database.value("select outage_failures from doorkey.settings") == 1
    claim = await doors.claimed(user_id)
    async with database.acting_as("service_role") as connection:
        await connection.execute(
            "select public.hold_provisioning(%s, %s, 'openrouter_account_empty', 'r')", (user_id, claim["attempt"])
        )
        await connection.execute("select public.start_sweep(1)")
    await sweep(database, rows=1)
    assert await database.value(
        "select last_sweep_at is not null and held_reason is not null and promise_cursor > 0 from doorkey.settings"
    )
    assert await lines(database, "settings") == []


async def test_what_is_given_and_taken_back_stands_with_the_balances_before_and_after(database: Database) -> None:
    await switch(database, reviews_mail=True)
    user_id = await arrive(database, email="ada+again@example.com")
    await release(database, user_id)
    await Doors(database).claimed(user_id)
    await call_once(database, user_id)
    await claw_back(database, user_id)
    # Repeated, nothing is done and nothing noted.
    await claw_back(database, user_id)
    released, taken = await database.rows(
        "select action, detail from doorkey.audit_log where starts_with(action, 'welcome.') order by id"
    )
    assert (released["action"], released["detail"]) == (
        "welcome.released",
        {
            "before": "held",
            "after": "released",
            "given_micros": PLAN_MICROS,
            "available_before_micros": 0,
            "available_after_micros": PLAN_MICROS,
            "debt_before_micros": 0,
            "debt_after_micros": 0,
        },
    )
    assert (taken["action"], taken["detail"]) == (
        "welcome.clawed_back",
        {
            "before": "released",
            "after": "clawed_back",
            "taken_micros": PLAN_MICROS,
            "reason": "Not new",
            "available_before_micros": PLAN_MICROS - 100,
            "available_after_micros": 0,
            "debt_before_micros": 0,
            "debt_after_micros": 100,
        },
    )
