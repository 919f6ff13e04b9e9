"""`doorkey arms ...` and `doorkey domains ...` as an operator runs them, on the running stack."""

from __future__ import annotations

import json
import uuid

import pytest
from typer.testing import CliRunner

from infra.cli.main import app
from infra.local.stack import Stack
from tests.support.commands import run_doorkey
from tests.support.people import database_of


async def test_an_arm_is_set_and_shown_in_plain_sentences(stack: Stack) -> None:
    experiment = f"e{uuid.uuid4().hex}"
    try:
        words = ("arms", "set", experiment, "[large]", "--dollars", "8.50", "--weight", "2")
        done, printed = await run_doorkey(stack, *words, "--days", "30")
        assert done == 0, printed
        assert f"Who comes to [large] of {experiment} gets $8.50 for 30 days (weight 2)." in printed
        assert "-> update doorkey.settings set welcome_experiment" in printed
        done, printed = await run_doorkey(stack, "arms", "list")
        (line,) = [line for line in printed.splitlines() if experiment in line]
        assert (done, line.split()) == (0, [experiment, "[large]", "2", "$8.50", "30", "-"])
        _, printed = await run_doorkey(stack, "arms", "list", "--json")
        (shown,) = [arm for arm in json.loads(printed) if arm["experiment"] == experiment]
        assert (shown["amount_micros"], shown["weight"], shown["days"]) == (8_500_000, 2, 30)
    finally:
        await database_of(stack).run("delete from doorkey.welcome_arms where experiment = %s", (experiment,))


async def test_a_domain_is_added_shown_and_removed_in_plain_sentences(stack: Stack) -> None:
    domain = f"d{uuid.uuid4().hex}.example"
    for command, sentence, is_listed in (
        ("add", f"Mail at {domain} counts as throw-away, from now on.", True),
        ("add", f"Mail at {domain} counts as throw-away, as it did before.", True),
        ("remove", f"Mail at {domain} counts as any other, from now on.", False),
    ):
        done, printed = await run_doorkey(stack, "domains", command, domain.upper())
        assert (done, sentence in printed) == (0, True), printed
        done, printed = await run_doorkey(stack, "domains", "list")
        assert (done, domain in printed.splitlines()) == (0, is_listed), printed
        _, printed = await run_doorkey(stack, "domains", "list", "--json")
        assert (domain in json.loads(printed)) == is_listed


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        *((f"arms set size large --weight 1 --dollars {given}", "--dollars takes") for given in ("-1", "NaN", "1e30")),
        ("arms set size large --weight -1 --dollars 1", "--weight"),
        ("arms set size large --weight 1 --dollars 1 --days 0", "--days"),
        (f"arms set size {'a' * 64} --weight 1 --dollars 1", "ARM takes"),
        *((f"domains {command} {given}", "DOMAIN takes") for command in ("add", "remove")
          for given in ("nowhere", "ada@burner.example", ".example", "a..example")),
    ],
)  # fmt: skip
def test_what_is_no_arm_and_no_domain_is_a_sentence_before_anything_is_asked(words: str, reason: str) -> None:
    # There is no environment, and so nobody to ask.
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, words.split())
    assert (result.exit_code, reason in result.output) == (2, True), result.output
