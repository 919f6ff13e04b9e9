"""`doorkey plans ...` as an operator runs it, on the running stack."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator

import pytest
from typer.testing import CliRunner

from infra.cli.main import app
from infra.local.stack import Stack
from tests.support.commands import run_doorkey
from tests.support.people import database_of


async def plans(stack: Stack, *words: str) -> tuple[int, str]:
    """The command's exit code and all that it printed."""
    return await run_doorkey(stack, "plans", *words)


@pytest.fixture
async def plan_id(stack: Stack) -> AsyncIterator[str]:
    """A plan's id of the test's own."""
    yield (plan_id := f"p{uuid.uuid4().hex}")
    database = database_of(stack)
    await database.run("delete from public.credit_accounts where plan_id = %s", (plan_id,))
    await database.run("delete from public.plans where id = %s", (plan_id,))


def cells(printed: str, first: str) -> list[str]:
    """The words of the line that begins so."""
    (line,) = [line for line in printed.splitlines() if line.strip().startswith(first)]
    return line.split()


async def test_a_plan_is_added_shown_and_set_in_plain_sentences(stack: Stack, plan_id: str) -> None:
    given = ("--name", "Team [bold]", "--price", "25", "--period-days", "30", "--credits-per-period", "25.50")
    done, printed = await plans(stack, "set", plan_id, "--new", *given)
    assert (done, f"{plan_id} is added" in printed) == (0, True), printed
    # Sent again after a lost answer, it is no error.
    done, printed = await plans(stack, "set", plan_id, "--new", *given)
    assert (done, "was so already" in printed) == (0, True), printed
    # Somebody comes to it, so that there are keys to follow.
    await database_of(stack).run(
        "insert into public.credit_accounts (user_id, plan_id) values (gen_random_uuid(), %s)", (plan_id,)
    )

    done, printed = await plans(
        stack, "set", plan_id, "--markup", "1.25", "--monthly-cap", "40", "--models", "a/model, b/model"
    )
    assert done == 0, printed
    assert cells(printed, "markup")[:4] == ["markup", "1", "->", "1.25"]
    assert cells(printed, "monthly cap")[:5] == ["monthly", "cap", "-", "->", "$40.00"]
    assert "limits of their keys follow in about 1 minute" in printed
    assert f"{plan_id} is changed; 1 account is on it." in printed

    done, printed = await plans(stack, "set", plan_id, "--price", "30", "--close", "--monthly-cap", "none")
    assert (done, cells(printed, "open")[:4]) == (0, ["open", "yes", "->", "no"]), printed

    done, printed = await plans(stack, "list")
    assert done == 0
    assert cells(printed, plan_id)[1:] == [
        *("Team", "[bold]", "$30.00", "30", "$25.50", "-", "cost", "x", "1.25", "-", "1", "closed"),
    ]
    _, printed = await plans(stack, "list", "--json")
    (shown,) = [plan for plan in json.loads(printed) if plan["id"] == plan_id]
    assert (shown["price_micros"], shown["markup"], shown["accounts"]) == (30_000_000, 1.25, 1)
    assert (shown["monthly_cap_micros"], shown["allowed_models"]) == (None, ["a/model", "b/model"])
    done, printed = await plans(stack, "show", plan_id)
    assert (done, cells(printed, "credits per period")) == (0, ["credits", "per", "period", "$25.50"])
    assert "1 account is on it." in printed

    (edit,) = await database_of(stack).rows(
        "select actor, request_id, detail from doorkey.audit_log where action = 'plan.edited'"
        " and detail -> 'after' ->> 'id' = %s and detail -> 'after' ->> 'markup' <> detail -> 'before' ->> 'markup'",
        (plan_id,),
    )
    assert edit["actor"].startswith("operator:")
    assert edit["request_id"]
    assert (edit["detail"]["before"]["markup"], edit["detail"]["after"]["markup"]) == (1, 1.25)


async def test_what_moves_no_limit_says_nothing_of_keys(stack: Stack, plan_id: str) -> None:
    await plans(stack, "set", plan_id, "--new", "--name", "Team")
    for words in (("--token-price", "0.002", "--charge-by", "tokens"), ("--markup", "2")):
        done, printed = await plans(stack, "set", plan_id, *words)
        # The markup does; but nobody is on it.
        assert (done, "limits" in printed) == (0, False), printed
    _, printed = await plans(stack, "list")
    assert "$0.002/1k tokens" in printed


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        *((f"--{option} {value}", f"--{option} takes an amount")
          for option in ("price", "credits-per-period", "monthly-cap", "welcome", "token-price")
          for value in ("-1", "NaN", "1e30", "0.0000001", "1000000.01", "ten")),
        *((f"--{option} 0", f"--{option} takes an amount") for option in ("monthly-cap", "token-price")),
        *((f"--markup {value}", "--markup takes") for value in ("0", "0.99", "-1", "NaN", "1e30", "1000", "1.0000001")),
        *((f"--{option} {value}", f"--{option} takes a number")
          for option in ("period-days", "welcome-days", "requests-per-minute", "requests-per-day")
          for value in ("0", "-1", "1.5", "NaN", "9999999999")),
        ("--charge-by luck", "--charge-by takes"),
        ("--models ,", "--models takes"),
        ("--features []", "--features takes"),
        ("--features {", "--features takes"),
        ("--features {\"a\":NaN}", "--features takes"),
        ("--name \x1b[31m", "--name takes"),
        ("--new", "A new plan needs a --name."),
        ("", "Say what to set"),
    ],
)  # fmt: skip
def test_what_no_plan_may_have_is_a_sentence_before_anything_is_asked(words: str, reason: str) -> None:
    # There is no environment, and so nobody to ask.
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["plans", "set", "starter", *words.split()])
    assert (result.exit_code, reason in result.output) == (2, True), result.output


async def test_what_the_database_refuses_is_a_sentence_with_its_code(stack: Stack, plan_id: str) -> None:
    for line, error in (
        (f"set {plan_id} --price 1", "unknown_plan"),
        (f"show {plan_id}", "unknown_plan"),
        (f"set {plan_id} --new --name Team --credits-per-period 5", "plan_invalid"),
        ("set Big --new --name Team", "plan_invalid"),
        ("set trial --new --name Team", "plan_exists"),
        ("set trial --close", "plan_is_default"),
    ):
        done, printed = await plans(stack, *line.split())
        assert (done, error in printed, "Traceback" in printed) == (1, True, False), printed
