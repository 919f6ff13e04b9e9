"""The report on signups: each is counted once, on its UTC day, under what became of it."""

from __future__ import annotations

import uuid
from datetime import date
from typing import Any

import psycopg
import pytest

from functions.provisioning.states import Chance
from tests.support.databases import Database, Row
from tests.support.doors import Doors, key_hash, refused

DAY = date(2026, 3, 1)
KINDS = ("eager", "lazy", "by_sweep", "by_unknown", "waiting", "under_way", "dead", "gone")


async def enter(database: Database, created_at: str, **columns: Any) -> uuid.UUID:
    """A row as a signup of that time would have left it; whoever is ready has a key."""
    user_id = uuid.uuid4()
    if columns.get("ready_at") and columns.get("state") != "gone":
        columns = {"state": "ready", "key_hash": key_hash(str(user_id)), **columns}
        await database.run(
            "insert into public.openrouter_user_keys (key_hash, user_id, key_name, attempt) values (%s, %s, 'k', 1)",
            (columns["key_hash"], user_id),
        )
    values = {"user_id": user_id, "created_at": created_at, "wanted_at": created_at, "state": "due"} | columns
    names = ", ".join(values)
    await database.run(
        f"insert into doorkey.provisioning ({names}) values ({', '.join(['%s'] * len(values))})", tuple(values.values())
    )
    return user_id


async def report(database: Database, from_day: date = DAY, to_day: date = DAY) -> list[Row]:
    async with database.acting_as("service_role") as connection:
        return await (
            await connection.execute("select * from public.report_signups(%s, %s)", (from_day, to_day))
        ).fetchall()


async def test_every_signup_is_counted_once_under_what_became_of_it(database: Database) -> None:
    noon = "2026-03-01 12:00:00Z"
    ready = {"ready_at": "2026-03-01 12:00:01Z"}
    for columns in (
        {**ready, "provisioned_by": "eager"},
        {**ready, "provisioned_by": "lazy"},
        {**ready, "provisioned_by": "sweep"},
        ready,
        {"state": "waiting"},
        {"state": "due"},
        {"state": "dead", "last_error": "openrouter_refused"},
        {"state": "gone"},
    ):
        await enter(database, noon, **columns)
    (day,) = await report(database)
    assert day["signups"] == len(KINDS)
    assert {kind: day[kind] for kind in KINDS} == dict.fromkeys(KINDS, 1)


async def test_who_had_a_key_once_stays_counted_whatever_came_after(database: Database) -> None:
    had = {"ready_at": "2026-03-01 12:00:02Z", "provisioned_by": "eager"}
    await enter(database, "2026-03-01 12:00Z", **had, state="due")
    await enter(database, "2026-03-01 12:00Z", **had, state="dead", last_error="openrouter_refused")
    await enter(database, "2026-03-01 12:00Z", **had, state="gone")
    (day,) = await report(database)
    assert (day["signups"], day["eager"]) == (3, 3)


@pytest.mark.parametrize("timezone", ["Pacific/Auckland", "Pacific/Honolulu"])
async def test_a_day_is_a_utc_day_and_days_without_signups_are_there_too(database: Database, timezone: str) -> None:
    await enter(database, "2026-02-28 23:59:59.999Z")
    await enter(database, "2026-03-01 00:00Z")
    await enter(database, "2026-03-01 23:59:59.999Z")
    await enter(database, "2026-03-03 01:00+02:00")
    await database.run("alter database " + database.name + f" set timezone = '{timezone}'")
    days = await report(database, date(2026, 2, 28), date(2026, 3, 3))
    assert [(day["day"].isoformat(), day["signups"]) for day in days] == [
        ("2026-02-28", 1),
        ("2026-03-01", 2),
        ("2026-03-02", 1),
        ("2026-03-03", 0),
    ]
    assert days[3]["median_seconds"] is None
    assert (await report(database))[0]["signups"] == 2


async def test_the_time_to_a_key_counts_from_when_it_was_wanted(database: Database) -> None:
    for seconds in (1, 2, 3, 4, 100):
        await enter(
            database,
            "2026-03-01 10:00Z",
            wanted_at="2026-03-01 12:00Z",
            ready_at=f"2026-03-01 12:{seconds // 60:02}:{seconds % 60:02}Z",
        )
    (day,) = await report(database)
    assert day["median_seconds"] == 3
    assert day["p95_seconds"] == pytest.approx(80.8)


async def test_users_from_before_are_no_signups(database: Database) -> None:
    await enter(database, "2026-03-01 12:00Z", backfill_at="2026-03-01 13:00Z")
    await enter(database, "2026-03-01 12:00Z", ready_at="2026-01-01 12:00Z")
    assert (await report(database))[0]["signups"] == 0


@pytest.mark.parametrize(
    ("from_day", "to_day"), [(DAY, date(2026, 2, 28)), (DAY, date(2027, 3, 2)), (None, DAY), (DAY, None)]
)
async def test_days_that_make_no_report_are_refused(database: Database, from_day: date, to_day: date) -> None:
    with refused("PT422", "days_out_of_range"):
        await report(database, from_day, to_day)


@pytest.mark.parametrize("chance", [*Chance, None])
async def test_a_claim_keeps_by_whom_the_first_key_was_asked_for(database: Database, chance: str | None) -> None:
    doors = Doors(database)
    user_id = await database.insert_user()
    await database.run("select doorkey.claim_provisioning(%s, 60, 'r', 'sweep')", (user_id,))
    await doors.expire_lease(user_id)
    (claim,) = await database.rows("select * from doorkey.claim_provisioning(%s, 60, 'r', %s)", (user_id, chance))
    assert await doors.finish(claim) == "ready"
    await doors.wish(user_id)
    await database.run("select doorkey.claim_provisioning(%s, 60, 'r', 'lazy')", (user_id,))
    row = await doors.row(user_id)
    assert row is not None
    # Whoever finished it; a caller who does not say leaves what was said before.
    assert row["provisioned_by"] == (chance or "sweep")


async def test_a_chance_that_is_none_is_refused(database: Database) -> None:
    user_id = await database.insert_user()
    with pytest.raises(psycopg.errors.CheckViolation, match="provisioned_by"):
        await database.run("select doorkey.claim_provisioning(%s, 60, 'r', 'by chance')", (user_id,))


async def test_a_key_is_wanted_from_the_confirmation_on(database: Database) -> None:
    user_id = await database.insert_user(confirmed=False)
    await database.run("update doorkey.provisioning set wanted_at = '2026-03-01Z' where user_id = %s", (user_id,))
    await database.run(
        "update auth.users set email_confirmed_at = now() where id = %s", (user_id,), role="supabase_auth_admin"
    )
    assert await database.value(
        "select state = 'due' and wanted_at > '2026-03-02Z' from doorkey.provisioning where user_id = %s", (user_id,)
    )
