"""What must hold of the money after every step, whatever was done; recomputed from entries, holds and lots.

Nothing here asks the code under test whether it is right: what a key may spend is worked out anew, with fractions.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

import psycopg

from tests.support.money_remote import Remote

Row = dict[str, Any]
Connection = psycopg.Connection[Row]


class RuleBroken(Exception):
    """The money does not add up."""

    def __init__(self, rule: str, user_id: uuid.UUID | None, detail: object) -> None:
        super().__init__(f"{rule}: {user_id}: {detail}")
        self.rule = rule


_BOOKS = """
with entries as (
  select t.user_id, e.account::text as account, sum(e.amount_micros) as micros
    from public.credit_transactions as t join doorkey.ledger_entries as e on e.transaction_id = t.id
   where t.user_id = any(%(users)s) group by t.user_id, e.account
)
select a.*, p.markup, p.charges_by, p.token_price_micros_per_1k, p.is_uncapped, w.state,
       coalesce((select jsonb_object_agg(e.account, e.micros) from entries as e
                  where e.user_id = a.user_id), '{}') as sums,
       (select count(*) from public.credit_transactions as t
         where t.user_id = a.user_id
           and (select coalesce(sum(e.amount_micros), 0) from doorkey.ledger_entries as e
                 where e.transaction_id = t.id) <> 0) as unbalanced,
       (select coalesce(sum(h.held_micros), 0)::bigint from doorkey.credit_holds as h
         where h.user_id = a.user_id and h.state = 'open') as open_holds,
       (select coalesce(sum(l.remaining_micros), 0)::bigint from doorkey.credit_lots as l
         where l.user_id = a.user_id) as lots,
       (select coalesce(sum(g.taken_micros), 0)::bigint from doorkey.credit_takings as g
         where g.user_id = a.user_id and g.left_transaction_id is null) as takings,
       (select coalesce(sum(h.charged_micros), 0)::bigint from doorkey.credit_holds as h
         where h.user_id = a.user_id)
       + (select coalesce(sum(c.charged_micros), 0)::bigint from doorkey.unheld_costs as c
            join public.openrouter_user_keys as k on k.key_hash = c.key_hash where k.user_id = a.user_id)
       - (select coalesce(sum(t.amount_micros), 0)::bigint from public.credit_transactions as t
           where t.user_id = a.user_id and starts_with(t.idempotency_key, 'unseen:returned:')) as charges
  from public.credit_accounts as a
  join public.plans as p on p.id = a.plan_id
  join doorkey.provisioning as w on w.user_id = a.user_id
 where a.user_id = any(%(users)s)
"""
# In flight is what holds may yet come to, by what was reserved, and for an hour after they expired.
_KEYS = """
select k.*, o.cost_micros, k.key_hash = w.key_hash as is_in_use,
       k.retires_at <= now() or w.rotation_grace_seconds is not null as is_over,
       coalesce(sum(h.held_micros) filter (where h.state = 'open'), 0)::bigint as held_micros,
       coalesce(sum(h.amount_micros) filter (where h.state = 'open'
         or (h.state = 'expired' and h.closed_at > now() - interval '1 hour')), 0)::bigint as in_flight_micros,
       coalesce(sum(h.cost_micros), 0) as receipts_micros,
       coalesce((select sum(c.cost_micros - c.returned_micros) from doorkey.unheld_costs as c
                  where c.key_hash = k.key_hash), 0) as unseen_micros,
       l.limit_micros as wanted_micros, l.is_uncapped as wants_no_cap
  from public.openrouter_user_keys as k
  join doorkey.key_costs as o on o.key_hash = k.key_hash
  join doorkey.provisioning as w on w.user_id = k.user_id
  left join doorkey.credit_holds as h on h.key_hash = k.key_hash
 cross join lateral doorkey.key_limit(k.user_id, k.key_hash) as l
 where k.user_id = any(%(users)s)
 group by k.key_hash, o.cost_micros, w.user_id, l.limit_micros, l.is_uncapped
 order by k.attempt
"""
# What figures in binary fractions of dollars may be off by, in micro-dollars.
TOLERANCE = Fraction(1, 1000)


@dataclass
class Known:
    """What only the player knows of a user.

    Attributes:
        exact_micros: what their calls have cost them, to the last fraction.
        is_limit_stale: the plan changed, and OpenRouter has not confirmed all limits since.
        owed_unconfirmed_micros: what they came to owe by a taking since then; that is not `leaving`, it is a debt. And
            what they were charged beyond what the limit of that key left for it.
        unseen: for each key, what was charged to it unseen and not given back: cost and markup, the latest last.
    """

    exact_micros: Fraction = Fraction(0)
    is_limit_stale: bool = False
    owed_unconfirmed_micros: Fraction = Fraction(0)
    unseen: dict[str, list[tuple[Fraction, Fraction]]] = field(default_factory=dict)


def read_books(connection: Connection, users: Iterable[uuid.UUID]) -> dict[uuid.UUID, Row]:
    """All that is stored about these users' money and keys, of one moment."""
    asked = {"users": list(users)}
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read")
        books = {row["user_id"]: row | {"keys": []} for row in connection.execute(_BOOKS, asked).fetchall()}
        for key in connection.execute(_KEYS, asked).fetchall():
            books[key["user_id"]]["keys"].append(key)
    return books


def price_of(book: Row, cost_micros: Decimal, tokens: int | None) -> Fraction:
    """What a call costs this user, to the last fraction."""
    if book["charges_by"] == "tokens" and tokens is not None:
        return Fraction(tokens * book["token_price_micros_per_1k"], 1000)
    return Fraction(cost_micros) * Fraction(book["markup"])


def check_books(books: Mapping[uuid.UUID, Row], remote: Remote, known: Mapping[uuid.UUID, Known]) -> None:
    """Compares everything with everything.

    Raises:
        RuleBroken: it does not fit.
    """
    for user_id, book in books.items():
        _check(rules(book, remote, known[user_id]), book | {"known": known[user_id], "remote": remote})


def check_sync(books: Mapping[uuid.UUID, Row], remote: Remote, before: Mapping[uuid.UUID, Row]) -> None:
    """Asked right after OpenRouter's figures were taken up: what it has beyond the receipts is charged, and no more.

    Raises:
        RuleBroken: it does not fit.
    """
    for user_id, book in books.items():
        unseen = {key["key_hash"]: key["unseen_micros"] for key in before[user_id]["keys"]}
        for key in book["keys"]:
            there = remote.keys[key["key_hash"]]
            expected = Fraction(key["in_flight_micros"]) / Fraction(book["markup"])
            more = Fraction(there.usage) - Fraction(key["cost_micros"])
            is_charged_now = key["unseen_micros"] > unseen[key["key_hash"]]
            found = {
                "only what nobody waits for is charged unseen": not is_charged_now or more >= expected - TOLERANCE,
                "what OpenRouter has is charged": there.is_deleted or more <= expected + TOLERANCE,
            }
            _check(found, {"user_id": user_id, "key": key, "remote": there})


def check_rest(books: Mapping[uuid.UUID, Row], remote: Remote) -> None:
    """Asked when all have done what there was to do, and OpenRouter was read twice, an hour apart.

    Raises:
        RuleBroken: something is left.
    """
    for user_id, book in books.items():
        detail = {"user_id": user_id, "book": book, "remote": remote}
        (key,) = (key for key in book["keys"] if key["is_in_use"])
        listed = dict(remote.listed([user_id]))
        _check({"the key in use is the only one at OpenRouter": list(listed) == [key["key_hash"]]}, detail)
        there = listed[key["key_hash"]]
        found = {
            "OpenRouter's key is as it was left": (there.limit, there.is_enabled) == (key["limit_micros"], True),
            "a limit that is too high is lowered": book["is_uncapped"]
            or (there.limit is not None and there.limit <= key["wanted_micros"]),
            "what is charged twice is given back": Fraction(key["cost_micros"]) <= Fraction(there.usage) + TOLERANCE,
        }
        _check(found, detail)


def _check(found: Mapping[str, bool], detail: Row) -> None:
    for name, holds in found.items():
        if not holds:
            raise RuleBroken(name, detail.get("user_id"), detail)


def rules(book: Row, remote: Remote, known: Known) -> dict[str, bool]:
    """Every rule by its name, and whether it holds for this user."""
    sums: dict[str, int] = book["sums"]
    held, leaving = book["open_holds"], sums.get("leaving", 0)
    available = sums.get("spendable", 0) - held
    debt, receivable = -sums.get("debt", 0), -sums.get("receivable", 0)
    spendable = available + held - debt - Fraction(book["remainder_micros"])
    return {
        "entries sum to zero": book["unbalanced"] == 0 and sum(sums.values()) == 0,
        "balances are the sums of their entries": (
            book["available_micros"] + book["held_micros"],
            book["leaving_micros"],
            book["debt_micros"],
            book["receivable_micros"],
        )
        == (sums.get("spendable", 0), leaving, debt, receivable),
        "held is what open holds keep": book["held_micros"] == held,
        "lots are what is available or held": book["lots"] == available + held,
        "leaving is what was taken and has not left": leaving == book["takings"],
        "nothing is negative": min(available, held, leaving, debt, receivable) >= 0,
        "who owes has nothing": debt == 0 or available == 0,
        "every cost is charged once": book["charges"] == sums.get("spent", 0)
        and book["charges"] + Fraction(book["remainder_micros"]) == known.exact_micros,
        "a key is charged what its calls cost": all(
            key["cost_micros"] == key["receipts_micros"] + key["unseen_micros"] for key in book["keys"]
        ),
        "a limit is what was charged and what is left": all(
            _limit_follows(book, key, spendable) for key in book["keys"] if key["status"] != "deleted"
        ),
        "no key can spend what has left": _is_covered(book, remote, known, spendable + leaving),
    }


def _limit_follows(book: Row, key: Row, spendable: Fraction) -> bool:
    """What a key may spend in its life, worked out anew: shares of two keys add up to what is spendable."""
    if book["is_uncapped"]:
        return bool(key["wants_no_cap"])
    markup = Fraction(book["markup"])
    if key["is_in_use"]:
        elsewhere = [_spends_elsewhere(other, markup) for other in book["keys"] if other is not key]
        share = None if None in elsewhere else spendable - sum(part for part in elsewhere if part is not None)
    else:
        share = Fraction(0 if key["is_over"] else key["held_micros"])
    limit = math.floor(Fraction(key["cost_micros"]) + (share or Fraction(0)) / markup)
    return (key["wants_no_cap"], key["wanted_micros"]) == (False, max(limit, 0))


def _spends_elsewhere(key: Row, markup: Fraction) -> Fraction | None:
    """What a key that was replaced may still spend, or has spent unheard, in the user's money; None: anything."""
    charged, held = Fraction(key["cost_micros"]), Fraction(key["held_micros"])
    unheard = max(Fraction(key["reported_usage_micros"]) - charged, Fraction(0)) * markup + held
    if key["status"] == "deleted":
        return unheard
    return None if key["limit_micros"] is None else max((Fraction(key["limit_micros"]) - charged) * markup, unheard)


def _is_covered(book: Row, remote: Remote, known: Known, owned: Fraction) -> bool:
    """What OpenRouter would still let the keys spend, in the user's money, is theirs; also while it is leaving."""
    if known.is_limit_stale or book["is_uncapped"]:
        return True
    room = Fraction(0)
    for key in book["keys"]:
        there = remote.keys[key["key_hash"]]
        if there.is_deleted:
            continue
        if there.limit is None:
            return False
        room += max(there.limit - Fraction(key["cost_micros"]), Fraction(0))
    return room * Fraction(book["markup"]) <= max(owned + known.owed_unconfirmed_micros, Fraction(0))
