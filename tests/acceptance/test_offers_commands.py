"""`doorkey offers ...` as an operator runs it, on the running stack."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator

import pytest

from infra.local.stack import Stack
from tests.support.commands import run_doorkey
from tests.support.people import database_of


async def offers(stack: Stack, *words: str) -> tuple[int, str]:
    """The command's exit code and all that it printed."""
    return await run_doorkey(stack, "offers", *words)


@pytest.fixture
async def code(stack: Stack) -> AsyncIterator[str]:
    """An offer's code of the test's own."""
    yield (code := f"a{uuid.uuid4().hex}")
    await database_of(stack).run("delete from doorkey.welcome_offers where code = %s", (code,))


async def test_an_offer_is_added_shown_and_ended_in_plain_sentences(stack: Stack, code: str) -> None:
    given = (code.upper(), "--dollars", "7.50", "--days", "1", "--at-most", "1000", "--ends", "2999-12-24")
    done, printed = await offers(stack, "add", *given)
    assert done == 0, printed
    assert f"{code} is offered: $7.50 for 1 day, the first 1,000 users, until 2999-12-24 00:00 UTC." in printed
    assert "-> update doorkey.settings set welcome_offers = true;" in printed
    # Sent again after a lost answer, it is no error.
    assert (await offers(stack, "add", *given))[0] == 0

    done, printed = await offers(stack, "list")
    assert done == 0
    (line,) = [line for line in printed.splitlines() if code in line]
    assert line.split() == [code, "$7.50", "1", "0", "1,000", "2999-12-24", "00:00", "open"]
    assert "switched off" in printed
    _, printed = await offers(stack, "list", "--json")
    (shown,) = [offer for offer in json.loads(printed) if offer["code"] == code]
    assert (shown["amount_micros"], shown["max_grants"], shown["standing"]) == (7_500_000, 1000, "open")

    done, printed = await offers(stack, "end", code)
    assert (done, f"{code} is over since" in printed) == (0, True), printed
    _, printed = await offers(stack, "list")
    assert [line.split()[-1] for line in printed.splitlines() if code in line] == ["over"]


async def test_once_offers_are_switched_on_nothing_is_said_of_it(stack: Stack, code: str) -> None:
    database = database_of(stack)
    await database.run("update doorkey.settings set welcome_offers = true")
    try:
        for words in (("add", code, "--dollars", "0"), ("list",)):
            done, printed = await offers(stack, *words)
            assert (done, "switched off" in printed) == (0, False), printed
    finally:
        await database.run("update doorkey.settings set welcome_offers = false")


async def test_what_makes_no_offer_is_a_sentence(stack: Stack, code: str) -> None:
    for words, reason in (
        (("add", code, "--dollars", "many"), "--dollars takes"),
        (("add", code, "--dollars", "-1"), "--dollars takes"),
        (("add", code, "--dollars", "NaN"), "--dollars takes"),
        (("add", code, "--dollars", "0.0000001"), "--dollars takes"),
        (("add", code, "--dollars", "1000000.01"), "--dollars takes"),
        (("add", "not a code", "--dollars", "1"), "A code has"),
        (("add", code, "--dollars", "1", "--days", "0"), "--days"),
        (("add", code, "--dollars", "1", "--days", "3000000000"), "--days"),
        (("add", code, "--dollars", "1", "--at-most", "3000000000"), "--at-most"),
    ):
        done, printed = await offers(stack, *words)
        assert (done, reason in printed) == (2, True), printed
    for line, error in (
        (f"add {code} --dollars 1 --ends 2026-01-01", "offer_invalid"),
        (f"end {code}", "offer_not_found"),
    ):
        done, printed = await offers(stack, *line.split())
        assert (done, error in printed, "Traceback" in printed) == (1, True, False), printed
