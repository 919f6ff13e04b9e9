"""Verifying the ledger: nothing differs whatever was done, what is corrupted is named, and nobody can corrupt it."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from tests.database.declared_grants import CLIENT_ROLES, OWNER
from tests.support.credit_doors import Credits
from tests.support.databases import Database
from tests.support.doors import Doors, refused

CREDITS = 1000
LEDGER = ("doorkey.ledger_entries", "public.credit_transactions")


@pytest.fixture
async def credit_doors(database: Database) -> Credits:
    await database.run("update public.plans set welcome_credits_micros = %s, markup = 1.3", (CREDITS,))
    return Credits(database)


@pytest.fixture
async def user_id(credit_doors: Credits) -> uuid.UUID:
    """Somebody to whom everything has happened; they own 300 more, owe nothing, hold 100, and 50 are leaving."""
    doors, user_id = Doors(credit_doors.database), await credit_doors.database.insert_user()
    await doors.make_ready(user_id)
    spent = (await credit_doors.reserve(user_id, 200))["hold_id"]
    await credit_doors.settle(spent, 77)
    await credit_doors.release((await credit_doors.reserve(user_id, 10))["hold_id"])
    await credit_doors.post(user_id, 300, "purchase", key="p")
    await credit_doors.post(user_id, -20)
    await doors.finish_key_update(await doors.claimed(user_id))
    await credit_doors.reserve(user_id, 100)
    await credit_doors.post(user_id, -50)
    return user_id


async def verified(database: Database, after: uuid.UUID | None = None, rows: int | None = 100) -> dict[str, Any]:
    async with database.acting_as("service_role") as connection:
        answer = await (
            await connection.execute("select public.verify_ledger(%s, %s) as page", (after, rows))
        ).fetchone()
    assert answer is not None
    page: dict[str, Any] = answer["page"]
    return page


async def test_nothing_differs_after_everything_that_can_happen(credit_doors: Credits, user_id: uuid.UUID) -> None:
    page = await verified(credit_doors.database)
    assert (page["users"], page["all_users"], page["last_user"]) == (1, 1, str(user_id))
    assert page["transactions"] == await credit_doors.database.value("select count(*) from public.credit_transactions")
    assert (page["different"], page["differences"]) == (0, [])


CORRUPTIONS = {
    "available": "update public.credit_accounts set available_micros = available_micros + 1",
    "held": "update public.credit_accounts set held_micros = held_micros + 1",
    "leaving": "update public.credit_accounts set leaving_micros = leaving_micros + 1",
    "debt": "update public.credit_accounts set debt_micros = debt_micros + 1",
    "receivable": "update public.credit_accounts set receivable_micros = receivable_micros + 1",
    "open holds": "update doorkey.credit_holds set state = 'expired', held_micros = 0, closed_at = now()"
    " where state = 'open'",
    "lots": "update doorkey.credit_lots set remaining_micros = remaining_micros - 1 where amount_micros = 300",
    "size of the lot": "update doorkey.credit_lots set amount_micros = amount_micros + 1 where amount_micros = 300",
    "takings": "update doorkey.credit_takings set taken_micros = taken_micros - 1 where left_transaction_id is null",
    "charges": "update doorkey.credit_holds set charged_micros = charged_micros + 1 where state = 'settled'",
    "cost of the keys": "update public.openrouter_user_keys set charged_cost_micros = charged_cost_micros + 0.25",
    "unseen": "update doorkey.key_usage set unseen_charged_micros = unseen_charged_micros + 0.5,"
    " unseen_micros = unseen_micros + 0.5",
    "sum of entries": "update doorkey.ledger_entries set amount_micros = amount_micros - 1 where account = 'granted'"
    " and transaction_id = (select id from public.credit_transactions where idempotency_key = 'operator:p')",
    "amount": "update public.credit_transactions set amount_micros = amount_micros + 1"
    " where idempotency_key = 'operator:p'",
}


@pytest.mark.parametrize("what", CORRUPTIONS)
async def test_what_is_corrupted_is_named(credit_doors: Credits, user_id: uuid.UUID, what: str) -> None:
    """As superuser, without the triggers that refuse it: a bad restore, or somebody who means well."""
    async with credit_doors.database.connect() as connection:
        await connection.execute("set session_replication_role = replica")
        await connection.execute(CORRUPTIONS[what])
    page = await verified(credit_doors.database)
    named = {found["what"]: found for found in page["differences"]}
    assert page["different"] == len(page["differences"])
    # A transaction's amount is what its lot must be, too.
    assert set(named) == ({"amount", "size of the lot"} if what == "amount" else {what})
    assert named[what]["user_id"] == str(user_id)
    assert Decimal(named[what]["stored_micros"]) != Decimal(named[what]["computed_micros"])


@pytest.mark.usefixtures("user_id")
async def test_an_entry_that_is_lost_is_missed_everywhere(credit_doors: Credits) -> None:
    async with credit_doors.database.connect() as connection:
        await connection.execute("set session_replication_role = replica")
        await connection.execute(
            "delete from doorkey.ledger_entries where account = 'available' and amount_micros = 300"
        )
    page = await verified(credit_doors.database)
    assert {found["what"] for found in page["differences"]} == {"available", "lots", "sum of entries", "amount"}
    (available,) = (found for found in page["differences"] if found["what"] == "available")
    assert int(available["stored_micros"]) - int(available["computed_micros"]) == 300


async def test_pages_follow_each_other_and_everybody_is_verified_once(credit_doors: Credits) -> None:
    for _ in range(5):
        await Doors(credit_doors.database).make_ready(await credit_doors.database.insert_user())
    await credit_doors.database.run("update public.credit_accounts set available_micros = available_micros + 1")
    found, last, sizes = [], None, []
    for _ in range(3):
        page = await verified(credit_doors.database, last, 2)
        sizes.append((page["users"], page["all_users"]))
        found += [row["user_id"] for row in page["differences"] if row["what"] == "available"]
        last = page["last_user"]
    assert sizes == [(2, 5), (2, None), (1, None)]
    assert len(set(found)) == len(found) == 5
    assert (await verified(credit_doors.database, last))["users"] == 0
    for rows in (None, 0, 1001):
        with refused("PT422", "page_out_of_range"):
            await verified(credit_doors.database, None, rows)


# -- nobody can -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", LEDGER)
@pytest.mark.parametrize("role", [*CLIENT_ROLES, OWNER, "supabase_admin"])
async def test_nobody_rewrites_the_ledger(credit_doors: Credits, user_id: uuid.UUID, role: str, table: str) -> None:
    """Clients have no right to; the owner, and even a superuser, is refused by the ledger itself."""
    database = credit_doors.database
    before = await database.rows(f"select * from {table} order by 1, 2")
    for rewriting in (f"update {table} set amount_micros = 1", f"delete from {table}", f"truncate {table} cascade"):
        acting = database.acting_as(role, user_id) if role in CLIENT_ROLES else database.connect(role)
        async with acting as connection:
            with pytest.raises(psycopg.Error) as caught:
                await connection.execute(rewriting)
        expected = "42501" if role in CLIENT_ROLES else "P0001"
        assert caught.value.sqlstate == expected, caught.value
    assert await database.rows(f"select * from {table} order by 1, 2") == before
