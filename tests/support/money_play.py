"""Anything that can happen to credits, in any order: the rules are asked after every step (money_rules.py).

Hypothesis chooses what happens. The surprising thing: several things at once, and a caller who dies in the middle, are
steps too. What was answered once is remembered: asked again with the same content it must be answered again, and with
other content refused.
"""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from psycopg.rows import dict_row

from tests.support.money_asks import Answer, Ask, changing_plan, posting, reserving, settling
from tests.support.money_rules import Connection, Known, Row, RuleBroken, check_books, price_of, read_books

USERS = 2
AT_ONCE = 4
WELCOME_MICROS = 1000
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
PLANS = ("trial", "single", "double", "whole")

_names = itertools.count(1)
who = st.integers(0, USERS - 1)
which = st.integers(0, 5)
amounts = st.sampled_from([1, 7, 100, 333, 1000, 2500]) | st.integers(1, 3000)
costs = st.decimals(0, 2500, places=6, allow_nan=False) | st.sampled_from([Decimal(0), Decimal("0.3"), Decimal(1)])
coins = st.booleans()


class Play(RuleBasedStateMachine):
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
        self.users: list[uuid.UUID] = []
        self.known: dict[uuid.UUID, Known] = {}
        self.plans: dict[uuid.UUID, str] = {}
        self.holds: list[uuid.UUID] = []
        self.settled: set[uuid.UUID] = set()
        self.grants: list[int] = []
        self.claims: list[Row] = []
        self.answers: dict[tuple[object, ...], tuple[tuple[object, ...], Answer]] = {}
        self.names: list[str] = []
        self.others = [psycopg.connect(self.url, autocommit=True, row_factory=dict_row) for _ in range(AT_ONCE)]

    def teardown(self) -> None:
        for connection in (self.connection, *self.others):
            connection.close()

    # -- asking -------------------------------------------------------------------------------------------------------

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
            self.names.append(f"play {next(_names)}")
        return self.names[-1]

    def took(self, user_id: uuid.UUID, answer: Answer) -> None:
        """Notes what a taking has come to."""
        if not isinstance(answer, str):
            self.known[user_id].owed_unconfirmed_micros += answer["owed_micros"]

    # -- steps --------------------------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        """New people, each with a key."""
        for _ in range(USERS):
            user_id = uuid.uuid4()
            self.connection.execute(
                "insert into auth.users (id, email, email_confirmed_at) values (%s, %s, now())",
                (user_id, f"{user_id}@example.com"),
            )
            self.users.append(user_id)
            self.known[user_id] = Known()
            self.work(len(self.users) - 1)

    @rule(user=who, type_=st.sampled_from(["purchase", "bonus", "refund", "adjustment"]), amount=amounts, new=coins)
    def give(self, user: int, type_: str, amount: int, new: bool) -> None:
        answer = self.do(posting(self.users[user], type_, amount, self.name(new)))
        if not isinstance(answer, str):
            self.grants.append(answer["transaction_id"])

    @rule(user=who, type_=st.sampled_from(["bonus", "refund", "adjustment"]), amount=amounts, new=coins)
    def take(self, user: int, type_: str, amount: int, new: bool) -> None:
        ask = posting(self.users[user], type_, -amount, self.name(new))
        is_repeat = ask.name in self.answers
        answer = self.do(ask)
        if not is_repeat:
            self.took(self.users[user], answer)

    @rule(grant=which, new=coins)
    def reverse(self, grant: int, new: bool) -> None:
        if not self.grants:
            return
        transaction_id = self.grants[-1 - grant % len(self.grants)]
        owner = self.connection.execute(
            "select user_id from public.credit_transactions where id = %s", (transaction_id,)
        ).fetchone()
        assert owner is not None
        name = self.name(new)
        known = ("post", "adjustment", name) in self.answers
        ask = Ask(
            "select reversing_id as transaction_id, available_after_micros, owed_micros"
            " from public.reverse_transaction(%s, %s, 'A reason', 'an operator', 'r')",
            (transaction_id, name),
            name=("post", "adjustment", name),
            content=("reverses", transaction_id),
        )
        answer = self.ask(ask)
        if answer in ("already_reversed", "transaction_not_reversible"):
            return
        self.note(ask, answer)
        if not known:
            self.took(owner["user_id"], answer)

    @rule(user=who, amount=amounts, new=coins)
    def reserve(self, user: int, amount: int, new: bool) -> None:
        answer = self.do(reserving(self.users[user], amount, self.name(new)))
        if not isinstance(answer, str) and answer["hold_id"] not in self.holds:
            self.holds.append(answer["hold_id"])

    @rule(hold=which, cost=costs)
    def settle(self, hold: int, cost: Decimal) -> None:
        if self.holds:
            self.do(settling(self.holds[-1 - hold % len(self.holds)], cost))

    @rule(hold=which)
    def release(self, hold: int) -> None:
        if self.holds:
            hold_id = self.holds[-1 - hold % len(self.holds)]
            self.do(Ask("select public.release_credits(%s, 'r') as state", (hold_id,)))

    @rule(hold=which)
    def expire_hold(self, hold: int) -> None:
        if self.holds:
            self.connection.execute(
                "update doorkey.credit_holds set created_at = created_at - interval '2 days',"
                " expires_at = expires_at - interval '2 days' where id = %s",
                (self.holds[-1 - hold % len(self.holds)],),
            )
        self.do(Ask("select public.expire_holds(100, 'r') as expired", ()))

    @rule(user=who)
    def expire_lot(self, user: int) -> None:
        """The time of the user's first lot is over, and a sweep comes by."""
        self.connection.execute(
            "update doorkey.credit_lots set expires_at = now() - interval '1 s' where id = ("
            " select min(id) from doorkey.credit_lots"
            " where user_id = %s and remaining_micros > 0 and not is_allowance)",
            (self.users[user],),
        )
        self.do(Ask("select public.expire_lots(100, 'r') as expired", ()))

    @rule(user=who, days=st.sampled_from([3, 31, 95]))
    def pass_days(self, user: int, days: int) -> None:
        """Time passes for the user's period, and a sweep comes by."""
        for statement in (
            "update doorkey.credit_lots set expires_at = expires_at - make_interval(days => %s)"
            " where user_id = %s and is_allowance",
            "update public.credit_accounts set period_started_at = period_started_at - make_interval(days => %s),"
            " period_ends_at = period_ends_at - make_interval(days => %s) where user_id = %s",
        ):
            self.connection.execute(statement, (*[days] * (statement.count("%s") - 1), self.users[user]))
        self.do(Ask("select public.renew_periods(100, 'r') as renewed", ()))
        self.do(Ask("select public.expire_lots(100, 'r') as expired", ()))

    @rule(user=who, plan=st.sampled_from(PLANS), takes_effect=st.sampled_from(["now", "now", "period_end"]))
    def change_plan(self, user: int, plan: str, takes_effect: str) -> None:
        self.do(changing_plan(self.users[user], plan, takes_effect, f"play {next(_names)}"))

    @rule(user=who)
    def work(self, user: int) -> None:
        """Provisioning does what is due."""
        claim = self._claim(self.users[user])
        if claim is not None:
            self._finish(claim)

    @rule(user=who)
    def claim(self, user: int) -> None:
        """A worker begins, and what it has been told may be out of date when it is done."""
        claim = self._claim(self.users[user])
        if claim is not None:
            self.claims.append(claim)

    @rule(first=coins)
    def finish(self, first: bool) -> None:
        if self.claims:
            self._finish(self.claims.pop(0 if first else -1))

    @rule(user=who, given=amounts, taken=amounts)
    def take_meanwhile(self, user: int, given: int, taken: int) -> None:
        """Credits are given, and taken while a worker raises the limit."""
        user_id = self.users[user]
        self.do(posting(user_id, "bonus", given, f"play {next(_names)}"))
        claim = self._claim(user_id)
        self.took(user_id, self.do(posting(user_id, "refund", -taken, f"play {next(_names)}")))
        if claim is not None:
            self._finish(claim)

    @rule(user=who)
    def take_over(self, user: int) -> None:
        """A worker is too slow for its lease; what it does is heard of, and set right, later."""
        self.connection.execute(
            "update doorkey.provisioning set lease_expires_at = now() - interval '1 s'"
            " where user_id = %s and state = 'working'",
            (self.users[user],),
        )

    @rule(user=who)
    def wait(self, user: int) -> None:
        """So long that whoever was taken over has died, and what they may have done is set right."""
        self.connection.execute(
            "update public.openrouter_user_keys set confirm_at = now() where user_id = %s and confirm_at is not null",
            (self.users[user],),
        )
        self.connection.execute(
            "update doorkey.provisioning set revisit_at = now() where user_id = %s and state = 'ready'",
            (self.users[user],),
        )
        self.work(user)

    @rule(user=who, amount=amounts, cost=costs, what=which)
    def die(self, user: int, amount: int, cost: Decimal, what: int) -> None:
        """A caller dies in the middle: before the commit nothing has happened."""
        asks = [
            posting(self.users[user], "bonus", amount, f"play {next(_names)}"),
            posting(self.users[user], "refund", -amount, f"play {next(_names)}"),
            reserving(self.users[user], amount, f"play {next(_names)}"),
            *(settling(hold_id, cost) for hold_id in self.holds[-1:]),
        ]
        with psycopg.connect(self.url, row_factory=dict_row) as connection:
            self.ask(asks[what % len(asks)], connection)
            self.connection.execute("select pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
            connection.close()

    @rule(user=who, amounts_=st.lists(amounts, min_size=AT_ONCE, max_size=AT_ONCE), cost=costs, other=costs)
    def at_once(self, user: int, amounts_: Sequence[int], cost: Decimal, other: Decimal) -> None:
        """Several at once to one user; some of them twice."""
        user_id = self.users[user]
        name = f"play {next(_names)}"
        taking = posting(user_id, "refund", -amounts_[0], name)
        asks = [
            posting(user_id, "bonus", amounts_[1], name),
            posting(user_id, "bonus", amounts_[1], name),
            taking,
            reserving(user_id, amounts_[2], name),
            reserving(user_id, amounts_[2], name),
            Ask("select public.expire_holds(100, 'r') as expired", ()),
            *(settling(hold_id, cost) for hold_id in self.holds[-2:]),
            *(settling(hold_id, other) for hold_id in self.holds[-1:]),
        ]
        answers = self._all_at_once(asks)
        self.took(user_id, answers[2])
        for ask, answer in zip(asks, answers, strict=True):
            # Of two that want something else, one came first.
            if answer != CONFLICT:
                self.note(ask, answer)
            if isinstance(answer, Mapping) and "hold_id" in answer and answer["hold_id"] not in self.holds:
                self.holds.append(answer["hold_id"])
        for ask in asks:
            if ask.name is not None and ask.name in self.answers:
                self.note(ask, self.ask(ask))

    @invariant()
    def everything_adds_up(self) -> None:
        if not self.users:
            return
        self.steps.append("step")
        books = read_books(self.connection, self.users)
        for user_id, book in books.items():
            if book["plan_id"] != self.plans.setdefault(user_id, book["plan_id"]):
                self.plans[user_id] = book["plan_id"]
                # In the step that changed it nothing was confirmed.
                self.known[user_id].is_limit_stale = True
        self._charge(books)
        try:
            check_books(books, self.known)
        except RuleBroken as broken:
            self.broken.append(broken.rule)
            raise

    # -- how ----------------------------------------------------------------------------------------------------------

    def _charge(self, books: Mapping[uuid.UUID, Row]) -> None:
        """Takes up what calls cost in the last step, at the price of now: plans change in steps of their own."""
        settled = self.connection.execute(
            "select id, user_id, cost_micros, tokens from doorkey.credit_holds"
            " where id = any(%s) and state = 'settled'",
            (self.holds,),
        )
        for hold in settled:
            if hold["id"] not in self.settled:
                self.settled.add(hold["id"])
                known, book = self.known[hold["user_id"]], books[hold["user_id"]]
                price = price_of(book, hold["cost_micros"], hold["tokens"])
                known.exact_micros += price
                known.owed_unconfirmed_micros += max(price - price_of(book, hold["cost_micros"], None), Fraction(0))

    def _claim(self, user_id: uuid.UUID) -> Row | None:
        return self.connection.execute("select * from public.claim_provisioning(%s, 60, 'r')", (user_id,)).fetchone()

    def _finish(self, claim: Row) -> None:
        name = f"{claim['user_id']}-{claim['attempt']}"
        if claim["action"] == "create":
            statement = "select public.finish_provisioning(%s, %s, %s, %s, null, %s, 'v1.k1.AAAA', 'r') as word"
            parameters = (hashlib.sha256(name.encode()).hexdigest(), name, claim["limit_micros"])
        else:
            statement = "select public.finish_key_update(%s, %s, %s, %s, %s, 0, 'r') as word"
            parameters = (claim["key_hash"], claim["limit_micros"], claim["is_enabled"])
        user_id = claim["user_id"]
        answer = self.ask(Ask(statement, (user_id, claim["attempt"], *parameters)))
        if answer == "lease_lost":
            self.ask(Ask("select public.recheck_key(%s, 'r') as word", (user_id,)))
        elif isinstance(answer, Mapping) and answer["word"] == "ready":
            self.known[user_id].is_limit_stale = False
            self.known[user_id].owed_unconfirmed_micros = Fraction(0)

    def _all_at_once(self, asks: Sequence[Ask]) -> list[Answer]:
        answers: dict[int, Answer] = {}

        def work(worker: int) -> None:
            for number in range(worker, len(asks), AT_ONCE):
                answers[number] = self.ask(asks[number], self.others[worker])

        with ThreadPoolExecutor(AT_ONCE) as crowd:
            list(crowd.map(work, range(AT_ONCE)))
        return [answers[number] for number in range(len(asks))]
