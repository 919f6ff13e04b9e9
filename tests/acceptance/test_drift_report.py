"""`doorkey report drift` and `GET /v1/admin/reports/drift`, against the running stack."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import httpx
import pytest

from functions.web.cursors import encode_cursor
from infra.local.stack import Stack
from tests.acceptance.test_admin import admin_token
from tests.acceptance.test_api import assert_problem
from tests.acceptance.test_report_commands import report
from tests.support.people import Person, database_of, insert_person, until_state

PATH = "/v1/admin/reports/drift"


@dataclass
class Past:
    """Days long ago, on which nothing else is known."""

    stack: Stack
    person: Person
    day: date

    async def openrouter_says(self, micros: str, byok: str = "0", day: date | None = None) -> str:
        """A key of the person's that spent so much; its hash."""
        key_hash = secrets.token_hex(32)
        database = database_of(self.stack)
        await database.run(
            "insert into public.openrouter_user_keys (key_hash, user_id, key_name, attempt, status, deleted_at)"
            " values (%s, %s, 'of the past', 1, 'deleted', now())",
            (key_hash, self.person.user_id),
        )
        await database.run(
            "insert into doorkey.key_usage_days (key_hash, day, reported_micros, byok_micros) values (%s, %s, %s, %s)",
            (key_hash, day or self.day, Decimal(micros), Decimal(byok)),
        )
        return key_hash


@pytest.fixture
async def past(stack: Stack) -> AsyncIterator[Past]:
    person = await insert_person(stack)
    await until_state(stack, person.user_id)
    yield Past(stack, person, date(1990, 1, 1) + timedelta(days=secrets.randbelow(9_000)))
    database = database_of(stack)
    await database.run("delete from doorkey.key_usage_days where day < '2020-01-01'")
    await database.run("delete from public.openrouter_user_keys where key_name = 'of the past'")


@pytest.fixture
async def api(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {stack.secrets.operator_token}"}
    async with httpx.AsyncClient(base_url=stack.functions_url, timeout=30, trust_env=False, headers=headers) as client:
        yield client


async def test_a_difference_without_a_cause_is_shown_and_ends_with_1(stack: Stack, past: Past) -> None:
    odd = await past.openrouter_says("1234.5")
    named = await past.openrouter_says("0", byok="7")
    code, printed, beside = await report(stack, "drift", "--day", past.day.isoformat())
    assert code == 1, printed + beside
    assert re.search(rf"^{odd[:8]} +0 +0 +1,234\.5 +1,234\.5 +unknown", printed, re.MULTILINE)
    assert re.search(rf"^{named[:8]} +0 +0 +0 +0 +BYOK", printed, re.MULTILINE)
    assert re.search(r"^all keys +0 +0 +1,234\.5 +1,234\.5 +2", printed, re.MULTILINE)
    assert f"1 of 2 keys differs on {past.day} without a known cause, by 1,234.5 micro-dollars." in printed
    code, printed, beside = await report(stack, "drift", "--day", past.day.isoformat(), "--json")
    assert code == 1
    told = json.loads(printed)
    assert [(key["key_hash"], key["cause"]) for key in told["keys"]] == [(odd, "unknown"), (named, "byok")]
    assert told["keys"][0]["user_id"] == str(past.person.user_id)
    assert (told["day"], told["totals"]["unknown_micros"], told["totals"]["keys"]) == (str(past.day), "1234.5", 2)
    assert "without a known cause" in beside


async def test_differences_with_causes_end_with_0(stack: Stack, past: Past) -> None:
    await past.openrouter_says("0", byok="7")
    code, printed, _ = await report(stack, "drift", "--day", past.day.isoformat())
    assert code == 0, printed
    assert "every difference has its cause: 1 BYOK." in printed
    code, printed, _ = await report(stack, "drift", "--day", "1989-12-31")
    assert (code, printed) == (0, "No key was used on 1989-12-31, as far as is known.\n")


async def test_without_a_day_it_is_yesterdays(stack: Stack, api: httpx.AsyncClient) -> None:
    before = datetime.now(UTC).date()
    _, printed, _ = await report(stack, "drift", "--json")
    told = {json.loads(printed)["day"], (await api.get(PATH)).json()["day"]}
    if datetime.now(UTC).date() != before:
        pytest.skip("midnight came in between")
    assert told == {str(before - timedelta(days=1))}


@pytest.mark.parametrize("day", ["2026-02-30", "yesterday", "20261120", ""])
async def test_a_day_that_is_none_is_refused(stack: Stack, day: str) -> None:
    code, printed, beside = await report(stack, "drift", "--day", day)
    assert (code, printed, "--day" in beside) == (2, "", True)


async def test_a_day_to_come_is_a_sentence(stack: Stack) -> None:
    code, printed, beside = await report(stack, "drift", "--day", "2999-01-01", "--json")
    assert (code, printed, "This day has not begun yet." in beside) == (1, "", True)
    assert "Traceback" not in beside


async def test_pages_have_every_key_once_with_what_the_page_comes_to(past: Past, api: httpx.AsyncClient) -> None:
    keys = sorted([await past.openrouter_says(str(number)) for number in (1, 2, 3)])
    await past.openrouter_says("99", day=past.day + timedelta(days=1))
    seen: list[str] = []
    asked = f"{PATH}?limit=2&day={past.day}"
    pages = []
    while asked:
        answer = await api.get(asked)
        assert answer.status_code == 200, answer.text
        pages.append(answer.json())
        seen += [key["key_hash"] for key in pages[-1]["keys"]]
        cursor = pages[-1]["next_cursor"]
        # The cursor knows its day.
        asked = f"{PATH}?limit=2&cursor={cursor}" if cursor else ""
    assert seen == keys
    assert [page["totals"]["keys"] for page in pages] == [2, 1]
    assert {page["day"] for page in pages} == {str(past.day)}
    assert sum(Decimal(page["totals"]["unknown_micros"]) for page in pages) == 6


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("day=2999-01-01", 422, "day_not_begun"), ("day=2026-02-30", 400, "request_invalid"),
        ("day=soon", 400, "request_invalid"), ("day=", 400, "request_invalid"),
        ("limit=0", 400, "request_invalid"), ("limit=501", 400, "request_invalid"),
        ("cursor=x", 400, "cursor_invalid"),
        ("cursor=" + encode_cursor("usage", "2026-01-01", "m"), 400, "cursor_invalid"),
        ("cursor=" + encode_cursor("drift", "soon", "k"), 400, "cursor_invalid"),
        ("cursor=" + encode_cursor("drift", "2026-01-01", "\0"), 400, "cursor_invalid"),
        ("cursor=" + encode_cursor("drift", "2999-01-01", "k"), 422, "day_not_begun"),
        ("day=2026-01-02&cursor=" + encode_cursor("drift", "2026-01-01", "k"), 400, "cursor_invalid"),
    ],
)  # fmt: skip
async def test_what_makes_no_page_is_refused_by_its_own_code(
    api: httpx.AsyncClient, query: str, status: int, code: str
) -> None:
    assert_problem(await api.get(f"{PATH}?{query}"), status, code)


async def test_only_operators_and_admins_see_it(stack: Stack, past: Past, api: httpx.AsyncClient) -> None:
    assert (await api.get(PATH, headers=admin_token(stack, past.person.user_id))).status_code == 200
    assert_problem(await api.get(PATH, headers=past.person.headers), 403, "admin_required")
    for header in ("", "Bearer x", f"Bearer {stack.secrets.secret_key}"):
        answer = await api.get(PATH, headers={"Authorization": header})
        assert_problem(answer, 401, "operator_token_rejected")
