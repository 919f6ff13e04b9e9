"""Whatever happens to credits, in any order, at once or cut off: after every step the money adds up.

And each rule is there for something: a function is broken in a database of its own, and the play must find it out.
`--plays 20` plays twenty times as long.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.errors import HypothesisException
from hypothesis.stateful import run_state_machine_as_test

from tests.database.money_mutations import MUTATIONS, Mutation
from tests.support.databases import Database
from tests.support.money_play import WELCOME_MICROS, Play
from tests.support.money_rules import RuleBroken
from tests.support.verification import differences

PLAYS = 30
STEPS = 30
# A mutation is found within these, begun so often with another seed, or it isn't found.
MUTATED_PLAYS = 60
SEEDS = 3

QUIET = settings(
    deadline=None,
    stateful_step_count=STEPS,
    suppress_health_check=list(HealthCheck),
    database=None,
    report_multiple_bugs=False,
)


async def prepare(database: Database) -> type[Play]:
    """Plans to change between, and a play in this database."""
    await database.run(
        "update public.plans set welcome_credits_micros = %s, markup = 1.3, charges_by = 'tokens',"
        " token_price_micros_per_1k = 701 where id = 'trial'",
        (WELCOME_MICROS,),
    )
    await database.run(
        "insert into public.plans (id, name, markup, is_uncapped, period_days, credits_per_period_micros)"
        " values ('double', 'Double', 2, false, 30, 900), ('single', 'Single', 1, false, 30, 500),"
        " ('whole', 'Without a cap', 1.7, true, null, 0)"
    )
    await database.run("update doorkey.settings set max_keys_per_hour = null")

    class PlayHere(Play):
        url = database.superuser_url
        broken: list[str] = []  # noqa: RUF012  one for all plays
        steps: list[str] = []  # noqa: RUF012

    return PlayHere


@pytest.mark.timeout(600)
async def test_whatever_happens_the_money_adds_up_after_every_step(
    database: Database, pytestconfig: pytest.Config
) -> None:
    play = await prepare(database)
    plays = PLAYS * int(pytestconfig.getoption("--plays"))
    await asyncio.to_thread(run_state_machine_as_test, play, settings=settings(QUIET, max_examples=plays))
    assert play.broken == []
    assert len(play.steps) > plays
    # What an operator would ask says so too.
    assert await differences(database, (50, 60)) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
async def test_a_play_finds_a_fault(database: Database, mutation: Mutation) -> None:
    play = await prepare(database)
    await mutation.apply(database)
    quick = settings(QUIET, max_examples=MUTATED_PLAYS, phases=[Phase.generate])
    for number in range(1, SEEDS + 1):
        # What is found may come from a race, and not come again: that is no fault of the play.
        with suppress(RuleBroken, HypothesisException, psycopg.Error, ExceptionGroup):
            await asyncio.to_thread(seed(number)(run_state_machine_as_test), play, settings=quick)
        if set(play.broken) & set(mutation.caught_by):
            return
    pytest.fail(f"only {set(play.broken)} broke")
