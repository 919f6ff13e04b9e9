"""The money: entries balance, balances are their sums, nothing is rewritten, nothing is granted twice."""

from __future__ import annotations

import asyncio
import itertools
import math
import uuid
from decimal import Decimal
from fractions import Fraction

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.databases import Database
from tests.support.doors import Doors, refused, wait_until_blocked

CONNECTIONS = 16
ROUNDS = 12
OWN = ("spendable", "leaving", "debt", "receivable")
SYSTEM = ("granted", "spent", "expired")
# What is spendable and not held is available. What people owe is stored as a positive number.
BALANCES = ("available", "held", "leaving", "debt", "receivable")
SIGN = {"spendable": 1, "leaving": 1, "debt": -1, "receivable": -1}
BALANCE_OF = {"spendable": "available"}

numbers = itertools.count(1)


@pytest.fixture
async def user_id(database: Database) -> uuid.UUID:
    """Somebody with an account and no credits."""
    await database.run("update public.plans set welcome_credits_micros = 0")
    return await open_account(database)


async def open_account(database: Database, user_id: uuid.UUID | None = None) -> uuid.UUID:
    user_id = user_id or uuid.uuid4()
    await database.run("insert into public.credit_accounts (user_id, plan_id) values (%s, 'trial')", (user_id,))
    return user_id


async def post(
    database: Database, user_id: uuid.UUID, entries: dict[str, int], amount_micros: int | None = None, **more: object
) -> int:
    """A transaction, by its entries."""
    own = {f"{name}_micros": amount for name, amount in entries.items() if name in OWN}
    row = {
        "user_id": user_id, "type": "adjustment", "idempotency_key": f"t{next(numbers)}", "reason": "test",
        "actor": "test", "amount_micros": sum(own.values()) if amount_micros is None else amount_micros,
        "system_account": next((name for name in entries if name in SYSTEM), "granted"), **own, **more,
    }  # fmt: skip
    return int(
        await database.value(
            f"insert into public.credit_transactions ({', '.join(row)}) overriding system value"
            f" values ({', '.join(['%s'] * len(row))}) returning id",
            tuple(row.values()),
        )
    )


async def grant(database: Database, user_id: uuid.UUID, amount_micros: int, key: str, reason: str = "Gift") -> int:
    return int(
        await database.value(
            "select doorkey.post_grant(%s, 'bonus', %s, %s, %s, 'test', null, 100::smallint, 'r')",
            (user_id, amount_micros, key, reason),
        )
    )


async def balances(database: Database, user_id: uuid.UUID) -> dict[str, int]:
    (row,) = await database.rows("select * from public.credit_accounts where user_id = %s", (user_id,))
    return {name: row[f"{name}_micros"] for name in BALANCES}


# -- entries ----------------------------------------------------------------------------------------------------------

UNBALANCED = {
    "one side": ({}, 5),
    "more than the transaction says": ({"spendable": 6}, 5),
    "less than the transaction says": ({"spendable": 4}, 5),
    "from one account to another, and not all of it": ({"spendable": -5, "leaving": 4}, 0),
}


@pytest.mark.parametrize("what", UNBALANCED)
async def test_entries_that_do_not_balance_are_refused(database: Database, user_id: uuid.UUID, what: str) -> None:
    entries, amount = UNBALANCED[what]
    with pytest.raises(psycopg.errors.CheckViolation, match="entries_sum_to_zero"):
        await post(database, user_id, entries, amount)
    assert await balances(database, user_id) == dict.fromkeys(BALANCES, 0)


async def test_a_transaction_is_its_entries(database: Database, user_id: uuid.UUID) -> None:
    entries = {"spendable": 5, "leaving": 3, "debt": -1, "receivable": -2, "granted": -5}
    transaction_id = await post(database, user_id, entries)
    rows = await database.rows("select * from doorkey.ledger_entries where transaction_id = %s", (transaction_id,))
    assert {row["account"]: row["amount_micros"] for row in rows} == entries
    assert await balances(database, user_id) == {
        "available": 5, "held": 0, "leaving": 3, "debt": 1, "receivable": 2
    }  # fmt: skip


async def test_a_users_transactions_are_applied_in_the_order_of_their_numbers(
    database: Database, user_id: uuid.UUID
) -> None:
    """Whoever reads them up to the account's last one has them all, and each once."""
    earlier, last = [await post(database, user_id, {"spendable": 5}, id=number) for number in (1_000_002, 1_000_004)]
    with refused("P0001", "ledger_out_of_order"):
        await post(database, user_id, {"spendable": 5}, id=earlier + 1)
    # Another user's are another order; and who has no account can have no transactions.
    other = await open_account(database)
    await post(database, other, {"spendable": 5}, id=earlier + 1)
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        await post(database, uuid.uuid4(), {"spendable": 5}, id=last + 1)
    assert [(await balances(database, whose))["available"] for whose in (user_id, other)] == [10, 5]


async def test_one_statement_may_post_many_transactions_but_only_whole_ones(database: Database) -> None:
    users = [await open_account(database) for _ in range(3)]
    statement = (
        "insert into public.credit_transactions"
        " (user_id, type, amount_micros, spendable_micros, system_account, idempotency_key, reason, actor)"
        " select user_id, 'bonus', 5, case when user_id = %s then 6 else 5 end, 'granted', %s || user_id, 'r', 'test'"
        " from public.credit_accounts"
    )
    await database.run(statement, (None, "a"))
    with pytest.raises(psycopg.errors.CheckViolation, match="entries_sum_to_zero"):
        await database.run(statement, (users[1], "b"))
    assert [(await balances(database, user_id))["available"] for user_id in users] == [5, 5, 5]


@pytest.mark.parametrize("account", ["spendable", "leaving"])
async def test_an_overdraft_is_refused_whole(database: Database, user_id: uuid.UUID, account: str) -> None:
    balance = BALANCE_OF.get(account, account)
    await post(database, user_id, {account: 5, "granted": -5})
    with pytest.raises(psycopg.errors.CheckViolation, match=f"{balance}_micros"):
        await post(database, user_id, {account: -6, "spent": 6})
    assert (await balances(database, user_id))[balance] == 5
    assert await database.value("select count(*) from public.credit_transactions") == 1


async def test_no_more_is_released_than_holds_keep(database: Database, user_id: uuid.UUID) -> None:
    await post(database, user_id, {"spendable": 5, "granted": -5})
    await database.run("update public.credit_accounts set available_micros = 2, held_micros = 3")
    await post(database, user_id, {"spendable": -1, "spent": 1}, released_micros=2)
    assert (await balances(database, user_id))["available"] == 3
    with pytest.raises(psycopg.errors.CheckViolation, match="held_micros"):
        await post(database, user_id, {"spendable": -1, "spent": 1}, released_micros=2)


async def test_concurrent_spending_cannot_overdraw(database: Database, user_id: uuid.UUID) -> None:
    """As every door does, each takes the account before its number is drawn."""
    await post(database, user_id, {"spendable": 5, "granted": -5})

    async def spend() -> None:
        async with database.connect(autocommit=False) as connection:
            await connection.execute("select doorkey.lock_account(%s)", (user_id,))
            await connection.execute(
                "insert into public.credit_transactions"
                " (user_id, type, amount_micros, spendable_micros, system_account, idempotency_key, reason, actor)"
                " values (%s, 'usage', -1, -1, 'spent', gen_random_uuid()::text, 'r', 'test')",
                (user_id,),
            )
            await connection.commit()

    spent = await asyncio.gather(*(spend() for _ in range(CONNECTIONS)), return_exceptions=True)
    assert spent.count(None) == 5
    assert {type(s) for s in spent} == {type(None), psycopg.errors.CheckViolation}
    assert (await balances(database, user_id))["available"] == 0


async def test_nothing_in_the_ledger_is_rewritten(database: Database, user_id: uuid.UUID) -> None:
    table = "public.credit_transactions"
    await grant(database, user_id, 5, "g")
    before = await database.rows(f"select * from {table}")
    for statement in (
        f"update {table} set amount_micros = amount_micros",
        f"update {table} set amount_micros = 1 where false",
        f"delete from {table}",
        f"truncate {table} cascade",
        "truncate public.credit_accounts cascade",
    ):
        for role in ("supabase_admin", "postgres"):
            with refused("P0001", "ledger_is_append_only"):
                await database.run(statement, role=role)
    assert await database.rows(f"select * from {table}") == before


amounts = st.integers(min_value=-8, max_value=8)
postings = st.dictionaries(st.sampled_from(OWN), amounts.filter(bool), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(postings, st.sampled_from(SYSTEM)), max_size=10))
async def test_balances_are_always_the_sums_of_the_entries(
    database: Database, steps: list[tuple[dict[str, int], str]]
) -> None:
    user_id = await open_account(database)
    expected = dict.fromkeys(OWN, 0)
    for entries, system in steps:
        after = {name: expected[name] + SIGN[name] * entries.get(name, 0) for name in OWN}
        whole = entries | {system: -sum(entries.values())}
        if min(after.values()) < 0:
            with pytest.raises(psycopg.errors.CheckViolation):
                await post(database, user_id, whole)
        else:
            await post(database, user_id, whole)
            expected = after
        assert await balances(database, user_id) == {"held": 0} | {
            BALANCE_OF.get(name, name): amount for name, amount in expected.items()
        }
    (sums,) = await database.rows(
        """select coalesce(sum(e.amount_micros), 0) as everything,
                  coalesce(sum(e.amount_micros) filter (where e.account = any (%s)), 0) as own
             from doorkey.ledger_entries as e join public.credit_transactions as t on t.id = e.transaction_id
            where t.user_id = %s""",
        (list(OWN), user_id),
    )
    assert sums["everything"] == 0
    assert sums["own"] == sum(SIGN[name] * amount for name, amount in expected.items())


# -- grants -----------------------------------------------------------------------------------------------------------


async def test_a_grant_is_a_lot_and_reaches_the_balance(database: Database, user_id: uuid.UUID) -> None:
    transaction_id = await grant(database, user_id, 5, "g")
    (lot,) = await database.rows("select * from doorkey.credit_lots")
    assert (lot["transaction_id"], lot["amount_micros"], lot["remaining_micros"]) == (transaction_id, 5, 5)
    assert (await balances(database, user_id))["available"] == 5


async def test_a_repeated_grant_returns_the_first_and_grants_nothing(database: Database, user_id: uuid.UUID) -> None:
    first = await grant(database, user_id, 5, "g")
    assert await grant(database, user_id, 5, "g") == first
    assert (await balances(database, user_id))["available"] == 5
    assert await database.value("select count(*) from doorkey.credit_lots") == 1


async def test_an_idempotency_key_is_not_used_for_other_content(database: Database, user_id: uuid.UUID) -> None:
    await grant(database, user_id, 5, "g")
    for other in (
        grant(database, user_id, 6, "g"),
        grant(database, user_id, 5, "g", reason="Another"),
        grant(database, await open_account(database), 5, "g"),
    ):
        with refused("PT409", "idempotency_conflict"):
            await other
    assert await database.value("select sum(available_micros) from public.credit_accounts") == 5


async def test_concurrent_grants_with_one_key_are_one_grant(database: Database, user_id: uuid.UUID) -> None:
    ids = await asyncio.gather(*(grant(database, user_id, 5, "g") for _ in range(CONNECTIONS)))
    assert len(set(ids)) == 1
    assert (await balances(database, user_id))["available"] == 5


async def test_a_grant_whose_first_try_is_rolled_back_is_made_by_the_second(
    database: Database, user_id: uuid.UUID
) -> None:
    async with database.connect(autocommit=False) as first:
        await first.execute(
            "select doorkey.post_grant(%s, 'bonus', 5, 'g', 'Gift', 'test', null, 100::smallint, 'r')", (user_id,)
        )
        second = asyncio.create_task(grant(database, user_id, 5, "g"))
        await wait_until_blocked(database, 1)
        await first.rollback()
    await second
    assert (await balances(database, user_id))["available"] == 5


@pytest.mark.parametrize("amount", [0, -5, None])
async def test_a_grant_is_positive(database: Database, user_id: uuid.UUID, amount: int | None) -> None:
    with refused("PT422", "amount_not_positive"):
        await grant(database, user_id, amount, "g")  # type: ignore[arg-type]


async def test_the_welcome_comes_once_in_a_life_whatever_becomes_of_the_plan(database: Database) -> None:
    doors, user_id = Doors(database), await database.insert_user()
    assert (await doors.claimed(user_id))["limit_micros"] == 5_000_000
    for change in ("welcome_credits_micros = 9000000", "welcome_credits_micros = 0", "name = 'Other'"):
        await database.run(f"update public.plans set {change}")
        await doors.expire_lease(user_id)
        assert (await doors.claimed(user_id))["limit_micros"] == 5_000_000
    await database.run("delete from doorkey.provisioning")
    assert (await doors.claimed(user_id))["limit_micros"] == 5_000_000
    (lot,) = await database.rows("select expires_at - created_at as lasts from doorkey.credit_lots")
    assert lot["lasts"].days == 30


# -- what a key may spend ---------------------------------------------------------------------------------------------


async def key_limit(database: Database, user_id: uuid.UUID) -> tuple[int | None, bool]:
    (row,) = await database.rows(
        "select * from doorkey.key_limit(%s, (select key_hash from public.openrouter_user_keys where user_id = %s))",
        (user_id, user_id),
    )
    return row["limit_micros"], row["is_uncapped"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    available=st.integers(0, 10**15),
    held=st.integers(0, 10**15),
    owed=st.integers(0, 10**15),
    remainder=st.decimals(0, 1, places=9, allow_nan=False).filter(lambda fraction: fraction < 1),
    charged=st.decimals(0, 10**12, places=9, allow_nan=False),
    markup=st.decimals(1, 999, places=6, allow_nan=False),
)
async def test_a_keys_limit_is_what_was_charged_and_what_is_left_by_the_markup_rounded_down(
    database: Database, available: int, held: int, owed: int, remainder: Decimal, charged: Decimal, markup: Decimal
) -> None:
    user_id = await open_account(database)
    await database.run(
        "insert into public.openrouter_user_keys (key_hash, user_id, key_name, attempt, charged_cost_micros)"
        " values (encode(sha256(%s::text::bytea), 'hex'), %s, 'k', 1, %s)",
        (str(user_id), user_id, charged),
    )
    await database.run("update public.plans set markup = %s", (markup,))
    await database.run(
        "update public.credit_accounts set available_micros = %s, held_micros = %s, leaving_micros = 7,"
        " receivable_micros = 9, debt_micros = %s, remainder_micros = %s where user_id = %s",
        (available, held, owed, remainder, user_id),
    )
    exact = Fraction(charged) + (available + held - owed - Fraction(remainder)) / Fraction(markup)
    assert await key_limit(database, user_id) == (max(math.floor(exact), 0), False)


async def test_a_quotient_just_below_a_micro_dollar_is_not_rounded_up(database: Database, user_id: uuid.UUID) -> None:
    # An amount whose quotient ends in .999999999: rounded to a few places first, it would come out one too high.
    million, divisor = 10**6, 999_999_999
    available = (divisor - 1) * pow(million, -1, divisor) % divisor + 9 * 10**9 * divisor
    assert available * million % divisor == divisor - 1
    await database.run("update public.plans set markup = 999.999999")
    await database.run("update public.credit_accounts set available_micros = %s", (available,))
    assert await key_limit(database, user_id) == (available * million // divisor, False)


async def test_only_a_plan_without_cap_makes_a_key_without_limit(database: Database) -> None:
    doors, user_id = Doors(database), await database.insert_user()
    await database.run("update public.plans set is_uncapped = true")
    claim = await doors.make_ready(user_id)
    assert (claim["limit_micros"], claim["is_uncapped"]) == (None, True)
    assert (await doors.keys(user_id))[0]["limit_micros"] is None
    with pytest.raises(psycopg.errors.NoDataFound):
        await key_limit(database, uuid.uuid4())


# -- together ---------------------------------------------------------------------------------------------------------


async def test_claims_and_grants_on_one_user_never_deadlock(database: Database) -> None:
    doors = Doors(database)
    users = [await database.insert_user() for _ in range(ROUNDS)]
    for user_id in users:
        # Before the first claim, so that the claim posts too: the welcome.
        await open_account(database, user_id)
    start = asyncio.Barrier(CONNECTIONS)

    async def work(worker: int) -> None:
        async with database.connect() as connection:
            for user_id in users:
                await start.wait()
                if worker % 2:
                    await connection.execute("select * from doorkey.claim_provisioning(%s, 60, 'r')", (user_id,))
                else:
                    await connection.execute(
                        "select doorkey.grant_credits(%s, 'bonus', 1, %s, 'Gift', 'test', null, 'r')",
                        (user_id, f"{worker}-{user_id}"),
                    )

    # A deadlock would be raised as 40P01.
    await asyncio.gather(*(work(worker) for worker in range(CONNECTIONS)))
    granted = 5_000_000 + CONNECTIONS // 2
    for user_id in users:
        # A claim that met a grant skipped the row; then this one is the first.
        if await doors.state(user_id) == "working":
            await doors.expire_lease(user_id)
        assert (await doors.make_ready(user_id))["limit_micros"] == granted
        assert (await balances(database, user_id))["available"] == granted
