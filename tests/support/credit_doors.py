"""The doors of the ledger as a server uses them, as service_role, and what must hold of the money at any time.

A refusal arrives as the database raises it, so that tests see SQLSTATE and word.
"""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass
from decimal import Decimal

from tests.support.databases import Database, Row

TTL_SECONDS = 600

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Credits:
    """All that may be done to a hold, and time."""

    database: Database

    async def reserve(
        self,
        user_id: uuid.UUID,
        amount_micros: object = 1,
        *,
        key: str | None = None,
        ttl_seconds: object = TTL_SECONDS,
        through: str | None = None,
    ) -> Row:
        """A hold. `key`: its idempotency key, by default a new one; `through`: the key for its call."""
        return await self._row(
            "select * from public.reserve_credits(%s, %s, %s, %s, %s, 'r')",
            *(user_id, amount_micros, ttl_seconds, f"hold {next(_numbers)}" if key is None else key, through),
        )

    async def settle(
        self, hold_id: uuid.UUID, cost_micros: object, generation_id: str | None = "gen-1", *, tokens: int | None = None
    ) -> Row:
        """Charges the call."""
        return await self._row(
            "select * from public.settle_credits(%s, %s, %s, 'a provider', 'a/model', %s, 'r')",
            *(hold_id, Decimal(cost_micros) if isinstance(cost_micros, int) else cost_micros, tokens, generation_id),
        )

    async def post(
        self,
        user_id: uuid.UUID,
        amount_micros: object,
        type: str | None = "adjustment",  # noqa: A002  the ledger's word
        *,
        key: str | None = None,
        reason: str | None = "A reason",
        actor: str | None = "an operator",
        expires_at: object = None,
    ) -> Row:
        """What an operator gives or takes. `key`: by default a new one."""
        return await self._row(
            "select * from public.post_credits(%s, %s, %s, %s, %s, %s, %s, 'r')",
            *(user_id, type, amount_micros, f"posting {next(_numbers)}" if key is None else key),
            *(reason, actor, expires_at),
        )

    async def reverse(self, transaction_id: int, *, key: str | None = None, reason: str = "A mistake") -> Row:
        """Takes a grant back."""
        return await self._row(
            "select * from public.reverse_transaction(%s, %s, %s, 'an operator', 'r')",
            *(transaction_id, f"reversal {next(_numbers)}" if key is None else key, reason),
        )

    async def release(self, hold_id: uuid.UUID) -> str:
        """Gives it back; the hold's state."""
        return str((await self._row("select public.release_credits(%s, 'r') as state", hold_id))["state"])

    async def expire(self, rows: object = 100) -> int:
        """What a sweep does; how many."""
        return int((await self._row("select public.expire_holds(%s, 'r') as expired", rows))["expired"])

    async def let_expire(self, *hold_ids: uuid.UUID) -> None:
        """Lets the time of these pass."""
        await self.database.run(
            "update doorkey.credit_holds set created_at = created_at - interval '2 days',"
            " expires_at = expires_at - interval '2 days' where id = any(%s)",
            (list(hold_ids),),
        )

    async def hold(self, hold_id: uuid.UUID) -> Row:
        """Its row."""
        (row,) = await self.database.rows("select * from doorkey.credit_holds where id = %s", (hold_id,))
        return row

    async def account(self, user_id: uuid.UUID) -> Row:
        """The row of the account."""
        (row,) = await self.database.rows("select * from public.credit_accounts where user_id = %s", (user_id,))
        return row

    async def balances(self, user_id: uuid.UUID) -> tuple[int, int, int]:
        """Available, held, owed."""
        row = await self.account(user_id)
        return row["available_micros"], row["held_micros"], row["debt_micros"]

    async def limit(self, user_id: uuid.UUID) -> int | None:
        """What the key in use is to be limited to."""
        limit: int | None = await self.database.value(
            "select limit_micros from doorkey.key_limit(%s,"
            " (select key_hash from doorkey.provisioning where user_id = %s))",
            (user_id, user_id),
        )
        return limit

    async def broken_rules(self) -> list[Row]:
        """Whose money does not add up, by which rule; one snapshot of everything."""
        return await self.database.rows(_BROKEN_RULES)

    async def _row(self, statement: str, *parameters: object) -> Row:
        async with self.database.acting_as("service_role") as connection:
            (row,) = await (await connection.execute(statement, parameters)).fetchall()
            return row


_BROKEN_RULES = """
with entries as (
  select t.user_id, e.account, sum(e.amount_micros) as micros
    from doorkey.ledger_entries as e join public.credit_transactions as t on t.id = e.transaction_id
   group by t.user_id, e.account
), books as (
  select a.*, p.markup, p.is_uncapped,
         coalesce((select sum(e.micros) from entries as e where e.user_id = a.user_id), 0) as entries,
         coalesce((select jsonb_object_agg(e.account, e.micros) from entries as e
                    where e.user_id = a.user_id), '{}') as by_account,
         coalesce((select sum(h.held_micros) from doorkey.credit_holds as h
                    where h.user_id = a.user_id and h.state = 'open'), 0) as open_holds,
         coalesce((select sum(l.remaining_micros) from doorkey.credit_lots as l
                    where l.user_id = a.user_id), 0) as lots,
         coalesce((select sum(g.taken_micros) from doorkey.credit_takings as g
                    where g.user_id = a.user_id and g.left_transaction_id is null), 0) as takings,
         coalesce((select sum(h.cost_micros) from doorkey.credit_holds as h
                    where h.user_id = a.user_id), 0)
         + coalesce((select sum(c.cost_micros - c.returned_micros) from doorkey.unheld_costs as c
                       join public.openrouter_user_keys as k on k.key_hash = c.key_hash
                      where k.user_id = a.user_id), 0) as costs,
         coalesce((select sum(h.charged_micros) from doorkey.credit_holds as h
                    where h.user_id = a.user_id), 0)
         + coalesce((select sum(c.charged_micros) from doorkey.unheld_costs as c
                       join public.openrouter_user_keys as k on k.key_hash = c.key_hash
                      where k.user_id = a.user_id), 0)
         - coalesce((select sum(t.amount_micros) from public.credit_transactions as t
                      where t.user_id = a.user_id
                        and starts_with(t.idempotency_key, 'unseen:returned:')), 0) as charges,
         coalesce((select sum(k.cost_micros) from doorkey.key_costs as k
                    where k.user_id = a.user_id), 0) as charged_to_keys
    from public.credit_accounts as a join public.plans as p on p.id = a.plan_id
)
select b.user_id, r.rule, to_jsonb(b) as books
  from books as b cross join lateral (values
    ('entries sum to zero', b.entries = 0),
    ('balances are the sums of their entries',
       b.available_micros + b.held_micros = coalesce((b.by_account ->> 'spendable')::numeric, 0)
       and b.leaving_micros = coalesce((b.by_account ->> 'leaving')::numeric, 0)
       and b.debt_micros = -coalesce((b.by_account ->> 'debt')::numeric, 0)
       and b.receivable_micros = -coalesce((b.by_account ->> 'receivable')::numeric, 0)),
    ('held is the sum of the open holds', b.held_micros = b.open_holds),
    ('lots are what is available or held', b.lots = b.available_micros + b.held_micros),
    ('leaving is what was taken and is not posted out', b.leaving_micros = b.takings),
    ('nothing is negative', least(b.available_micros, b.held_micros, b.leaving_micros, b.debt_micros,
                                  b.receivable_micros) >= 0),
    ('who owes has nothing', b.debt_micros = 0 or b.available_micros = 0),
    ('every cost is charged', b.charges = coalesce((b.by_account ->> 'spent')::numeric, 0)
       and b.charges + b.remainder_micros = b.costs * b.markup),
    ('keys are charged what their calls cost', b.charged_to_keys = b.costs)
  ) as r (rule, holds)
 where not r.holds
"""
