"""How new users are welcomed: by what they say, whatever that is; by experiment; for bringing somebody; in parts."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from typing import Any

import pytest

from tests.support.credit_doors import Credits
from tests.support.databases import Database, Row
from tests.support.doors import Doors, wait_until_blocked

PLAN_MICROS = 5_000_000
OFFER_MICROS = 8_000_000
BONUS_MICROS = 1_500_000
HUNDRED = 100


async def switch(database: Database, **settings: Any) -> None:
    columns = ", ".join(f"{name} = %s" for name in settings)
    await database.run(f"update doorkey.settings set {columns}", tuple(settings.values()))


async def offer(database: Database, code: str, amount_micros: int = OFFER_MICROS, **columns: Any) -> None:
    values = {"code": code, "amount_micros": amount_micros, "days": 60, **columns}
    await database.run(
        f"insert into doorkey.welcome_offers ({', '.join(values)}) values ({', '.join(['%s'] * len(values))})",
        tuple(values.values()),
    )


async def arrive(database: Database, metadata: object = None, **user: Any) -> uuid.UUID:
    """Somebody signs up with this metadata and has their key."""
    user_id = await database.insert_user(metadata=metadata, **user)
    await Doors(database).make_ready(user_id)
    return user_id


async def grants(database: Database, user_id: uuid.UUID) -> list[Row]:
    return await database.rows(
        "select t.idempotency_key, t.reason, t.amount_micros, l.expires_at - l.created_at as lasts, l.priority"
        "  from public.credit_transactions as t join doorkey.credit_lots as l on l.transaction_id = t.id"
        " where t.user_id = %s order by t.id",
        (user_id,),
    )


async def available(database: Database, user_id: uuid.UUID) -> int:
    return int(
        await database.value("select available_micros from public.credit_accounts where user_id = %s", (user_id,))
    )


async def sweep(database: Database, rows: int = 5_000) -> int:
    async with database.acting_as("service_role") as connection:
        (row,) = await (
            await connection.execute("select public.grant_promised_credits(%s, 'r') as count", (rows,))
        ).fetchall()
    return int(row["count"])


# -- nothing is on ----------------------------------------------------------------------------------------------------


async def test_with_everything_off_the_plan_welcomes_and_nothing_else_is_written(database: Database) -> None:
    await offer(database, "summer")
    user_id = await arrive(database, {"campaign": "summer", "referral_code": "x"}, email="a+b@mailinator.com")
    (grant,) = await grants(database, user_id)
    assert (grant["amount_micros"], grant["reason"], grant["lasts"].days) == (PLAN_MICROS, "Welcome credits", 30)
    for table in ("welcomes", "promised_credits", "known_people", "signup_ranges"):
        assert await database.value(f"select count(*) from doorkey.{table}") == 0
    assert await database.value("select referral_code from public.credit_accounts") is None


# -- offers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata", [{"campaign": "summer"}, {"campaign": "  SUMMER "}, {"campaign": "?", "referral_source": "summer"}]
)
async def test_an_offer_decides_how_much_for_how_long_and_is_named_in_the_ledger(
    database: Database, metadata: object
) -> None:
    await switch(database, welcome_offers=True)
    await offer(database, "summer")
    user_id = await arrive(database, metadata)
    (grant,) = await grants(database, user_id)
    assert (grant["amount_micros"], grant["lasts"].days) == (OFFER_MICROS, 60)
    assert grant["reason"] == "Welcome credits: summer"
    assert await database.value("select offer_code from doorkey.welcomes where user_id = %s", (user_id,)) == "summer"


ABSURD: dict[str, object] = {
    "nothing": None,
    "a word that is no offer": {"campaign": "winter"},
    "a number": {"campaign": 1},
    "a list": {"campaign": ["summer"]},
    "an object": {"campaign": {"summer": "summer"}},
    "null": {"campaign": None, "referral_source": None, "referral_code": None},
    "true": {"campaign": True, "referral_code": False},
    "a text without end": {"campaign": "summer" * 100_000, "referral_code": "x" * 100_000},
    "quotes": {"campaign": "summer'; drop table doorkey.welcomes; --", "referral_code": "'"},
    "other letters": {"campaign": "\u0455ummer\u202e\ud83d\ude00", "referral_code": "\u0001"},
    "patterns": {"campaign": "%", "referral_source": "_ummer", "referral_code": "%"},
    "nothing but spaces": {"campaign": "   ", "referral_source": "", "referral_code": ""},
    "a metadata that is a list": ["campaign", "summer"],
    "a metadata that is a text": "summer",
    "a metadata that is a number": 7,
    "what we decide ourselves": {"amount_micros": 10**12, "arm": "big", "experiment": "e", "plan_id": "enterprise"},
    "infinity in disguise": {"campaign": "1e400", "referral_source": "NaN"},
}


@pytest.mark.parametrize("what", ABSURD)
async def test_metadata_of_any_kind_is_no_error_and_gets_the_default(database: Database, what: str) -> None:
    await switch(
        database,
        welcome_offers=True,
        referral_bonus_micros=BONUS_MICROS,
        reviews_mail=True,
        reviews_same_person=True,
        max_signups_per_range=3,
    )
    await offer(database, "summer")
    user_id = await database.insert_user()
    # Past the form of the test's own inserts: whatever JSON there can be.
    async with database.connect() as connection:
        # Also past the triggers of the local Auth, which unwraps texts.
        await connection.execute("set session_replication_role = replica")
        await connection.execute(
            "update auth.users set raw_user_meta_data = %s::jsonb where id = %s",
            (None if ABSURD[what] is None else json.dumps(ABSURD[what]), user_id),
        )
    await Doors(database).make_ready(user_id)
    assert await available(database, user_id) == PLAN_MICROS
    assert await Doors(database).notes(user_id) == set()


@pytest.mark.parametrize(
    ("columns", "is_given"),
    [
        ({"starts_at": "2100-01-01"}, False),
        ({"starts_at": "2020-01-01", "ends_at": "2020-02-01"}, False),
        ({"starts_at": "2020-01-01", "ends_at": "2100-01-01"}, True),
    ],
)
async def test_an_offer_holds_in_its_time(database: Database, columns: dict[str, Any], is_given: bool) -> None:
    await switch(database, welcome_offers=True)
    await offer(database, "summer", **columns)
    user_id = await arrive(database, {"campaign": "summer"})
    assert await available(database, user_id) == (OFFER_MICROS if is_given else PLAN_MICROS)


async def test_an_offer_for_so_many_is_for_so_many_whoever_comes_at_once(database: Database) -> None:
    await switch(database, welcome_offers=True)
    await offer(database, "first3", max_grants=3)
    people = [await database.insert_user(metadata={"campaign": "first3"}) for _ in range(12)]
    await asyncio.gather(*(Doors(database).claimed(user_id) for user_id in people))
    got = Counter([await available(database, user_id) for user_id in people])
    assert got == {OFFER_MICROS: 3, PLAN_MICROS: 9}
    assert await database.value("select granted from doorkey.welcome_offers") == 3


async def test_an_offer_of_nothing_is_nothing_and_stays_so(database: Database) -> None:
    await switch(database, welcome_offers=True)
    await offer(database, "none", amount_micros=0)
    user_id = await arrive(database, {"campaign": "none"})
    await switch(database, welcome_offers=False)
    await Doors(database).wish(user_id)
    await Doors(database).claimed(user_id)
    assert await grants(database, user_id) == []


async def test_a_user_is_welcomed_once_whatever_they_write_later(database: Database) -> None:
    await switch(database, welcome_offers=True)
    await offer(database, "summer")
    user_id = await arrive(database)
    await database.run('update auth.users set raw_user_meta_data = \'{"campaign": "summer"}\'')
    await Doors(database).wish(user_id)
    await Doors(database).claimed(user_id)
    assert [grant["amount_micros"] for grant in await grants(database, user_id)] == [PLAN_MICROS]


# -- experiments ------------------------------------------------------------------------------------------------------


async def arms(database: Database, **weights: int) -> None:
    await switch(database, welcome_experiment="size")
    for n, (arm, weight) in enumerate(weights.items(), start=1):
        await database.run(
            "insert into doorkey.welcome_arms (experiment, arm, weight, amount_micros, days) values"
            " ('size', %s, %s, %s, 7)",
            (arm, weight, n * 1_000_000),
        )


async def test_an_arm_follows_from_the_user_alone_and_stands_in_the_grant(database: Database) -> None:
    await arms(database, a=1, b=1, c=0)
    by_arm = Counter[str]()
    for _ in range(24):
        user_id = await arrive(database)
        (welcome,) = await database.rows("select * from doorkey.welcomes where user_id = %s", (user_id,))
        expected = await database.value("select mod(doorkey.hash_of_user('size', %s), 2)", (user_id,))
        assert (welcome["experiment"], welcome["arm"]) == ("size", "ab"[expected])
        (grant,) = await grants(database, user_id)
        assert grant["amount_micros"] == welcome["amount_micros"] == (expected + 1) * 1_000_000
        assert grant["reason"] == f"Welcome credits: size / {welcome['arm']}"
        by_arm[welcome["arm"]] += 1
    assert set(by_arm) == {"a", "b"}


async def test_arms_are_shared_out_by_their_weights(database: Database) -> None:
    shares = await database.rows(
        "select mod(doorkey.hash_of_user('size', md5(n::text)::uuid), 4) = 0 as is_first, count(*)"
        "  from generate_series(1, 10000) as n group by 1 order by 1 desc"
    )
    assert 2_300 < shares[0]["count"] < 2_700


async def test_an_experiment_without_arms_is_no_error(database: Database) -> None:
    await switch(database, welcome_experiment="nowhere")
    assert await available(database, await arrive(database)) == PLAN_MICROS
    await arms(database, a=0)
    assert await available(database, await arrive(database)) == PLAN_MICROS


async def test_who_names_an_offer_is_in_no_experiment(database: Database) -> None:
    await arms(database, a=1)
    await switch(database, welcome_offers=True)
    await offer(database, "summer")
    user_id = await arrive(database, {"campaign": "summer"})
    assert await available(database, user_id) == OFFER_MICROS
    assert await database.value("select arm from doorkey.welcomes") is None


# -- referrals --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def referrer(database: Database) -> uuid.UUID:
    await switch(database, referral_bonus_micros=BONUS_MICROS, max_referrals=3)
    return await arrive(database)


async def code_of(database: Database, user_id: uuid.UUID) -> str:
    return str(await database.value("select referral_code from public.credit_accounts where user_id = %s", (user_id,)))


async def test_both_sides_get_the_bonus_the_referrer_once_there_is_a_key(
    database: Database, referrer: uuid.UUID
) -> None:
    doors = Doors(database)
    user_id = await database.insert_user(metadata={"referral_code": f" {(await code_of(database, referrer)).upper()}"})
    claim = await doors.claimed(user_id)
    assert claim["limit_micros"] == PLAN_MICROS + BONUS_MICROS
    assert (await sweep(database), await available(database, referrer)) == (0, PLAN_MICROS)
    await doors.finish(claim)
    assert (await sweep(database), await sweep(database)) == (1, 0)
    assert await available(database, referrer) == PLAN_MICROS + BONUS_MICROS
    # And the key's limit follows.
    assert (await doors.claimed(referrer))["limit_micros"] == PLAN_MICROS + BONUS_MICROS


async def test_nobody_brings_themselves(database: Database, referrer: uuid.UUID) -> None:
    code = await code_of(database, referrer)
    user_id = await database.insert_user(metadata={"referral_code": "mine-in-advance"})
    await database.run(
        "insert into public.credit_accounts (user_id, plan_id, referral_code) values (%s, 'trial', 'mine-in-advance')",
        (user_id,),
    )
    await Doors(database).make_ready(user_id)
    assert await available(database, user_id) == PLAN_MICROS
    assert await database.value("select referrer_id from doorkey.welcomes where user_id = %s", (user_id,)) is None
    assert await Doors(database).notes(user_id) == set()
    assert code != "mine-in-advance"


async def test_the_cap_holds_also_for_those_who_come_at_once(database: Database, referrer: uuid.UUID) -> None:
    metadata = {"referral_code": await code_of(database, referrer)}
    people = [await database.insert_user(metadata=metadata) for _ in range(10)]
    await asyncio.gather(*(Doors(database).make_ready(user_id) for user_id in people))
    got = Counter([await available(database, user_id) for user_id in people])
    assert got == {PLAN_MICROS + BONUS_MICROS: 3, PLAN_MICROS: 7}
    assert await sweep(database) == 3
    assert await available(database, referrer) == PLAN_MICROS + 3 * BONUS_MICROS


async def test_a_referrer_who_is_banned_or_gone_brings_nobody(database: Database, referrer: uuid.UUID) -> None:
    code = await code_of(database, referrer)
    await database.run("update auth.users set banned_until = now() + interval '1 day' where id = %s", (referrer,))
    assert await available(database, await arrive(database, {"referral_code": code})) == PLAN_MICROS
    await database.run("delete from auth.users where id = %s", (referrer,))
    assert await available(database, await arrive(database, {"referral_code": code})) == PLAN_MICROS


async def test_two_who_name_each_other_and_a_sweep_at_once_never_deadlock(
    database: Database, referrer: uuid.UUID
) -> None:
    """Nobody holds two people's rows: a claim does not wait for the referrer's account, nor the sweep for anybody."""
    user_id = await database.insert_user(metadata={"referral_code": await code_of(database, referrer)})
    async with database.connect(autocommit=False) as busy:
        await busy.execute("select doorkey.want(%s)", (referrer,))
        await busy.execute("select from public.credit_accounts where user_id = %s for update", (referrer,))
        async with asyncio.timeout(10):
            await Doors(database).make_ready(user_id)
            assert await sweep(database) == 0
        await busy.rollback()
    assert await sweep(database) == 1


# -- in parts ---------------------------------------------------------------------------------------------------------


async def call_once(database: Database, user_id: uuid.UUID) -> None:
    """A call through the user's key, charged with 100 micro-dollars."""
    doors = Credits(database)
    hold = await doors.reserve(user_id, HUNDRED)
    await doors.settle(hold["hold_id"], HUNDRED)


async def test_the_rest_comes_with_the_first_call(database: Database) -> None:
    await switch(database, welcome_at_once_percent=40)
    user_id = await arrive(database)
    assert (await sweep(database), await available(database, user_id)) == (0, 2_000_000)
    await call_once(database, user_id)
    assert (await sweep(database), await sweep(database)) == (1, 0)
    assert await available(database, user_id) == PLAN_MICROS - HUNDRED
    first, rest = await grants(database, user_id)
    assert first["amount_micros"] + rest["amount_micros"] == PLAN_MICROS
    assert (rest["lasts"], rest["priority"]) == (first["lasts"], first["priority"])
    assert (await Doors(database).claimed(user_id))["limit_micros"] == PLAN_MICROS


async def test_the_rest_comes_with_the_confirmation_and_at_once_to_who_is_confirmed(database: Database) -> None:
    await switch(database, welcome_at_once_percent=1, welcome_rest_on="confirmed", provision_on="created")
    confirmed = await arrive(database)
    assert await available(database, confirmed) == PLAN_MICROS
    user_id = await arrive(database, confirmed=False)
    assert (await sweep(database), await available(database, user_id)) == (0, 50_000)
    await database.run(
        "update auth.users set email_confirmed_at = now() where id = %s", (user_id,), role="supabase_auth_admin"
    )
    assert await sweep(database) == 1
    assert await available(database, user_id) == PLAN_MICROS


@pytest.mark.parametrize("percent", [1, 33, 99])
async def test_the_parts_add_up_to_the_micro_dollar(database: Database, percent: int) -> None:
    await switch(database, welcome_at_once_percent=percent, welcome_offers=True)
    await offer(database, "odd", amount_micros=1_000_001)
    user_id = await arrive(database, {"campaign": "odd"})
    await call_once(database, user_id)
    await sweep(database)
    assert sum(grant["amount_micros"] for grant in await grants(database, user_id)) == 1_000_001


async def test_a_promise_lapses_with_the_days_of_its_welcome(database: Database) -> None:
    await switch(database, welcome_at_once_percent=40)
    await arrive(database)
    assert await database.value("select lapses_at - created_at = interval '30 days' from doorkey.promised_credits")
    await database.run("update doorkey.promised_credits set lapses_at = now()")
    assert await sweep(database) == 0
    assert await database.value("select count(*) from doorkey.promised_credits") == 0


async def test_the_sweep_walks_round_all_promises_however_many_wait(database: Database) -> None:
    await switch(database, welcome_at_once_percent=40)
    people = [await arrive(database) for _ in range(5)]
    await call_once(database, people[4])
    assert [await sweep(database, rows=2) for _ in range(3)] == [0, 0, 1]
    await call_once(database, people[0])
    assert [await sweep(database, rows=2) for _ in range(2)] == [1, 0]


async def test_two_sweeps_at_once_give_a_promise_once(database: Database) -> None:
    await switch(database, welcome_at_once_percent=40)
    user_id = await arrive(database)
    await call_once(database, user_id)
    async with database.connect(autocommit=False) as first:
        await first.execute("select doorkey.grant_promised_credits(100, 'r')")
        second = asyncio.create_task(sweep(database))
        await wait_until_blocked(database, 1)
        await first.commit()
        assert await second == 0
    assert await available(database, user_id) == PLAN_MICROS - HUNDRED
    assert len(await grants(database, user_id)) == 2


async def test_a_gone_user_is_given_nothing(database: Database) -> None:
    await switch(database, welcome_at_once_percent=40)
    user_id = await arrive(database)
    await call_once(database, user_id)
    await database.run("delete from auth.users where id = %s", (user_id,))
    assert await sweep(database) == 0
