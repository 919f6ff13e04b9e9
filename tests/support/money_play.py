"""Anything that can happen to credits, in any order: the rules are asked after every step (money_rules.py).

Hypothesis chooses what happens. The surprising thing: several things at once, and a caller who dies in the middle, are
steps too. What was answered once is remembered: asked again with the same content it must be answered again, and with
other content refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from psycopg.rows import dict_row

from tests.support.money_asks import Answer, Ask, changing_plan, posting, reserving
from tests.support.money_key_steps import KeySteps
from tests.support.money_player import AT_ONCE, CONFLICT, amounts, coins, costs, new_name, which, who
from tests.support.money_rules import check_books, read_books

WELCOME_MICROS = 1000
PLANS = ("trial", "single", "double", "whole")


class Play(KeySteps):
    """All that happens to money, and all rules."""

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
        if not isinstance(answer, str):
            self.holds[answer["hold_id"]] = answer["bound_key_hash"]

    @rule(hold=which, cost=costs)
    def settle(self, hold: int, cost: Decimal) -> None:
        if self.holds:
            self.do(self.settling(self.latest(hold), cost))

    @rule(hold=which)
    def release(self, hold: int) -> None:
        if self.holds:
            self.do(Ask("select public.release_credits(%s, 'r') as state", (self.latest(hold),)))

    @rule(hold=which)
    def expire_hold(self, hold: int) -> None:
        if self.holds:
            self.connection.execute(
                "update doorkey.credit_holds set created_at = created_at - interval '2 days',"
                " expires_at = expires_at - interval '2 days' where id = %s",
                (self.latest(hold),),
            )
        self.do(Ask("select public.expire_holds(100, 'r') as expired", ()))

    @rule(user=who)
    def expire_lot(self, user: int) -> None:
        """The time of the user's first lot is over, and a sweep comes by."""
        self.connection.execute(
            "update doorkey.credit_lots set expires_at = now() - interval '1 s' where id = ("
            " select min(id) from doorkey.credit_lots"
            " where user_id = %s and remaining_micros > 0 and not is_allowance"
            # When credits expire belongs to what a repeat is compared with.
            " and transaction_id not in (select id from public.credit_transactions where idempotency_key = %s))",
            (self.users[user], f"operator:{self.names[-1] if self.names else ''}"),
        )
        self.do(Ask("select public.expire_lots(100, 'r') as expired", ()))

    @rule(user=who, is_everybody=st.booleans(), days=st.sampled_from([3, 31, 95]))
    def pass_days(self, user: int, is_everybody: bool, days: int) -> None:
        """Time passes for the user's period, or for everybody's, and a sweep comes by."""
        users = self.users if is_everybody else [self.users[user]]
        for statement in (
            "update doorkey.credit_lots set expires_at = expires_at - make_interval(days => %s)"
            " where user_id = any(%s) and is_allowance",
            "update public.credit_accounts set period_started_at = period_started_at - make_interval(days => %s),"
            " period_ends_at = period_ends_at - make_interval(days => %s) where user_id = any(%s)",
        ):
            self.connection.execute(statement, (*[days] * (statement.count("%s") - 1), users))
        self.do(Ask("select public.renew_periods(100, 'r') as renewed", ()))
        self.do(Ask("select public.expire_lots(100, 'r') as expired", ()))

    @rule(user=who, plan=st.sampled_from(PLANS), takes_effect=st.sampled_from(["now", "now", "period_end"]))
    def change_plan(self, user: int, plan: str, takes_effect: str) -> None:
        self.do(changing_plan(self.users[user], plan, takes_effect, new_name()))

    @rule(user=who, given=amounts, taken=amounts)
    def take_meanwhile(self, user: int, given: int, taken: int) -> None:
        """Credits are given, and taken while a worker raises the limit."""
        user_id = self.users[user]
        self.do(posting(user_id, "bonus", given, new_name()))
        claim = self._claim(user_id)
        self.took(user_id, self.do(posting(user_id, "refund", -taken, new_name())))
        if claim is not None:
            self._finish(claim)

    @rule(user=who, given=amounts, taken=amounts)
    def wake_up_late(self, user: int, given: int, taken: int) -> None:
        """A worker is taken over, and sets its limit when another one has set one and the key was looked at."""
        user_id = self.users[user]
        self.do(posting(user_id, "bonus", given, new_name()))
        late = self._claim(user_id)
        self.take_over(user)
        self.work(user)
        self.ask(Ask("select public.recheck_key(%s, 'r') as word", (user_id,)))
        self.took(user_id, self.do(posting(user_id, "refund", -taken, new_name())))
        self.work(user)
        self.work(user)
        if late is not None:
            self._finish(late)

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
        for claim in [claim for claim in self.claims if claim["user_id"] == self.users[user]]:
            if not self.is_current(claim):
                self.claims.remove(claim)
        self.work(user)

    @rule(user=who, amount=amounts, cost=costs, what=which)
    def die(self, user: int, amount: int, cost: Decimal, what: int) -> None:
        """A caller dies in the middle: before the commit nothing has happened."""
        asks = [
            posting(self.users[user], "bonus", amount, new_name()),
            posting(self.users[user], "refund", -amount, new_name()),
            reserving(self.users[user], amount, new_name()),
            *(self.settling(hold_id, cost) for hold_id in list(self.holds)[-1:]),
        ]
        with psycopg.connect(self.url, row_factory=dict_row) as connection:
            self.ask(asks[what % len(asks)], connection)
            self.connection.execute("select pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
            connection.close()

    @rule(user=who, amounts_=st.lists(amounts, min_size=AT_ONCE, max_size=AT_ONCE), cost=costs, other=costs)
    def at_once(self, user: int, amounts_: Sequence[int], cost: Decimal, other: Decimal) -> None:
        """Several at once to one user; some of them twice."""
        user_id = self.users[user]
        name = new_name()
        taking = posting(user_id, "refund", -amounts_[0], name)
        asks = [
            posting(user_id, "bonus", amounts_[1], name),
            posting(user_id, "bonus", amounts_[1], name),
            taking,
            reserving(user_id, amounts_[2], name),
            reserving(user_id, amounts_[2], name),
            Ask("select public.expire_holds(100, 'r') as expired", ()),
            *(self.settling(hold_id, cost) for hold_id in list(self.holds)[-2:]),
            *(self.settling(hold_id, other) for hold_id in list(self.holds)[-1:]),
            self.ask_of_sync(),
        ]
        answers = self._all_at_once(asks)
        self.took(user_id, answers[2])
        for ask, answer in zip(asks, answers, strict=True):
            # Of two that want something else, one came first.
            if answer != CONFLICT:
                self.note(ask, answer)
            if isinstance(answer, Mapping) and "bound_key_hash" in answer:
                self.holds[answer["hold_id"]] = answer["bound_key_hash"]
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
        self.take_up_charges(books)
        self.judge(check_books, self.known)

    # -- how ----------------------------------------------------------------------------------------------------------

    def _all_at_once(self, asks: Sequence[Ask]) -> list[Answer]:
        answers: dict[int, Answer] = {}

        def work(worker: int) -> None:
            for number in range(worker, len(asks), AT_ONCE):
                answers[number] = self.ask(asks[number], self.others[worker])

        with ThreadPoolExecutor(AT_ONCE) as crowd:
            list(crowd.map(work, range(AT_ONCE)))
        return [answers[number] for number in range(len(asks))]
