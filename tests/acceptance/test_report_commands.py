"""`doorkey report ...` as an operator runs it, against the running stack."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import sys
import uuid
from datetime import date
from typing import Any

import httpx
import pytest
from rich.console import Console, RenderableType

from functions import sweep
from functions.clients.outside import build_clients
from functions.clients.supabase import Supabase
from functions.kit.settings import Settings
from functions.signups.store import SignupDay
from infra.cli import report_signups
from infra.cli.report_signups import plot_of, sentence_of, table_of
from infra.local.stack import CHECKOUT, Stack
from tests.support.people import insert_person, token_for, until_state
from tests.support.scenes import Scene


async def report(stack: Stack, *words: str, **settings: str) -> tuple[int, str, str]:
    """The command's exit code, what it printed, and what it said beside it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "infra.cli.main",
        "report",
        *words,
        cwd=CHECKOUT,
        env={"PATH": os.environ["PATH"], "COLUMNS": "120", **stack.functions_environment, **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, beside = await process.communicate()
    return process.returncode or 0, printed.decode(), beside.decode()


async def today(stack: Stack) -> dict[str, Any]:
    code, printed, _ = await report(stack, "signups", "--days", "1", "--json")
    assert code == 0
    (day,) = json.loads(printed)
    assert isinstance(day, dict)
    return day


async def due_unnoticed(stack: Stack, http: httpx.AsyncClient) -> Scene:
    """Somebody who is due, of whom no hint was sent."""
    scene = Scene(stack, http, uuid.uuid4())
    await scene.sql("insert into auth.users (id, email) values (%s, %s)", scene.user_id, f"{scene.user_id}@example.com")
    await scene.sql("update doorkey.provisioning set state = 'due' where user_id = %s", scene.user_id)
    return scene


async def test_each_of_the_three_chances_is_counted_as_itself(stack: Stack, http: httpx.AsyncClient) -> None:
    before = await today(stack)
    hinted = await insert_person(stack)
    await until_state(stack, hinted.user_id)
    asking, swept = [await due_unnoticed(stack, http) for _ in range(2)]
    headers = {"Authorization": f"Bearer {token_for(stack, asking.user_id)}"}
    answer = await http.get(f"{stack.functions_url}/v1/me", headers=headers)
    assert answer.status_code == 200, answer.text
    settings = Settings.from_environment(stack.functions_environment)
    clients = build_clients(settings)
    async with clients.http:
        await sweep.build(settings, clients)({"source": "aws.events", "detail-type": "Scheduled Event"})
    assert (await swept.row())["state"] == "ready"
    after = await today(stack)
    if after["day"] != before["day"]:
        pytest.skip("midnight came in between")
    grown = {kind: after[kind] - before[kind] for kind in ("eager", "lazy", "by_sweep")}
    assert (grown["eager"], grown["lazy"]) == (1, 1)
    # A sweep also works on whom other tests left.
    assert grown["by_sweep"] >= 1
    assert after["success_rate"] is not None


async def test_the_report_is_a_table_a_plot_and_a_sentence(stack: Stack) -> None:
    await until_state(stack, (await insert_person(stack)).user_id)
    code, printed, _ = await report(stack, "signups", "--days", "2")
    assert code == 0, printed
    assert re.search(r"day +signups +eager +lazy +sweep +waiting +open +dead +gone +median", printed)
    assert "█" in printed
    assert re.search(r"^\d+ signups? within 2 days; \d+ of the \d+ who (was|were) to have a key", printed, re.MULTILINE)
    assert "@" not in printed


async def test_where_nobody_has_signed_up_it_says_so_and_draws_nothing(
    monkeypatch: pytest.MonkeyPatch, stack: Stack
) -> None:
    async def nobody(_database: Supabase, *, from_day: date, to_day: date) -> list[SignupDay]:
        return [SignupDay(from_day), SignupDay(to_day)]

    monkeypatch.setattr(report_signups, "report_signups", nobody)
    for name, value in stack.functions_environment.items():
        monkeypatch.setenv(name, value)
    console = Console(width=80, file=io.StringIO())
    await report_signups.run(console, console, 2, as_json=False)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "Nobody has signed up within 2 days.\n"


async def test_a_wrong_key_is_a_sentence_and_no_traceback(stack: Stack) -> None:
    code, printed, beside = await report(stack, "signups", "--json", SUPABASE_SECRET_KEY="sb_secret_" + "0" * 32)
    assert code == 1
    assert printed == ""
    assert "service_key_rejected" in beside
    assert "Traceback" not in beside
    assert "sb_secret_" not in beside


@pytest.mark.parametrize("days", ["0", "367", "x"])
async def test_days_that_make_no_report_are_refused(stack: Stack, days: str) -> None:
    code, _, beside = await report(stack, "signups", "--days", days)
    assert (code, "--days" in beside) == (2, True)


# -- what is drawn, from figures ---------------------------------------------------------------------------------------


def drawn(*shown: RenderableType) -> str:
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    for thing in shown:
        console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_bars_are_as_long_as_the_days_are_busy_and_every_part_has_its_letter() -> None:
    days = [
        SignupDay(date(2026, 3, 1), signups=120, eager=60, lazy=20, by_sweep=20, dead=20),
        SignupDay(date(2026, 3, 2), signups=60, eager=60),
        SignupDay(date(2026, 3, 3)),
    ]
    plot = drawn(plot_of(days))
    assert f"03-01 {'█' * 30}{'▓' * 10}{'▒' * 10}{'x' * 10} 120" in plot
    assert f"03-02 {'█' * 30} 60" in plot
    assert re.search(r"03-03 +0$", plot, re.MULTILINE)
    assert "given up" in plot
    assert "waiting" not in plot


def test_the_table_is_whole_in_80_columns() -> None:
    counts = {"signups": 99_999, "eager": 12_345, "lazy": 2_345, "by_sweep": 12_346, "waiting": 72_963}
    day = SignupDay(date(2026, 3, 1), **counts, under_way=123, dead=1, gone=1, median_seconds=99.9, p95_seconds=3600)
    headings, _, figures = drawn(table_of([day])).splitlines()[:3]
    assert " ".join(headings.split()) == "day signups eager lazy sweep waiting open dead gone median 95 % rate"
    assert figures.split()[:9] == ["2026-03-01", "99999", "12345", "2345", "12346", "72963", "123", "1", "1"]
    assert figures.split()[9:] == ["99.9", "s", "60", "min", "99.5", "%"]


def test_no_signups_are_a_sentence() -> None:
    days = [SignupDay(date(2026, 3, 1)), SignupDay(date(2026, 3, 2))]
    assert sentence_of(days) == "Nobody has signed up within 2 days."
    assert sentence_of(days[:1]) == "Nobody has signed up within 1 day."


def test_days_before_the_first_signup_are_no_bars() -> None:
    days = [*(SignupDay(date(2026, 3, n)) for n in (1, 2)), SignupDay(date(2026, 3, 3), signups=1, dead=1)]
    before, day, *_ = drawn(plot_of([*days, SignupDay(date(2026, 3, 4))])).splitlines()
    assert (before.split(), day.split()[0]) == (["before", "nobody"], "03-03")
    assert "before" not in drawn(plot_of(days[2:]))
    assert sentence_of(days) == "1 signup within 3 days; 0 of the 1 who was to have a key have had one: 0 %."


def test_the_rate_is_of_those_who_were_to_have_a_key_and_never_rounded_up() -> None:
    waiting = SignupDay(date(2026, 3, 1), signups=5, waiting=5)
    assert waiting.success_rate is None
    nearly = SignupDay(date(2026, 3, 2), signups=100_000, eager=99_999, dead=1)
    assert "99.9 %" in drawn(table_of([nearly]))
    assert "have had one: 99.9 %." in sentence_of([waiting, nearly])
