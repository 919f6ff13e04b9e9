"""What a person sees of their money by their own doors: pages of transactions, from one index whatever is asked for."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any, get_args

import pytest

from functions.accounts.transactions import Type
from tests.support.credit_doors import Credits
from tests.support.databases import Database, Row
from tests.support.doors import Doors, refused

PAGE = "select * from public.list_my_transactions(%s, %s, %s, %s, %s, %s)"
MANY = 3_000


async def listed(
    database: Database,
    user_id: uuid.UUID,
    *,
    types: list[str] | None = None,
    since: str | None = None,
    until: str | None = None,
    after: Row | None = None,
    rows: int | None = 1000,
) -> list[Row]:
    """A page of that person's, by their own door; after: the last one that they saw."""
    place = (after["created_at"], after["id"]) if after else (None, None)
    async with database.acting_as("authenticated", user_id) as connection:
        found = await connection.execute(PAGE, (types, since, until, *place, rows))
        return await found.fetchall()


async def post_many(database: Database, user_id: uuid.UUID, count: int = MANY) -> None:
    """So many transactions from a minute before the other, of all types; three of a moment."""
    await database.run(
        """insert into public.credit_transactions
             (user_id, type, amount_micros, system_account, idempotency_key, reason, actor, created_at)
           select %s, (enum_range(null::doorkey.transaction_type))[1 + n %% 7], 0, 'spent', 'many:' || %s || n,
                  'r', 'a', timestamptz '2026-01-01' + (n / 3) * interval '1 minute'
             from generate_series(1, %s) as n""",
        (user_id, str(user_id), count),
    )


@pytest.fixture
async def people(database: Database) -> tuple[uuid.UUID, uuid.UUID]:
    """Two who have many transactions each."""
    found = [await database.insert_user() for _ in range(2)]
    for user_id in found:
        await Doors(database).make_ready(user_id)
        await post_many(database, user_id)
    return found[0], found[1]


async def newest_first(database: Database, user_id: uuid.UUID, condition: str = "true") -> list[Any]:
    """What there is, by a plain query."""
    rows = await database.rows(
        f"select id from public.credit_transactions where user_id = %s and {condition}"
        " order by created_at desc, id desc",
        (user_id,),
    )
    return [row["id"] for row in rows]


async def walked(database: Database, user_id: uuid.UUID, rows: int, **filters: Any) -> list[Any]:
    """All of it, page after page."""
    seen: list[Row] = []
    for _ in range(MANY):
        page = await listed(database, user_id, after=seen[-1] if seen else None, rows=rows, **filters)
        seen += page
        if len(page) < rows:
            return [row["id"] for row in seen]
    raise AssertionError("no end")


@pytest.mark.parametrize("rows", [1000, 199, 97])
async def test_ones_transactions_come_newest_first_page_by_page_each_once(
    database: Database, people: tuple[uuid.UUID, uuid.UUID], rows: int
) -> None:
    me, _ = people
    assert await walked(database, me, rows) == await newest_first(database, me)


async def test_a_page_has_only_what_is_asked_for(database: Database, people: tuple[uuid.UUID, uuid.UUID]) -> None:
    me, _ = people
    some = await walked(database, me, 100, types=["usage", "purchase", "usage", "nothing"])
    assert some == await newest_first(database, me, "type in ('usage', 'purchase')")
    moments = {"since": "2026-01-01T01:00:00Z", "until": "2026-01-01T02:00:00Z"}
    inside = "created_at >= '2026-01-01T01:00:00Z' and created_at < '2026-01-01T02:00:00Z'"
    assert await walked(database, me, 7, **moments) == await newest_first(database, me, inside)
    both = await walked(database, me, 7, types=["bonus"], **moments)
    assert both == await newest_first(database, me, f"type = 'bonus' and {inside}")
    assert await walked(database, me, 7, types=[]) == []


async def test_a_page_is_one_to_a_thousand_rows(database: Database) -> None:
    me = await database.insert_user()
    for rows in (None, 0, -1, 1001):
        with refused("PT422", "page_out_of_range"):
            await listed(database, me, rows=rows)


async def test_what_comes_in_between_moves_nobodys_page(
    database: Database, people: tuple[uuid.UUID, uuid.UUID]
) -> None:
    me, _ = people
    before = await newest_first(database, me)
    first = await listed(database, me, rows=10)
    await Doors(database).grant(me, 10, "between")
    second = await listed(database, me, after=first[-1], rows=10)
    assert [row["id"] for row in first + second] == before[:20]


async def test_a_page_reads_no_more_the_further_back_it_is(
    database: Database, people: tuple[uuid.UUID, uuid.UUID]
) -> None:
    """Counted in rows that were fetched, not in time."""
    me, _ = people
    await database.run("analyze public.credit_transactions")
    last = (await listed(database, me, rows=1000))[-1]
    for place in ({"created_at": datetime(9999, 1, 1, tzinfo=UTC), "id": 0}, last):
        assert await rows_read(database, me, place, None) <= 9 * 20 + 9
    assert await rows_read(database, me, last, "bonus") <= 20 + 1


async def rows_read(database: Database, user_id: uuid.UUID, place: Row, kind: str | None) -> int:
    """How many rows of the table a page of twenty fetched."""
    page = "select * from doorkey.transactions_of(%s, %s, null, null, %s, %s, 20)"
    count = (
        "select coalesce(idx_tup_fetch, 0) + coalesce(seq_tup_read, 0) as fetched from pg_stat_xact_user_tables"
        " where relid = 'public.credit_transactions'::regclass"
    )
    types = None if kind is None else [kind]
    async with database.connect(autocommit=False) as connection:
        found = await (await connection.execute(page, (user_id, types, place["created_at"], place["id"]))).fetchall()
        assert len(found) == 20
        (row,) = await (await connection.execute(count)).fetchall()
        return int(row["fetched"])


# What one was charged, by day and model


async def charge(database: Database, user_id: uuid.UUID, at: str, model: str | None, micros: int) -> None:
    """A usage transaction of that moment."""
    await database.run(
        """insert into public.credit_transactions
             (user_id, type, amount_micros, spendable_micros, system_account, idempotency_key, reason, actor, model,
              created_at)
           values (%s, 'usage', %s, %s, 'spent', gen_random_uuid()::text, 'r', 'a', %s, %s)""",
        (user_id, -micros, -micros, model, at),
    )


async def used(
    database: Database, user_id: uuid.UUID, first: str | None, last: str | None, *, rows: int | None = 1000
) -> list[tuple[str, str | None, int, int]]:
    """Every line, page after page, by their own door."""
    seen: list[tuple[str, str | None, int, int]] = []
    for _ in range(MANY):
        place = (seen[-1][0], seen[-1][1] or "") if seen else (None, None)
        async with database.acting_as("authenticated", user_id) as connection:
            found = await connection.execute(
                "select * from public.get_my_usage(%s, %s, %s, %s, %s)", (first, last, *place, rows)
            )
            page = await found.fetchall()
        seen += [(str(row["day"]), row["model"], row["calls"], row["charged_micros"]) for row in page]
        if rows is None or len(page) < rows:
            return seen
    raise AssertionError("no end")


@pytest.mark.parametrize("rows", [1000, 3, 2, 1])
async def test_usage_is_summed_by_day_in_utc_and_model(database: Database, rows: int) -> None:
    me, other = await database.insert_user(), await database.insert_user()
    for user_id in (me, other):
        await Doors(database).make_ready(user_id)
    await charge(database, me, "2026-01-31T23:59:59.999999Z", "a/small", 1)
    await charge(database, me, "2026-02-01T00:00:00Z", "a/small", 2)
    await charge(database, me, "2026-02-01T23:30:00-01:00", "a/small", 4)
    for model, micros in (("B/large", 8), ("a/small", 16), (None, 32), ("", 64), ("a/small", 128)):
        await charge(database, me, "2026-02-03T12:00:00Z", model, micros)
    await charge(database, me, "2026-02-05T00:00:00Z", "a/small", 256)
    await charge(database, other, "2026-02-03T00:00:00Z", "a/small", 512)
    assert await used(database, me, "2026-02-01", "2026-02-04", rows=rows) == [
        ("2026-02-03", None, 2, 96), ("2026-02-03", "B/large", 1, 8), ("2026-02-03", "a/small", 2, 144),
        ("2026-02-02", "a/small", 1, 4), ("2026-02-01", "a/small", 1, 2),
    ]  # fmt: skip


async def test_usage_is_of_1_to_92_days_and_1_to_1000_lines(database: Database) -> None:
    me = await database.insert_user()
    assert await used(database, me, "2026-01-01", "2026-04-02") == []
    for first, last in (("2026-01-01", "2026-04-03"), ("2026-01-02", "2026-01-01"), (None, "2026-01-01"), (None, None)):
        with refused("PT422", "span_out_of_range"):
            await used(database, me, first, last)
    for rows in (None, 0, 1001):
        with refused("PT422", "page_out_of_range"):
            await used(database, me, "2026-01-01", "2026-01-01", rows=rows)


# What the balance is made of


async def test_lots_stand_in_the_order_of_spending_and_sum_up_to_what_is_available_and_held(database: Database) -> None:
    me = await database.insert_user()
    await Doors(database).make_ready(me)
    await Doors(database).grant(me, 1_000, "never ends")
    await Credits(database).reserve(me, 300)
    spent = await Credits(database).reserve(me, 5_000)
    await Credits(database).settle(spent["hold_id"], 4_000)
    account = (await database.rows("select doorkey.account_of(%s) as account", (me,)))[0]["account"]["credits"]
    first, second = account["lots"]
    assert set(first) == {"type", "amount_micros", "remaining_micros", "expires_at", "granted_at"}
    assert (first["amount_micros"], first["remaining_micros"], second["remaining_micros"]) == (
        5_000_000, 4_996_000, 1_000,
    )  # fmt: skip
    assert first["expires_at"] is not None
    assert second["expires_at"] is None
    assert first["remaining_micros"] + 1_000 == account["available_micros"] + account["held_micros"]
    await database.run("update doorkey.credit_lots set remaining_micros = 0 where remaining_micros = 1000")
    account = (await database.rows("select doorkey.account_of(%s) as account", (me,)))[0]["account"]["credits"]
    assert len(account["lots"]) == 1, "what is spent is no lot any more"


async def test_the_types_that_can_be_asked_for_are_those_that_can_be_stored(database: Database) -> None:
    stored = await database.value("select enum_range(null::doorkey.transaction_type)::text[]")
    assert set(stored) == set(get_args(Type))
