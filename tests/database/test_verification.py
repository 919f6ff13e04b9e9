"""Verifying the ledger: nothing differs whatever was done, what is corrupted is named, and nobody can corrupt it."""

from __future__ import annotations

import itertools
import uuid
from collections import Counter
from decimal import Decimal

import psycopg
import pytest

from tests.database.declared_grants import CLIENT_ROLES, OWNER
from tests.support.credit_doors import Credits
from tests.support.databases import Database
from tests.support.doors import Doors, refused
from tests.support.verification import NARROW, WIDE, ask, differences, pages

CREDITS = 1000
LEDGER = ("public.credit_transactions",)


@pytest.fixture
async def credit_doors(database: Database) -> Credits:
    await database.run("update public.plans set welcome_credits_micros = %s, markup = 1.3", (CREDITS,))
    return Credits(database)


@pytest.fixture
async def user_id(credit_doors: Credits) -> uuid.UUID:
    """Somebody to whom everything has happened: they bought 300, hold 100, 50 are leaving, and some was used unseen."""
    doors, user_id = Doors(credit_doors.database), await credit_doors.database.insert_user()
    await doors.make_ready(user_id)
    spent = (await credit_doors.reserve(user_id, 200))["hold_id"]
    await credit_doors.settle(spent, 77)
    await credit_doors.release((await credit_doors.reserve(user_id, 10))["hold_id"])
    await credit_doors.post(user_id, 300, "purchase", key="p")
    await credit_doors.post(user_id, -20)
    await doors.finish_key_update(await doors.claimed(user_id))
    async with credit_doors.database.connect(autocommit=False) as connection:
        # At one moment, and of one type.
        for key in ("twice", "at once"):
            await connection.execute(
                "select * from public.post_credits(%s, 'purchase', 5, %s, 'r', 'a', null, 'r')", (user_id, key)
            )
        await connection.commit()
    await credit_doors.reserve(user_id, 100)
    await credit_doors.post(user_id, -50)
    await use_unseen(credit_doors.database, user_id, "12.5", "2.5")
    return user_id


async def use_unseen(database: Database, user_id: uuid.UUID, cost_micros: str, returned_micros: str) -> None:
    """OpenRouter billed something without a receipt, and a part of it turned out to have one."""
    async with database.connect(autocommit=False) as connection:
        for statement in (
            "select doorkey.lock_account(%(user)s)",
            "select doorkey.post_unheld_cost(%(user)s, p.key_hash, current_date, %(cost)s::numeric,"
            " 'unseen:' || %(name)s, 'r') from doorkey.provisioning as p where p.user_id = %(user)s",
            "select doorkey.return_unseen(%(user)s, p.key_hash, %(returned)s::numeric, 'r')"
            " from doorkey.provisioning as p where p.user_id = %(user)s",
        ):
            given = {"user": user_id, "cost": cost_micros, "returned": returned_micros, "name": str(uuid.uuid4())}
            await connection.execute(statement, given)
        await connection.commit()


@pytest.mark.usefixtures("user_id")
@pytest.mark.parametrize("size", [WIDE, NARROW, (3, 1), (2, 5)])
async def test_nothing_differs_after_everything_that_can_happen(credit_doors: Credits, size: tuple[int, int]) -> None:
    """However few transactions a page takes: each is counted once."""
    read = [page async for page in pages(credit_doors.database, *size)]
    assert [found for page in read for found in page["differences"]] == []
    assert (sum(page.get("users", 0) for page in read), read[0]["all_users"]) == (1, 1)
    for counted, table in (("transactions", "public.credit_transactions"), ("receipts", "doorkey.credit_holds")):
        rows = await credit_doors.database.value(f"select count(*) from {table}")
        assert sum(page.get(counted, 0) for page in read) == rows
        assert max(page.get(counted, 0) for page in read) <= size[1]


HOLD = "(select id from doorkey.credit_holds where state = 'settled')"
WITHOUT_ITS_CHECK = "alter table public.credit_transactions drop constraint entries_sum_to_zero;"
# What is done to the rows, and what is found: whatever hangs on the same row is named too.
CORRUPTIONS = {
    "available": ("update public.credit_accounts set available_micros = available_micros + 1", {"available"}),
    "held": ("update public.credit_accounts set held_micros = held_micros + 1", {"held"}),
    "leaving": ("update public.credit_accounts set leaving_micros = leaving_micros + 1", {"leaving"}),
    "debt": ("update public.credit_accounts set debt_micros = debt_micros + 1", {"debt"}),
    "receivable": ("update public.credit_accounts set receivable_micros = receivable_micros + 1", {"receivable"}),
    "the last transaction": (
        "update public.credit_accounts set last_transaction_id = last_transaction_id - 1",
        {"available", "lots", "remainder", "spent in the period"},
    ),
    "open holds": (
        "update doorkey.credit_holds set state = 'expired', held_micros = 0, closed_at = now() where state = 'open'",
        {"available", "held"},
    ),
    "lots": (
        "update doorkey.credit_lots set remaining_micros = remaining_micros - 1 where amount_micros = 300",
        {"lots"},
    ),
    "size of the lot": (
        "update doorkey.credit_lots set amount_micros = amount_micros + 1 where amount_micros = 300",
        {"size of the lot"},
    ),
    "takings": (
        "update doorkey.credit_takings set taken_micros = taken_micros - 1 where left_transaction_id is null",
        {"takings"},
    ),
    "charge of a call": (
        "update doorkey.credit_holds set charged_micros = charged_micros + 1 where state = 'settled'",
        {"charges"},
    ),
    "charge without a receipt": ("update doorkey.unheld_costs set charged_micros = charged_micros + 1", {"charges"}),
    "a call that was never settled": (
        "update doorkey.credit_holds set state = 'expired', settled_at = null, cost_micros = null,"
        " price_micros = null, charged_micros = null, owed_micros = null, provider = null, model = null,"
        " generation_id = null where state = 'settled'",
        {"charges", "cost of the keys", "remainder"},
    ),
    "a call of somebody else's": (
        "update doorkey.credit_holds set user_id = gen_random_uuid() where state = 'settled'",
        {"charges", "cost of the keys", "remainder", "receipt without a transaction"},
    ),
    "spent without a charge": (
        "update public.credit_accounts set last_transaction_id = nextval('public.credit_transactions_id_seq');"
        " insert into public.credit_transactions (id, user_id, type, amount_micros, spendable_micros, system_account,"
        " idempotency_key, reason, actor) overriding system value"
        " select last_transaction_id, user_id, 'usage', -1, -1, 'spent', 'x', 'r', 'a' from public.credit_accounts",
        {"available", "lots", "charges", "remainder", "spent in the period"},
    ),
    "cost of a call": (
        "update doorkey.credit_holds set cost_micros = cost_micros + 0.25 where state = 'settled'",
        {"cost of the keys"},
    ),
    "price of a call": (
        "update doorkey.credit_holds set price_micros = price_micros + 0.25 where state = 'settled'",
        {"remainder"},
    ),
    "price without a receipt": ("update doorkey.unheld_costs set markup = markup + 0.25", {"remainder"}),
    "remainder": (
        "update public.credit_accounts set remainder_micros = mod(remainder_micros + 0.25, 1)",
        {"remainder"},
    ),
    "spent in the period": (
        "update public.credit_accounts set period_spent_micros = period_spent_micros - 1",
        {"spent in the period"},
    ),
    "when the period began": (
        "update public.credit_accounts set period_after_transaction_id = last_transaction_id",
        {"spent in the period"},
    ),
    "cost of the keys": (
        "update public.openrouter_user_keys set charged_cost_micros = charged_cost_micros + 0.25",
        {"cost of the keys"},
    ),
    "cost of the key in use": (
        "update public.credit_accounts set key_cost_micros = key_cost_micros + 0.25",
        {"cost of the keys"},
    ),
    # What the account counted is of no key then, and no limit knows of it.
    "which key is in use": (
        "update doorkey.provisioning set key_hash = null, state = 'due'",
        {"cost of the keys"},
    ),
    "cost without a receipt": (
        "update doorkey.unheld_costs set cost_micros = cost_micros + 0.25",
        {"cost of the keys", "unseen", "remainder"},
    ),
    "what was returned": (
        "update doorkey.unheld_costs set returned_micros = returned_micros - 0.25",
        {"cost of the keys", "unseen", "remainder"},
    ),
    "unseen": (
        "update doorkey.key_usage set unseen_charged_micros = unseen_charged_micros + 0.5,"
        " unseen_micros = unseen_micros + 0.5",
        {"unseen"},
    ),
    "receipt without a transaction": (
        "insert into doorkey.credit_holds select (h).* from (select jsonb_populate_record(h, jsonb_build_object('id',"
        " gen_random_uuid(), 'idempotency_key', 'invented')) as h from doorkey.credit_holds as h"
        " where h.state = 'settled') as invented",
        {"receipt without a transaction"},
    ),
    # A transaction's amount is what its lot must be, too.
    "amount": (
        f"{WITHOUT_ITS_CHECK} update public.credit_transactions set amount_micros = amount_micros + 1"
        " where idempotency_key = 'operator:p'",
        {"amount", "size of the lot"},
    ),
    "an entry that is lost": (
        f"{WITHOUT_ITS_CHECK} update public.credit_transactions set spendable_micros = 0"
        " where idempotency_key = 'operator:p'",
        {"available", "lots", "amount"},
    ),
    "a transaction that is lost": (
        "delete from public.credit_transactions where type = 'usage' and idempotency_key like 'hold:%'",
        {"available", "lots", "cost of the keys", "remainder", "spent in the period", "receipt without a transaction"},
    ),
}


async def corrupt(database: Database, statement: str) -> None:
    """As superuser, without the triggers that refuse it: a bad restore, or somebody who means well."""
    async with database.connect() as connection:
        await connection.execute("set session_replication_role = replica")
        changed = await connection.execute(statement)
        while changed.nextset():
            pass
        assert changed.rowcount > 0


@pytest.mark.parametrize("what", CORRUPTIONS)
async def test_what_is_corrupted_is_named(credit_doors: Credits, user_id: uuid.UUID, what: str) -> None:
    """By the same names, whether a user fits on a page or not."""
    statement, names = CORRUPTIONS[what]
    await corrupt(credit_doors.database, statement)
    found = await differences(credit_doors.database)
    assert {row["what"] for row in found} == names
    if what != "a call of somebody else's":
        assert {row["user_id"] for row in found} == {str(user_id)}
    assert all(Decimal(row["stored_micros"]) != Decimal(row["computed_micros"]) for row in found)
    narrow = await differences(credit_doors.database, NARROW)
    assert sorted(map(str, narrow)) == sorted(map(str, found))


@pytest.mark.usefixtures("user_id")
async def test_what_differs_by_a_fraction_is_told_exactly(credit_doors: Credits) -> None:
    await corrupt(credit_doors.database, CORRUPTIONS["cost of the keys"][0])
    (found,) = await differences(credit_doors.database)
    assert Decimal(found["stored_micros"]) - Decimal(found["computed_micros"]) == Decimal("0.25")


async def test_pages_follow_each_other_and_everybody_is_verified_once(credit_doors: Credits) -> None:
    for _ in range(5):
        await Doors(credit_doors.database).make_ready(await credit_doors.database.insert_user())
    await credit_doors.database.run("update public.credit_accounts set available_micros = available_micros + 1")
    # As many users as a page has, or as many transactions, or one less or more.
    for size in itertools.product((1, 2, 5, 6), (1, 2, 5, 6)):
        found = await differences(credit_doors.database, size)
        assert len(found) == len({row["user_id"] for row in found}) == 5
    read = [page async for page in pages(credit_doors.database, 2)]
    assert [(page["users"], page["all_users"]) for page in read if "users" in page] == [(2, 5), (2, None), (1, None)]


INVENTED = """
insert into doorkey.credit_holds select (i.h).* from (
  select jsonb_populate_record(h, jsonb_build_object(
           'id', gen_random_uuid(), 'user_id', u.id, 'idempotency_key', k.key)) as h
    from doorkey.credit_holds as h
   cross join (select gen_random_uuid() as id from generate_series(1, 3)) as u
   cross join unnest(array['a', 'b', 'c']) as k (key)
   where h.state = 'settled') as i
"""


@pytest.mark.usefixtures("user_id")
async def test_every_receipt_is_verified_once_though_users_have_keys_alike(credit_doors: Credits) -> None:
    await corrupt(credit_doors.database, INVENTED)
    holds = await credit_doors.database.value("select count(*) from doorkey.credit_holds")
    for rows in (1, 2, 4, holds):
        read = [page async for page in pages(credit_doors.database, 100, rows) if "receipts" in page]
        assert sum(page["receipts"] for page in read) == holds
        found = Counter(row["user_id"] for page in read for row in page["differences"])
        assert list(found.values()) == [3, 3, 3]


@pytest.mark.parametrize(
    "arguments",
    [
        *((None, None, None, users, 1) for users in (None, 0, 1001)),
        *((None, None, None, 1, transactions) for transactions in (None, 0, 100_001)),
        (None, 1, None, 1, 1),
        (None, None, "[]", 1, 1),
        (uuid.uuid4(), 1, "[]", 1, 1),
    ],
)
async def test_a_page_that_there_cannot_be_is_refused(
    credit_doors: Credits, user_id: uuid.UUID, arguments: tuple[object, ...]
) -> None:
    with refused("PT422", "page_out_of_range"):
        await ask(credit_doors.database, "verify_ledger(%s, %s, %s, %s, %s)", *arguments)
    for after, key, rows in ((None, None, 0), (None, None, 100_001), (None, None, None), (user_id, None, 1)):
        with refused("PT422", "page_out_of_range"):
            await ask(credit_doors.database, "verify_receipts(%s, %s, %s)", after, key, rows)


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
