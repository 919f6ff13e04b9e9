"""Plans and periods as the sweep and an operator reach them, as service_role; and time, which tests let pass.

What passes is the account's and its lots' own time: all their moments move back, and the clock stands still.
"""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass

from tests.support.credit_doors import Credits
from tests.support.databases import Database, Row
from tests.support.doors import Doors

CREDIT = 1_000_000
MAX_STEPS = 6

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Periods:
    """All that may be done to plans and periods."""

    database: Database

    @property
    def doors(self) -> Doors:
        """What a worker may do."""
        return Doors(self.database)

    @property
    def credits(self) -> Credits:
        """What may be done to holds."""
        return Credits(self.database)

    async def renew(self, rows: object = 1000) -> int:
        """What a sweep does; how many periods."""
        return int((await self._row("select public.renew_periods(%s, 'r') as renewed", rows))["renewed"])

    async def expire(self, rows: object = 1000) -> int:
        """What a sweep does; of how many lots."""
        return int((await self._row("select public.expire_lots(%s, 'r') as expired", rows))["expired"])

    async def change(
        self,
        user_id: uuid.UUID,
        plan_id: object,
        takes_effect: object = "now",
        *,
        key: object = "",
        actor: object = "an operator",
        reason: object = "Asked for it",
    ) -> Row:
        """Another plan. `key`: its idempotency key, by default a new one."""
        return await self._row(
            "select * from public.change_plan(%s, %s, %s, %s, %s, %s, 'r')",
            *(user_id, plan_id, takes_effect, f"change {next(_numbers)}" if key == "" else key, actor, reason),
        )

    async def subscriber(self, plan_id: str = "starter") -> uuid.UUID:
        """Somebody on this plan from now on, with a key that is as it should be."""
        user_id = await self.database.insert_user()
        await self.doors.make_ready(user_id)
        await self.change(user_id, plan_id)
        await self.follow(user_id)
        return user_id

    async def follow(self, user_id: uuid.UUID) -> None:
        """OpenRouter takes whatever the key is to be."""
        for _ in range(MAX_STEPS):
            claim = await self.doors.claim(user_id)
            if claim is None:
                return
            await self.doors.finish_key_update(claim)
        raise AssertionError("the key never comes to be as it should")

    async def spend(self, user_id: uuid.UUID, micros: int) -> None:
        """A call that cost so much."""
        hold = await self.credits.reserve(user_id, micros)
        await self.credits.settle(hold["hold_id"], micros)

    async def grant(self, user_id: uuid.UUID, micros: int, expires_at: str | None = None) -> None:
        """Credits that were paid for."""
        await self.database.run(
            "select doorkey.grant_credits(%s, 'purchase', %s, %s, 'Paid', 'test', %s::timestamptz, 'r')",
            (user_id, micros, f"purchase {next(_numbers)}", expires_at),
        )

    async def pass_days(self, days: float, *user_ids: uuid.UUID) -> None:
        """So many days of 24 hours go by for these users."""
        async with self.database.connect(autocommit=False) as connection:
            await connection.execute(
                "update public.credit_accounts set period_started_at = period_started_at - make_interval(hours => %s),"
                " period_ends_at = period_ends_at - make_interval(hours => %s) where user_id = any(%s)",
                (round(days * 24), round(days * 24), list(user_ids)),
            )
            await connection.execute(
                "update doorkey.credit_lots set expires_at = expires_at - make_interval(hours => %s)"
                " where user_id = any(%s)",
                (round(days * 24), list(user_ids)),
            )
            await connection.commit()

    async def account(self, user_id: uuid.UUID) -> Row:
        """The row of the account, and how its period lies to now."""
        (row,) = await self.database.rows(
            "select *, extract(epoch from period_ends_at - period_started_at)::bigint as length_seconds,"
            " now() between period_started_at and period_ends_at as is_running"
            " from public.credit_accounts where user_id = %s",
            (user_id,),
        )
        return row

    async def balances(self, user_id: uuid.UUID) -> tuple[int, int, int, int]:
        """Available, held, leaving, owed."""
        row = await self.account(user_id)
        return row["available_micros"], row["held_micros"], row["leaving_micros"], row["debt_micros"]

    async def ledger(self, user_id: uuid.UUID) -> list[tuple[str, int]]:
        """What the user is shown: types and amounts, without what only moved inside."""
        rows = await self.database.rows(
            "select type, amount_micros from public.credit_transactions where user_id = %s and amount_micros <> 0"
            " order by id",
            (user_id,),
        )
        return [(row["type"], row["amount_micros"]) for row in rows]

    async def lots(self, user_id: uuid.UUID) -> list[Row]:
        """What is left of what, by the order in which it is spent."""
        return await self.database.rows(
            "select * from doorkey.credit_lots where user_id = %s and remaining_micros > 0"
            " order by priority, expires_at nulls last, id",
            (user_id,),
        )

    async def audit(self, action: str, user_id: uuid.UUID | None = None) -> list[Row]:
        """The lines of the audit log."""
        return await self.database.rows(
            "select * from doorkey.audit_log where action = %s and user_id is not distinct from %s order by id",
            (action, user_id),
        )

    async def _row(self, statement: str, *parameters: object) -> Row:
        async with self.database.acting_as("service_role") as connection:
            (row,) = await (await connection.execute(statement, parameters)).fetchall()
            return row
