"""Usage that OpenRouter reports is counted once: what has a receipt by the receipt, the rest as unseen."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tests.support.credit_doors import Credits
from tests.support.databases import Database, Row
from tests.support.doors import Doors, key_hash, wait_until_blocked

WELCOME = 5_000_000


@dataclass
class Sync:
    """The usage sync as a server uses it, with one page a round."""

    database: Database
    numbers: dict[str, int] = field(default_factory=lambda: {"round": 0})

    async def read(
        self,
        usage: dict[str, object],
        *,
        daily: dict[str, object] | None = None,
        byok: dict[str, object] | None = None,
        limits: dict[str, int | None] | None = None,
        at: datetime | None = None,
    ) -> Row:
        """A whole round that reads these figures, in micro-dollars."""
        await self.database.run("update doorkey.usage_sync set started_at = null")
        (begun,) = await self._rows("select * from public.begin_usage_sync(3600)")
        return await self.page(begun["round"], usage, daily=daily, byok=byok, limits=limits, at=at)

    async def page(
        self,
        number: int,
        usage: dict[str, object],
        *,
        daily: dict[str, object] | None = None,
        byok: dict[str, object] | None = None,
        limits: dict[str, int | None] | None = None,
        at: datetime | None = None,
        after: int | None = None,
        read_offset: int = 0,
    ) -> Row:
        """One page of this round; `after`: where the next one begins."""
        keys = list(usage)
        known = {row["key_hash"]: row for row in await self.database.rows("select * from public.openrouter_user_keys")}

        def column(given: dict[str, object] | None, default: object) -> list[Decimal]:
            return [Decimal(str((given or {}).get(key, default))) for key in keys]

        (row,) = await self._rows(
            "select * from public.record_usage(%s, %s, %s, null, false, %s, %s, %s, %s, %s, %s, %s, 'r')",
            *(number, read_offset, after, keys, column(usage, 0), column(byok, 0)),
            [Decimal(str((daily or usage)[key])) for key in keys],
            [(limits or {}).get(key, known[key]["limit_micros"] if key in known else None) for key in keys],
            [key for key in keys if key in known and known[key]["status"] != "active"],
            at or datetime.now(UTC),
        )
        return row

    async def figures(self, key: str) -> Row:
        """What is known of the key's usage."""
        (row,) = await self.database.rows(
            "select u.*, k.cost_micros - u.unseen_micros as receipts_micros from doorkey.key_usage as u"
            " join doorkey.key_costs as k on k.key_hash = u.key_hash where u.key_hash = %s",
            (key,),
        )
        return row

    async def days(self, key: str) -> dict[str, Decimal]:
        """What falls on which day."""
        rows = await self.database.rows("select * from doorkey.key_usage_days where key_hash = %s", (key,))
        return {row["day"].isoformat(): row["reported_micros"] for row in rows}

    async def findings(self, key: str) -> dict[str, Decimal]:
        """What is odd about it now."""
        rows = await self.database.rows(
            "select * from doorkey.usage_findings where key_hash = %s and resolved_at is null", (key,)
        )
        return {row["kind"]: row["amount_micros"] for row in rows}

    async def an_hour_passes(self) -> None:
        """For holds and for what was read."""
        await self.database.run(
            "update doorkey.credit_holds set created_at = created_at - interval '61 minutes',"
            " expires_at = expires_at - interval '61 minutes', closed_at = closed_at - interval '61 minutes',"
            " settled_at = settled_at - interval '61 minutes'"
        )
        await self.database.run(
            "update doorkey.key_usage set read_at = read_at - interval '61 minutes',"
            " surplus_since = surplus_since - interval '61 minutes', looked_at = looked_at - interval '61 minutes'"
        )

    async def _rows(self, statement: str, *parameters: object) -> list[Row]:
        async with self.database.acting_as("service_role") as connection:
            return await (await connection.execute(statement, parameters)).fetchall()


@dataclass
class Play:
    """One user with a key, whatever is done to their money, and the sync."""

    credits: Credits
    doors: Doors
    sync: Sync
    user_id: uuid.UUID
    key: str

    @property
    def database(self) -> Database:
        return self.sync.database

    async def balance(self) -> int:
        """What is available."""
        return int((await self.credits.account(self.user_id))["available_micros"])

    async def call(self, cost: object, amount: int = 1_000) -> None:
        """A call with a receipt."""
        hold = await self.credits.reserve(self.user_id, amount)
        await self.credits.settle(hold["hold_id"], Decimal(str(cost)))

    async def assert_sound(self) -> None:
        """Every rule of the books."""
        assert await self.credits.broken_rules() == []


@pytest.fixture
async def play(database: Database) -> Play:
    """A user on the trial plan, whose key is ready."""
    doors = Doors(database)
    user_id = await database.insert_user()
    claim = await doors.make_ready(user_id)
    return Play(Credits(database), doors, Sync(database), user_id, key_hash(f"{user_id}-{claim['attempt']}"))


async def test_what_has_a_receipt_is_not_charged_again(play: Play) -> None:
    await play.call("123.456")
    result = await play.sync.read({play.key: "123.456"})
    assert (result["counted"], result["unseen_micros"]) == (1, 0)
    assert await play.balance() == WELCOME - 123
    await play.assert_sound()


async def test_what_has_no_receipt_is_charged_to_the_owner_exactly_and_once(play: Play) -> None:
    await play.call("100.25")
    for _ in range(3):
        await play.sync.read({play.key: "300.5"})
    figures = await play.sync.figures(play.key)
    assert (figures["receipts_micros"], figures["unseen_micros"]) == (Decimal("100.25"), Decimal("200.25"))
    assert await play.balance() == WELCOME - 300
    transactions = await play.database.rows(
        "select amount_micros, reason from public.credit_transactions where starts_with(idempotency_key, 'unseen:')"
    )
    assert [(row["amount_micros"], row["reason"]) for row in transactions] == [(-200, "Use without a receipt")]
    assert await play.credits.limit(play.user_id) == WELCOME
    await play.assert_sound()


async def test_a_call_in_flight_is_not_charged_before_its_receipt_had_its_time(play: Play) -> None:
    hold = await play.credits.reserve(play.user_id, 500)
    assert (await play.sync.read({play.key: 600}))["unseen_micros"] == 100
    await play.sync.an_hour_passes()
    await play.credits.let_expire(hold["hold_id"])
    await play.credits.expire()
    # It expired a moment ago: its receipt may still come.
    assert (await play.sync.read({play.key: 600}))["unseen_micros"] == 0
    await play.sync.an_hour_passes()
    assert (await play.sync.read({play.key: 600}))["unseen_micros"] == 500
    assert await play.balance() == WELCOME - 600
    await play.assert_sound()


async def test_a_receipt_that_comes_late_is_given_back_at_the_second_reading_an_hour_later(play: Play) -> None:
    hold = await play.credits.reserve(play.user_id, 500)
    await play.credits.let_expire(hold["hold_id"])
    await play.credits.expire()
    await play.sync.an_hour_passes()
    assert (await play.sync.read({play.key: "400.7"}))["unseen_micros"] == Decimal("400.7")
    await play.credits.settle(hold["hold_id"], Decimal("400.7"))
    assert await play.balance() == WELCOME - 801
    for _ in range(2):
        assert (await play.sync.read({play.key: "400.7"}))["returned_micros"] == 0
    await play.sync.an_hour_passes()
    await play.database.run("update doorkey.key_usage set surplus_since = surplus_since - interval '1 minute'")
    assert (await play.sync.read({play.key: "400.7"}))["returned_micros"] == Decimal("400.7")
    figures = await play.sync.figures(play.key)
    assert (figures["receipts_micros"], figures["unseen_micros"]) == (Decimal("400.7"), 0)
    assert await play.balance() == WELCOME - 400
    assert await play.credits.limit(play.user_id) == WELCOME
    await play.assert_sound()
    # What comes back ends when that ends which it was taken from.
    lots = await play.database.rows("select priority, expires_at from doorkey.credit_lots order by id")
    assert (len(lots), lots[1]) == (2, lots[0])
    assert lots[0]["expires_at"] is not None
    # And the same may happen again: no transaction takes another's name.
    assert (await play.sync.read({play.key: "801.4"}))["unseen_micros"] == Decimal("400.7")
    await play.assert_sound()


async def test_a_limit_that_is_too_high_when_something_was_given_back_is_lowered(play: Play) -> None:
    """At the price of then, which a plan of now need not have."""
    hold = await play.credits.reserve(play.user_id, 500_000)
    await play.credits.let_expire(hold["hold_id"])
    await play.credits.expire()
    await play.sync.an_hour_passes()
    await play.sync.read({play.key: 400_000})
    await play.credits.settle(hold["hold_id"], Decimal(400_000))
    await play.sync.read({play.key: 400_000})
    await play.sync.an_hour_passes()
    await play.database.run("update doorkey.key_usage set surplus_since = surplus_since - interval '1 minute'")
    await play.database.run("update public.plans set markup = markup * 2")
    limit = await play.credits.limit(play.user_id)
    await play.database.run("update public.openrouter_user_keys set limit_micros = %s", (limit,))
    assert await play.doors.state(play.user_id) == "ready"
    assert (await play.sync.read({play.key: 400_000}))["returned_micros"] == 400_000
    assert await play.doors.state(play.user_id) == "due"
    claim = await play.doors.claimed(play.user_id)
    assert limit is not None
    assert claim["limit_micros"] < limit


async def test_what_openrouter_is_late_with_is_not_given_back(play: Play) -> None:
    await play.sync.read({play.key: 300})
    await play.call(200)
    await play.sync.read({play.key: 300})
    await play.sync.an_hour_passes()
    # Billed by now.
    await play.sync.read({play.key: 500})
    await play.sync.an_hour_passes()
    assert (await play.sync.read({play.key: 500}))["returned_micros"] == 0
    assert await play.balance() == WELCOME - 500


async def test_unseen_use_beyond_all_credits_is_owed(play: Play) -> None:
    await play.sync.read({play.key: WELCOME + 700})
    assert await play.credits.balances(play.user_id) == (0, 0, 700)
    await play.assert_sound()


async def test_the_part_before_midnight_falls_on_the_day_before(play: Play) -> None:
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    yesterday, today = (midnight - timedelta(days=1)).date().isoformat(), midnight.date().isoformat()
    await play.database.run("update public.openrouter_user_keys set created_at = %s", (midnight - timedelta(hours=5),))
    await play.sync.read({play.key: 100}, daily={play.key: 100}, at=midnight - timedelta(minutes=40))
    await play.sync.read({play.key: 190}, daily={play.key: 60}, at=midnight + timedelta(minutes=20))
    assert await play.sync.days(play.key) == {yesterday: 130, today: 60}
    rows = await play.database.rows("select day, cost_micros from doorkey.unheld_costs order by transaction_id")
    assert [(row["day"].isoformat(), row["cost_micros"]) for row in rows] == [
        (yesterday, 100), (yesterday, 30), (today, 60),
    ]  # fmt: skip


async def test_what_is_not_understood_is_named_and_not_charged(play: Play) -> None:
    stranger = key_hash("somebody else's")
    await play.sync.read({play.key: 300, stranger: 70, key_hash("unused"): 0}, byok={play.key: 9})
    assert await play.sync.findings(stranger) == {"foreign": 70}
    assert await play.sync.findings(key_hash("unused")) == {}
    assert await play.sync.findings(play.key) == {"byok": 9}
    await play.sync.an_hour_passes()
    result = await play.sync.read({play.key: 250, stranger: 70}, byok={play.key: 9})
    assert await play.sync.findings(play.key) == {"byok": 9, "went_back": 50}
    assert (result["unseen_micros"], result["returned_micros"]) == (0, 0)
    assert (await play.sync.figures(play.key))["reported_micros"] == 300
    assert await play.balance() == WELCOME - 300


async def test_a_key_is_counted_once_a_round_though_pages_shift(play: Play) -> None:
    await play.database.run("update doorkey.usage_sync set started_at = null")
    (begun,) = await play.sync._rows("select * from public.begin_usage_sync(3600)")
    first = await play.sync.page(begun["round"], {play.key: 10}, after=99)
    assert (first["counted"], first["page_offset"], first["is_finished"]) == (1, 99, False)
    again = await play.sync.page(begun["round"], {play.key: 10}, read_offset=99)
    assert (again["counted"], again["is_finished"]) == (0, True)
    assert await play.sync._rows("select * from public.begin_usage_sync(3600)") == []


async def test_a_slower_sweep_does_not_take_the_round_back(play: Play) -> None:
    await play.database.run("update doorkey.usage_sync set started_at = null")
    (begun,) = await play.sync._rows("select * from public.begin_usage_sync(3600)")
    await play.sync.page(begun["round"], {play.key: 10}, after=99)
    await play.sync.page(begun["round"], {}, read_offset=99, after=198)
    slow = await play.sync.page(begun["round"], {play.key: 10}, after=99)
    assert slow["page_offset"] == 198


@pytest.mark.parametrize("reading", [140, 150])
async def test_use_that_a_page_and_the_answer_to_a_change_both_bring_is_counted_once(play: Play, reading: int) -> None:
    await play.sync.read({play.key: 100})
    await play.doors.wish(play.user_id)
    claim = await play.doors.claimed(play.user_id)
    async with play.database.connect(autocommit=False) as changing:
        await changing.execute(
            "select public.finish_key_update(%s, %s, %s, %s, true, 140, 'r')",
            (play.user_id, claim["attempt"], play.key, claim["limit_micros"]),
        )
        page = asyncio.create_task(play.sync.read({play.key: reading}))
        await wait_until_blocked(play.database, 1)
        await changing.commit()
        await page
    assert sum((await play.sync.days(play.key)).values()) == reading
    assert (await play.sync.figures(play.key))["reported_micros"] == reading
    await play.sync.read({play.key: reading})
    assert await play.balance() == WELCOME - reading
    await play.assert_sound()


async def test_a_busy_account_is_left_to_the_next_round(play: Play) -> None:
    async with play.database.connect(autocommit=False) as other:
        await other.execute("select doorkey.lock_account(%s)", (play.user_id,))
        assert (await play.sync.read({play.key: 40}))["busy"] == 1
    assert (await play.sync.read({play.key: 40}))["unseen_micros"] == 40


async def test_a_limit_that_is_not_as_it_was_left_is_set_again(play: Play) -> None:
    await play.database.run("update public.openrouter_user_keys set updated_at = now() - interval '1 hour'")
    assert (await play.sync.read({play.key: 0}))["limits_healed"] == 0
    assert (await play.sync.read({play.key: 0}, limits={play.key: 9_000_000}))["limits_healed"] == 1
    assert await play.doors.state(play.user_id) == "due"
    claim = await play.doors.claimed(play.user_id)
    assert (claim["action"], claim["limit_micros"]) == ("update", WELCOME)
    # Somebody is at work on it.
    assert (await play.sync.read({play.key: 0}, limits={play.key: 9_000_000}))["limits_healed"] == 0


@pytest.mark.parametrize("cost", [Decimal("NaN"), Decimal(-1), Decimal(10) ** 30])
async def test_a_key_with_figures_that_are_none_is_named_and_keeps_no_other_from_being_read(
    play: Play, cost: Decimal
) -> None:
    stranger = key_hash("somebody else's")
    result = await play.sync.read({play.key: 500, stranger: cost}, limits={stranger: 10**19})
    assert (result["counted"], result["odd"], result["unseen_micros"]) == (1, 1, 500)
    assert set(await play.sync.findings(stranger)) == {"absurd"}
    await play.sync.read({play.key: cost, stranger: 0})
    assert await play.sync.findings(stranger) == {}
    assert set(await play.sync.findings(play.key)) == {"absurd"}
    assert (await play.sync.figures(play.key))["reported_micros"] == 500
    await play.sync.read({play.key: 600}, limits={play.key: 10**19})
    assert await play.sync.findings(play.key) == {}
    assert await play.balance() == WELCOME - 600


async def test_unseen_use_beyond_what_one_cost_may_be_is_charged_in_parts(play: Play) -> None:
    use = 2 * 10**12 + 7
    assert (await play.sync.read({play.key: use}))["unseen_micros"] == use
    parts = await play.database.rows("select cost_micros from doorkey.unheld_costs order by transaction_id")
    assert [row["cost_micros"] for row in parts] == [10**12, 10**12, 7]
    assert await play.credits.balances(play.user_id) == (0, 0, use - WELCOME)
    await play.assert_sound()


async def test_days_without_a_reading_have_what_the_ledger_has_for_them(play: Play) -> None:
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    noon = midnight - timedelta(hours=12)
    await play.database.run("update public.openrouter_user_keys set created_at = %s", (noon - timedelta(days=9),))
    await play.sync.read({play.key: 0}, at=noon - timedelta(days=9))
    for cost, back in ((300, 9), (200, 4)):
        await play.call(cost)
        await play.database.run(
            "update doorkey.credit_holds set settled_at = %s where cost_micros = %s",
            (noon - timedelta(days=back), cost),
        )
    await play.sync.read({play.key: 557}, daily={play.key: 7}, at=midnight + timedelta(seconds=1))
    days = {(noon - timedelta(days=back)).date().isoformat(): micros for back, micros in ((9, 300), (4, 200), (0, 50))}
    assert await play.sync.days(play.key) == {**days, midnight.date().isoformat(): 7}
    # What is without a receipt is charged for the day on which it stands.
    charged = await play.database.rows("select day, cost_micros from doorkey.unheld_costs order by day")
    assert [(row["day"], row["cost_micros"]) for row in charged] == [(noon.date(), 50), (midnight.date(), 7)]


async def test_unseen_use_is_charged_with_markup_remainder_and_debt_and_by_its_cost(play: Play) -> None:
    # Nobody knows its tokens: the price for them is not asked for.
    await play.database.run(
        "update public.plans set markup = 1.5, charges_by = 'tokens', token_price_micros_per_1k = 333"
    )
    await play.sync.read({play.key: Decimal("100.5")})
    assert await play.balance() == WELCOME - 150
    await play.sync.read({play.key: Decimal(101)})
    assert await play.balance() == WELCOME - 151
    await play.sync.read({play.key: 101 + WELCOME})
    account = await play.credits.account(play.user_id)
    assert (account["available_micros"], account["debt_micros"]) == (0, WELCOME // 2 + 151)
    await play.assert_sound()
