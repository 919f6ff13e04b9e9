"""What the renewal of a crowd costs: ten thousand periods that are over, renewed by the pages of one sweep.

The surprising thing: it is two rows. Of whom nothing was spent, an allowance only moves with its period: two rows are
updated, and the floor updates one of them. Whoever spent anything has a touched one: what is left of it expires and
another is granted, which takes two postings, a new lot, and a note that the key's limit follows.
"""

from __future__ import annotations

import time

import psycopg
from psycopg.rows import dict_row

from functions.plans.periods import ROWS_PER_PAGE
from infra.bench.growth import USERS
from infra.bench.measuring import Check, Effort, Measured
from infra.bench.places import durable_server, install_doorkey, new_database, run_sql
from infra.local.scratch import ScratchServer

DUE = 10_000
QUICK_DUE = 50
PAIRS = 12
MAX_PAGES = 40
MILLIS = 1_000
STATEMENT_SECONDS = 8

# Everybody's welcome becomes the allowance of a period.
SUBSCRIBE = """
update public.plans set credits_per_period_micros = 5000000 where id = 'starter';
update public.credit_accounts
   set plan_id = 'starter', period_started_at = now() - interval '720 h', period_ends_at = now() - interval '1 s';
update doorkey.credit_lots as l set is_allowance = true, priority = 75, expires_at = a.period_ends_at
  from public.credit_accounts as a where a.user_id = l.user_id;
"""
MAKE_DUE = """
update public.credit_accounts
   set period_started_at = now() - interval '720 h', period_ends_at = now() - interval '1 s';
update doorkey.credit_lots set expires_at = now() - interval '1 s' where not is_empty;
"""
FLOOR = """
update public.credit_accounts
   set period_started_at = period_ends_at, period_ends_at = period_ends_at + interval '720 h',
       period_number = period_number + 1, updated_at = now()
"""
# A little of each is spent, as a settled call leaves it, and every key is as it should be.
TOUCH = """
insert into public.credit_transactions
  (user_id, type, amount_micros, spendable_micros, system_account, key_cost_micros, idempotency_key, reason, actor)
select user_id, 'usage', -1000, -1000, 'spent', 1000, gen_random_uuid()::text, 'Call', 'bench'
  from public.credit_accounts;
update doorkey.credit_lots set remaining_micros = remaining_micros - 1000 where not is_empty;
update public.openrouter_user_keys as k set limit_micros = c.cost_micros + 5000000
  from doorkey.key_costs as c where c.key_hash = k.key_hash;
update doorkey.provisioning set state = 'ready' where state = 'due';
"""


async def measure(effort: Effort) -> Measured:
    """Renews whole allowances, and updates as many rows in one statement, in turns."""
    return await _measure(effort, "select")


async def measure_touched(effort: Effort) -> Measured:
    """Likewise allowances of which something was spent."""
    return await _measure(effort, TOUCH)


async def _measure(effort: Effort, before: str) -> Measured:
    due = effort.size(DUE, QUICK_DUE)
    async with durable_server() as server:
        await new_database(server, "renewed")
        await install_doorkey(server, "renewed")
        await run_sql(server.url(database="renewed"), USERS.format(count=due))
        await run_sql(server.url(database="renewed"), SUBSCRIBE)
        longest: list[float] = []
        service = await _connect(server, "authenticator")
        await service.execute("set role service_role")
        superuser = await _connect(server, None)

        async def renew_ms() -> float:
            await _make_due(superuser, before)
            pages = await _renew(service, due)
            longest.append(max(pages))
            return sum(pages)

        async def update_ms() -> float:
            await _make_due(superuser, "select")
            started = time.perf_counter()
            await superuser.execute(FLOOR)
            return (time.perf_counter() - started) * MILLIS

        measured = await effort.pairs(effort.size(PAIRS, 1), renew_ms, update_ms)
        for connection in (service, superuser):
            await connection.close()
    slowest = max(longest) / MILLIS
    check = Check("the longest call", f"{slowest:.2f} s", f"< {STATEMENT_SECONDS} s", slowest < STATEMENT_SECONDS)
    return Measured(measured.ours, measured.floor, checks=[check])


async def _renew(service: psycopg.AsyncConnection[dict[str, int]], due: int) -> list[float]:
    pages, done = [], 0
    for _ in range(MAX_PAGES):
        started = time.perf_counter()
        rows = await service.execute("select public.renew_periods(%s, 'bench') as renewed", (ROWS_PER_PAGE,))
        row = await rows.fetchone()
        pages.append((time.perf_counter() - started) * MILLIS)
        page = row["renewed"] if row else 0
        done += page
        if page < ROWS_PER_PAGE:
            break
    if done != due:
        raise RuntimeError(f"{done} of {due} periods were renewed")
    return pages


async def _make_due(superuser: psycopg.AsyncConnection[dict[str, int]], before: str) -> None:
    await superuser.execute(before)
    await superuser.execute(MAKE_DUE)
    await superuser.execute("vacuum analyze")


async def _connect(server: ScratchServer, role: str | None) -> psycopg.AsyncConnection[dict[str, int]]:
    url = server.url(role, "renewed") if role else server.url(database="renewed")
    return await psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=dict_row)
