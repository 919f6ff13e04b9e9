"""What a page reads grows with the page, and not with its square, the ledger or the crowd, whatever statistics say.

The surprising thing: the plans are read, as they were carried out, and nothing is timed. A quick machine hides a plan
that reads the page once for each transaction there is.
"""

from __future__ import annotations

import pytest

from tests.support.databases import Database
from tests.support.explained import Node, explain, nodes_of, rows_read

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
# On a plan without periods; and then a few whose period goes on.
CROWD = """
create temporary table made as select gen_random_uuid() as id from generate_series(1, 10 * %(users)s);
insert into public.credit_accounts (user_id, plan_id) select id, 'trial' from made;
insert into doorkey.provisioning (user_id, state) select id, 'waiting' from made
"""
IN_A_PERIOD = """
insert into public.credit_accounts (user_id, plan_id, period_started_at, period_ends_at)
select gen_random_uuid(), 'starter', now(), now() + interval '720 h' from generate_series(1, 5)
"""


# Everybody calls four times on each day but one: on that few do, and of others OpenRouter billed something.
DAY = "2026-03-04"
CALLERS = """
create table public.made as
select n, gen_random_uuid() as id, encode(sha256(n::text::bytea), 'hex') as key_hash
  from generate_series(1, %(users)s) as n;
insert into public.credit_accounts (user_id, plan_id) select id, 'trial' from made;
insert into public.openrouter_user_keys (key_hash, user_id, key_name, attempt) select key_hash, id, 'k', 1 from made
"""
CALLS = """
insert into doorkey.credit_holds
  (user_id, key_hash, amount_micros, held_micros, state, idempotency_key, available_after_micros, cost_micros,
   price_micros, charged_micros, owed_micros, created_at, expires_at, closed_at, settled_at)
select id, key_hash, 9, 0, 'settled', 'call of ' || at, 0, 9, 9, 9, 0, at, at + interval '1 h', at, at
  from made cross join generate_series('2026-03-01 00:00Z'::timestamptz, '2026-03-07 00:00Z', '6 h') as at
 where (n <= 5 or (at at time zone 'utc')::date <> '2026-03-04') and """
BILLED = """
insert into doorkey.key_usage_days (key_hash, day, reported_micros)
select key_hash, '2026-03-04', 1 from made where n between 4 and 8
"""


@pytest.mark.parametrize("door", ["renew_periods", "expire_lots"])
@pytest.mark.parametrize("has_statistics", [False, True])
async def test_the_trigger_reads_one_account_for_each_posting_whatever_the_ledger_holds(
    database: Database, door: str, has_statistics: bool
) -> None:
    await make(database, TOUCHED)
    if door == "expire_lots":
        await database.run("update doorkey.credit_lots set is_allowance = false")
    if has_statistics:
        await database.run("analyze")
    done, plans = await explain(database, f"select public.{door}(%s, 'r') as done", (PAGE,), "last_transaction_id = ")
    assert done == [{"done": PAGE}]
    # Each posting's account, and nobody else's.
    assert len(plans) >= PAGE
    assert max(rows_read(node) for node in nodes_of(plans)) <= 1


@pytest.mark.parametrize("statistics", ["none", "of before", "of one plan", "of now"])
async def test_a_sweep_that_renews_nobody_does_not_walk_the_crowd(database: Database, statistics: str) -> None:
    for moment, comes in (("of before", CROWD), ("of one plan", IN_A_PERIOD), ("of now", "select")):
        if statistics == moment:
            await database.run("analyze")
        await make(database, comes)
    done, plans = await explain(database, "select public.renew_periods(%s, 'r') as done", (PAGE // 10,))
    assert done == [{"done": 0}]
    assert any(node.get("Relation Name") == "credit_accounts" for node in nodes_of(plans))
    # There are four plans, and five whose period goes on.
    assert max(rows_read(node) for node in nodes_of(plans)) <= 5


@pytest.mark.parametrize("statistics", ["none", "of before", "of one key", "of now"])
async def test_a_page_of_the_drift_report_reads_holds_key_by_key(database: Database, statistics: str) -> None:
    await make(database, CALLERS)
    for moment, comes in (
        ("of before", f"{CALLS} n = 1"),
        ("of one key", f"{CALLS} n > 1"),
        ("of now", BILLED),
    ):
        if statistics == moment:
            await database.run("analyze")
        await make(database, comes)
    keys, plans = await explain(database, "select key_hash from public.report_drift(%s, null, 100)", (DAY,))
    assert len(keys) == 8
    scans = [node for node in nodes_of(plans) if scans_holds(node)]
    assert scans
    assert [node for node in scans if "key_hash = " not in node.get("Index Cond", "")] == []


def scans_holds(node: Node) -> bool:
    """A whole table has no condition of an index, and a heap that a bitmap leads to stands above one that has."""
    if node["Node Type"] == "Bitmap Heap Scan":
        return False
    return node.get("Relation Name") == "credit_holds" or node.get("Index Name", "").startswith("credit_holds_")


async def make(database: Database, statements: str) -> None:
    """Writes them, by one connection: they share a temporary table."""
    async with database.connect() as connection:
        for statement in statements.replace("%(users)s", str(USERS)).split(";"):
            await connection.execute(statement)
