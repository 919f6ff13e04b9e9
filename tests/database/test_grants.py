"""What operators give and take: by name, once, and written down."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.credit_doors import Credits
from tests.support.databases import Database
from tests.support.doors import Doors, refused

CREDITS = 1000
CROWD = 16
MARKUP = 2
MAX_MICROS = 10**12
LATER = datetime.now(UTC) + timedelta(days=3)


@pytest.fixture
async def credit_doors(database: Database) -> Credits:
    await database.run("update public.plans set welcome_credits_micros = %s, markup = %s", (CREDITS, MARKUP))
    return Credits(database)


@pytest.fixture
def doors(database: Database) -> Doors:
    return Doors(database)


@pytest.fixture
async def user_id(credit_doors: Credits, doors: Doors) -> uuid.UUID:
    """Somebody with a key."""
    user_id = await credit_doors.database.insert_user()
    await doors.make_ready(user_id)
    return user_id


async def entries(database: Database, transaction_id: int) -> dict[str, int]:
    rows = await database.rows(
        "select account, amount_micros from doorkey.ledger_entries where transaction_id = %s", (transaction_id,)
    )
    return {row["account"]: row["amount_micros"] for row in rows}


async def welcome_id(database: Database, user_id: uuid.UUID) -> int:
    return int(
        await database.value(
            "select id from public.credit_transactions where user_id = %s and type = 'bonus'", (user_id,)
        )
    )


# -- giving -----------------------------------------------------------------------------------------------------------


async def test_nothing_is_given_to_who_is_gone_and_their_books_can_be_set_right(
    credit_doors: Credits, user_id: uuid.UUID
) -> None:
    known = await credit_doors.post(user_id, 50, "purchase", key="paid before")
    await credit_doors.database.run("delete from auth.users where id = %s", (user_id,), role="supabase_auth_admin")
    before = await credit_doors.balances(user_id)
    for given in ("purchase", "bonus"):
        with refused("PT404", "profile_not_found"):
            await credit_doors.post(user_id, 50, given)
    assert await credit_doors.balances(user_id) == before
    repeated = await credit_doors.post(user_id, 50, "purchase", key="paid before")
    assert repeated["transaction_id"] == known["transaction_id"]
    await credit_doors.post(user_id, 50, "adjustment")
    await credit_doors.post(user_id, -50, "adjustment")


@pytest.mark.parametrize("type_", ["purchase", "bonus", "refund", "adjustment"])
async def test_credits_of_every_type_reach_the_balance_the_ledger_and_the_keys_limit(
    credit_doors: Credits, doors: Doors, user_id: uuid.UUID, type_: str
) -> None:
    posting = await credit_doors.post(user_id, 500, type_, expires_at=LATER)
    assert (posting["available_after_micros"], posting["owed_micros"]) == (CREDITS + 500, 0)
    assert await entries(credit_doors.database, posting["transaction_id"]) == {"spendable": 500, "granted": -500}
    (lot,) = await credit_doors.database.rows(
        "select * from doorkey.credit_lots where transaction_id = %s", (posting["transaction_id"],)
    )
    assert (lot["remaining_micros"], lot["expires_at"]) == (500, LATER)
    assert (await doors.claimed(user_id))["limit_micros"] == (CREDITS + 500) // MARKUP
    assert await credit_doors.broken_rules() == []


@pytest.mark.parametrize("amount", [500, -500])
async def test_every_posting_writes_who_what_before_and_after(
    credit_doors: Credits, user_id: uuid.UUID, amount: int
) -> None:
    posting = await credit_doors.post(user_id, amount, key="p")
    await credit_doors.post(user_id, amount, key="p")
    (line,) = await credit_doors.database.rows("select * from doorkey.audit_log where action = 'credits.posted'")
    assert (line["actor"], line["user_id"], line["request_id"]) == ("an operator", user_id, "r")
    assert line["detail"] == {
        "transaction_id": posting["transaction_id"],
        "type": "adjustment",
        "amount_micros": amount,
        "reason": "A reason",
        "available_before_micros": CREDITS,
        "available_after_micros": CREDITS + amount,
        "debt_before_micros": 0,
        "debt_after_micros": 0,
    }


@pytest.mark.parametrize("amount", [500, -500, -1500])
async def test_a_repeated_posting_answers_as_the_first_did_whatever_happened_since(
    credit_doors: Credits, user_id: uuid.UUID, amount: int
) -> None:
    hold_id = (await credit_doors.reserve(user_id, 20))["hold_id"]
    first = await credit_doors.post(user_id, amount, key="p")
    await credit_doors.post(user_id, 70)
    await credit_doors.release(hold_id)
    balances = await credit_doors.balances(user_id)
    # Another operator, who did not know.
    assert await credit_doors.post(user_id, amount, key="p", actor="another") == first
    assert await credit_doors.balances(user_id) == balances


async def test_a_grant_that_has_expired_since_is_still_known(credit_doors: Credits, user_id: uuid.UUID) -> None:
    first = await credit_doors.post(user_id, 5, key="p", expires_at=LATER)
    past = LATER - timedelta(days=9)
    await credit_doors.database.run(
        "update doorkey.credit_lots set expires_at = %s where expires_at = %s", (past, LATER)
    )
    assert await credit_doors.post(user_id, 5, key="p", expires_at=past) == first


@pytest.mark.parametrize("amount", [5, -5])
async def test_a_key_of_a_posting_is_not_used_for_other_content(
    credit_doors: Credits, doors: Doors, user_id: uuid.UUID, amount: int
) -> None:
    await credit_doors.post(user_id, amount, key="p")
    other = await credit_doors.database.insert_user()
    await doors.make_ready(other)
    balances = [await credit_doors.balances(anybody) for anybody in (user_id, other)]
    for conflict in (
        credit_doors.post(user_id, amount + 1, key="p"),
        credit_doors.post(user_id, -amount, key="p"),
        credit_doors.post(user_id, amount, key="p", reason="Another"),
        credit_doors.post(other, amount, key="p"),
    ):
        with refused("PT409", "idempotency_conflict"):
            await conflict
    if amount > 0:
        with refused("PT409", "idempotency_conflict"):
            await credit_doors.post(user_id, amount, key="p", expires_at=LATER)
    assert [await credit_doors.balances(anybody) for anybody in (user_id, other)] == balances


@pytest.mark.parametrize("amount", [5, -5])
async def test_the_same_posting_many_times_at_once_is_one(
    credit_doors: Credits, user_id: uuid.UUID, amount: int
) -> None:
    answers = await asyncio.gather(*(credit_doors.post(user_id, amount, key="p") for _ in range(CROWD)))
    assert all(answer == answers[0] for answer in answers)
    assert await credit_doors.balances(user_id) == (CREDITS + amount, 0, 0)


async def test_what_operators_call_their_postings_is_never_taken_for_ours(
    credit_doors: Credits, doors: Doors, user_id: uuid.UUID
) -> None:
    newcomer = await credit_doors.database.insert_user()
    await credit_doors.post(user_id, 1, "bonus", key=f"welcome:{newcomer}")
    await doors.make_ready(newcomer)
    assert await credit_doors.balances(newcomer) == (CREDITS, 0, 0)
    taken = await credit_doors.post(user_id, -1)
    for number in range(10):
        await credit_doors.post(user_id, 1, key=f"left:{taken['transaction_id'] + number}")
    await doors.finish_key_update(await doors.claimed(user_id))
    assert (await credit_doors.account(user_id))["leaving_micros"] == 0


REFUSED: dict[str, tuple[str, dict[str, object]]] = {
    "nothing": ("amount_out_of_range", {"amount_micros": 0}),
    "no amount": ("amount_out_of_range", {"amount_micros": None}),
    "too much": ("amount_out_of_range", {"amount_micros": MAX_MICROS + 1}),
    "too much to take": ("amount_out_of_range", {"amount_micros": -MAX_MICROS - 1}),
    "the least that a bigint holds": ("amount_out_of_range", {"amount_micros": -(2**63)}),
    "a negative purchase": ("amount_out_of_range", {"amount_micros": -1, "type": "purchase"}),
    "usage": ("posting_invalid", {"type": "usage"}),
    "a renewal": ("posting_invalid", {"type": "renewal"}),
    "no type": ("posting_invalid", {"type": None}),
    "no key": ("idempotency_key_invalid", {"key": ""}),
    "a long key": ("idempotency_key_invalid", {"key": "k" * 181}),
    "no reason": ("posting_invalid", {"reason": None}),
    "an empty reason": ("posting_invalid", {"reason": ""}),
    "a long reason": ("posting_invalid", {"reason": "r" * 501}),
    "nobody": ("posting_invalid", {"actor": None}),
    "expired at once": ("posting_invalid", {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}),
    "what is taken expires": ("posting_invalid", {"amount_micros": -1, "expires_at": LATER}),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_cannot_be_posted_is_refused_by_name(credit_doors: Credits, user_id: uuid.UUID, what: str) -> None:
    word, arguments = REFUSED[what]
    with refused("PT422", word):
        await credit_doors.post(user_id, **({"amount_micros": 1} | arguments))  # type: ignore[arg-type]
    assert await credit_doors.balances(user_id) == (CREDITS, 0, 0)


async def test_the_bounds_themselves_are_taken_and_nobody_is_refused_by_name(
    credit_doors: Credits, user_id: uuid.UUID
) -> None:
    await credit_doors.post(user_id, MAX_MICROS, "purchase", key="k" * 180, reason="r" * 500, actor="a" * 200)
    await credit_doors.post(user_id, -MAX_MICROS, "refund")
    assert await credit_doors.balances(user_id) == (CREDITS, 0, 0)
    for amount in (1, -1):
        with refused("PT404", "profile_not_found"):
            await credit_doors.post(uuid.uuid4(), amount)


# -- taking back ------------------------------------------------------------------------------------------------------


async def test_a_grant_is_taken_back_from_its_own_lot_by_an_entry_that_reverses_it(
    credit_doors: Credits, doors: Doors, user_id: uuid.UUID
) -> None:
    grant = await credit_doors.post(user_id, 500)
    reversal = await credit_doors.reverse(grant["transaction_id"])
    assert (reversal["available_after_micros"], reversal["owed_micros"]) == (CREDITS, 0)
    lots = await credit_doors.database.rows("select remaining_micros from doorkey.credit_lots order by id")
    assert [lot["remaining_micros"] for lot in lots] == [CREDITS, 0]
    await doors.finish_key_update(await doors.claimed(user_id))
    assert await entries(credit_doors.database, grant["transaction_id"]) == {"spendable": 500, "granted": -500}
    granted = await credit_doors.database.value(
        "select sum(amount_micros) from doorkey.ledger_entries where account = 'granted'"
    )
    assert granted == -CREDITS
    (line,) = await credit_doors.database.rows("select * from doorkey.audit_log where action = 'credits.reversed'")
    assert (line["actor"], line["user_id"], line["request_id"]) == ("an operator", user_id, "r")
    assert line["detail"]["reverses_transaction_id"] == grant["transaction_id"]
    assert (line["detail"]["available_before_micros"], line["detail"]["available_after_micros"]) == (1500, 1000)


async def test_what_of_a_grant_is_spent_comes_out_of_other_credits_and_then_is_owed(
    credit_doors: Credits, user_id: uuid.UUID
) -> None:
    # The welcome is spent first: by priority.
    hold = await credit_doors.reserve(user_id, 900)
    await credit_doors.settle(hold["hold_id"], 450)
    await credit_doors.post(user_id, 300)
    reversal = await credit_doors.reverse(await welcome_id(credit_doors.database, user_id))
    assert (reversal["available_after_micros"], reversal["owed_micros"]) == (0, 600)
    assert await credit_doors.balances(user_id) == (0, 0, 600)
    assert await credit_doors.broken_rules() == []


async def test_a_grant_is_taken_back_once(credit_doors: Credits, user_id: uuid.UUID) -> None:
    grant = await credit_doors.post(user_id, 500)
    answers = await asyncio.gather(*(credit_doors.reverse(grant["transaction_id"], key="r") for _ in range(CROWD)))
    assert all(answer == answers[0] for answer in answers)
    await credit_doors.post(user_id, 7)
    assert await credit_doors.reverse(grant["transaction_id"], key="r") == answers[0]
    with refused("PT409", "already_reversed"):
        await credit_doors.reverse(grant["transaction_id"])
    with refused("PT409", "idempotency_conflict"):
        await credit_doors.reverse(grant["transaction_id"], key="r", reason="Another")
    other = await credit_doors.post(user_id, 50, key="p")
    for key in ("p", "r"):
        with refused("PT409", "idempotency_conflict"):
            await credit_doors.reverse(other["transaction_id"], key=key)
    assert await credit_doors.balances(user_id) == (CREDITS + 57, 0, 0)


async def test_what_expired_is_not_taken_back_a_second_time(credit_doors: Credits, user_id: uuid.UUID) -> None:
    database = credit_doors.database
    hold = await credit_doors.reserve(user_id, 400)
    await credit_doors.settle(hold["hold_id"], 200)
    lot = await database.value("select id from doorkey.credit_lots")
    await database.run(
        "select doorkey.take_credits(%s, 'expiry', 600, 'x', 'Expired', 'sweep', 'r', %s)", (user_id, lot)
    )
    reversal = await credit_doors.reverse(await welcome_id(database, user_id))
    assert (reversal["available_after_micros"], reversal["owed_micros"]) == (0, 400)


async def test_only_what_gave_credits_and_has_not_left_can_be_taken_back(
    credit_doors: Credits, user_id: uuid.UUID
) -> None:
    database = credit_doors.database
    taken = await credit_doors.post(user_id, -5)
    for transaction_id, sqlstate, word in (
        (0, "PT404", "transaction_not_found"),
        (None, "PT404", "transaction_not_found"),
        (taken["transaction_id"], "PT409", "transaction_not_reversible"),
    ):
        with refused(sqlstate, word):
            await credit_doors.reverse(transaction_id)  # type: ignore[arg-type]
    grant = await credit_doors.post(user_id, 50)
    lot = await database.value("select max(id) from doorkey.credit_lots")
    await database.run(
        "select doorkey.take_credits(%s, 'expiry', 50, 'x', 'Expired', 'sweep', 'r', %s)", (user_id, lot)
    )
    with refused("PT409", "transaction_not_reversible"):
        await credit_doors.reverse(grant["transaction_id"])
