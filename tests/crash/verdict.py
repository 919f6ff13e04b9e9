"""What must be true at the end, whatever happened: read from the database and from OpenRouter, and compared.

Nothing here asks the code under test: the sums, the limits and the switches are worked out again from what is stored.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal
from functools import cached_property
from typing import Any
from uuid import UUID

import httpx
import psycopg
from psycopg.rows import dict_row

from functions.kit.sealing import SealBroken, Sealer
from tests.crash.plan import Script

PAGE_KEYS = 100
MAX_PAGES = 1_000
MICROS = 1_000_000
# A hopeless row may also die of a worker that was killed at its last attempt.
HOPELESS_ERRORS = ("openrouter_refused", "lease_expired")
PROFILE_STATUS = {("ready", "active"): "active", ("ready", "disabled"): "disabled", ("dead", None): "failed"}

Row = dict[str, Any]
Found = Iterator[tuple[str, UUID | str, str]]

_USERS = """
select u.id, u.deleted_at is null as is_present, coalesce(u.banned_until > now(), false) as is_banned, u.email,
       f.openrouter_provisioning_status as shown, f.id is not null as has_profile, f.email as shown_email
  from auth.users as u left join public.profiles as f on f.id = u.id
"""
_ROWS = "select user_id, state::text, attempt, failures, key_hash, last_error from doorkey.provisioning"
_KEYS = """
select k.*, c.cost_micros, s.sealed_secret
  from public.openrouter_user_keys as k join doorkey.key_costs as c on c.key_hash = k.key_hash
  left join doorkey.sealed_secrets as s on s.key_hash = k.key_hash
"""
_ACCOUNTS = """
select a.*, p.markup, p.is_uncapped,
       coalesce((select jsonb_object_agg(account, amount) from (
         select e.account, sum(e.amount_micros) as amount from doorkey.ledger_entries as e
           join public.credit_transactions as t on t.id = e.transaction_id
          where t.user_id = a.user_id group by e.account) as sums), '{}') as entries,
       (select count(*) from public.credit_transactions as t
         where t.user_id = a.user_id and t.reason = 'Welcome credits') as welcomes
  from public.credit_accounts as a join public.plans as p on p.id = a.plan_id
"""
_UNBALANCED = """
select t.user_id, t.id from public.credit_transactions as t
  left join doorkey.ledger_entries as e on e.transaction_id = t.id
 group by t.id having coalesce(sum(e.amount_micros), 0) <> 0 or count(e.account) = 1
"""
_RECORDED_TWICE = """
select user_id, action, detail ->> 'attempt' as attempt from doorkey.audit_log
 where action in ('key.created', 'key.updated', 'key.deleted', 'attempt.failed')
 group by 1, 2, 3 having count(*) > 1
"""
_HOLDS = "select * from doorkey.credit_holds"
_CHARGES = (
    "select user_id, -sum(amount_micros) as micros from public.credit_transactions where type = 'usage' group by 1"
)
_NOTED = "select invariant, user_id, detail from crash.noted"


@dataclass(frozen=True)
class World:
    """What is stored on both sides."""

    users: dict[UUID, Row]
    rows: dict[UUID, Row]
    keys: list[Row]
    accounts: dict[UUID, Row]
    unbalanced: list[Row]
    recorded_twice: list[Row]
    noted: list[Row]
    holds: list[Row]
    charges: dict[UUID, Row]
    at_openrouter: dict[str, Row]

    @cached_property
    def keys_of(self) -> dict[UUID, list[Row]]:
        """All keys that the database ever held, by user."""
        found: dict[UUID, list[Row]] = defaultdict(list)
        for key in self.keys:
            found[key["user_id"]].append(key)
        return found

    @cached_property
    def held_micros(self) -> dict[UUID, int]:
        """What open holds keep, by user."""
        found: dict[UUID, int] = defaultdict(int)
        for hold in self.holds:
            found[hold["user_id"]] += hold["held_micros"] if hold["state"] == "open" else 0
        return found


async def look(database: psycopg.AsyncConnection[Any], openrouter_url: str, management_key: str) -> World:
    """Reads it all."""

    async def rows(statement: str) -> list[Row]:
        async with database.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(statement)
            return await cursor.fetchall()

    return World(
        users={row["id"]: row for row in await rows(_USERS)},
        rows={row["user_id"]: row for row in await rows(_ROWS)},
        keys=await rows(_KEYS),
        accounts={row["user_id"]: row for row in await rows(_ACCOUNTS)},
        unbalanced=await rows(_UNBALANCED),
        recorded_twice=await rows(_RECORDED_TWICE),
        noted=await rows(_NOTED),
        holds=await rows(_HOLDS),
        charges={row["user_id"]: row for row in await rows(_CHARGES)},
        at_openrouter=await _list_keys(openrouter_url, management_key),
    )


async def _list_keys(url: str, management_key: str) -> dict[str, Row]:
    found: dict[str, Row] = {}
    async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
        for page in range(MAX_PAGES):
            answer = await client.get(
                f"{url}/keys",
                params={"offset": page * PAGE_KEYS, "include_disabled": "true", "include_expired": "true"},
                headers={"Authorization": f"Bearer {management_key}"},
            )
            keys = answer.raise_for_status().json()["data"]
            found |= {key["hash"]: key for key in keys}
            if len(keys) < PAGE_KEYS:
                break
    return found


def judge_deletions(world: World) -> Found:
    """To be asked before strays are collected, which would hide it."""
    for key in world.keys:
        if key["status"] == "deleted" and key["key_hash"] in world.at_openrouter:
            yield "deleted is deleted", key["user_id"], "the database says that the key is deleted, and it isn't"


def judge(scripts: Iterable[Script], world: World, sealer: Sealer) -> Found:
    """Every violated invariant, with whom it is about and what is wrong."""
    for row in world.noted:
        yield row["invariant"], row["user_id"], row["detail"]
    for row in world.unbalanced:
        yield "entries sum to zero", row["user_id"], f"transaction {row['id']}"
    for row in world.recorded_twice:
        yield "an attempt records once", row["user_id"], f"{row['action']} of attempt {row['attempt']}"
    live: dict[UUID, list[Row]] = defaultdict(list)
    for key in world.keys:
        if not key["key_name"].endswith(f"-{key['attempt']}"):
            detail = f"{key['key_name']} is recorded as of attempt {key['attempt']}"
            yield "a key is its own attempt's", key["user_id"], detail
        if key["status"] != "deleted":
            live[key["user_id"]].append(key)
    for script in scripts:
        yield from _judge_row(script.user_id, world, is_hopeless=script.is_hopeless)
        yield from _judge_keys(script.user_id, world, live[script.user_id], sealer)
        yield from _judge_money(script.user_id, world)
        if not script.is_missed:
            yield from _judge_profile(script.user_id, world, live[script.user_id])
    known = {key["key_hash"] for keys in live.values() for key in keys}
    for key_hash, key in world.at_openrouter.items():
        if key_hash not in known:
            yield "no strays", key["name"], "nobody knows this key"


def _judge_row(user_id: UUID, world: World, *, is_hopeless: bool) -> Found:
    user, row = world.users.get(user_id), world.rows.get(user_id)
    is_present = user is not None and user["is_present"]
    if row is None:
        # Gone before anybody saw them: no trigger fired, and no sweep came by.
        if is_present:
            yield "everything is done", user_id, "never enrolled"
        return
    state = row["state"]
    if state == "dead":
        if not (is_hopeless and row["last_error"] in HOPELESS_ERRORS):
            yield "dead only with reason", user_id, f"dead of {row['last_error']} after {row['failures']} failures"
    elif is_present:
        waits_for_the_ban = user is not None and user["is_banned"] and state == "due" and row["key_hash"] is None
        if state != "ready" and not waits_for_the_ban:
            yield "everything is done", user_id, f"still {state} after attempt {row['attempt']} ({row['last_error']})"
    elif state != "gone":
        yield "everything is done", user_id, f"the user is gone, and the row is {state}"


def _judge_keys(user_id: UUID, world: World, live: list[Row], sealer: Sealer) -> Found:
    user, row, account = world.users.get(user_id), world.rows.get(user_id), world.accounts.get(user_id)
    is_present = user is not None and user["is_present"]
    if not is_present and live:
        yield "the gone have no key", user_id, "the database holds a live key"
    if is_present and row is not None and row["state"] == "ready" and len(live) != 1:
        yield "one live key each", user_id, f"{len(live)} in the database"
    for key in live:
        there = world.at_openrouter.get(key["key_hash"])
        if row is None or row["key_hash"] != key["key_hash"]:
            yield "one live key each", user_id, "a live key that is not the row's"
        if there is None:
            yield "one live key each", user_id, f"the key of attempt {key['attempt']} is not at OpenRouter"
            continue
        try:
            secret = sealer.open(key["sealed_secret"] or "", user_id=user_id, key_hash=key["key_hash"])
            is_its_own = hashlib.sha256(secret.encode()).hexdigest() == key["key_hash"]
        except SealBroken:
            is_its_own = False
        if not is_its_own:
            yield "the secret opens", user_id, "it does not, or is another key's"
        if row is None or row["state"] != "ready" or user is None or account is None:
            continue
        said = (_micros(there["limit"]), there["disabled"])
        wanted = (_allowed_micros(account, key), user["is_banned"])
        stored = (key["limit_micros"], key["status"] == "disabled")
        if not said == wanted == stored:
            detail = f"(limit, off) is {said} at OpenRouter, {stored} in the database, and should be {wanted}"
            yield "limited and switched as said", user_id, detail


def _judge_money(user_id: UUID, world: World) -> Found:
    account, row = world.accounts.get(user_id), world.rows.get(user_id)
    if account is None:
        if row is not None and row["state"] == "ready":
            yield "one welcome each", user_id, "a key without an account"
        return
    if account["welcomes"] != 1:
        yield "one welcome each", user_id, f"{account['welcomes']} welcome grants"
    sums = account["entries"]
    held = world.held_micros[user_id]
    if account["held_micros"] != held:
        yield "balances are sums", user_id, "held is not what open holds keep"
    if account["available_micros"] != int(sums.get("spendable", 0)) - held:
        yield "balances are sums", user_id, "available is not the sum of its entries"
    for name, sign in (("leaving", 1), ("debt", -1), ("receivable", -1)):
        if account[f"{name}_micros"] != sign * int(sums.get(name, 0)):
            yield "balances are sums", user_id, f"{name} is not the sum of its entries"


def _judge_profile(user_id: UUID, world: World, live: list[Row]) -> Found:
    user, row = world.users.get(user_id), world.rows.get(user_id)
    if user is None or row is None:
        return
    if user["shown_email"] != user["email"]:
        yield "the profile says so", user_id, "another address"
    status = PROFILE_STATUS.get((row["state"], live[0]["status"] if live else None))
    if status is not None and user["shown"] != status:
        yield "the profile says so", user_id, f"it says {user['shown']}, and the key is {status}"


def _allowed_micros(account: Row, key: Row) -> int | None:
    if account["is_uncapped"]:
        return None
    sums = account["entries"]
    spendable = sum(int(sums.get(name, 0)) for name in ("spendable", "debt")) - account["remainder_micros"]
    share = key["cost_micros"] * account["markup"] + spendable
    return int((max(share, Decimal(0)) / account["markup"]).to_integral_value(ROUND_DOWN))


def _micros(dollars: float | None) -> int | None:
    return None if dollars is None else round(Decimal(repr(dollars)) * MICROS)
