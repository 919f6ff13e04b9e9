"""What happens to keys while their users' money is played with: at OpenRouter, by workers, and by the usage sync.

The surprising thing: a worker acts at OpenRouter first and records it afterwards, as the real one does; it may die
between the two, or wake up when somebody else has done its work.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from tests.support.money_asks import Answer, Ask, changing_plan, reserving, syncing
from tests.support.money_player import USERS, Player, amounts, coins, costs, new_name, which, who
from tests.support.money_remote import RemoteKey
from tests.support.money_rules import Known, Row, check_rest, check_sync, read_books

# What a rotation takes, and a wish that changed meanwhile.
MAX_WORKS = 8
# Longer than a receipt may be late, a lease lasts, or a replaced key lives.
A_WHILE = timedelta(hours=2)
_PASSING = (
    "update public.openrouter_user_keys set updated_at = updated_at - %(time)s, confirm_at = confirm_at - %(time)s,"
    " retires_at = retires_at - %(time)s where user_id = any(%(users)s)",
    "update doorkey.provisioning set revisit_at = revisit_at - %(time)s,"
    " lease_expires_at = lease_expires_at - %(time)s where user_id = any(%(users)s)",
    "update doorkey.key_usage as u set read_at = u.read_at - %(time)s, surplus_since = u.surplus_since - %(time)s,"
    " looked_at = u.looked_at - %(time)s from public.openrouter_user_keys as k"
    " where k.key_hash = u.key_hash and k.user_id = any(%(users)s)",
    "update doorkey.credit_holds set created_at = created_at - %(time)s, expires_at = expires_at - %(time)s,"
    " closed_at = closed_at - %(time)s, settled_at = settled_at - %(time)s where user_id = any(%(users)s)",
    "update doorkey.usage_sync set started_at = started_at - %(time)s, finished_at = now()",
)


class KeySteps(Player):
    """Keys are made, limited, spent with, rotated, looked at and mended."""

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

    # -- at OpenRouter ------------------------------------------------------------------------------------------------

    @rule(user=who, cost=costs, newest=coins)
    def spend(self, user: int, cost: Decimal, newest: bool) -> None:
        """A call straight through one of their keys: no hold, and no receipt."""
        keys = self.remote.listed([self.users[user]])
        _, key = keys[-1 if newest else 0]
        key.usage += min(cost, key.room)

    @rule(hold=which, cost=costs)
    def bill(self, hold: int, cost: Decimal) -> None:
        """A call under a hold is billed; whether anybody hears of it, and when, is another matter."""
        if self.holds:
            hold_id = self.latest(hold)
            if hold_id not in self.settled:
                self.remote.bill(hold_id, self.holds[hold_id], min(cost, self.remote.keys[self.holds[hold_id]].room))

    @rule(user=who, limit=amounts, disabled=coins)
    def tamper(self, user: int, limit: int, disabled: bool) -> None:
        """Somebody lowers a key at OpenRouter by hand, or switches it off."""
        _, key = self.remote.listed([self.users[user]])[-1]
        key.limit = limit if key.limit is None else min(limit, key.limit)
        key.is_enabled = key.is_enabled and not disabled

    # -- workers ------------------------------------------------------------------------------------------------------

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

    @rule(user=who)
    def lose_answer(self, user: int) -> None:
        """A worker does its work at OpenRouter, and nobody hears of it."""
        claim = self._claim(self.users[user])
        if claim is not None and claim["action"] != "create":
            self._act(claim)

    @rule(user=who)
    def take_over(self, user: int) -> None:
        """A worker is too slow for its lease; what it does is heard of, and set right, later."""
        self.connection.execute(
            "update doorkey.provisioning set lease_expires_at = now() - interval '1 s'"
            " where user_id = %s and state = 'working'",
            (self.users[user],),
        )

    @rule(user=who, grace_seconds=st.sampled_from([0, 3600]))
    def rotate(self, user: int, grace_seconds: int) -> None:
        """The user wants another key; not the sixth within an hour."""
        self.connection.execute(
            "update public.openrouter_user_keys set created_at = created_at - interval '2 hours' where user_id = %s",
            (self.users[user],),
        )
        self.ask(Ask("select public.request_key_rotation(%s, %s, 'r')", (self.users[user], grace_seconds)))
        self.work(user)

    # -- the sync -----------------------------------------------------------------------------------------------------

    @rule(hours=coins)
    def sync(self, hours: bool) -> None:
        """The sweep reads what OpenRouter has; perhaps some hours later."""
        if hours:
            self.pass_a_while()
        before = read_books(self.connection, self.users)
        self.ask(self.ask_of_sync())
        self.take_up_charges(read_books(self.connection, self.users))
        self.judge(check_sync, before)

    @rule(user=who, amount=amounts, cost=costs, direct=costs, is_late=coins, plan=st.sampled_from(["single", "double"]))
    def sync_meanwhile(self, user: int, amount: int, cost: Decimal, direct: Decimal, is_late: bool, plan: str) -> None:
        """The sweep reads what a call came to before its receipt comes; perhaps when nobody waits for that any more."""
        answer = self.do(reserving(self.users[user], amount, self.name(is_new=True)))
        if isinstance(answer, str):
            return
        self.holds[answer["hold_id"]] = answer["bound_key_hash"]
        self.bill(0, cost)
        self.spend(user, direct, newest=True)
        if is_late:
            self.connection.execute(
                "update doorkey.credit_holds set created_at = created_at - interval '1 h',"
                " expires_at = expires_at - interval '1 h' where id = %s",
                (answer["hold_id"],),
            )
            self.ask(Ask("select public.expire_holds(100, 'r') as expired", ()))
        self.sync(hours=is_late)
        self.do(self.settling(answer["hold_id"], cost))
        self.take_up_charges(read_books(self.connection, self.users))
        self.sync(hours=False)
        if is_late:
            # What was charged twice is given back, at the price of then.
            self.ask(changing_plan(self.users[user], plan, "now", new_name()))
            self.come_to_rest(user, tampered=False)

    @rule(user=who, tampered=coins)
    def come_to_rest(self, user: int, tampered: bool) -> None:
        """Nothing new begins for a long time: at its end all is as it should be, also at OpenRouter."""
        if tampered:
            self.tamper(user, 1, disabled=True)
        for _ in range(2):
            self.pass_a_while()
            self.work_on()
            self.sync(hours=False)
            self.work_on()
        self.judge(check_rest)

    # -- how ----------------------------------------------------------------------------------------------------------

    def pass_a_while(self) -> None:
        """So long that whoever was taken over is dead, and no receipt comes any more that was under way."""
        for statement in _PASSING:
            self.connection.execute(statement, {"time": A_WHILE, "users": self.users})
        self.claims.clear()

    def work_on(self) -> None:
        """Workers do all there is to do."""
        for user_id in self.users:
            for _ in range(MAX_WORKS):
                claim = self._claim(user_id)
                if claim is None:
                    break
                self._finish(claim)

    def ask_of_sync(self) -> Ask:
        """A page that holds all keys, as they are at this moment."""
        self.connection.execute(
            "update doorkey.usage_sync set started_at = now() - interval '1 day', finished_at = now()"
        )
        begun = self.connection.execute("select * from public.begin_usage_sync(3600)").fetchone()
        assert begun is not None
        return syncing(begun["round"], self.remote.listed(self.users))

    def is_current(self, claim: Row) -> bool:
        """Whether nobody has taken over from this worker."""
        found = self.connection.execute(
            "select from doorkey.provisioning where user_id = %s and attempt = %s and state = 'working'",
            (claim["user_id"], claim["attempt"]),
        )
        return found.fetchone() is not None

    def _claim(self, user_id: uuid.UUID) -> Row | None:
        return self.connection.execute("select * from public.claim_provisioning(%s, 60, 'r')", (user_id,)).fetchone()

    def _finish(self, claim: Row) -> None:
        """Acts, records it, and undoes it where that is refused."""
        self._act(claim)
        answer = self._record(claim)
        user_id = claim["user_id"]
        if answer == "lease_lost" and claim["action"] == "create":
            self.remote.keys[_key_hash(claim)].is_deleted = True
        elif answer == "lease_lost" and claim["action"] == "update":
            self.ask(Ask("select public.recheck_key(%s, 'r') as word", (user_id,)))
        elif isinstance(answer, Mapping) and answer["word"] == "ready" and not self._is_awaited(user_id):
            self.known[user_id].is_limit_stale = False
            self.known[user_id].owed_unconfirmed_micros = Fraction(0)

    def _is_awaited(self, user_id: uuid.UUID) -> bool:
        """Whether somebody who was taken over may still do something to the user's keys."""
        found = self.connection.execute(
            "select from public.openrouter_user_keys where user_id = %s and status <> 'deleted'"
            " and (confirm_at is not null or is_doubtful)",
            (user_id,),
        )
        return found.fetchone() is not None

    def _act(self, claim: Row) -> None:
        if claim["action"] == "create":
            self.remote.keys[_key_hash(claim)] = RemoteKey(claim["user_id"], claim["limit_micros"])
            return
        key = self.remote.keys[claim["key_hash"]]
        if claim["action"] == "delete":
            key.is_deleted = True
        elif not key.is_deleted:
            key.limit, key.is_enabled = claim["limit_micros"], claim["is_enabled"]

    def _record(self, claim: Row) -> Answer:
        asked: tuple[object, ...]
        if claim["action"] == "create":
            statement = "select public.finish_provisioning(%s, %s, %s, %s, null, %s, 'v1.k1.AAAA', 'r') as word"
            asked = (_key_hash(claim), _name(claim), claim["limit_micros"])
        elif self.remote.keys[claim["key_hash"]].is_deleted:
            # Deleted now, or found to be gone.
            statement = "select public.finish_key_deletion(%s, %s, %s, 'r') as word"
            asked = (claim["key_hash"],)
        else:
            statement = "select public.finish_key_update(%s, %s, %s, %s, %s, %s, 'r') as word"
            asked = (claim["key_hash"], claim["limit_micros"], claim["is_enabled"])
            asked += (self.remote.keys[claim["key_hash"]].usage,)
        return self.ask(Ask(statement, (claim["user_id"], claim["attempt"], *asked)))


def _name(claim: Row) -> str:
    return f"{claim['user_id']}-{claim['attempt']}"


def _key_hash(claim: Row) -> str:
    return hashlib.sha256(_name(claim).encode()).hexdigest()
