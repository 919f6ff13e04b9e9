"""What must hold of the money after every step, whatever was done; recomputed from entries, holds and lots.

Nothing here asks the code under test whether it is right: what a key may spend is worked out anew, with fractions.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import psycopg

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
         where h.user_id = a.user_id) as charges,
       (select coalesce(sum(h.cost_micros), 0) from doorkey.credit_holds as h where h.user_id = a.user_id) as costs,
       k.key_hash, k.limit_micros, k.charged_cost_micros, k.confirm_at,
       l.limit_micros as wanted_micros, l.is_uncapped as wants_no_cap
  from public.credit_accounts as a
  join public.plans as p on p.id = a.plan_id
  join doorkey.provisioning as w on w.user_id = a.user_id
  join public.openrouter_user_keys as k on k.key_hash = w.key_hash
 cross join lateral doorkey.key_limit(a.user_id, k.key_hash) as l
 where a.user_id = any(%(users)s)
"""


@dataclass
class Known:
    """What only the player knows of a user.

    Attributes:
        exact_micros: what their calls have cost them, to the last fraction.
        is_limit_stale: the plan changed, and OpenRouter has not confirmed a limit since.
        owed_unconfirmed_micros: what they came to owe by a taking since then; that is not `leaving`, it is a debt. And
            what calls were charged beyond what their key was.
    """

    exact_micros: Fraction = Fraction(0)
    is_limit_stale: bool = False
    owed_unconfirmed_micros: Fraction = Fraction(0)


def read_books(connection: Connection, users: Iterable[uuid.UUID]) -> dict[uuid.UUID, Row]:
    """All that is stored about these users' money, of one moment."""
    rows = connection.execute(_BOOKS, {"users": list(users)}).fetchall()
    return {row["user_id"]: row for row in rows}


def price_of(book: Row, cost_micros: Decimal, tokens: int | None) -> Fraction:
    """What a call costs this user, to the last fraction."""
    if book["charges_by"] == "tokens" and tokens is not None:
        return Fraction(tokens * book["token_price_micros_per_1k"], 1000)
    return Fraction(cost_micros) * Fraction(book["markup"])


def check_books(books: Mapping[uuid.UUID, Row], known: Mapping[uuid.UUID, Known]) -> None:
    """Compares everything with everything.

    Raises:
        RuleBroken: it does not fit.
    """
    for user_id, book in books.items():
        for rule, holds in rules(book, known[user_id]).items():
            if not holds:
                raise RuleBroken(rule, user_id, book | {"known": known[user_id]})


def rules(book: Row, known: Known) -> dict[str, bool]:
    """Every rule by its name, and whether it holds for this user."""
    sums: dict[str, int] = book["sums"]
    available, held, leaving = (sums.get(name, 0) for name in ("available", "held", "leaving"))
    debt, receivable = -sums.get("debt", 0), -sums.get("receivable", 0)
    spendable = available + held - debt - Fraction(book["remainder_micros"])
    markup = Fraction(book["markup"])
    return {
        "entries sum to zero": book["unbalanced"] == 0 and sum(sums.values()) == 0,
        "balances are the sums of their entries": (
            book["available_micros"],
            book["held_micros"],
            book["leaving_micros"],
            book["debt_micros"],
            book["receivable_micros"],
        )
        == (available, held, leaving, debt, receivable),
        "held is what open holds keep": held == book["open_holds"],
        "lots are what is available or held": book["lots"] == available + held,
        "leaving is what was taken and has not left": leaving == book["takings"],
        "nothing is negative": min(available, held, leaving, debt, receivable) >= 0,
        "who owes has nothing": debt == 0 or available == 0,
        "every cost is charged once": book["charges"] == sums.get("spent", 0)
        and book["charges"] + Fraction(book["remainder_micros"]) == known.exact_micros,
        "a key is charged what its calls cost": book["charged_cost_micros"] == book["costs"],
        "a limit is what was charged and what is left": _limit_follows(book, spendable, markup),
        "no key can spend what has left": _is_covered(book, known, spendable + leaving, markup),
    }


def _limit_follows(book: Row, spendable: Fraction, markup: Fraction) -> bool:
    if book["is_uncapped"]:
        return bool(book["wants_no_cap"])
    limit = math.floor(Fraction(book["charged_cost_micros"]) + spendable / markup)
    return (book["wants_no_cap"], book["wanted_micros"]) == (False, max(limit, 0))


def _is_covered(book: Row, known: Known, owned: Fraction, markup: Fraction) -> bool:
    """What OpenRouter would still let the key spend, in the user's money, is theirs; also while it is leaving."""
    if known.is_limit_stale or book["is_uncapped"]:
        return True
    if book["limit_micros"] is None:
        return False
    room = max(book["limit_micros"] - Fraction(book["charged_cost_micros"]), Fraction(0)) * markup
    return bool(room <= max(owned + known.owed_unconfirmed_micros, Fraction(0)))
