"""Holds: what is kept for a call, what a call is charged, and that no cost is ever dropped."""

from __future__ import annotations

import math
import uuid
from decimal import Decimal
from fractions import Fraction

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.credit_doors import Credits
from tests.support.databases import Database
from tests.support.doors import Doors, refused

CREDITS = 1000
MILLION_MILLION = 10**12


@pytest.fixture
def credit_doors(database: Database) -> Credits:
    return Credits(database)


@pytest.fixture
async def user_id(credit_doors: Credits) -> uuid.UUID:
    """Somebody with a key and credits."""
    await credit_doors.database.run("update public.plans set welcome_credits_micros = %s", (CREDITS,))
    return await newcomer(credit_doors)


async def newcomer(credit_doors: Credits) -> uuid.UUID:
    user_id = await credit_doors.database.insert_user()
    await Doors(credit_doors.database).make_ready(user_id)
    return user_id


# -- what is kept, and what is charged --------------------------------------------------------------------------------


async def test_a_hold_keeps_its_amount_and_says_what_is_left(credit_doors: Credits, user_id: uuid.UUID) -> None:
    hold = await credit_doors.reserve(user_id, 300)
    assert hold["available_after_micros"] == 700
    assert await credit_doors.balances(user_id) == (700, 300, 0)
    row = await credit_doors.hold(hold["hold_id"])
    assert (row["expires_at"] - row["created_at"]).total_seconds() == 600
    assert hold["bound_key_hash"] == (await Doors(credit_doors.database).keys(user_id))[0]["key_hash"]
    assert await credit_doors.broken_rules() == []


@pytest.mark.parametrize(
    ("cost", "charged", "after"),
    [
        (0, (0, 0), (CREDITS, 0, 0)),
        (120, (120, 0), (880, 0, 0)),
        (300, (300, 0), (700, 0, 0)),
        (301, (301, 0), (699, 0, 0)),
        (1000, (1000, 0), (0, 0, 0)),
        (1500, (1500, 500), (0, 0, 500)),
    ],
)
@pytest.mark.parametrize("state", ["open", "released", "expired"])
async def test_a_call_is_charged_in_full_whatever_became_of_its_hold(
    credit_doors: Credits,
    user_id: uuid.UUID,
    state: str,
    cost: int,
    charged: tuple[int, int],
    after: tuple[int, int, int],
) -> None:
    hold_id = (await credit_doors.reserve(user_id, 300))["hold_id"]
    if state == "released":
        assert await credit_doors.release(hold_id) == "released"
    elif state == "expired":
        await credit_doors.let_expire(hold_id)
        assert await credit_doors.expire() == 1
    assert (await credit_doors.hold(hold_id))["state"] == state
    assert tuple((await credit_doors.settle(hold_id, cost)).values()) == charged
    assert await credit_doors.balances(user_id) == after
    assert (await credit_doors.hold(hold_id))["state"] == "settled"
    assert await credit_doors.broken_rules() == []


async def test_what_a_call_costs_too_much_is_not_taken_from_other_holds(
    credit_doors: Credits, user_id: uuid.UUID
) -> None:
    one, other = [(await credit_doors.reserve(user_id, 500))["hold_id"] for _ in range(2)]
    assert await credit_doors.settle(one, 800) == {"charged_micros": 800, "owed_micros": 300}
    assert await credit_doors.balances(user_id) == (0, 500, 300)
    # What the other one did not need pays the debt first.
    assert await credit_doors.settle(other, 100) == {"charged_micros": 100, "owed_micros": 0}
    assert await credit_doors.balances(user_id) == (100, 0, 0)
    assert await credit_doors.broken_rules() == []


@pytest.mark.parametrize("ending", ["release", "expire"])
async def test_what_comes_back_pays_debts_first(credit_doors: Credits, user_id: uuid.UUID, ending: str) -> None:
    one, other = [(await credit_doors.reserve(user_id, 500))["hold_id"] for _ in range(2)]
    await credit_doors.settle(one, 800)
    if ending == "release":
        await credit_doors.release(other)
    else:
        await credit_doors.let_expire(other)
        await credit_doors.expire()
    assert await credit_doors.balances(user_id) == (200, 0, 0)
    assert await credit_doors.broken_rules() == []


async def test_a_grant_pays_debts_first(credit_doors: Credits, user_id: uuid.UUID) -> None:
    await credit_doors.settle((await credit_doors.reserve(user_id, 1000))["hold_id"], 1500)
    await Doors(credit_doors.database).grant(user_id, 400, "less than is owed")
    assert await credit_doors.balances(user_id) == (0, 0, 100)
    await Doors(credit_doors.database).grant(user_id, 400, "more than is owed")
    assert await credit_doors.balances(user_id) == (300, 0, 0)
    assert await credit_doors.broken_rules() == []


async def test_lots_are_spent_by_priority_then_expiry_then_id(credit_doors: Credits, user_id: uuid.UUID) -> None:
    await credit_doors.settle((await credit_doors.reserve(user_id))["hold_id"], CREDITS)
    # They are to be spent in another order than that in which they are made.
    for name, priority, expires_at in (
        ("fourth", 100, "2100-01-01"),
        ("fifth", 100, None),
        ("first", 10, None),
        ("second", 100, "2099-01-01"),
        ("third", 100, "2099-01-01"),
    ):
        await credit_doors.database.run(
            "select doorkey.post_grant(%s, 'bonus', 10, %s, 'Gift', 'test', %s, %s::smallint, 'r')",
            (user_id, name, expires_at, priority),
        )
    held = [(await credit_doors.reserve(user_id))["hold_id"] for _ in range(5)]
    order = ["first", "second", "third", "fourth", "fifth"]
    for number, hold_id in enumerate(held):
        # Half of a lot is left to be the next one's.
        await credit_doors.settle(hold_id, 15 if number % 2 == 0 else 5)
        rows = await credit_doors.database.rows(
            "select t.idempotency_key, l.remaining_micros from doorkey.credit_lots as l"
            " join public.credit_transactions as t on t.id = l.transaction_id"
        )
        left = {row["idempotency_key"]: row["remaining_micros"] for row in rows}
        spent = (number // 2) * 20 + (15 if number % 2 == 0 else 20)
        assert [left[name] for name in order] == [min(10, max(0, 10 * (place + 1) - spent)) for place in range(5)]


async def test_the_ledger_hears_of_a_call_when_it_is_charged_and_says_which_it_was(
    credit_doors: Credits, user_id: uuid.UUID
) -> None:
    hold_id = (await credit_doors.reserve(user_id, 300))["hold_id"]
    await credit_doors.settle(hold_id, 120)
    rows = await credit_doors.database.rows(
        "select type, amount_micros, provider, model from public.credit_transactions where type <> 'bonus' order by id"
    )
    assert [tuple(row.values()) for row in rows] == [
        ("usage", -120, "a provider", "a/model"),
    ]


# -- to the fraction --------------------------------------------------------------------------------------------------


async def test_fractions_are_carried_and_not_lost(credit_doors: Credits, user_id: uuid.UUID) -> None:
    await credit_doors.database.run("update public.plans set markup = 1.1")
    charged = []
    for _ in range(20):
        hold_id = (await credit_doors.reserve(user_id, 1))["hold_id"]
        charged.append((await credit_doors.settle(hold_id, Decimal("0.25")))["charged_micros"])
    # 0.275 each: never a whole one, and five and a half together.
    assert (set(charged), sum(charged)) == ({0, 1}, 5)
    assert (await credit_doors.account(user_id))["remainder_micros"] == Decimal("0.5")
    assert await credit_doors.broken_rules() == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    costs=st.lists(st.decimals(0, 10**6, places=12, allow_nan=False), min_size=1, max_size=5),
    markup=st.decimals(1, 999, places=6, allow_nan=False),
)
async def test_settling_leaves_the_limit_of_the_key_as_it_was_and_charges_the_sum_rounded_once(
    credit_doors: Credits, costs: list[Decimal], markup: Decimal
) -> None:
    database = credit_doors.database
    await database.run("update public.plans set markup = %s", (markup,))
    user_id = await newcomer(credit_doors)
    held = [(await credit_doors.reserve(user_id))["hold_id"] for _ in costs]
    limit, row = await credit_doors.limit(user_id), await Doors(database).row(user_id)
    exact, charged = Fraction(0), 0
    for hold_id, cost in zip(held, costs, strict=True):
        exact += Fraction(cost) * Fraction(markup)
        charged += (await credit_doors.settle(hold_id, cost))["charged_micros"]
        assert charged == math.floor(exact)
        # To the micro-dollar, debts included.
        assert await credit_doors.limit(user_id) == limit
    # So nothing is to be done at OpenRouter.
    assert await Doors(database).row(user_id) == row
    assert [books for books in await credit_doors.broken_rules() if books["user_id"] == user_id] == []


# -- asked again ------------------------------------------------------------------------------------------------------


async def test_a_repeated_reservation_is_the_first_one_whatever_happened_since(
    credit_doors: Credits, user_id: uuid.UUID
) -> None:
    first = await credit_doors.reserve(user_id, 600, key="h")
    assert await credit_doors.reserve(user_id, 600, key="h") == first
    assert await credit_doors.reserve(user_id, 600, key="h", through=first["bound_key_hash"]) == first
    assert await credit_doors.balances(user_id) == (400, 600, 0)
    await credit_doors.settle(first["hold_id"], 900)
    assert await credit_doors.reserve(user_id, 600, key="h") == first
    assert await credit_doors.balances(user_id) == (100, 0, 0)


async def test_a_repeated_settlement_charges_once_and_says_the_same(credit_doors: Credits, user_id: uuid.UUID) -> None:
    hold_id = (await credit_doors.reserve(user_id, 600))["hold_id"]
    first = await credit_doors.settle(hold_id, Decimal("1200.50"))
    await Doors(credit_doors.database).grant(user_id, 10_000, "later")
    assert (
        await credit_doors.settle(hold_id, Decimal("1200.5")) == first == {"charged_micros": 1200, "owed_micros": 200}
    )
    assert await credit_doors.release(hold_id) == "settled"
    assert await credit_doors.balances(user_id) == (9_800, 0, 0)
    for cost, generation_id in ((Decimal("1200.51"), "gen-1"), (Decimal("1200.5"), "gen-2"), (Decimal("1200.5"), None)):
        with refused("PT409", "idempotency_conflict"):
            await credit_doors.settle(hold_id, cost, generation_id)
    assert await credit_doors.broken_rules() == []


async def test_a_repeated_release_gives_back_once(credit_doors: Credits, user_id: uuid.UUID) -> None:
    hold_id = (await credit_doors.reserve(user_id, 600))["hold_id"]
    assert [await credit_doors.release(hold_id) for _ in range(2)] == ["released"] * 2
    await credit_doors.let_expire(hold_id)
    assert await credit_doors.expire() == 0
    assert await credit_doors.balances(user_id) == (CREDITS, 0, 0)


async def test_an_idempotency_key_names_one_hold(credit_doors: Credits, user_id: uuid.UUID) -> None:
    await credit_doors.reserve(user_id, 5, key="h")
    for content in (
        {"amount_micros": 6},
        {"amount_micros": 5, "ttl_seconds": 601},
        {"amount_micros": 5, "through": "0" * 64},
    ):
        with refused("PT409", "idempotency_conflict"):
            await credit_doors.reserve(user_id, key="h", **content)
    assert await credit_doors.balances(user_id) == (CREDITS - 5, 5, 0)


async def test_nobody_stands_in_the_way_of_another_by_an_idempotency_key(
    credit_doors: Credits, user_id: uuid.UUID
) -> None:
    """Not at the same moment, and not as the one who was second."""
    other = await newcomer(credit_doors)
    async with credit_doors.database.connect(autocommit=False) as first:
        mine = await (
            await first.execute("select * from doorkey.reserve_credits(%s, 5, 600, 'h', null, 'r')", (user_id,))
        ).fetchone()
        theirs = await credit_doors.reserve(other, 7, key="h")
        await first.commit()
    assert mine is not None
    assert mine["hold_id"] != theirs["hold_id"]
    assert (await credit_doors.reserve(other, 7, key="h"))["hold_id"] == theirs["hold_id"]
    assert await credit_doors.balances(user_id) == (CREDITS - 5, 5, 0)
    assert await credit_doors.balances(other) == (CREDITS - 7, 7, 0)
    # And both are settled and charged, each to whom it is.
    await credit_doors.settle(mine["hold_id"], 5)
    await credit_doors.settle(theirs["hold_id"], 7)
    assert await credit_doors.broken_rules() == []


# -- refusals ---------------------------------------------------------------------------------------------------------


async def test_who_has_less_gets_no_hold(credit_doors: Credits, user_id: uuid.UUID) -> None:
    await credit_doors.reserve(user_id, 400)
    with refused("PT402", "insufficient_credits"):
        await credit_doors.reserve(user_id, 601)
    await credit_doors.reserve(user_id, 600)
    with refused("PT402", "insufficient_credits"):
        await credit_doors.reserve(user_id, 1)


async def test_what_a_call_is_called_has_a_bound(credit_doors: Credits, user_id: uuid.UUID) -> None:
    hold_id = (await credit_doors.reserve(user_id, 100))["hold_id"]
    with refused("PT422", "posting_invalid"):
        await credit_doors.settle(hold_id, 10, "g" * 201)
    await credit_doors.settle(hold_id, 10, "🐍" * 200)


@pytest.mark.parametrize("amount", [None, 0, -1, MILLION_MILLION + 1, 2**63 - 1])
async def test_an_amount_has_bounds(credit_doors: Credits, user_id: uuid.UUID, amount: int | None) -> None:
    with refused("PT422", "amount_out_of_range"):
        await credit_doors.reserve(user_id, amount)


@pytest.mark.parametrize("amount", [Decimal("1.5"), Decimal(10) ** 30, Decimal("NaN"), "1.5", "NaN", "many"])
async def test_an_amount_is_a_whole_number(credit_doors: Credits, user_id: uuid.UUID, amount: object) -> None:
    with pytest.raises(psycopg.Error) as caught:
        await credit_doors.reserve(user_id, amount)
    # No such function for a numeric; no such integer.
    assert caught.value.sqlstate in ("42883", "22P02")
    assert await credit_doors.balances(user_id) == (CREDITS, 0, 0)


@pytest.mark.parametrize(
    "cost",
    [
        None,
        -1,
        MILLION_MILLION + 1,
        *map(Decimal, ("-0.1", "NaN", "Infinity", "-Infinity", "1e30", "1e-31", "1000000000000.1")),
    ],
    ids=str,
)
async def test_a_cost_has_bounds(credit_doors: Credits, user_id: uuid.UUID, cost: object) -> None:
    hold_id = (await credit_doors.reserve(user_id, 300))["hold_id"]
    with refused("PT422", "amount_out_of_range"):
        await credit_doors.settle(hold_id, cost)
    assert (await credit_doors.hold(hold_id))["state"] == "open"


async def test_the_greatest_cost_is_charged(credit_doors: Credits, user_id: uuid.UUID) -> None:
    await credit_doors.database.run("update public.plans set markup = 999")
    hold_id = (await credit_doors.reserve(user_id, 1))["hold_id"]
    cost = Decimal("9" * 12 + "." + "9" * 30)
    assert (await credit_doors.settle(hold_id, cost))["charged_micros"] == 999 * MILLION_MILLION - 1
    assert await credit_doors.broken_rules() == []


@pytest.mark.parametrize("ttl_seconds", [None, 0, -1, 86_401])
async def test_a_hold_has_an_end(credit_doors: Credits, user_id: uuid.UUID, ttl_seconds: int | None) -> None:
    with refused("PT422", "ttl_out_of_range"):
        await credit_doors.reserve(user_id, ttl_seconds=ttl_seconds)


@pytest.mark.parametrize("key", ["", "k" * 201])
async def test_a_hold_has_an_idempotency_key(credit_doors: Credits, user_id: uuid.UUID, key: str) -> None:
    with refused("PT422", "idempotency_key_invalid"):
        await credit_doors.reserve(user_id, key=key)
    with refused("PT422", "idempotency_key_invalid"):
        await credit_doors.database.run("select doorkey.reserve_credits(%s, 1, 1, null, null, 'r')", (user_id,))


async def test_unknown_people_and_holds_are_not_found(credit_doors: Credits, user_id: uuid.UUID) -> None:
    with refused("PT404", "profile_not_found"):
        await credit_doors.reserve(uuid.uuid4())
    for ask in (credit_doors.settle(uuid.uuid4(), 1), credit_doors.release(uuid.uuid4())):
        with refused("PT404", "hold_not_found"):
            await ask
    # The functions behind the doors, as a person's own doors will call them: others' holds are not there.
    hold_id = (await credit_doors.reserve(user_id))["hold_id"]
    for statement in (
        "select doorkey.settle_hold(%s, %s, 1, null, null, null, null, 'r')",
        "select doorkey.release_hold(%s, %s, 'r')",
    ):
        with refused("PT404", "hold_not_found"):
            await credit_doors.database.run(statement, (uuid.uuid4(), hold_id))
    await credit_doors.database.run("select doorkey.release_hold(%s, %s, 'r')", (user_id, hold_id))


FORBIDDEN = {
    "an open one that is closed": "closed_at = now()",
    "a closed one that keeps something": "state = 'released', closed_at = now()",
    "a part of its amount": "held_micros = 1",
    "settled without a cost": "state = 'settled', closed_at = now(), settled_at = now(), held_micros = 0",
    "a cost without being settled": "cost_micros = 1, price_micros = 1, charged_micros = 1, owed_micros = 0",
    "a cost that is no number": "state = 'settled', closed_at = now(), settled_at = now(), held_micros = 0,"
    " cost_micros = 'NaN', price_micros = 1, charged_micros = 1, owed_micros = 0",
    "more owed than charged": "state = 'settled', closed_at = now(), settled_at = now(), held_micros = 0,"
    " cost_micros = 1, price_micros = 1, charged_micros = 1, owed_micros = 2",
    "an end before its beginning": "expires_at = created_at",
    "a call that was not settled": "model = 'a/model'",
}


@pytest.mark.parametrize("what", FORBIDDEN)
async def test_a_forbidden_hold_cannot_be_stored(credit_doors: Credits, user_id: uuid.UUID, what: str) -> None:
    await credit_doors.reserve(user_id, 300)
    with pytest.raises(psycopg.errors.CheckViolation):
        await credit_doors.database.run(f"update doorkey.credit_holds set {FORBIDDEN[what]}")
