"""Plays a month and asks the drift report what became of every micro-dollar.

The surprising thing: nothing here computes what is owed. OpenRouter's side is what the simulator says of
the whole account; ours is the report and the ledger.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import uuid
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

import httpx
from starlette.types import ASGIApp

from functions.clients.openrouter import OpenRouter
from functions.clients.outside import Clients
from functions.clients.supabase import Supabase
from functions.credits import store as credit_store
from functions.credits.holds import expire_holds
from functions.kit.amounts import plain
from functions.kit.errors import DoorkeyError
from functions.metering.last_words import hear_last_words
from functions.metering.store import report_drift
from functions.metering.sync import sync_usage
from functions.plans import store as plan_store
from functions.plans.periods import expire_lots, renew_periods
from functions.provisioning import store as provisioning_store
from functions.provisioning.steps import Provisioner
from infra.local.openrouter.app import create_app
from infra.local.openrouter.config import Config
from tests.month.clock import START, MovedClock
from tests.month.direct import Doors
from tests.month.plan import (
    DAYS,
    EDIT_PLANS,
    LATE_MODEL,
    PLANS,
    USAGE_LATE,
    Call,
    Fate,
    make_calls,
    make_moments,
)
from tests.month.wire import ADDRESS, Wire, ask
from tests.support.credit_doors import Credits
from tests.support.databases import Database
from tests.support.environment import settings

TTL_SECONDS = 600
SWEEP_EVERY = timedelta(hours=1)
# What falls into one step happens at its beginning, at once and in no order.
STEP = timedelta(minutes=5)
# After the last call: what is late comes, and is looked at twice; and keys that are gone have their last word.
QUIET = timedelta(hours=36)
MAX_REDRIVES = 20
DUE_ROWS = 500
PAGE_ROWS = 1_000
CHORES = {"expired_holds": expire_holds, "renewals": renew_periods, "expired_lots": expire_lots}
MANAGEMENT_KEY = "sk-or-v1-of-the-simulated-month"


@dataclass
class Month:
    """A month that is being played."""

    database: Database
    doors: Doors
    clock: MovedClock
    http: httpx.AsyncClient
    app: ASGIApp
    secrets: dict[str, str]
    provisioner: Provisioner
    users: list[uuid.UUID] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    # Receipts on their way: when, in which order, which hold, what it cost.
    receipts: list[tuple[datetime, int, uuid.UUID, Decimal]] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def supabase(self) -> Supabase:
        """The doors where a project's Data API would be."""
        return cast(Supabase, self.doors)

    async def sweep(self) -> None:
        """What the schedule does, without its waiting."""
        await provisioning_store.start_sweep(self.supabase, users=5_000)
        self.counts.update(
            {
                name: await chore(self.supabase, request_id="month", is_time_left=lambda: True)
                for name, chore in CHORES.items()
            }
        )
        self.counts.update(
            await sync_usage(
                self.provisioner.openrouter,
                self.supabase,
                request_id="month",
                is_time_left=lambda: True,
                clock=self.clock.seconds,
            )
        )
        self.counts.update(
            await hear_last_words(
                self.provisioner.openrouter,
                self.supabase,
                request_id="month",
                is_time_left=lambda: True,
                clock=self.clock.seconds,
            )
        )
        for _ in range(MAX_REDRIVES):
            due = await provisioning_store.list_due(self.supabase, due_rows=DUE_ROWS)
            if not due:
                break
            await asyncio.gather(*(self.provisioner.provision(user_id, request_id="month") for user_id in due))
            self.clock.move_to(self.clock.now + timedelta(seconds=1))

    async def call(self, call: Call) -> None:
        """One call, up to where its fate leaves it."""
        user_id = self.users[call.user]
        if call.fate is Fate.DIRECT:
            hashes = await self.database_value(user_id)
            answered = await self.chat(call, hashes)
            self.counts["direct" if answered is not None else "refused"] += 1
            return
        try:
            hold = await credit_store.reserve(
                self.supabase,
                user_id,
                amount_micros=call.amount_micros,
                ttl_seconds=TTL_SECONDS,
                idempotency_key=f"month {next(self._numbers)}",
                key_hash=None,
                request_id="month",
            )
        except DoorkeyError as refusal:
            self.counts[f"not_reserved_{refusal.code}"] += 1
            return
        cost = None if call.fate is Fate.NOT_MADE else await self.chat(call, hold.key_hash)
        if cost is None:
            await credit_store.release(self.supabase, hold.hold_id, request_id="month")
            self.counts["not_made" if call.fate is Fate.NOT_MADE else "refused"] += 1
            return
        self.counts[call.fate] += 1
        if call.fate in (Fate.ANSWERED, Fate.LATE_RECEIPT):
            heapq.heappush(self.receipts, (call.at + call.takes, next(self._numbers), hold.hold_id, cost))

    async def chat(self, call: Call, key_hash: str | None) -> Decimal | None:
        """Asks the simulator; what it cost in micro-dollars, None: it was refused and cost nothing."""
        if key_hash is None:
            return None
        status, answer = await ask(
            self.app,
            self.secrets[key_hash],
            {
                "model": call.model,
                "messages": [{"role": "user", "content": "word " * call.words}],
                "max_tokens": call.max_tokens,
                "stream": call.fate is Fate.ABORTED_STREAM,
            },
        )
        if status != 200:
            return None
        if call.fate is Fate.ABORTED_STREAM:
            return Decimal(0)
        return Decimal(str(json.loads(answer, parse_float=Decimal)["usage"]["cost"])).scaleb(6)

    def arrived(self) -> Iterator[Coroutine[Any, Any, None]]:
        """The receipts that have come by now, to be settled."""
        while self.receipts and self.receipts[0][0] <= self.clock.now:
            _, _, hold_id, cost = heapq.heappop(self.receipts)
            yield self.settle(hold_id, cost)

    async def settle(self, hold_id: uuid.UUID, cost: Decimal) -> None:
        """A receipt has come."""
        await credit_store.settle(
            self.supabase,
            hold_id,
            cost_micros=cost,
            provider="month",
            model="month",
            generation_id=None,
            request_id="month",
        )
        self.counts["settled"] += 1

    async def database_value(self, user_id: uuid.UUID) -> str | None:
        """The hash of the key that the user has in use."""
        rows = await self.clock.rows("select key_hash from doorkey.provisioning where user_id = %s", user_id)
        return cast("str | None", rows[0][0])

    async def rotate(self, user: int, grace_seconds: int) -> None:
        """The user wants another key, also while what the old one spent is still to show."""
        if user in self.gone:
            return
        await self.clock.rows("select doorkey.request_key_rotation(%s, %s, 'month')", self.users[user], grace_seconds)
        self.counts["rotations"] += 1

    async def leave(self, user: int) -> None:
        """The user is deleted; what they spent is theirs all the same."""
        self.gone.add(user)
        # Not without a call, of which nobody will have heard when their key is deleted.
        last = Call(self.clock.now, user, Fate.DIRECT, LATE_MODEL, 200, 40, 1, timedelta(0))
        await self.chat(last, await self.database_value(self.users[user]))
        await self.clock.rows("delete from auth.users where id = %s returning 1", self.users[user])
        self.counts["leavers"] = len(self.gone)

    async def change_plan(self, user: int, plan_id: str, takes_effect: str) -> None:
        """An operator puts them on another plan."""
        try:
            await plan_store.change_plan(
                self.supabase,
                self.users[user],
                plan_id=plan_id,
                takes_effect=takes_effect,
                idempotency_key=f"month {next(self._numbers)}",
                actor="month",
                reason="Another plan",
                request_id="month",
            )
        except DoorkeyError as refusal:
            self.counts[f"not_changed_{refusal.code}"] += 1
            return
        self.counts["plan_changes"] += 1


async def play(database: Database, *, users: int, calls: int, seed: int, show: Callable[[int], None]) -> dict[str, Any]:
    """Plays it; what came of it."""
    clock = MovedClock(database)
    app = create_app(
        Config(
            management_key=MANAGEMENT_KEY,
            credits_usd=Decimal(10**9),
            clock=clock.moment,
            usage_delay=lambda model: USAGE_LATE if model == LATE_MODEL else timedelta(0),
        )
    )
    wire = Wire(app=app)
    wire.secrets = {}
    found = settings(OPENROUTER_BASE_URL=ADDRESS, OPENROUTER_MANAGEMENT_KEY=MANAGEMENT_KEY)
    async with clock.installed(), Doors(database, clock).opened() as doors, httpx.AsyncClient(transport=wire) as http:
        clients = Clients(http=http, supabase=cast(Supabase, doors), openrouter=OpenRouter(http, found))
        month = Month(database, doors, clock, http, app, wire.secrets, Provisioner.build(found, clients))
        await database.run("update doorkey.settings set max_keys_per_hour = null;" + EDIT_PLANS)
        month.users = [await database.insert_user() for _ in range(users)]
        await _go(month, users=users, calls=calls, seed=seed, show=show)
        return await _verdict(month)


async def _go(month: Month, *, users: int, calls: int, seed: int, show: Callable[[int], None]) -> None:
    await month.sweep()
    for user in range(users):
        if (plan_id := PLANS[user % len(PLANS)]) != PLANS[0]:
            await month.change_plan(user, plan_id, "now")
    begin = month.clock.now + timedelta(hours=1)
    rotations = deque(make_moments(seed + 1, max(1, users // 4), users, begin))
    changes = deque(make_moments(seed + 2, max(2, users // 4), users, begin))
    leavers = deque(make_moments(seed + 3, max(1, users // 10), users, begin))
    plan = deque(make_calls(seed, users, calls, begin))
    for step in range((timedelta(days=DAYS) + QUIET) // STEP):
        at = begin + step * STEP
        month.clock.move_to(at)
        if (at - begin) % SWEEP_EVERY == timedelta(0):
            await asyncio.gather(*month.arrived())
            while rotations and rotations[0][0] <= at:
                asked_at, user = rotations.popleft()
                await month.rotate(user, 3_600 if asked_at.second % 2 else 0)
            while changes and changes[0][0] <= at:
                asked_at, user = changes.popleft()
                plan_id = "professional" if asked_at.minute % 2 else "starter"
                await month.change_plan(user, plan_id, "now" if asked_at.second % 2 else "period_end")
            while leavers and leavers[0][0] <= at:
                await month.leave(leavers.popleft()[1])
            await month.sweep()
        now = []
        while plan and plan[0].at < at + STEP:
            now.append(month.call(plan.popleft()))
        await asyncio.gather(*now, *month.arrived())
        show(calls - len(plan))


async def _verdict(month: Month) -> dict[str, Any]:
    by_day = {}
    day = START.date()
    causes: dict[str, dict[str, Decimal]] = {}
    ledger = openrouter = Decimal(0)
    billed, simulated = await _simulated(month)
    unknown: list[str] = []
    while day <= month.clock.now.date():
        rows = await _report(month, day)
        for row in rows:
            found = causes.setdefault(row.cause or "agrees", {"key_days": Decimal(0), "micros": Decimal(0)})
            found["key_days"] += 1
            found["micros"] += abs(row.difference_micros)
        unknown += [f"{day} {row.key_hash} {plain(row.difference_micros)}" for row in rows if row.cause == "unknown"]
        day_ledger = sum((row.ledger_micros for row in rows), Decimal(0))
        day_openrouter = sum((row.openrouter_micros for row in rows), Decimal(0))
        ledger, openrouter = ledger + day_ledger, openrouter + day_openrouter
        by_day[day.isoformat()] = {
            "keys": len(rows),
            "ledger_micros": plain(day_ledger),
            "receipts_micros": plain(sum((row.receipts_micros for row in rows), Decimal(0))),
            "openrouter_micros": plain(day_openrouter),
            "byok_micros": plain(sum((row.byok_micros for row in rows), Decimal(0))),
            "difference_micros": plain(day_openrouter - day_ledger),
            "simulator_micros": plain(simulated[day]) if day in simulated else None,
        }
        day += timedelta(days=1)
    charged = (await month.clock.rows("select sum(cost_micros) from doorkey.key_costs"))[0][0]
    await month.clock.tell_everybody()
    broken = await Credits(month.database).broken_rules()
    return {
        "users": len(month.users),
        "days": DAYS,
        "counts": dict(sorted(month.counts.items())),
        "causes": {
            cause: {"key_days": int(found["key_days"]), "difference_micros": plain(found["micros"])}
            for cause, found in sorted(causes.items())
        },
        "unknown": unknown[:20],
        "ledger_micros": plain(ledger),
        "charged_to_keys_micros": plain(charged),
        "openrouter_micros": plain(openrouter),
        "simulator_micros": plain(billed),
        "broken_rules": [f"{row['user_id']} {row['rule']}" for row in broken[:20]],
        "by_day": by_day,
    }


async def _report(month: Month, day: date) -> list[Any]:
    rows: list[Any] = []
    while True:
        page = await report_drift(
            month.supabase, day, after_key=rows[-1].key_hash if rows else None, key_rows=PAGE_ROWS
        )
        rows += page
        if len(page) < PAGE_ROWS:
            return rows


async def _simulated(month: Month) -> tuple[Decimal, dict[date, Decimal]]:
    """What the simulator has billed in all, and on each day that it tells of: the last thirty that are over."""
    headers = {"Authorization": f"Bearer {MANAGEMENT_KEY}"}
    answers = [await month.http.get(f"{ADDRESS}/{path}", headers=headers) for path in ("credits", "activity")]
    account, activity = (json.loads(answer.raise_for_status().content, parse_float=Decimal) for answer in answers)
    by_day: dict[date, Decimal] = {}
    for item in activity["data"]:
        day = date.fromisoformat(item["date"][:10])
        by_day[day] = by_day.get(day, Decimal(0)) + Decimal(str(item["usage"])).scaleb(6)
    return Decimal(str(account["data"]["total_usage"])).scaleb(6), by_day


def faults(report: dict[str, Any]) -> list[str]:
    """What is wrong with a month; none: every micro-dollar is placed."""
    found = [f"unknown: {line}" for line in report["unknown"]]
    found += [f"a rule is broken: {line}" for line in report["broken_rules"]]
    amounts = {name: Decimal(report[name]) for name in ("ledger_micros", "charged_to_keys_micros", "openrouter_micros")}
    found += [
        f"{name} is {amount}, and the simulator has billed {report['simulator_micros']}"
        for name, amount in amounts.items()
        if amount != Decimal(report["simulator_micros"])
    ]
    return found
