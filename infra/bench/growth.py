"""What a signup costs as users grow: claim and finish among a thousand users, and among a million.

The surprising thing: the million is written with triggers off, and looks as if every one of them had been provisioned:
a row in each table that a claim or a finish looks at or writes to. The calls are the doors', as service_role.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from dataclasses import dataclass

import psycopg
from psycopg.rows import dict_row

from infra.bench.measuring import Effort, Measured
from infra.bench.places import durable_server, install_doorkey, new_database, run_sql
from infra.local.scratch import ScratchServer

PAIRS = 400
WARM_UPS = 50
FEW = 1_000
MANY = 1_000_000
QUICK_MANY = 2_000
LEASE_SECONDS = 60
SEALED = "v1.k1.AAAA"
MILLIS = 1_000

# Ids from a number, so that the tables agree; spread over the index as random ones are.
USERS = """
create temporary table grown as
select n, md5('user' || n)::uuid as id, encode(sha256(convert_to('key' || n, 'UTF8')), 'hex') as key_hash
  from generate_series(1, {count}) as n;
set session_replication_role = replica;
insert into auth.users (id, aud, role, email, email_confirmed_at, created_at, updated_at)
select id, 'authenticated', 'authenticated', id || '@example.com', now(), now() - interval '2 days', now() from grown;
insert into public.profiles (id, email, openrouter_key_name, openrouter_key_limit, openrouter_provisioning_status)
select id, id || '@example.com', 'doorkey-bench-' || id || '-1', 5, 'active' from grown;
insert into public.openrouter_user_keys (key_hash, user_id, key_name, key_label, limit_micros, attempt)
select key_hash, id, 'doorkey-bench-' || id || '-1', 'sk-or-v1-abc...123', 5000000, 1 from grown;
insert into doorkey.sealed_secrets (key_hash, sealed_secret) select key_hash, 'v1.k1.' || repeat('A', 140) from grown;
insert into doorkey.provisioning (user_id, state, claimed, attempt, key_hash, ready_at)
select id, 'ready', 1, 1, key_hash, now() from grown;
insert into public.credit_transactions
  (user_id, type, amount_micros, spendable_micros, system_account, idempotency_key, reason, actor, request_id)
select id, 'bonus', 5000000, 5000000, 'granted', 'welcome:' || id, 'Welcome credits', 'provisioning', 'r'
  from grown order by n;
insert into public.credit_accounts (user_id, plan_id, available_micros, last_transaction_id)
select user_id, 'trial', 5000000, id from public.credit_transactions;
insert into doorkey.credit_lots (user_id, transaction_id, amount_micros, remaining_micros, priority, expires_at)
select user_id, id, amount_micros, amount_micros, 50, now() + interval '30 days' from public.credit_transactions;
insert into doorkey.audit_log (actor, action, user_id, request_id, detail)
select 'provisioning', 'key.created', id, 'r',
       jsonb_build_object('key_hash', key_hash, 'attempt', 1, 'limit_micros', 5000000, 'replaces', null) from grown;
insert into doorkey.key_requests (user_id, attempt, requested_at)
select id, 1, now() - interval '2 hours' from grown where n <= 10000;
set session_replication_role = origin;
"""


@dataclass(frozen=True)
class _Worker:
    """Does what a worker does, by two connections: one that is Auth, one that is the Data API."""

    auth: psycopg.AsyncConnection[dict[str, object]]
    service: psycopg.AsyncConnection[dict[str, object]]

    async def provision_ms(self) -> float:
        """One user's claim and finish; the insert before is not counted."""
        user_id = uuid.uuid4()
        await self.auth.execute(
            "insert into auth.users (id, email, email_confirmed_at) values (%s, %s, now())",
            (user_id, f"{user_id}@example.com"),
        )
        key_hash = hashlib.sha256(user_id.bytes).hexdigest()
        name = f"doorkey-bench-{user_id}-1"
        started = time.perf_counter()
        rows = await self.service.execute(
            "select * from public.claim_provisioning(%s, %s, 'bench')", (user_id, LEASE_SECONDS)
        )
        claim = await rows.fetchone()
        assert claim is not None  # noqa: S101  else the next line says it less clearly
        rows = await self.service.execute(
            "select public.finish_provisioning(%s, %s, %s, %s, 'sk-or-v1-abc...123', %s, %s, 'bench') as state",
            (user_id, claim["attempt"], key_hash, name, claim["limit_micros"], SEALED),
        )
        ended = await rows.fetchone()
        spent_ms = (time.perf_counter() - started) * MILLIS
        if ended is None or ended["state"] != "ready":
            raise RuntimeError("a user's provisioning did not end well")
        return spent_ms


async def measure(effort: Effort) -> Measured:
    """Fills two databases of one server, and provisions a new user in each, in turns."""
    many = effort.size(MANY, QUICK_MANY)
    async with durable_server() as server:
        await new_database(server, "few")
        await install_doorkey(server, "few")
        await new_database(server, "many", template="few")
        for name, count in (("few", FEW), ("many", many)):
            await run_sql(server.url(database=name), USERS.format(count=count))
            await run_sql(server.url(database=name), "vacuum analyze")
        await run_sql(server.url(), "checkpoint")
        few, large = await _worker(server, "few"), await _worker(server, "many")
        measured = await effort.pairs(
            effort.size(PAIRS, 2), large.provision_ms, few.provision_ms, effort.size(WARM_UPS, 1)
        )
        for worker in (few, large):
            await worker.auth.close()
            await worker.service.close()
    return measured


async def _worker(server: ScratchServer, database: str) -> _Worker:
    service = await _connect(server, "authenticator", database)
    await service.execute("set role service_role")
    return _Worker(await _connect(server, "supabase_auth_admin", database), service)


async def _connect(server: ScratchServer, role: str, database: str) -> psycopg.AsyncConnection[dict[str, object]]:
    return await psycopg.AsyncConnection.connect(server.url(role, database), autocommit=True, row_factory=dict_row)
