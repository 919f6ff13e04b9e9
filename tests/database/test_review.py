"""Who looks as if they had been here before has a held welcome, and all else; an operator gives it or takes it back."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from tests.database.test_offers import PLAN_MICROS, arrive, available, call_once, code_of, grants, offer, sweep, switch
from tests.support.credit_doors import Credits
from tests.support.databases import Database, Row
from tests.support.doors import Doors, refused, wait_until_blocked

BONUS_MICROS = 1_500_000


async def review_of(database: Database, user_id: uuid.UUID) -> tuple[str, list[str]]:
    (row,) = await database.rows("select * from doorkey.welcomes where user_id = %s", (user_id,))
    return row["review"], row["review_reasons"]


async def release(database: Database, user_id: uuid.UUID) -> int:
    async with database.acting_as("service_role") as connection:
        rows = await connection.execute("select public.release_welcome(%s, 'operator:ada', 'r') as given", (user_id,))
        return int((await rows.fetchall())[0]["given"])


async def claw_back(database: Database, user_id: uuid.UUID, reason: str | None = "Not new") -> int:
    async with database.acting_as("service_role") as connection:
        rows = await connection.execute(
            "select public.claw_back_welcome(%s, %s, 'operator:ada', 'r') as taken", (user_id, reason)
        )
        return int((await rows.fetchall())[0]["taken"])


async def listed(database: Database, rows: int = 10, after: uuid.UUID | None = None) -> list[Row]:
    async with database.acting_as("service_role") as connection:
        return await (await connection.execute("select * from public.list_reviews(%s, %s)", (after, rows))).fetchall()


@pytest.fixture
async def held(database: Database) -> uuid.UUID:
    """Somebody whose welcome is held."""
    await switch(database, reviews_mail=True)
    return await arrive(database, email="ada+again@example.com")


# -- who is held ------------------------------------------------------------------------------------------------------

MAIL = {
    "ada@example.com": [],
    "ada.lovelace@example.com": [],
    "a.b.c.d.e@example.com": [],
    "ada.king.lovelace@gmail.com": [],
    "a.d.a.x@gmail.com": ["aliased_mail"],
    "ada+1@example.com": ["aliased_mail"],
    "ADA+1@GoogleMail.com": ["aliased_mail"],
    "ada@mailinator.com": ["disposable_mail"],
    "ada@eu.Mailinator.com": ["disposable_mail"],
    "ada@notmailinator.com": [],
    "ada+1@yopmail.com": ["aliased_mail", "disposable_mail"],
    '"odd @ quotes"@example.com': [],
    "no-address-at-all": [],
    "@": [],
}


@pytest.mark.parametrize("email", MAIL)
async def test_aliased_and_disposable_mail_is_held_and_ordinary_mail_is_not(database: Database, email: str) -> None:
    await switch(database, reviews_mail=True)
    user_id = await arrive(database, email=email)
    assert await review_of(database, user_id) == ("held" if MAIL[email] else "none", MAIL[email])
    assert await available(database, user_id) == (0 if MAIL[email] else PLAN_MICROS)


async def test_operators_add_domains(database: Database) -> None:
    await switch(database, reviews_mail=True)
    await database.run("insert into doorkey.disposable_domains values ('burner.example')")
    assert (await review_of(database, await arrive(database, email="a@burner.example")))[0] == "held"


async def test_a_held_user_has_everything_but_credits(database: Database, held: uuid.UUID) -> None:
    (key,) = await Doors(database).keys(held)
    assert (key["status"], key["limit_micros"]) == ("active", 0)
    assert await Doors(database).state(held) == "ready"
    assert await database.value("select count(*) from public.profiles where id = %s", (held,)) == 1


SAME = [
    ("ada@example.com", "ada@example.com"),
    ("ada@example.com", "Ada+2@Example.com"),
    ("adalovelace@gmail.com", "a.da.lovelace+x@googlemail.com"),
]


@pytest.mark.parametrize(("first", "second"), SAME)
async def test_an_account_deleted_and_made_again_is_welcomed_once(database: Database, first: str, second: str) -> None:
    await switch(database, reviews_same_person=True)
    gone = await arrive(database, email=first)
    assert await available(database, gone) == PLAN_MICROS
    await database.run("delete from auth.users where id = %s", (gone,))
    again = await arrive(database, email=second)
    assert await review_of(database, again) == ("held", ["same_person"])
    assert await available(database, again) == 0


async def test_other_people_are_other_people(database: Database) -> None:
    await switch(database, reviews_same_person=True)
    for email in ("ada@example.com", "ada@example.org", "a.da@example.com", "bob@example.com"):
        assert await available(database, await arrive(database, email=email)) == PLAN_MICROS
    for phone in ("15550001", "15550002"):
        assert await available(database, await arrive(database, phone=phone)) == PLAN_MICROS
    await database.run("delete from auth.users where phone = '15550001'")
    assert (await review_of(database, await arrive(database, phone="15550001")))[0] == "held"


async def test_no_address_is_kept_of_who_is_gone(database: Database) -> None:
    await switch(database, reviews_same_person=True, reviews_mail=True, max_signups_per_range=1)
    user_id = await arrive(database, email="ada+secretly@example.com")
    await database.run("delete from auth.users where id = %s", (user_id,))
    for table in ("known_people", "welcomes", "promised_credits", "signup_ranges", "audit_log"):
        rows = await database.rows(f"select * from doorkey.{table}")
        # (Three letters alone may be of a hash.)
        assert not [told for told in ("secretly", "ada@", "ada+", "example.com") if told in str(rows)]
    (known,) = await database.rows("select person_hash from doorkey.known_people")
    # Not by a table of hashes made elsewhere.
    assert known["person_hash"] != await database.value(
        "select encode(sha256(convert_to('mail:ada@example.com', 'UTF8')), 'hex')"
    )


async def test_of_two_of_one_person_at_once_one_is_welcomed(database: Database) -> None:
    await switch(database, reviews_same_person=True)
    first, second = [await database.insert_user(email=f"ada+{n}@example.com") for n in range(2)]
    async with database.connect(autocommit=False) as busy:
        await busy.execute("select doorkey.claim_provisioning(%s, 60, 'r')", (first,))
        waiting = asyncio.create_task(Doors(database).claimed(second))
        await wait_until_blocked(database, 1)
        await busy.commit()
        assert (await waiting)["limit_micros"] == 0
    assert (await review_of(database, second))[1] == ["same_person"]


async def test_who_was_there_before_the_setting_is_remembered_by_hand(database: Database) -> None:
    old = await arrive(database, email="ada@example.com")
    assert await database.value("select doorkey.remember_people()") == 1
    await switch(database, reviews_same_person=True)
    await database.run("delete from auth.users where id = %s", (old,))
    assert (await review_of(database, await arrive(database, email="ada+1@example.com")))[0] == "held"


# -- address ranges ---------------------------------------------------------------------------------------------------


async def arrive_from(database: Database, address: str | None) -> uuid.UUID:
    user_id = await database.insert_user()
    if address is not None:
        await database.run(
            "insert into auth.sessions (id, user_id, ip, created_at, updated_at) values (%s, %s, %s, now(), now())",
            (uuid.uuid4(), user_id, address),
        )
    await Doors(database).make_ready(user_id)
    return user_id


@pytest.mark.parametrize(
    ("neighbours", "stranger"),
    [
        (["203.0.113.1", "203.0.113.77", "203.0.113.254"], "203.0.114.1"),
        (["2001:db8:7::1", "2001:db8:7:1::2", "2001:db8:7:ffff::3"], "2001:db8:8::1"),
    ],
)
async def test_the_next_ones_from_one_range_are_held_and_others_are_not(
    database: Database, neighbours: list[str], stranger: str
) -> None:
    await switch(database, max_signups_per_range=2)
    people = [await arrive_from(database, address) for address in neighbours]
    assert [(await review_of(database, user_id))[1] for user_id in people] == [[], [], ["address_range"]]
    assert (await review_of(database, await arrive_from(database, stranger)))[1] == []
    await database.run("update doorkey.signup_ranges set created_at = created_at - interval '25 hours'")
    assert (await review_of(database, await arrive_from(database, neighbours[0])))[1] == []
    await sweep(database)
    assert await database.value("select count(*) from doorkey.signup_ranges") == 1


@pytest.mark.parametrize("address", [None, "127.0.0.1", "10.1.2.3", "::1"])
async def test_no_address_or_a_proxys_is_no_reason(database: Database, address: str | None) -> None:
    await switch(database, max_signups_per_range=1)
    people = [await arrive_from(database, address) for _ in range(3)]
    assert [await available(database, user_id) for user_id in people] == [PLAN_MICROS] * 3


async def test_an_auth_without_sessions_breaks_nothing(database: Database) -> None:
    await switch(database, max_signups_per_range=1)
    await database.run("alter table auth.sessions rename to sessions_elsewhere")
    people = [await arrive(database) for _ in range(2)]
    assert [await available(database, user_id) for user_id in people] == [PLAN_MICROS] * 2


# -- what cannot be looked at -----------------------------------------------------------------------------------------


async def test_who_cannot_be_looked_at_is_held_and_not_failed(database: Database) -> None:
    await switch(database, reviews_mail=True)
    await database.run("drop table doorkey.disposable_domains")
    user_id = await arrive(database)
    assert await review_of(database, user_id) == ("held", ["not_checked"])
    assert await Doors(database).notes(user_id) == {"welcome.not_checked"}


# -- what operators do ------------------------------------------------------------------------------------------------


async def test_held_welcomes_are_listed_the_oldest_first(database: Database, held: uuid.UUID) -> None:
    await switch(database, welcome_offers=True)
    await offer(database, "summer")
    later = await arrive(database, {"campaign": "summer"}, email="bob+1@example.com")
    await arrive(database)
    rows = await listed(database)
    assert [(row["user_id"], row["offer_code"], row["reasons"]) for row in rows] == [
        (held, None, ["aliased_mail"]),
        (later, "summer", ["aliased_mail"]),
    ]
    assert len(await listed(database, rows=1)) == 1
    # Nobody is to be decided about who is gone.
    await database.run("delete from auth.users where id = %s", (held,))
    assert [row["user_id"] for row in await listed(database)] == [later]
    for bad in (0, 1_001):
        with refused("PT422", "page_out_of_range"):
            await listed(database, bad)


async def test_however_many_are_held_each_is_seen_once_page_by_page(database: Database) -> None:
    await switch(database, reviews_mail=True)
    people = sorted([await arrive(database, email=f"ada+{n}@example.com") for n in range(5)])
    later, earlier = people[:2], people[2:]
    for when, users in (("now", later), ("yesterday", earlier)):
        await database.run("update doorkey.welcomes set created_at = %s::date where user_id = any (%s)", (when, users))
    seen: list[uuid.UUID] = []
    while page := await listed(database, rows=2, after=seen[-1] if seen else None):
        seen += [row["user_id"] for row in page]
        # Where somebody was decided about, the next page goes on from there all the same.
        await release(database, seen[-1])
    assert seen == earlier + later
    with refused("PT404", "review_not_found"):
        await listed(database, after=uuid.uuid4())


async def test_a_held_welcome_stays_held_whatever_else_happens(database: Database, held: uuid.UUID) -> None:
    await switch(database, reviews_mail=False)
    await Doors(database).wish(held)
    assert (await Doors(database).claimed(held))["limit_micros"] == 0
    assert await sweep(database) == 0
    assert await available(database, held) == 0


async def test_a_released_welcome_is_given_once_and_the_limit_follows(database: Database, held: uuid.UUID) -> None:
    assert (await release(database, held), await release(database, held)) == (PLAN_MICROS, 0)
    assert await available(database, held) == PLAN_MICROS
    assert (await Doors(database).claimed(held))["limit_micros"] == PLAN_MICROS
    assert (await grants(database, held))[0]["lasts"].days == 30
    assert await listed(database) == []
    (note,) = await database.rows("select * from doorkey.audit_log where action = 'welcome.released'")
    assert (note["actor"], note["user_id"], note["request_id"]) == ("operator:ada", held, "r")


async def test_releases_at_once_give_once(database: Database, held: uuid.UUID) -> None:
    assert sorted(await asyncio.gather(*(release(database, held) for _ in range(6)))) == [0] * 5 + [PLAN_MICROS]
    assert await available(database, held) == PLAN_MICROS


async def test_a_refused_welcome_is_never_given(database: Database, held: uuid.UUID) -> None:
    assert (await claw_back(database, held), await claw_back(database, held)) == (0, 0)
    assert (await review_of(database, held))[0] == "refused"
    assert await database.value("select count(*) from doorkey.promised_credits") == 0
    with refused("PT409", "review_over"):
        await release(database, held)
    await switch(database, reviews_mail=False)
    await Doors(database).wish(held)
    await Doors(database).claimed(held)
    assert await grants(database, held) == []


async def test_a_welcome_that_was_given_at_once_cannot_be_released(database: Database, held: uuid.UUID) -> None:
    other = await arrive(database)
    with refused("PT409", "review_over"):
        await release(database, other)
    with refused("PT404", "review_not_found"):
        await release(database, uuid.uuid4())
    for reason in (None, "", "   ", "x" * 501, "x" * 500 + " "):
        with refused("PT422", "posting_invalid"):
            await claw_back(database, held, reason)


async def test_while_a_welcome_is_held_nobody_is_paid_for_it(database: Database) -> None:
    await switch(database, referral_bonus_micros=BONUS_MICROS, reviews_mail=True, welcome_at_once_percent=40)
    referrer = await arrive(database)
    metadata = {"referral_code": await code_of(database, referrer)}
    held, refused_one = [await arrive(database, metadata, email=f"ada+{n}@example.com") for n in range(2)]
    assert (await sweep(database), await available(database, referrer)) == (0, 2_000_000)
    assert await release(database, held) == 2_000_000 + BONUS_MICROS
    await claw_back(database, refused_one)
    assert await sweep(database) == 1
    assert await available(database, referrer) == 2_000_000 + BONUS_MICROS
    await call_once(database, held)
    assert await sweep(database) == 1
    assert await available(database, held) == PLAN_MICROS + BONUS_MICROS - 100
    assert await Credits(database).broken_rules() == []


async def test_what_was_given_is_taken_back_by_an_entry_and_what_was_spent_of_it_is_owed(
    database: Database, held: uuid.UUID
) -> None:
    await release(database, held)
    await Doors(database).claimed(held)
    await call_once(database, held)
    assert (await claw_back(database, held), await claw_back(database, held)) == (PLAN_MICROS, 0)
    assert (await review_of(database, held))[0] == "clawed_back"
    (account,) = await database.rows("select * from public.credit_accounts where user_id = %s", (held,))
    assert (account["available_micros"], account["debt_micros"]) == (0, 100)
    (entry,) = await database.rows(
        "select * from public.credit_transactions where user_id = %s and type = 'adjustment' and reason = 'Not new'",
        (held,),
    )
    assert entry["actor"] == "operator:ada"
    assert await Credits(database).broken_rules() == []
    assert [grant["idempotency_key"] for grant in await grants(database, held)] == [f"welcome:{held}"]
