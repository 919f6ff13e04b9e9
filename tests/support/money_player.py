"""Whoever plays with credits: asks, and remembers what was answered.

The surprising thing: what was answered once must be answered again to the same content, and refused to another one.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine
from psycopg.rows import dict_row

from tests.support.money_asks import Answer, Ask, settling
from tests.support.money_remote import Remote
from tests.support.money_rules import Connection, Known, Row, RuleBroken, price_of, read_books

USERS = 2
AT_ONCE = 4
# What may be answered; anything else is a fault, a deadlock or a broken check above all.
REFUSALS = {
    "already_reversed",
    "idempotency_conflict",
    "insufficient_credits",
    "lease_lost",
    "no_period",
    "plan_unchanged",
    "transaction_not_reversible",
}
CONFLICT = "idempotency_conflict"

_names = itertools.count(1)
who = st.integers(0, USERS - 1)
which = st.integers(0, 5)
amounts = st.sampled_from([1, 7, 100, 333, 1000, 2500]) | st.integers(1, 3000)
costs = st.decimals(0, 2500, places=6, allow_nan=False) | st.sampled_from([Decimal(0), Decimal("0.3"), Decimal(1)])
coins = st.booleans()


def new_name() -> str:
    """Of something that is asked for once."""
    return f"play {next(_names)}"


class Player(RuleBasedStateMachine):
    """Some users, whose money is played with. A subclass names the database.

    Attributes:
        url: of the database, as superuser.
        broken: the rules that did not hold, of all plays.
        steps: how many were taken, of all plays.
    """

    url: str
    broken: list[str]
    steps: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.connection: Connection = psycopg.connect(self.url, autocommit=True, row_factory=dict_row)
        self.others = [psycopg.connect(self.url, autocommit=True, row_factory=dict_row) for _ in range(AT_ONCE)]
        self.users: list[uuid.UUID] = []
        self.known: dict[uuid.UUID, Known] = {}
        self.plans: dict[uuid.UUID, str] = {}
        # Holds, and through which key each one's call goes.
        self.holds: dict[uuid.UUID, str] = {}
        self.settled: set[uuid.UUID] = set()
        self.grants: list[int] = []
        self.claims: list[Row] = []
        self.remote = Remote()
        self.answers: dict[tuple[object, ...], tuple[tuple[object, ...], Answer]] = {}
        self.names: list[str] = []

    def teardown(self) -> None:
        # The next play's rounds of the sync need not miss these keys.
        self.connection.execute(
            "select doorkey.take_key_cost(user_id, key_hash) from doorkey.provisioning"
            " where user_id = any(%s) and key_hash is not null",
            (self.users,),
        )
        self.connection.execute(
            "update doorkey.provisioning set state = 'gone', key_hash = null, rotation_grace_seconds = null,"
            " lease_expires_at = null where user_id = any(%s)",
            (self.users,),
        )
        self.connection.execute(
            "update public.openrouter_user_keys set status = 'deleted', deleted_at = now()"
            " where user_id = any(%s) and status <> 'deleted'",
            (self.users,),
        )
        for connection in (self.connection, *self.others):
            connection.close()

    def ask(self, ask: Ask, connection: Connection | None = None) -> Answer:
        """The row that was answered, or the word of the refusal."""
        try:
            return (connection or self.connection).execute(ask.statement, ask.parameters).fetchone() or {}
        except psycopg.Error as error:
            word = error.diag.message_primary or ""
            if word not in REFUSALS:
                self.fail("no error but refusals", (error.sqlstate, word))
            return word

    def note(self, ask: Ask, answer: Answer) -> Answer:
        """Compares with what was answered to the same before."""
        if ask.name is None:
            return answer
        content, first = self.answers.get(ask.name, (ask.content, answer))
        if content == ask.content and answer != first:
            self.fail("a repeat is answered as the first was", (ask, first, answer))
        if content != ask.content and answer != CONFLICT:
            self.fail("a name is not used for other content", (ask, content, answer))
        if not isinstance(answer, str):
            self.answers.setdefault(ask.name, (ask.content, answer))
        return answer

    def do(self, ask: Ask) -> Answer:
        """Asks, asks again, and asks for something else by the same name: nothing more may happen."""
        answer = self.note(ask, self.ask(ask))
        if ask.name is not None and not isinstance(answer, str):
            self.note(ask, self.ask(ask))
        if ask.otherwise is not None and not isinstance(answer, str):
            self.note(ask.otherwise, self.ask(ask.otherwise))
        return answer

    def fail(self, rule_name: str, detail: object = None) -> None:
        """A rule that is about answers, and not about what is stored."""
        self.broken.append(rule_name)
        raise RuleBroken(rule_name, None, detail)

    def name(self, is_new: bool) -> str:
        """Of a posting: a new one, or one that was used before."""
        if is_new or not self.names:
            self.names.append(new_name())
        return self.names[-1]

    def took(self, user_id: uuid.UUID, answer: Answer) -> None:
        """Notes what a taking has come to."""
        if not isinstance(answer, str):
            self.known[user_id].owed_unconfirmed_micros += answer["owed_micros"]

    def latest(self, number: int) -> uuid.UUID:
        """One of the holds, the latest first."""
        return list(self.holds)[-1 - number % len(self.holds)]

    def settling(self, hold_id: uuid.UUID, cost: Decimal) -> Ask:
        """A call is charged; one that was billed, for what it was billed."""
        return settling(hold_id, self.remote.billed.get(hold_id, cost))

    def judge(self, check: Callable[..., None], *arguments: object) -> None:
        """Asks a rule how things are now."""
        try:
            check(read_books(self.connection, self.users), self.remote, *arguments)
        except RuleBroken as broken:
            self.broken.append(broken.rule)
            raise

    def take_up_charges(self, books: Mapping[uuid.UUID, Row]) -> None:
        """Notes what was charged or given back in this step, at the price of now: plans change in other steps."""
        settled = self.connection.execute(
            "select id, user_id, key_hash, cost_micros, tokens from doorkey.credit_holds"
            " where id = any(%s) and state = 'settled'",
            (list(self.holds),),
        )
        for hold in settled:
            if hold["id"] not in self.settled:
                self.settled.add(hold["id"])
                self.remote.bill(hold["id"], hold["key_hash"], hold["cost_micros"])
                price = price_of(books[hold["user_id"]], hold["cost_micros"], hold["tokens"])
                self._charged(books[hold["user_id"]], hold["key_hash"], Fraction(hold["cost_micros"]), price)
        for book in books.values():
            markup = Fraction(book["markup"])
            for key in book["keys"]:
                unseen = self.known[book["user_id"]].unseen.setdefault(key["key_hash"], [])
                moved = Fraction(key["unseen_micros"]) - sum(cost for cost, _ in unseen)
                if moved > 0:
                    unseen.append((moved, markup))
                    self._charged(book, key["key_hash"], moved, moved * markup)
                elif moved < 0:
                    self._given_back(book, unseen, -moved)

    def _charged(self, book: Row, key_hash: str, cost: Fraction, price: Fraction) -> None:
        known, there = self.known[book["user_id"]], self.remote.keys[key_hash]
        (charged,) = (key["cost_micros"] for key in book["keys"] if key["key_hash"] == key_hash)
        limit = Fraction(0 if there.is_deleted else there.limit or 0)
        left = max(limit - (Fraction(charged) - cost), Fraction(0))
        known.exact_micros += price
        known.owed_unconfirmed_micros += max(price - min(cost, left) * Fraction(book["markup"]), Fraction(0))

    def _given_back(self, book: Row, unseen: list[tuple[Fraction, Fraction]], cost: Fraction) -> None:
        """The latest first, at the price at which it was charged."""
        while cost > 0:
            had, markup = unseen.pop()
            part = min(had, cost)
            self.known[book["user_id"]].exact_micros -= part * markup
            cost -= part
            if had > part:
                unseen.append((had - part, markup))
