"""On which day use without a receipt falls, when it was charged long after it was read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.database.test_usage import Play, Sync
from tests.support.credit_doors import Credits
from tests.support.databases import Database
from tests.support.doors import Doors, key_hash


@pytest.fixture
async def play(database: Database) -> Play:
    """A user whose key is ready."""
    doors = Doors(database)
    user_id = await database.insert_user()
    claim = await doors.make_ready(user_id)
    return Play(Credits(database), doors, Sync(database), user_id, key_hash(f"{user_id}-{claim['attempt']}"))


@pytest.mark.parametrize("days", [3, 12, 34])
async def test_what_waited_behind_calls_in_flight_falls_on_the_day_of_its_use(play: Play, days: int) -> None:
    then = datetime.now(UTC) - timedelta(days=days)
    await play.database.run("update public.openrouter_user_keys set created_at = %s", (then - timedelta(hours=1),))
    hold = await play.credits.reserve(play.user_id, 500)
    assert (await play.sync.read({play.key: 300}, at=then))["unseen_micros"] == 0
    await play.credits.release(hold["hold_id"])
    assert (await play.sync.read({play.key: 340}, daily={play.key: 40}))["unseen_micros"] == 340
    charged = await play.database.rows("select day, cost_micros from doorkey.unheld_costs order by transaction_id")
    assert [(row["day"], row["cost_micros"]) for row in charged] == [(then.date(), 300), (datetime.now(UTC).date(), 40)]
    await play.assert_sound()
