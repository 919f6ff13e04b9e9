"""Holds by many at once: none is given out twice, no cost is lost, nobody waits for ever.

What must hold of the money is asked after every step, while the others go on (support/credit_doors.py).
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable
from decimal import Decimal

import psycopg
import pytest

from tests.support.credit_doors import Credits
from tests.support.databases import Database
from tests.support.doors import Doors, wait_until_blocked

CREDITS = 1000
CROWD = 64
SEEDS = range(4)
WORKERS = 8
MOVES = 40
# What may be answered in a play; a deadlock (40P01) or a broken check may not.
REFUSALS = {"insufficient_credits", "idempotency_conflict", "lease_lost", "key_replaced"}


@pytest.fixture
async def credit_doors(database: Database) -> Credits:
    await database.run("update public.plans set welcome_credits_micros = %s, markup = 1.3", (CREDITS,))
    return Credits(database)


async def newcomer(credit_doors: Credits) -> uuid.UUID:
    user_id = await credit_doors.database.insert_user()
    await Doors(credit_doors.database).make_ready(user_id)
    return user_id


async def test_of_64_holds_at_once_exactly_those_are_given_that_the_balance_covers(credit_doors: Credits) -> None:
    user_id = await newcomer(credit_doors)
    answers = await asyncio.gather(
        *(credit_doors.reserve(user_id, CREDITS // 10) for _ in range(CROWD)), return_exceptions=True
    )
    refusals = [answer for answer in answers if isinstance(answer, psycopg.Error)]
    assert {refusal.diag.message_primary for refusal in refusals} == {"insufficient_credits"}
    assert len(refusals) == CROWD - 10
    left = sorted(answer["available_after_micros"] for answer in answers if isinstance(answer, dict))
    assert left == [CREDITS // 10 * step for step in range(10)]
    assert await credit_doors.balances(user_id) == (0, CREDITS, 0)
    assert await credit_doors.broken_rules() == []


async def test_the_same_reservation_64_times_at_once_is_one_hold(credit_doors: Credits) -> None:
    user_id = await newcomer(credit_doors)
    answers = await asyncio.gather(*(credit_doors.reserve(user_id, 100, key="h") for _ in range(CROWD)))
    assert all(answer == answers[0] for answer in answers)
    assert await credit_doors.balances(user_id) == (CREDITS - 100, 100, 0)


async def test_settling_releasing_and_expiring_one_hold_at_once_charges_once(credit_doors: Credits) -> None:
    for _ in range(5):
        user_id = await newcomer(credit_doors)
        hold_id = (await credit_doors.reserve(user_id, 500))["hold_id"]
        await credit_doors.let_expire(hold_id)
        asked: list[Awaitable[object]] = []
        for _ in range(8):
            asked += [credit_doors.settle(hold_id, 100), credit_doors.release(hold_id), credit_doors.expire()]
        await asyncio.gather(*asked)
        assert (await credit_doors.hold(hold_id))["state"] == "settled"
        assert await credit_doors.balances(user_id) == (CREDITS - 130, 0, 0)
    assert await credit_doors.broken_rules() == []


async def test_expiring_is_bounded_takes_the_oldest_and_leaves_what_is_not_due(credit_doors: Credits) -> None:
    user_id = await newcomer(credit_doors)
    oldest, older, young = [(await credit_doors.reserve(user_id, 10))["hold_id"] for _ in range(3)]
    await credit_doors.let_expire(oldest, older)
    await credit_doors.let_expire(oldest)
    assert [await credit_doors.expire(1) for _ in range(3)] == [1, 1, 0]
    states = [(await credit_doors.hold(hold_id))["state"] for hold_id in (oldest, older, young)]
    assert states == ["expired", "expired", "open"]
    for rows in (None, 0, 1001):
        with pytest.raises(psycopg.Error, match="page_out_of_range"):
            await credit_doors.expire(rows)


async def test_expiring_takes_the_oldest_first(credit_doors: Credits) -> None:
    user_id = await newcomer(credit_doors)
    old, oldest = [(await credit_doors.reserve(user_id, 10))["hold_id"] for _ in range(2)]
    await credit_doors.let_expire(old, oldest)
    await credit_doors.let_expire(oldest)
    assert await credit_doors.expire(1) == 1
    assert [(await credit_doors.hold(hold_id))["state"] for hold_id in (old, oldest)] == ["open", "expired"]


async def test_expiring_waits_for_nobody_and_comes_back(credit_doors: Credits) -> None:
    busy, other = await newcomer(credit_doors), await newcomer(credit_doors)
    held = [(await credit_doors.reserve(user_id, 10))["hold_id"] for user_id in (busy, other)]
    await credit_doors.let_expire(*held)
    async with credit_doors.database.connect(autocommit=False) as connection:
        await connection.execute("select doorkey.lock_account(%s)", (busy,))
        assert await credit_doors.expire() == 1
        assert (await credit_doors.hold(held[1]))["state"] == "expired"
        await connection.rollback()
    assert await credit_doors.expire() == 1


async def test_a_hold_that_comes_with_a_rotation_goes_through_the_new_key(credit_doors: Credits) -> None:
    """Bound to the old one after its limit was worked out, it would find nothing to spend there."""
    doors, user_id = Doors(credit_doors.database), await newcomer(credit_doors)
    await doors.rotate(user_id)
    claim = await doors.claimed(user_id)
    async with credit_doors.database.connect(autocommit=False) as rotating:
        await rotating.execute(
            "select doorkey.finish_provisioning(%s, %s, %s, 'new', null, 0, 'v1.k1.AAAA', 'r')",
            (user_id, claim["attempt"], "f" * 64),
        )
        reserving = asyncio.create_task(credit_doors.reserve(user_id, 10))
        await wait_until_blocked(credit_doors.database, 1)
        await rotating.commit()
    assert (await reserving)["bound_key_hash"] == "f" * 64


# -- whatever they do at once -----------------------------------------------------------------------------------------


class Play:
    """Workers who do anything to the same users at the same time."""

    def __init__(self, credit_doors: Credits, users: list[uuid.UUID], seed: int) -> None:
        self.credits = credit_doors
        self.doors = Doors(credit_doors.database)
        self.users = users
        self.chance = random.Random(seed)  # noqa: S311  a game, not a secret
        self.holds: list[uuid.UUID] = []
        self.settled: dict[uuid.UUID, tuple[Decimal, dict[str, object]]] = {}
        self.granted = dict.fromkeys(users, CREDITS)
        self.reserved: dict[tuple[uuid.UUID, int, str], uuid.UUID] = {}

    async def reserve(self) -> None:
        user_id, amount = self.chance.choice(self.users), self.chance.choice([1, 50, 200, 700])
        # Some of them by a name that was used before.
        key = f"{user_id} {amount} {self.chance.randint(1, 30)}"
        hold = await self.credits.reserve(user_id, amount, key=key)
        assert self.reserved.setdefault((user_id, amount, key), hold["hold_id"]) == hold["hold_id"]
        self.holds.append(hold["hold_id"])

    async def settle(self) -> None:
        if not self.holds:
            return
        hold_id = self.chance.choice(self.holds)
        cost = Decimal(self.chance.randint(0, 300_000_000)) / 1_000_000
        if hold_id in self.settled:
            known = self.settled[hold_id]
            assert await self.credits.settle(hold_id, known[0]) == known[1]
        answer = await self.credits.settle(hold_id, cost)
        assert self.settled.setdefault(hold_id, (cost, answer)) == (cost, answer)

    async def release(self) -> None:
        if self.holds:
            await self.credits.release(self.chance.choice(self.holds))

    async def expire(self) -> None:
        if self.holds:
            await self.credits.let_expire(self.chance.choice(self.holds))
        await self.credits.expire(self.chance.choice([1, 10]))

    async def grant(self) -> None:
        user_id, amount = self.chance.choice(self.users), self.chance.randint(1, 400)
        await self.doors.grant(user_id, amount, str(uuid.UUID(int=self.chance.getrandbits(128))))
        self.granted[user_id] += amount

    async def rotate(self) -> None:
        user_id = self.chance.choice(self.users)
        await self.credits.database.run(
            "update public.openrouter_user_keys set created_at = now() - interval '2 hours' where user_id = %s",
            (user_id,),
        )
        await self.doors.rotate(user_id, self.chance.choice([0, 3600]))

    async def work(self) -> None:
        """What provisioning does about it."""
        claim = await self.doors.claim(self.chance.choice(self.users))
        if claim is None:
            return
        finish = {
            "create": self.doors.finish,
            "update": self.doors.finish_key_update,
            "delete": self.doors.finish_key_deletion,
        }[claim["action"]]
        await finish(claim)

    async def worker(self) -> None:
        moves: list[Callable[[], Awaitable[None]]] = [
            *(self.reserve, self.reserve, self.reserve, self.settle, self.settle, self.release, self.expire),
            *(self.grant, self.rotate, self.work, self.work, self.work),
        ]
        for _ in range(MOVES):
            try:
                await self.chance.choice(moves)()
            except psycopg.Error as refusal:
                if refusal.diag.message_primary not in REFUSALS:
                    raise
            assert await self.credits.broken_rules() == []


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_many_do_at_once_the_money_adds_up_after_every_step(credit_doors: Credits, seed: int) -> None:
    users = [await newcomer(credit_doors) for _ in range(3)]
    play = Play(credit_doors, users, seed)
    await asyncio.gather(*(play.worker() for _ in range(WORKERS)))
    rows = await credit_doors.database.rows("select id, user_id, cost_micros from doorkey.credit_holds")
    # Every cost that was taken in is there, and no other.
    costs = {row["id"]: row["cost_micros"] for row in rows if row["cost_micros"] is not None}
    assert costs == {hold_id: cost for hold_id, (cost, _) in play.settled.items()}
    assert len(costs) > 10
    assert len(rows) == len(set(play.holds))
    for user_id in users:
        available, held, owed = await credit_doors.balances(user_id)
        spent = sum(costs.get(row["id"], 0) for row in rows if row["user_id"] == user_id) * Decimal("1.3")
        remainder = (await credit_doors.account(user_id))["remainder_micros"]
        assert available + held - owed - remainder == play.granted[user_id] - spent
