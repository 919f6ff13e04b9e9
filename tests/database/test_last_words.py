"""The last word of keys that are gone: what they spent unheard is charged to whoever had them, once."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tests.database.test_usage import WELCOME, Play, Sync
from tests.support.credit_doors import Credits
from tests.support.databases import Database, Row
from tests.support.doors import Doors, key_hash, refused

DAY = (datetime.now(UTC) - timedelta(days=1)).date()


class Gone(Play):
    """A user who is deleted, and what OpenRouter says of their key a day later."""

    async def leave(self) -> None:
        """The user goes, and their key with them; yesterday."""
        await self.database.run("delete from auth.users where id = %s", (self.user_id,))
        claim = await self.doors.claimed(self.user_id)
        assert await self.doors.finish_key_deletion(claim) == "gone"

    async def a_day_passes(self) -> None:
        """For the deletion."""
        await self.database.run(
            "update public.openrouter_user_keys set deleted_at = %s::date + interval '12 h'", (DAY,)
        )
        await self.database.run("update doorkey.key_usage set last_word_due_at = last_word_due_at - interval '2 days'")

    async def due(self) -> list[str]:
        """Who is to be asked about."""
        return [row["key"] for row in await self._rows("select public.list_last_words(10) as key")]

    async def hear(self, micros: object, since: object = "2020-01-01") -> Decimal | None:
        """What the last word comes to."""
        (row,) = await self._rows(
            "select public.record_last_word(%s, %s, %s, 'r') as moved", self.key, since, Decimal(str(micros))
        )
        moved: Decimal | None = row["moved"]
        return moved

    async def causes(self) -> list[tuple[Decimal, str | None]]:
        """Of that day, in the drift report."""
        rows = await self._rows("select * from public.report_drift(%s, null, 10)", DAY)
        return [(row["difference_micros"], row["cause"]) for row in rows]

    async def _rows(self, statement: str, *parameters: object) -> list[Row]:
        async with self.database.acting_as("service_role") as connection:
            return await (await connection.execute(statement, parameters)).fetchall()


@pytest.fixture
async def gone(database: Database) -> Gone:
    """Not yet: a user whose key is ready."""
    doors = Doors(database)
    user_id: uuid.UUID = await database.insert_user()
    claim = await doors.make_ready(user_id)
    return Gone(Credits(database), doors, Sync(database), user_id, key_hash(f"{user_id}-{claim['attempt']}"))


async def test_what_a_deleted_users_key_spent_unheard_is_charged_to_them_and_has_a_name(gone: Gone) -> None:
    await gone.call("100.5")
    await gone.sync.read({gone.key: "150.5"})
    await gone.leave()
    assert await gone.due() == []
    await gone.a_day_passes()
    assert await gone.due() == [gone.key]
    assert await gone.hear("900.75") == Decimal("750.25")
    assert await gone.due() == []
    assert await gone.balance() == WELCOME - 900
    (cost,) = await gone.database.rows("select day, cost_micros from doorkey.unheld_costs order by 1 limit 1")
    assert (cost["day"], cost["cost_micros"]) == (DAY, Decimal("750.25"))
    assert await gone.causes() == [(Decimal(0), "unseen")]
    await gone.assert_sound()
    # Said again, and whatever is said of a key that nobody waits for.
    assert await gone.hear("5000") == 0
    assert await gone.balance() == WELCOME - 900


async def test_beyond_their_credits_a_deleted_user_owes_it(gone: Gone) -> None:
    await gone.leave()
    await gone.a_day_passes()
    await gone.hear(WELCOME + 300)
    assert await gone.credits.balances(gone.user_id) == (0, 0, 300)
    await gone.assert_sound()


async def test_a_receipt_that_came_after_the_deletion_is_not_charged_again(gone: Gone) -> None:
    hold = await gone.credits.reserve(gone.user_id, 1_000)
    await gone.leave()
    await gone.credits.settle(hold["hold_id"], Decimal("640.5"))
    await gone.a_day_passes()
    assert await gone.hear("640.5") == 0
    assert await gone.balance() == WELCOME - 640
    await gone.assert_sound()


@pytest.mark.parametrize("said", [0, 120])
async def test_less_than_is_known_takes_nothing_back(gone: Gone, said: int) -> None:
    """A key's activity is told for thirty days only, and nobody has promised it for one that is deleted."""
    await gone.sync.read({gone.key: 300})
    await gone.leave()
    await gone.a_day_passes()
    assert await gone.hear(said) == 0
    assert await gone.balance() == WELCOME - 300
    # Nor by what a later look finds.
    known = "select reported_micros from doorkey.key_usage where key_hash = %s"
    assert await gone.database.value(known, (gone.key,)) == 300


async def test_days_before_those_that_were_asked_about_are_left_alone(gone: Gone) -> None:
    await gone.sync.read({gone.key: 300})
    await gone.database.run("update doorkey.key_usage_days set day = day - 40")
    await gone.leave()
    await gone.a_day_passes()
    assert await gone.hear(50, since=DAY - timedelta(days=30)) == 50
    assert await gone.balance() == WELCOME - 350


async def test_a_busy_account_is_charged_by_the_next_round_of_the_sync(gone: Gone) -> None:
    await gone.leave()
    await gone.a_day_passes()
    async with gone.database.connect(autocommit=False) as other:
        await other.execute("select doorkey.lock_account(%s)", (gone.user_id,))
        assert await gone.hear(70) is None
    assert (await gone.sync.read({}))["unseen_micros"] == 70
    assert await gone.balance() == WELCOME - 70


async def test_a_living_key_has_no_last_word(gone: Gone) -> None:
    assert await gone.hear(70) == 0
    assert await gone.balance() == WELCOME


@pytest.mark.parametrize(("since", "micros"), [(None, 1), (DAY, -1), (DAY, "NaN"), (DAY, 10**30)])
async def test_figures_that_are_no_amounts_are_refused(gone: Gone, since: object, micros: object) -> None:
    with refused("PT422", "amount_out_of_range"):
        await gone.hear(micros, since)
