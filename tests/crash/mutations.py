"""Small, named breaks of the code. Each must make a run fail, by the invariant that it is there for.

A mutation in SQL replaces a piece of a function's text that must be there; one in Python replaces a function in the
processes that run it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from functions.clients.access import AccessLadder
from functions.clients.supabase import DatabaseRefused, Rpc, SupabaseAnswerLost
from functions.provisioning import store, sweeping
from functions.provisioning.states import ProvisioningState
from functions.provisioning.steps import Asked, Provisioner


class MutationMisses(Exception):
    """The text to be broken is not there any more: mend the mutation."""


@dataclass(frozen=True)
class InSql:
    """A function's text, and what becomes of a piece of it."""

    function: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    """One break.

    Attributes:
        name: what is broken.
        caught_by: invariants of the verdict, at least one of which must be violated.
        in_sql: the pieces that are replaced.
        in_python: breaks the code of the process that calls it.
    """

    name: str
    caught_by: tuple[str, ...]
    in_sql: tuple[InSql, ...] = ()
    in_python: Callable[[], None] | None = None


def _delete_on_time_out() -> None:
    finish = Provisioner._finish

    async def impatient(self: Provisioner, ask: Callable[[], Awaitable[ProvisioningState]], line: Any) -> Any:
        try:
            return await finish(self, ask, line)
        except SupabaseAnswerLost:
            raise DatabaseRefused(store.LEASE_LOST, 409) from None

    Provisioner._finish = impatient  # type: ignore[method-assign]


def _forget_the_key() -> None:
    async def forget(self: Provisioner, claim: store.Claim, asked: Asked, line: Any) -> ProvisioningState:
        return await self._finish(
            lambda: store.finish_key_deletion(self.database, claim, request_id=asked.request_id), line
        )

    Provisioner._delete_key = forget  # type: ignore[method-assign]


def _collect_nothing() -> None:
    async def nothing(*_: object) -> None:
        return None

    sweeping._collect = nothing  # type: ignore[assignment]


def _collect_the_young() -> None:
    collect = sweeping._collect

    async def any_age(provisioner: Provisioner, settings: sweeping.SweepSettings, *more: Any) -> None:
        await collect(provisioner, replace(settings, stray_age_seconds=-3600), *more)

    sweeping._collect = any_age  # type: ignore[assignment]


def _no_own_doors() -> None:
    call = AccessLadder.call

    async def with_the_service_key_alone(self: AccessLadder, rpc: Rpc, arguments: Any, caller: Any, ask: Any) -> Any:
        return await call(self, rpc, arguments, caller if rpc.role == "authenticated" else None, ask)

    AccessLadder.call = with_the_service_key_alone  # type: ignore[method-assign]


MUTATIONS = (
    Mutation(
        "finish without the attempt check",
        ("only the current attempt records",),
        (InSql("doorkey.hold_lease", " or v_row.attempt is distinct from p_attempt", ""),),
    ),
    Mutation(
        "grant without the idempotency key",
        ("one welcome each",),
        (InSql("doorkey.welcome", "'welcome:' || p_user_id", "'welcome:' || p_user_id || clock_timestamp()"),),
    ),
    Mutation("a key is deleted on a time-out", ("one live key each",), in_python=_delete_on_time_out),
    Mutation(
        # And what is still needed, which says nearly the same.
        "`wanted` is ignored",
        ("ready only as wanted",),
        (InSql("doorkey.settle_attempt", "p.wanted <> p.claimed or n.is_needed", "false"),),
    ),
    Mutation(
        "a claim takes rows that are worked on",
        ("a lease keeps others out",),
        (
            InSql(
                "doorkey.claim_provisioning",
                "p.state = 'working' and p.lease_expires_at <= now()",
                "p.state = 'working'",
            ),
        ),
    ),
    Mutation(
        "a lease is never taken over",
        ("everything is done",),
        (InSql("doorkey.claim_provisioning", "p.state = 'working' and p.lease_expires_at <= now()", "false"),),
    ),
    Mutation("a deletion forgets the key", ("deleted is deleted",), in_python=_forget_the_key),
    Mutation("strays are not collected", ("no strays",), in_python=_collect_nothing),
    Mutation(
        "known keys count as strays",
        ("one live key each",),
        (
            InSql(
                "doorkey.classify_keys", "case when k.key_hash is not null then 'known'", "case when false then 'known'"
            ),
        ),
    ),
    Mutation("young keys count as strays", ("one live key each",), in_python=_collect_the_young),
    Mutation(
        "finishing again is refused",
        ("one live key each",),
        (
            InSql(
                "doorkey.finish_provisioning",
                "k.attempt = p_attempt and k.status <> 'deleted'",
                "k.attempt = p_attempt and false",
            ),
        ),
    ),
    Mutation(
        "a ban is ignored",
        ("limited and switched as said",),
        (InSql("doorkey.desired_key", "u.banned_until is null or u.banned_until <= now(),", "true,"),),
    ),
    Mutation(
        "half the ledger counts",
        ("limited and switched as said",),
        (InSql("doorkey.key_limit", "least(a.available_micros + a.held", "least(a.available_micros / 2 + a.held"),),
    ),
    Mutation("nobody goes on to their own door", ("people are served meanwhile",), in_python=_no_own_doors),
    Mutation(
        "own finish without the attempt check",
        ("a key is its own attempt's",),
        (
            InSql(
                "doorkey.finish_my_provisioning",
                "    p_attempt, p_key_hash,",
                "    (select p.attempt from doorkey.provisioning as p where p.user_id = auth.uid()), p_key_hash,",
            ),
        ),
    ),
    Mutation(
        # Both: the ledger would refuse the second one by its key.
        "settling again charges again",
        ("a call is charged once",),
        (
            InSql("doorkey.settle_hold", "v_hold.state = 'settled'", "false"),
            InSql(
                "doorkey.post_charge",
                "end, p_idempotency_key,",
                "end, p_idempotency_key || clock_timestamp(),",
            ),
        ),
    ),
)
BY_NAME = {mutation.name: mutation for mutation in MUTATIONS}


def apply_in_python(name: str | None) -> None:
    """Breaks this process's code, if the mutation is one of code."""
    if name is not None and (break_it := BY_NAME[name].in_python) is not None:
        break_it()


async def apply_in_sql(name: str | None, database: psycopg.AsyncConnection[Any]) -> None:
    """Breaks the database's functions, if the mutation is one of SQL.

    Raises:
        MutationMisses: the text isn't there.
    """
    for change in BY_NAME[name].in_sql if name is not None else ():
        cursor = database.cursor(row_factory=tuple_row)
        await cursor.execute("select pg_get_functiondef(%s::regproc)", (change.function,))
        row = await cursor.fetchone()
        text = str(row[0]) if row else ""
        if text.count(change.old) != 1:
            raise MutationMisses(f"{change.function} does not hold once: {change.old}")
        await database.execute(text.replace(change.old, change.new))
