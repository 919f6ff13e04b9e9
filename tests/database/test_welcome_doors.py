"""Arms of the welcome experiment and domains of throw-away mail, as operators keep them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.database.test_edits import lines
from tests.database.test_offers import arrive, available, switch
from tests.support.databases import Database, Row
from tests.support.doors import refused

AMOUNT = 7_000_000


async def ask(database: Database, call: str, *arguments: object) -> list[Row]:
    async with database.acting_as("service_role") as connection:
        return await (await connection.execute(f"select * from public.{call}", arguments)).fetchall()


async def set_arm(database: Database, arm: object = "large", **more: Any) -> bool:
    given = {"experiment": "size", "weight": 1, "amount_micros": AMOUNT, "days": 30, **more}
    (row,) = await ask(
        database,
        "set_welcome_arm(%s, %s, %s, %s, %s, 'operator:ada', 'r') as is_running",
        *(given["experiment"], arm, given["weight"], given["amount_micros"], given["days"]),
    )
    return bool(row["is_running"])


async def set_domain(database: Database, domain: object, *, is_disposable: object = True) -> bool:
    (row,) = await ask(database, "set_disposable_domain(%s, %s, 'operator:ada', 'r') as is_new", domain, is_disposable)
    return bool(row["is_new"])


async def test_who_comes_to_an_arm_that_was_set_gets_what_it_says_and_keeps_it(database: Database) -> None:
    assert not await set_arm(database)
    await switch(database, welcome_experiment="size")
    assert await set_arm(database)
    early = await arrive(database)
    assert await set_arm(database, amount_micros=1)
    late = await arrive(database)
    assert (await available(database, early), await available(database, late)) == (AMOUNT, 1)


async def test_an_arm_is_set_and_set_again_by_whom_the_log_names(database: Database) -> None:
    await set_arm(database)
    await set_arm(database, weight=0, days=None)
    await set_arm(database, weight=0, days=None)
    (row,) = await ask(database, "list_welcome_arms(null, null, 10)")
    assert (row["weight"], row["days"], row["amount_micros"], row["is_running"]) == (0, None, AMOUNT, False)
    added, edited = await lines(database, "arm")
    assert [(line["actor"], line["action"]) for line in (added, edited)] == [
        ("operator:ada", "arm.added"),
        ("operator:ada", "arm.edited"),
    ]
    assert (edited["before"]["weight"], edited["after"]["weight"]) == (1, 0)
    assert (
        await database.value("select distinct request_id from doorkey.audit_log where starts_with(action, 'arm.')")
        == "r"
    )


async def test_arms_and_domains_are_listed_page_by_page(database: Database) -> None:
    for experiment, arm in (("a", "x"), ("a", "y"), ("b", "a"), ("b", "x")):
        await set_arm(database, arm, experiment=experiment)
    await switch(database, welcome_experiment="b")
    first = await ask(database, "list_welcome_arms(null, null, 3)")
    second = await ask(database, "list_welcome_arms(%s, %s, 3)", first[-1]["experiment"], first[-1]["arm"])
    assert [(row["experiment"], row["arm"], row["is_running"]) for row in (*first, *second)] == [
        *(("a", "x", False), ("a", "y", False), ("b", "a", True), ("b", "x", True)),
    ]
    whole = [row["domain"] for row in await ask(database, "list_disposable_domains(null, 1000) as domain")]
    stored = await database.rows("select domain from doorkey.disposable_domains order by domain")
    assert whole == [row["domain"] for row in stored]
    later = await ask(database, "list_disposable_domains(%s, 2) as domain", whole[1])
    assert [row["domain"] for row in later] == whole[2:4]


async def test_a_domain_counts_from_when_it_is_added_until_it_is_removed(database: Database) -> None:
    doubt = "select doorkey.doubt_mail('ada@mx.burner.example')"
    for is_disposable, doubts in ((True, ["disposable_mail"]), (False, [])):
        # Asked again, it is as it was, and leaves no line.
        outcomes = [await set_domain(database, "burner.example", is_disposable=is_disposable) for _ in range(2)]
        assert (outcomes, await database.value(doubt)) == ([True, False], doubts)
    assert [(line["actor"], line["action"]) for line in await lines(database, "disposable_domain")] == [
        ("operator:ada", "disposable_domain.added"),
        ("operator:ada", "disposable_domain.removed"),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"arm": ""}, {"arm": None}, {"experiment": "e" * 64}, {"weight": -1}, {"weight": 1_000_001}),
        *({"weight": None}, {"amount_micros": -1}, {"amount_micros": 10**12 + 1}, {"amount_micros": None}, {"days": 0}),
    ],
)
async def test_what_makes_no_arm_is_refused_in_a_word(database: Database, wrong: dict[str, Any]) -> None:
    with refused("PT422", "arm_invalid"):
        await set_arm(database, **wrong)
    assert await ask(database, "list_welcome_arms(null, null, 10)") == []


@pytest.mark.parametrize("wrong", ["nowhere", "Big.example", "a@b.example", "a b.example", "", None])
async def test_what_is_no_domain_is_refused_in_a_word(database: Database, wrong: str | None) -> None:
    with refused("PT422", "domain_invalid"):
        await set_domain(database, wrong)
