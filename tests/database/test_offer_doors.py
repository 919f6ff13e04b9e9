"""Offers as operators keep them: added once, seen as they stand, ended; never changed."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from tests.database.test_edits import lines
from tests.database.test_offers import OFFER_MICROS, PLAN_MICROS, arrive, available, offer, switch
from tests.support.databases import Database, Row


async def add(database: Database, code: str, *, days: int | None = 60, **more: Any) -> bool:
    given = {"amount_micros": OFFER_MICROS, "ends_at": None, "max_grants": None, **more}
    async with database.acting_as("service_role") as connection:
        rows = await connection.execute(
            "select public.add_welcome_offer(%s, %s, %s, %s, %s, 'operator:ada', 'r') as is_on",
            (code, given["amount_micros"], days, given["ends_at"], given["max_grants"]),
        )
        (row,) = await rows.fetchall()
    return bool(row["is_on"])


async def end(database: Database, code: str) -> Any:
    async with database.acting_as("service_role") as connection:
        rows = await connection.execute("select public.end_welcome_offer(%s, 'operator:ada', 'r') as at", (code,))
        (row,) = await rows.fetchall()
    return row["at"]


async def listed(database: Database, after: str | None = None, rows: int = 1_000) -> list[Row]:
    async with database.acting_as("service_role") as connection:
        return await (
            await connection.execute("select * from public.list_welcome_offers(%s, %s)", (after, rows))
        ).fetchall()


async def test_who_names_an_added_offer_gets_it_until_it_is_ended_and_keeps_it(database: Database) -> None:
    await switch(database, welcome_offers=True)
    assert await add(database, "launch26")
    early = await arrive(database, {"campaign": "Launch26"})
    await end(database, "launch26")
    late = await arrive(database, {"campaign": "launch26"})
    assert (await available(database, early), await available(database, late)) == (OFFER_MICROS, PLAN_MICROS)


async def test_an_offer_is_seen_as_it_stands(database: Database) -> None:
    for code, columns in (
        ("a-open", {"max_grants": 2}),
        ("b-to-come", {"starts_at": "2999-01-01"}),
        ("c-over", {"starts_at": "2026-01-01", "ends_at": "2026-01-02"}),
        ("d-used-up", {"max_grants": 2, "granted": 2}),
    ):
        await offer(database, code, **columns)
    standings = ["open", "to_come", "over", "used_up"]
    assert [row["standing"] for row in await listed(database)] == standings
    assert {row["is_switched_on"] for row in await listed(database)} == {False}
    await switch(database, welcome_offers=True)
    pages = [await listed(database, after, 2) for after in (None, "b-to-come", "d-used-up")]
    assert [row["standing"] for page in pages for row in page] == standings
    assert {row["is_switched_on"] for page in pages for row in page} == {True}


async def test_an_offer_is_added_once_by_whom_the_log_names_and_never_changed(database: Database) -> None:
    assert not await add(database, "launch26", max_grants=5)
    await database.run("update doorkey.welcome_offers set granted = 3")
    # The answer was lost: the same again is no error, and nothing is done.
    await add(database, "launch26", max_grants=5)
    for change in ({"max_grants": 6}, {"max_grants": None}, {"max_grants": 5, "amount_micros": 1}, {"days": None}):
        with pytest.raises(psycopg.Error, match="offer_exists"):
            await add(database, "launch26", **{"max_grants": 5, **change})
    (row,) = await listed(database)
    assert (row["amount_micros"], row["days"], row["max_grants"], row["granted"]) == (OFFER_MICROS, 60, 5, 3)
    added, _ = await lines(database, "offer")
    assert (added["actor"], added["action"], added["after"]["code"]) == ("operator:ada", "offer.added", "launch26")
    assert await database.value("select request_id from doorkey.audit_log where action = 'offer.added'") == "r"


async def test_what_is_ended_is_over_once_and_its_code_is_spent(database: Database) -> None:
    await add(database, "launch26", ends_at="2999-01-01")
    at = await end(database, "launch26")
    assert await end(database, "launch26") == at
    await offer(database, "to-come", starts_at="2999-01-01")
    await end(database, "to-come")
    assert [row["standing"] for row in await listed(database)] == ["over", "over"]
    for_launch = [line for line in await lines(database, "offer") if line["after"]["code"] == "launch26"]
    assert [(line["actor"], line["action"]) for line in for_launch] == [
        ("operator:ada", "offer.added"),
        ("operator:ada", "offer.edited"),
    ]
    with pytest.raises(psycopg.Error, match="offer_exists"):
        await add(database, "launch26", ends_at="2999-01-01")
    with pytest.raises(psycopg.Error, match="offer_not_found"):
        await end(database, "nobodys")


@pytest.mark.parametrize(
    "wrong",
    [
        *({"code": "Big"}, {"code": ""}, {"code": None}, {"days": 0}, {"max_grants": 0}, {"ends_at": "2026-01-01"}),
        *({"amount_micros": -1}, {"amount_micros": None}, {"amount_micros": 10**12 + 1}),
    ],
)
async def test_what_makes_no_offer_is_refused_in_a_word(database: Database, wrong: dict[str, Any]) -> None:
    given = {"code": "launch26", **wrong}
    with pytest.raises(psycopg.Error, match="offer_invalid"):
        await add(database, **given)
    assert await listed(database) == []


async def test_of_many_who_add_an_offer_at_once_one_does(database: Database) -> None:
    outcomes = await asyncio.gather(
        *(add(database, "launch26", amount_micros=1 + n % 2) for n in range(8)), return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, psycopg.Error)]
    assert len(refused) == 4
    assert len(await lines(database, "offer")) == 1
