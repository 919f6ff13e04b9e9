"""Why ledger, receipts and OpenRouter differ for a key on a day: each cause is named, and no other."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from tests.database.test_usage import Play, Sync
from tests.support.credit_doors import Credits
from tests.support.databases import Database, Row
from tests.support.doors import Doors, key_hash, refused

DAY = date(2026, 3, 1)
NEXT_DAY = DAY + timedelta(days=1)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 3, 2, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class Past(Play):
    """What is done by the doors is moved to where it belongs: to days that are long over."""

    async def settled_call(self, cost: int, at: datetime, begun: datetime | None = None) -> None:
        """A call with a receipt of then."""
        hold = await self.credits.reserve(self.user_id, 1_000)
        await self.credits.settle(hold["hold_id"], cost)
        await self.database.run(
            "update doorkey.credit_holds set created_at = %s, settled_at = %s, closed_at = %s where id = %s",
            (begun or at - MINUTE, at, at, hold["hold_id"]),
        )

    async def openrouter_says(self, micros: int, day: date = DAY, byok: int = 0) -> None:
        """What it has for that day; read two days later and looked at."""
        await self.database.run(
            "insert into doorkey.key_usage_days (key_hash, day, reported_micros, byok_micros) values (%s, %s, %s, %s)",
            (self.key, day, micros, byok),
        )
        read_at = MIDNIGHT + timedelta(days=1)
        await self.database.run(
            "insert into doorkey.key_usage (key_hash, reported_micros, read_at, looked_at) values (%s, %s, %s, %s)"
            " on conflict (key_hash) do update set reported_micros = key_usage.reported_micros + %s",
            (self.key, micros, read_at, read_at, micros),
        )

    async def drift(self, day: date = DAY) -> Row:
        """The key's line."""
        (row,) = await rows_of(self.database, day)
        assert row["key_hash"] == self.key
        assert row["difference_micros"] == row["openrouter_micros"] - row["ledger_micros"]
        return row


async def rows_of(database: Database, day: date | None, after: str | None = None, rows: int | None = 100) -> list[Row]:
    async with database.acting_as("service_role") as connection:
        return await (
            await connection.execute("select * from public.report_drift(%s, %s, %s)", (day, after, rows))
        ).fetchall()


def figures(row: Row) -> tuple[int, int, int, str | None]:
    """Ledger, receipts, OpenRouter, cause."""
    return row["ledger_micros"], row["receipts_micros"], row["openrouter_micros"], row["cause"]


@pytest.fixture
async def past(database: Database) -> Past:
    doors = Doors(database)
    user_id = await database.insert_user()
    claim = await doors.make_ready(user_id)
    return Past(Credits(database), doors, Sync(database), user_id, key_hash(f"{user_id}-{claim['attempt']}"))


def today() -> date:
    return datetime.now(UTC).date()


# -- nothing differs ---------------------------------------------------------------------------------------------------


async def test_what_has_its_receipt_and_was_billed_has_no_cause(past: Past) -> None:
    await past.settled_call(100, NOON)
    await past.openrouter_says(100)
    assert figures(await past.drift()) == (100, 100, 100, None)
    assert await rows_of(past.database, NEXT_DAY) == []


# -- in flight ---------------------------------------------------------------------------------------------------------


async def test_what_is_billed_before_midnight_and_settled_after_it_is_in_flight_on_both_days(past: Past) -> None:
    await past.settled_call(300, MIDNIGHT + MINUTE, begun=MIDNIGHT - MINUTE)
    await past.openrouter_says(300)
    assert figures(await past.drift()) == (0, 0, 300, "in_flight")
    assert figures(await past.drift(NEXT_DAY)) == (300, 300, 0, "in_flight")


async def test_what_is_settled_before_midnight_and_billed_after_it_is_in_flight_on_both_days(past: Past) -> None:
    await past.settled_call(300, MIDNIGHT - MINUTE)
    await past.openrouter_says(300, NEXT_DAY)
    assert figures(await past.drift()) == (300, 300, 0, "in_flight")
    assert figures(await past.drift(NEXT_DAY)) == (0, 0, 300, "in_flight")


async def test_a_call_that_is_billed_and_still_runs_is_in_flight(past: Past) -> None:
    await past.credits.reserve(past.user_id, 500)
    await past.sync.read({past.key: 300})
    assert figures(await past.drift(today())) == (0, 0, 300, "in_flight")


async def test_a_receipt_that_was_not_read_at_openrouter_yet_is_in_flight(past: Past) -> None:
    await past.call(100)
    assert figures(await past.drift(today())) == (100, 100, 0, "in_flight")


async def test_receipts_of_a_key_that_no_reading_followed_for_hours_are_unread(past: Past) -> None:
    now = datetime.now(UTC)
    noon = now.replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=3)
    await past.database.run("update public.openrouter_user_keys set created_at = %s", (noon - timedelta(days=9),))
    # Never read.
    await past.settled_call(300, noon)
    assert figures(await past.drift(noon.date())) == (300, 300, 0, "unread")
    # Read since, so that it had its time; and not since.
    await past.sync.read({past.key: 0}, at=noon + timedelta(days=1))
    assert (await past.drift(noon.date()))["cause"] == "unknown"
    await past.settled_call(70, noon + timedelta(days=2))
    await past.openrouter_says(300, noon.date())
    assert (await past.drift(noon.date()))["cause"] is None
    assert figures(await past.drift((noon + timedelta(days=2)).date())) == (70, 70, 0, "unread")
    await past.database.run("update doorkey.key_usage set read_at = now() - interval '2 hours'")
    late = now - timedelta(hours=2, minutes=30)
    await past.database.run("update doorkey.credit_holds set settled_at = %s where cost_micros = 70", (late,))
    assert figures(await past.drift(late.date())) == (70, 70, 0, "in_flight")


# -- unseen ------------------------------------------------------------------------------------------------------------


async def test_what_was_charged_without_a_receipt_is_unseen_and_in_the_ledger(past: Past) -> None:
    await past.call(100)
    await past.sync.read({past.key: 300})
    assert figures(await past.drift(today())) == (300, 100, 300, "unseen")


async def test_what_was_read_and_is_not_charged_yet_is_unseen(past: Past) -> None:
    async with past.database.connect(autocommit=False) as other:
        await other.execute("select doorkey.lock_account(%s)", (past.user_id,))
        await past.sync.read({past.key: 40})
    assert figures(await past.drift(today())) == (0, 0, 40, "unseen")


async def test_a_receipt_for_what_was_charged_unseen_is_unseen_until_it_is_given_back(past: Past) -> None:
    hold = await past.credits.reserve(past.user_id, 500)
    await past.credits.let_expire(hold["hold_id"])
    await past.credits.expire()
    await past.sync.an_hour_passes()
    await past.sync.read({past.key: 400})
    await past.credits.settle(hold["hold_id"], 400)
    await past.database.run(
        "update doorkey.credit_holds set settled_at = %s, closed_at = %s, created_at = %s", (NOON, NOON, NOON - MINUTE)
    )
    await past.database.run("update doorkey.unheld_costs set day = %s", (DAY,))
    await past.database.run("update doorkey.key_usage_days set day = %s", (DAY,))
    assert figures(await past.drift()) == (800, 400, 400, "unseen")


# -- byok --------------------------------------------------------------------------------------------------------------


async def test_what_was_paid_with_a_key_of_ones_own_is_named_so(past: Past) -> None:
    await past.settled_call(100, NOON)
    await past.openrouter_says(100, byok=70)
    row = await past.drift()
    assert (figures(row), row["byok_micros"]) == ((100, 100, 100, "byok"), 70)


async def test_a_receipt_that_names_as_credits_what_was_paid_elsewhere_is_byok(past: Past) -> None:
    await past.settled_call(70, NOON)
    await past.openrouter_says(0, byok=70)
    assert figures(await past.drift()) == (70, 70, 0, "byok")


# -- unknown -----------------------------------------------------------------------------------------------------------


async def test_what_openrouter_has_beyond_all_that_was_in_flight_is_unknown(past: Past) -> None:
    await past.settled_call(300, MIDNIGHT + MINUTE, begun=MIDNIGHT - MINUTE)
    await past.openrouter_says(301)
    assert figures(await past.drift()) == (0, 0, 301, "unknown")


async def test_what_openrouter_never_billed_is_unknown(past: Past) -> None:
    await past.settled_call(100, NOON)
    await past.openrouter_says(60)
    assert figures(await past.drift()) == (100, 100, 60, "unknown")


async def test_byok_explains_only_its_own_amount(past: Past) -> None:
    await past.settled_call(100, NOON)
    await past.openrouter_says(60, byok=39)
    assert figures(await past.drift()) == (100, 100, 60, "unknown")


async def test_an_unknown_of_an_earlier_day_is_not_one_of_the_days_after(past: Past) -> None:
    await past.openrouter_says(50)
    await past.settled_call(100, NOON + timedelta(days=1))
    await past.openrouter_says(100, NEXT_DAY)
    assert (await past.drift())["cause"] == "unknown"
    assert figures(await past.drift(NEXT_DAY)) == (100, 100, 100, None)


async def test_what_a_day_has_that_no_reading_left_uncharged_is_unknown(past: Past) -> None:
    await past.call(100)
    await past.sync.read({past.key: 100})
    # All is charged, so nobody looks at the key; and yet the day has more.
    await past.database.run("update doorkey.key_usage_days set reported_micros = reported_micros + 5000")
    assert figures(await past.drift(today())) == (100, 100, 5_100, "unknown")


async def test_what_is_not_charged_yet_explains_only_its_own_amount(past: Past) -> None:
    async with past.database.connect(autocommit=False) as other:
        await other.execute("select doorkey.lock_account(%s)", (past.user_id,))
        await past.sync.read({past.key: 40})
    # A receipt since: it was not in what was read.
    await past.call(70)
    yesterday = today() - timedelta(days=1)
    await past.database.run("update doorkey.key_usage_days set day = %s", (yesterday,))
    assert figures(await past.drift(yesterday)) == (0, 0, 40, "unseen")
    await past.database.run("update doorkey.key_usage_days set reported_micros = reported_micros + 1")
    assert figures(await past.drift(yesterday)) == (0, 0, 41, "unknown")


# -- pages -------------------------------------------------------------------------------------------------------------


async def test_pages_have_each_key_once_by_its_hash(database: Database) -> None:
    doors = Doors(database)
    keys = []
    for _ in range(5):
        user_id = await database.insert_user()
        claim = await doors.make_ready(user_id)
        keys.append(key_hash(f"{user_id}-{claim['attempt']}"))
    await database.run("insert into doorkey.key_usage_days select unnest(%s::text[]), %s, 1", (keys, DAY))
    seen: list[str] = []
    for expected in (2, 2, 1):
        page = await rows_of(database, DAY, seen[-1] if seen else None, 2)
        assert len(page) == expected
        seen += [row["key_hash"] for row in page]
    assert seen == sorted(keys)


@pytest.mark.parametrize(("day", "rows"), [(None, 1), (DAY, 0), (DAY, 1_001), (DAY, None)])
async def test_pages_that_are_none_are_refused(database: Database, day: date | None, rows: int | None) -> None:
    with refused("PT422", "page_out_of_range"):
        await rows_of(database, day, None, rows)
