"""Rotating, spending and hearing of it in every order, by dice: nobody spends more than they were granted."""

from __future__ import annotations

import contextlib
import random
import uuid
from dataclasses import dataclass

import psycopg
import pytest

from tests.database.test_rotation import CREDITS, let_grace_end
from tests.support.credit_doors import Credits
from tests.support.databases import Database, Row
from tests.support.doors import Doors, key_hash

SEEDS = range(6)
MOVES = 100
# More than any rotation takes, and another one within its grace.
MAX_STEPS = 8


@pytest.fixture
def doors(database: Database) -> Doors:
    return Doors(database)


@pytest.fixture
async def user_id(doors: Doors) -> uuid.UUID:
    """Somebody with a key."""
    user_id = await doors.database.insert_user()
    await doors.make_ready(user_id)
    return user_id


@dataclass
class RemoteKey:
    """A key as OpenRouter has it, in micro-dollars; `pending`: let in, and not billed yet."""

    limit: int
    usage: int = 0
    pending: int = 0
    is_deleted: bool = False

    @property
    def room(self) -> int:
        """What it lets in."""
        return 0 if self.is_deleted else max(self.limit - self.usage - self.pending, 0)


@dataclass
class RemoteCall:
    """A call under its hold.

    Attributes:
        hold_id: of its hold.
        key: the key that it goes through.
        pending: what it was let in for.
        cost: what it was billed; None: it is under way.
        is_reported: whether its key has said since what it had spent.
    """

    hold_id: uuid.UUID
    key: str
    pending: int
    cost: int | None = None
    is_reported: bool = False


class Play:
    """One user, one worker, OpenRouter, and the ledger that hears late of what was spent, by holds and without."""

    def __init__(self, doors: Doors, user_id: uuid.UUID, seed: int) -> None:
        self.doors = doors
        self.credits = Credits(doors.database)
        self.user_id = user_id
        self.calls: list[RemoteCall] = []
        self.chance = random.Random(seed)  # noqa: S311  a game, not a secret
        self.remote = {key_hash(f"{user_id}-1"): RemoteKey(CREDITS)}
        self.granted = CREDITS

    async def spend(self) -> None:
        for key in self.remote.values():
            key.usage += self.chance.choice([0, key.room, self.chance.randint(0, key.room)])

    async def rotate(self) -> None:
        await self.doors.database.run(
            "update public.openrouter_user_keys set created_at = now() - interval '2 hours' where user_id = %s",
            (self.user_id,),
        )
        await self.doors.rotate(self.user_id, self.chance.choice([0, 3600]))

    async def end_grace(self) -> None:
        await let_grace_end(self.doors, self.user_id)

    async def grant(self) -> None:
        amount = self.chance.randint(1, 1_000_000)
        self.granted += amount
        await self.doors.grant(self.user_id, amount, str(uuid.UUID(int=self.chance.getrandbits(128))))

    async def begin_call(self) -> None:
        amount = self.chance.randint(1, 2_000_000)
        with contextlib.suppress(psycopg.Error):  # not enough
            hold = await self.credits.reserve(self.user_id, amount)
            key = self.remote[hold["bound_key_hash"]]
            call = RemoteCall(hold["hold_id"], hold["bound_key_hash"], min(amount, key.room))
            key.pending += call.pending
            self.calls.append(call)

    async def end_call(self) -> None:
        """A call is billed: for more than its hold, where its key's limit allows that."""
        for call in self.chance.sample(self.calls, len(self.calls)):
            key = self.remote[call.key]
            if call.cost is None:
                call.cost = self.chance.choice([0, call.pending, self.chance.randint(0, call.pending + key.room)])
                key.pending -= call.pending
                key.usage += call.cost
                return

    async def close_call(self) -> None:
        """The ledger hears of a call: what it cost, or that it came to nothing, or nothing at all within its time."""
        if not self.calls:
            return
        call = self.calls.pop(self.chance.randrange(len(self.calls)))
        if call.cost is not None:
            # Of a key that is gone only the settlement will tell; while it lives, it is asked again.
            if (call.is_reported or not self.remote[call.key].is_deleted) and self.chance.random() < 0.3:
                await self._expire(call)
            await self.credits.settle(call.hold_id, call.cost)
            return
        self.remote[call.key].pending -= call.pending
        if self.chance.random() < 0.5:
            await self.credits.release(call.hold_id)
        else:
            await self._expire(call)

    async def _expire(self, call: RemoteCall) -> None:
        await self.credits.let_expire(call.hold_id)
        await self.credits.expire()
        # The rest of the world does not stand still until it is settled after all.
        await self.work()
        await self.work()
        assert self.spent() <= self.granted

    async def sync(self) -> None:
        """The ledger hears of one living key, besides its calls; a deleted one is not in OpenRouter's list any more."""
        name, key = self.chance.choice([item for item in self.remote.items() if not item[1].is_deleted])
        heard = key.usage - sum(call.cost or 0 for call in self.calls if call.key == name)
        await self.doors.database.run(
            "with k as (select key_hash, %s - cost_micros as more from doorkey.key_costs"
            " where key_hash = %s), charged as (update public.openrouter_user_keys as o"
            " set charged_cost_micros = o.charged_cost_micros + k.more from k where o.key_hash = k.key_hash)"
            " update public.credit_accounts set available_micros = greatest(available_micros - k.more, 0),"
            " debt_micros = debt_micros + greatest(k.more - available_micros, 0) from k where user_id = %s",
            (heard, name, self.user_id),
        )

    async def work(self) -> None:
        claim = await self.doors.claim(self.user_id)
        if claim is None:
            return
        await self.spend()
        await self._act(claim)

    async def _act(self, claim: Row) -> None:
        limit = claim["limit_micros"]
        match claim["action"]:
            case "create":
                self.remote[key_hash(f"{self.user_id}-{claim['attempt']}")] = RemoteKey(limit)
                await self.doors.finish(claim)
            case "update":
                key = self.remote[claim["key_hash"]]
                key.limit = limit
                reported = key.usage
                for call in self.calls:
                    call.is_reported |= call.key == claim["key_hash"] and call.cost is not None
                await self.spend()
                await self.doors.finish_key_update(claim, usage_micros=reported)
            case "delete":
                self.remote[claim["key_hash"]].is_deleted = True
                await self.doors.finish_key_deletion(claim)

    async def forgone(self) -> int:
        """What was spent before the last word of a key that is gone, and settled after it: taken for spent twice."""
        return sum(
            max(key["reported_usage_micros"] - self.remote[key["key_hash"]].usage, 0)
            for key in await self.doors.keys(self.user_id)
            if key["status"] == "deleted"
        )

    def spent(self) -> int:
        return sum(key.usage for key in self.remote.values())


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_order_of_rotating_spending_and_hearing_of_it_spends_more_than_was_granted(
    doors: Doors, user_id: uuid.UUID, seed: int
) -> None:
    play = Play(doors, user_id, seed)
    moves = [play.spend, play.rotate, play.end_grace, play.grant, play.sync, play.work, play.work, play.work]
    moves += [play.begin_call, play.begin_call, play.end_call, play.close_call]
    for _ in range(MOVES):
        await play.chance.choice(moves)()
        assert play.spent() <= play.granted
    while play.calls:
        await play.end_call()
        await play.close_call()
        assert play.spent() <= play.granted
    # And nobody is left with less than they have: what is there can be spent by the key in use.
    for _ in range(MAX_STEPS):
        await play.work()
    await play.end_grace()
    for _ in range(MAX_STEPS):
        await play.work()
    assert await doors.state(user_id) == "ready"
    await play.spend()
    living = [key for key in play.remote.values() if not key.is_deleted]
    assert len(living) == 1
    assert (
        sum(max(key.limit, key.usage) for key in living)
        + sum(key.usage for key in play.remote.values() if key.is_deleted)
        == play.granted - await play.forgone()
    )
