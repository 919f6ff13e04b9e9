"""What the ledger's trigger reads for a page of postings grows with the page, and not with its square or the ledger.

The surprising thing: the plans are read, as they were carried out, and nothing is timed. A quick machine hides a plan
that reads the page once for each transaction there is.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from psycopg.errors import Diagnostic

from tests.support.databases import Database

USERS = 700
PAGE = 500

# Everybody's period is over, and a little of each allowance was spent.
TOUCHED = """
update public.plans set credits_per_period_micros = 5000000 where id = 'starter';
create temporary table made as select gen_random_uuid() as id from generate_series(1, %(users)s);
insert into public.credit_accounts (user_id, plan_id, period_started_at, period_ends_at)
select id, 'starter', now() - interval '720 h', now() - interval '1 s' from made;
insert into public.credit_transactions
  (user_id, type, amount_micros, spendable_micros, system_account, idempotency_key, reason, actor)
select id, 'renewal', 5000000, 5000000, 'granted', 'made:' || id, 'Allowance', 'test' from made;
insert into doorkey.credit_lots
  (user_id, transaction_id, amount_micros, remaining_micros, priority, expires_at, is_allowance)
select t.user_id, t.id, 5000000, 4999000, 75, a.period_ends_at, true
  from public.credit_transactions as t join public.credit_accounts as a on a.user_id = t.user_id;
insert into public.credit_transactions
  (user_id, type, amount_micros, spendable_micros, system_account, idempotency_key, reason, actor)
select id, 'usage', -1000, -1000, 'spent', 'spent:' || id, 'Call', 'test' from made
"""
EXPLAINED = (
    "load 'auto_explain'",
    "set auto_explain.log_min_duration = 0",
    "set auto_explain.log_nested_statements = on",
    "set auto_explain.log_analyze = on",
    "set auto_explain.log_timing = off",
    "set auto_explain.log_format = json",
    "set client_min_messages = log",
)


@pytest.mark.parametrize("door", ["renew_periods", "expire_lots"])
@pytest.mark.parametrize("has_statistics", [False, True])
async def test_the_trigger_reads_one_account_for_each_posting_whatever_the_ledger_holds(
    database: Database, door: str, has_statistics: bool
) -> None:
    plans: list[dict[str, Any]] = []

    def note(diagnostic: Diagnostic) -> None:
        _, _, plan = (diagnostic.message_primary or "").partition("plan:\n")
        if plan and "last_transaction_id = " in plan:
            plans.append(json.loads(plan)["Plan"])

    async with database.connect() as connection:
        for statement in TOUCHED.replace("%(users)s", str(USERS)).split(";"):
            await connection.execute(statement)
        if door == "expire_lots":
            await connection.execute("update doorkey.credit_lots set is_allowance = false")
        if has_statistics:
            await connection.execute("analyze")
    async with database.connect() as connection:
        for statement in EXPLAINED:
            await connection.execute(statement)
        connection.add_notice_handler(note)
        done = await (await connection.execute(f"select public.{door}(%s, 'r') as done", (PAGE,))).fetchone()
    assert done == {"done": PAGE}
    # Each posting's account, and nobody else's.
    assert len(plans) >= PAGE
    assert max(rows for plan in plans for rows in _rows_read(plan)) <= 1


def _rows_read(plan: dict[str, Any]) -> list[float]:
    """What each node of a plan has looked at."""
    removed = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Join Filter", 0)
    own = (plan["Actual Rows"] + removed) * plan["Actual Loops"]
    return [own, *(rows for child in plan.get("Plans", []) for rows in _rows_read(child))]
