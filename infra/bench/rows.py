"""The table's rows, as data: what is measured, beside which floor, and what it must keep to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from infra.bench import (
    balance,
    cold_start,
    drain,
    first_key,
    growth,
    holds,
    ledger,
    provisioning,
    renewal,
    signups,
    tokens,
    usage_sync,
)
from infra.bench.measuring import Effort, Goal, Measured


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: short; for ``--only``.
        ours: what of ours is measured.
        floor: what it is measured beside.
        goal: what the ratio must keep to.
        unit: of both numbers.
        measure: how.
    """

    name: str
    ours: str
    floor: str
    goal: Goal
    unit: str
    measure: Callable[[Effort], Awaitable[Measured]]


ROWS = (
    Row(
        "signups",
        "inserts into auth.users with our triggers: pgbench, 4 clients, fsync on",
        "the stock pattern: profile insert, whole row to net.http_post",
        Goal(0.85, is_most=False),
        "inserts/s",
        signups.measure,
    ),
    Row(
        "provisioning",
        "one warm provisioning through the webhook handler, latency 0",
        "a straight-line httpx script: the same two RPCs, one POST /keys",
        Goal(1.25),
        "ms",
        provisioning.measure,
    ),
    Row(
        "cold-start",
        "cold import and build of webhook and of sweep, the slower of the two",
        "import fastapi, mangum, httpx, jwt, supabase",
        Goal(0.6),
        "ms",
        cold_start.measure_plain_handlers,
    ),
    Row(
        "cold-start-api",
        "cold import and build of api",
        "import fastapi, mangum, httpx, jwt, supabase",
        Goal(1.1),
        "ms",
        cold_start.measure_api,
    ),
    Row(
        "drain",
        "2,000 users at once, OpenRouter at 50 requests/s with 20 % faults",
        "what that limit and those faults allow",
        Goal(0.9, is_most=False),
        "keys/s",
        drain.measure,
    ),
    Row(
        "first-key",
        "Auth's answer to status active, idle stack, OpenRouter's latency 300 ms",
        "300 ms",
        Goal(1.5, text="<= 450 ms"),
        "ms",
        first_key.measure,
    ),
    Row(
        "balance",
        "the balance through the api handler",
        "the bare RPC by httpx, with the same token",
        Goal(1.3),
        "ms",
        balance.measure,
    ),
    Row(
        "balance-own-door",
        "the balance through the api handler, the secret key rejected",
        "the bare RPC by httpx, with the same token",
        Goal(1.3),
        "ms",
        balance.measure_own_door,
    ),
    Row(
        "holds",
        "reserve and settle over 1,000 users: pgbench, 4 clients, fsync on",
        "pgbench's TPC-B-like script on the same server",
        Goal(0.5, is_most=False),
        "pairs/s",
        holds.measure,
    ),
    Row(
        "renewal",
        "renewal of 10,000 due users in one sweep, who spent nothing, fsync on",
        "one set-based UPDATE of as many rows",
        Goal(6),
        "ms",
        renewal.measure,
    ),
    Row(
        "renewal-touched",
        "renewal of 10,000 due users in one sweep, who all spent something, fsync on",
        "one set-based UPDATE of as many rows",
        Goal(6),
        "ms",
        renewal.measure_touched,
    ),
    Row(
        "usage-sync",
        "one page of the usage sync: 100 keys, 10 of them changed",
        "a straight-line httpx script: one GET /keys, the same RPC",
        Goal(1.3),
        "ms",
        usage_sync.measure,
    ),
    Row(
        "tokens",
        "verifying an access token, public keys cached",
        "PyJWT's bare decode",
        Goal(1.2),
        "µs",
        tokens.measure,
    ),
    Row(
        "growth",
        "claim and finish where a million users are",
        "claim and finish where a thousand users are",
        Goal(1.1),
        "ms",
        growth.measure,
    ),
    Row(
        "balance-growth",
        "the balance of a user with 5 million ledger entries",
        "the balance of a user with 10 thousand",
        Goal(1.1),
        "ms",
        ledger.measure_balance,
    ),
    Row(
        "transactions-depth",
        "page 1,000 of a user's transactions, of 50 each",
        "page 1",
        Goal(1.2),
        "ms",
        ledger.measure_pages,
    ),
)
