"""What can be asked of the ledger by name, so that asking again, and asking for something else, can be compared.

The surprising thing: what one has to answer to a repeat is known here, without asking the ledger what it remembers.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from tests.support.money_remote import RemoteKey
from tests.support.money_rules import Row


@dataclass(frozen=True)
class Ask:
    """One call of a door.

    Attributes:
        statement: with its arguments.
        parameters: those.
        name: of what must be answered alike each time; None: it may be answered otherwise.
        content: what else makes it the same request.
        otherwise: another content by the same name.
    """

    statement: str
    parameters: tuple[object, ...]
    name: tuple[object, ...] | None = None
    content: tuple[object, ...] = ()
    otherwise: Ask | None = None


Answer = Row | str


def posting(user_id: uuid.UUID, type_: str, amount: int, name: str, is_other: bool = False) -> Ask:
    """An operator gives or takes."""
    return Ask(
        "select * from public.post_credits(%s, %s, %s, %s, 'A reason', 'an operator', null, 'r')",
        (user_id, type_, amount, name),
        name=("post", type_, name),
        content=(user_id, amount),
        otherwise=None if is_other else posting(user_id, type_, amount * 2, name, is_other=True),
    )


def reserving(user_id: uuid.UUID, amount: int, name: str, is_other: bool = False) -> Ask:
    """Credits are held for a call."""
    return Ask(
        # Not when it ends: time is made to pass.
        "select hold_id, bound_key_hash, available_after_micros"
        " from public.reserve_credits(%s, %s, 600, %s, null, 'r')",
        (user_id, amount, name),
        name=("hold", user_id, name),
        content=(amount,),
        otherwise=None if is_other else reserving(user_id, amount * 2, name, is_other=True),
    )


def settling(hold_id: uuid.UUID, cost: Decimal, is_other: bool = False) -> Ask:
    """A call is charged. How many tokens it was has nothing to do with its cost, and isn't always known."""
    tokens = None if cost == cost.to_integral_value() else int(cost * 1000) % 4001
    return Ask(
        "select * from public.settle_credits(%s, %s, %s, 'a provider', 'a/model', 'gen-1', 'r')",
        (hold_id, cost, tokens),
        name=("settle", hold_id),
        content=(cost.normalize(),),
        otherwise=None if is_other else settling(hold_id, cost + 1, is_other=True),
    )


def changing_plan(user_id: uuid.UUID, plan: str, takes_effect: str, name: str, is_other: bool = False) -> Ask:
    """The user comes to another plan, now or when their period ends."""
    return Ask(
        "select * from public.change_plan(%s, %s, %s, %s, 'an operator', 'A reason', 'r')",
        (user_id, plan, takes_effect, name),
        name=("plan", user_id, name),
        content=(plan, takes_effect),
        otherwise=None if is_other else changing_plan(user_id, "no such plan", takes_effect, name, is_other=True),
    )


def syncing(round_number: int, keys: Sequence[tuple[str, RemoteKey]]) -> Ask:
    """The sweep hands over the whole list of keys."""
    return Ask(
        "select * from public.record_usage(%s, 0, null, null, false, %s::text[], %s::numeric[], %s::numeric[],"
        " %s::numeric[], %s::bigint[], %s::text[], now(), 'r')",
        (
            round_number,
            [name for name, _ in keys],
            [key.usage for _, key in keys],
            [0] * len(keys),
            [key.usage for _, key in keys],
            [key.limit for _, key in keys],
            [name for name, key in keys if not key.is_enabled],
        ),
    )
