"""Who comes anonymously is looked at once they have an address, and a welcome is decided once, also one of nothing."""

from __future__ import annotations

import json
import uuid

import pytest

from tests.database.test_offers import (
    BONUS_MICROS,
    PLAN_MICROS,
    arrive,
    available,
    call_once,
    code_of,
    grants,
    offer,
    sweep,
    switch,
)
from tests.database.test_review import claw_back, release, review_of
from tests.support.credit_doors import Credits
from tests.support.databases import Database
from tests.support.doors import Doors


async def arrive_anonymous(database: Database, metadata: object = None) -> uuid.UUID:
    await switch(database, provision_anonymous=True, provision_on="created")
    return await arrive(database, metadata, is_anonymous=True)


async def convert(database: Database, user_id: uuid.UUID, email: str) -> None:
    """As Auth does it: the address is confirmed first. Then whoever looks for work finds the user."""
    for change in ("email = %s, email_confirmed_at = now()", "is_anonymous = false"):
        await database.run(
            f"update auth.users set {change} where id = %s",
            (*([email] if "%s" in change else []), user_id),
            role="supabase_auth_admin",
        )
    assert await Doors(database).state(user_id) == "due"
    await Doors(database).finish_key_update(await Doors(database).claimed(user_id))


async def test_who_comes_anonymously_gets_their_welcome_once_there_is_an_address(database: Database) -> None:
    await switch(database, reviews_mail=True)
    user_id = await arrive_anonymous(database)
    assert (await review_of(database, user_id), await available(database, user_id)) == (("held", ["anonymous"]), 0)
    # Not before, whoever claims.
    await Doors(database).wish(user_id)
    await Doors(database).finish_key_update(await Doors(database).claimed(user_id))
    assert await available(database, user_id) == 0
    await convert(database, user_id, "ada@example.com")
    assert (await review_of(database, user_id), await available(database, user_id)) == (("none", []), PLAN_MICROS)
    (key,) = await Doors(database).keys(user_id)
    assert key["limit_micros"] == PLAN_MICROS
    assert (await grants(database, user_id))[0]["lasts"].days == 30
    assert await Credits(database).broken_rules() == []


async def test_anonymous_first_is_no_way_round_a_review(database: Database) -> None:
    await switch(database, reviews_mail=True, reviews_same_person=True)
    people = [await arrive_anonymous(database) for _ in range(3)]
    for n, user_id in enumerate(people):
        await convert(database, user_id, "eve@mailinator.com" if n == 0 else f"ada+{n}@example.com")
    assert [await review_of(database, user_id) for user_id in people] == [
        ("held", ["disposable_mail"]),
        ("held", ["aliased_mail"]),
        ("held", ["aliased_mail", "same_person"]),
    ]
    assert [await available(database, user_id) for user_id in people] == [0] * 3
    # From here on like anybody's.
    assert await release(database, people[1]) == PLAN_MICROS
    await claw_back(database, people[2])
    assert (await review_of(database, people[2]))[0] == "refused"


async def test_what_was_found_at_first_counts_when_there_is_an_address(database: Database) -> None:
    await switch(database, reviews_mail=True)
    user_id = await arrive_anonymous(database)
    await database.run("update doorkey.welcomes set review_reasons = review_reasons || array['address_range']")
    await convert(database, user_id, "ada@example.com")
    assert await review_of(database, user_id) == ("held", ["address_range"])


async def test_who_is_anonymous_brings_somebody_their_bonus_only_with_an_address(database: Database) -> None:
    await switch(database, reviews_mail=True, referral_bonus_micros=BONUS_MICROS)
    referrer = await arrive(database)
    user_id = await arrive_anonymous(database, {"referral_code": await code_of(database, referrer)})
    assert await sweep(database) == 0
    await convert(database, user_id, "ada@example.com")
    assert await available(database, user_id) == PLAN_MICROS + BONUS_MICROS
    assert (await sweep(database), await available(database, referrer)) == (1, PLAN_MICROS + BONUS_MICROS)


async def test_where_nobody_looks_at_addresses_the_anonymous_are_welcomed_at_once(database: Database) -> None:
    await switch(database, welcome_offers=True, max_signups_per_range=3)
    user_id = await arrive_anonymous(database)
    assert (await review_of(database, user_id), await available(database, user_id)) == (("none", []), PLAN_MICROS)


async def test_what_a_conversion_decides_leaves_an_audit_line_and_claiming_again_none(database: Database) -> None:
    await switch(database, reviews_mail=True)
    given, doubtful = [await arrive_anonymous(database) for _ in range(2)]
    await convert(database, given, "ada@example.com")
    await convert(database, doubtful, "eve@mailinator.com")
    await Doors(database).wish(doubtful)
    await Doors(database).finish_key_update(await Doors(database).claimed(doubtful))
    lines = await database.rows(
        "select user_id, action, actor, detail from doorkey.audit_log where action like 'welcome.%%' order by id"
    )
    assert [(line["user_id"], line["action"]) for line in lines] == [
        (given, "welcome.released"), (doubtful, "welcome.held"),
    ]  # fmt: skip
    released, held = (line["detail"] for line in lines)
    assert (released["available_before_micros"], released["available_after_micros"]) == (0, PLAN_MICROS)
    assert (held["before"], held["after"]) == (["anonymous"], ["disposable_mail"])
    assert {line["actor"] for line in lines} == {"provisioning"}


@pytest.mark.parametrize("ends", ["release", "conversion"])
async def test_the_days_of_a_rest_begin_when_the_welcome_is_given(database: Database, ends: str) -> None:
    await switch(database, reviews_mail=True, welcome_at_once_percent=40)
    user_id = await arrive_anonymous(database)
    lapse = "select lapses_at - now() from doorkey.promised_credits where waits_for = 'first_call'"
    # However long an operator takes.
    assert (await database.value(lapse)).days == 364
    if ends == "release":
        await release(database, user_id)
    else:
        await convert(database, user_id, "ada@example.com")
    assert (await database.value(lapse)).days == 29
    await call_once(database, user_id)
    assert (await sweep(database), await available(database, user_id)) == (1, PLAN_MICROS - 100)


# -- once -------------------------------------------------------------------------------------------------------------


async def test_who_was_welcomed_with_nothing_takes_no_offer_that_comes_later(database: Database) -> None:
    await switch(database, default_plan_id="starter")
    user_id = await arrive(database)
    before = await available(database, user_id)
    await switch(database, welcome_offers=True)
    await offer(database, "launch26")
    await database.run("update public.plans set welcome_credits_micros = 9000000")
    await database.run(
        "update auth.users set raw_user_meta_data = %s where id = %s", (json.dumps({"campaign": "launch26"}), user_id)
    )
    await Doors(database).rotate(user_id)
    await Doors(database).claimed(user_id)
    await switch(database, welcome_offers=False)
    await Doors(database).expire_lease(user_id)
    await Doors(database).claimed(user_id)
    assert await available(database, user_id) == before


# -- a person ---------------------------------------------------------------------------------------------------------


async def test_a_person_is_known_again_by_mailbox_or_phone_where_there_are_both(database: Database) -> None:
    await switch(database, reviews_same_person=True)
    first = await arrive(database, email="ada@example.com", phone="15550001")
    assert await available(database, first) == PLAN_MICROS
    for email, phone in (("bob@example.com", "15550001"), (None, "15550001"), ("Ada@example.com", None)):
        # Auth lets an address or a phone be somebody else's only then.
        await database.run("delete from auth.users")
        assert await review_of(database, await arrive(database, email=email, phone=phone)) == ("held", ["same_person"])
    assert await available(database, await arrive(database, email="cy@example.com", phone="15550002")) == PLAN_MICROS


async def test_that_addresses_cannot_be_read_is_noted(database: Database) -> None:
    await switch(database, max_signups_per_range=1)
    await database.run("alter table auth.sessions rename column ip to address")
    assert await Doors(database).notes(await arrive(database)) == set()
    await database.run("alter table auth.sessions add column ip text")
    user_id = await database.insert_user()
    await database.run(
        "insert into auth.sessions (id, user_id, ip, created_at, updated_at) values (%s, %s, 'here', now(), now())",
        (uuid.uuid4(), user_id),
    )
    await Doors(database).make_ready(user_id)
    assert await available(database, user_id) == PLAN_MICROS
    assert await Doors(database).notes(user_id) == {"signup_range.not_read"}
