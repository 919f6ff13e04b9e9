"""What a signed-in user is told of their money: transactions, page by page, as JSON and as CSV."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from infra.local.stack import Stack
from tests.acceptance.test_api import assert_problem
from tests.support.access import WRONG_KEY
from tests.support.apps import api_with
from tests.support.people import Person, database_of, insert_person, until_state

TRANSACTIONS = "/v1/credits/transactions"
MANY = 450
WRONG_PUBLIC = "sb_publishable_of-nobody-at-all"


@pytest.fixture
async def api(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """The API on the running stack."""
    async with httpx.AsyncClient(base_url=stack.functions_url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
async def person(stack: Stack) -> Person:
    """Somebody with a key, and with a few hundred transactions from before."""
    somebody = await insert_person(stack)
    await until_state(stack, somebody.user_id)
    await database_of(stack).run(
        """insert into public.credit_transactions
             (user_id, type, amount_micros, system_account, idempotency_key, reason, actor, provider, model, created_at)
           select %s, (array['usage', 'refund', 'purchase', 'bonus']::doorkey.transaction_type[])[1 + n %% 4], 0,
                  'spent', 'many:' || %s || n, case when n %% 10 = 0 then '=1+1' else 'A call' end, 'tests',
                  'a provider', '@SUM(A1)',
                  timestamptz '2026-01-01' + (n / 3) * interval '1 hour'
             from generate_series(1, %s) as n""",
        (somebody.user_id, str(somebody.user_id), MANY),
    )
    return somebody


async def walk(api: httpx.AsyncClient, person: Person, **query: Any) -> list[dict[str, Any]]:
    """Every page."""
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    for _ in range(MANY):
        asked = {**query, **({"cursor": cursor} if cursor else {})}
        answer = await api.get(TRANSACTIONS, params=asked, headers=person.headers)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert set(page) == {"transactions", "next_cursor"}
        found += page["transactions"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found
    raise AssertionError("no end")


async def test_my_transactions_come_newest_first_each_once(
    stack: Stack, api: httpx.AsyncClient, person: Person
) -> None:
    expected = await database_of(stack).rows(
        "select id, type, amount_micros, created_at from public.credit_transactions where user_id = %s"
        " order by created_at desc, id desc",
        (person.user_id,),
    )
    found = await walk(api, person, limit=7)
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    assert found[0].keys() == {"id", "type", "amount_micros", "reason", "provider", "model", "created_at"}
    assert datetime.fromisoformat(found[0]["created_at"]) == expected[0]["created_at"]
    assert (found[0]["type"], found[0]["amount_micros"]) == ("bonus", 5_000_000)
    by_default = (await api.get(TRANSACTIONS, headers=person.headers)).json()
    assert by_default["transactions"] == found[:50]
    assert [row["id"] for row in await walk(api, person, limit=200)] == [row["id"] for row in expected]


async def test_filters_leave_out_what_was_not_asked_for(api: httpx.AsyncClient, person: Person) -> None:
    everything = await walk(api, person, limit=200)
    wanted = [row for row in everything if row["type"] in ("usage", "bonus")]
    assert await walk(api, person, limit=50, type=["usage", "bonus", "usage"]) == wanted
    day = [row for row in everything if row["created_at"].startswith("2026-01-02")]
    assert len(day) == 72
    assert await walk(api, person, limit=20, **{"from": "2026-01-02", "to": "2026-01-03"}) == day
    zone = {"from": "2026-01-02T01:00:00+01:00", "to": "2026-01-03T00:00:00Z"}
    assert await walk(api, person, limit=20, **zone) == day
    both = [row for row in day if row["type"] == "usage"]
    assert await walk(api, person, type="usage", **zone) == both


async def test_csv_has_the_same_and_no_cell_is_a_formula(api: httpx.AsyncClient, person: Person) -> None:
    rows: list[dict[str, str]] = []
    cursor: dict[str, str] = {}
    for how in range(MANY):
        asked = {"params": {"limit": "200", "format": "csv"}} if how % 2 else {"params": {"limit": "200"}}
        headers = {**person.headers, "accept": "text/csv"} if not how % 2 else person.headers
        asked["params"] |= cursor
        answer = await api.get(TRANSACTIONS, headers=headers, **asked)  # type: ignore[arg-type]
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        rows += list(csv.DictReader(io.StringIO(answer.text, newline="")))
        if "x-next-cursor" not in answer.headers:
            break
        cursor = {"cursor": answer.headers["x-next-cursor"]}
    told = await walk(api, person, limit=200)
    assert [row["id"] for row in rows] == [str(row["id"]) for row in told]
    assert {row["model"] for row in rows[1:]} == {"'@SUM(A1)"}
    assert {row["reason"] for row in rows[1:]} == {"'=1+1", "A call"}
    assert rows[0]["amount_micros"] == "5000000"
    # Who takes both gets JSON.
    both = await api.get(TRANSACTIONS, headers={**person.headers, "accept": "text/csv, application/json"})
    assert both.headers["content-type"] == "application/json"


def made_up(*content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "", "x", "%00", "..", "é", "A" * 9_000, made_up(), made_up("transactions"), made_up("usage", "2026-01-01", ""),
        made_up("transactions", "2026-01-01T00:00:00", 1), made_up("transactions", "yesterday", 1),
        made_up("transactions", "2026-01-01T00:00:00+00:00", -1),
        made_up("transactions", "2026-01-01T00:00:00+00:00", 10**30), made_up("transactions", "infinity", 1),
        made_up("transactions", "2026-01-01T00:00:00+00:00", True), made_up("transactions", "now()", 1),
        made_up("transactions", "2026-01-01T00:00:00+00:00'; drop table x", 1),
    ],
)  # fmt: skip
async def test_a_cursor_that_is_none_is_refused_by_its_own_code(
    api: httpx.AsyncClient, person: Person, cursor: str
) -> None:
    answer = await api.get(TRANSACTIONS, params={"cursor": cursor}, headers=person.headers)
    assert_problem(answer, 400, "cursor_invalid")


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"}, {"limit": "-1"}, {"limit": "201"}, {"limit": "1e2"}, {"limit": "NaN"}, {"limit": "9" * 400},
        {"limit": ""}, {"type": "gift"}, {"type": ""}, {"type": "usage,bonus"}, {"type": ["usage"] * 10},
        {"from": "yesterday"}, {"from": "2026-01-01T00:00:00"}, {"to": "2026-13-01"}, {"to": "infinity"},
        {"format": "xml"},
    ],
)  # fmt: skip
async def test_a_query_that_makes_no_sense_is_refused(
    api: httpx.AsyncClient, person: Person, query: dict[str, Any]
) -> None:
    assert_problem(await api.get(TRANSACTIONS, params=query, headers=person.headers), 400, "request_invalid")


async def test_a_span_that_ends_before_it_begins_is_refused(api: httpx.AsyncClient, person: Person) -> None:
    for since, until in (("2026-01-02", "2026-01-01"), ("2026-01-01", "2026-01-01T00:00:00Z")):
        answer = await api.get(TRANSACTIONS, params={"from": since, "to": until}, headers=person.headers)
        assert_problem(answer, 422, "span_out_of_range")
    # Far away is no mistake: there is nothing.
    empty = await api.get(TRANSACTIONS, params={"from": "9999-12-31"}, headers=person.headers)
    assert empty.json() == {"transactions": [], "next_cursor": None}


async def test_nobody_sees_anybody_elses(stack: Stack, api: httpx.AsyncClient, person: Person) -> None:
    other = await insert_person(stack)
    await until_state(stack, other.user_id)
    (mine,) = await walk(api, other)
    page = (await api.get(TRANSACTIONS, params={"limit": 1}, headers=person.headers)).json()
    # A cursor is a place and no permission.
    seen = await api.get(TRANSACTIONS, params={"cursor": page["next_cursor"]}, headers=other.headers)
    assert {row["id"] for row in seen.json()["transactions"]} <= {mine["id"]}
    claimed = {"user_id": str(person.user_id), "id": str(person.user_id)}
    assert await walk(api, other, **claimed) == [mine]


USAGE = "/v1/usage"


async def test_my_usage_by_day_and_model(api: httpx.AsyncClient, person: Person) -> None:
    asked = {"from": "2026-01-01", "to": "2026-01-31"}
    whole = (await api.get(USAGE, params=asked, headers=person.headers)).json()
    assert (whole["first_day"], whole["last_day"], whole["next_cursor"]) == ("2026-01-01", "2026-01-31", None)
    assert [line["day"] for line in whole["usage"]] == [f"2026-01-0{day}" for day in range(7, 0, -1)]
    assert whole["usage"][1] == {"day": "2026-01-06", "model": "@SUM(A1)", "calls": 18, "charged_micros": 0}
    lines: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    for _ in range(8):
        page = (await api.get(USAGE, params={**asked, "limit": "2", **cursor}, headers=person.headers)).json()
        lines += page["usage"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert lines == whole["usage"]
    now = datetime.now(UTC).date()
    month = (await api.get(USAGE, headers=person.headers)).json()
    assert month["first_day"] == now.replace(day=1).isoformat()
    assert (month["last_day"], month["usage"]) == (now.isoformat(), [])


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"from": "2026-01-02", "to": "2026-01-01"}, 422, "span_out_of_range"),
        ({"from": "2026-01-01", "to": "2026-04-03"}, 422, "span_out_of_range"),
        ({"from": "0001-01-01", "to": "9999-12-31"}, 422, "span_out_of_range"),
        ({"from": "yesterday"}, 400, "request_invalid"), ({"to": "10000-01-01"}, 400, "request_invalid"),
        ({"limit": "201"}, 400, "request_invalid"), ({"limit": "0"}, 400, "request_invalid"),
        ({"cursor": "x"}, 400, "cursor_invalid"), ({"cursor": made_up("usage", "soon", "")}, 400, "cursor_invalid"),
        ({"cursor": made_up("usage", "2026-01-01", None)}, 400, "cursor_invalid"),
        ({"cursor": made_up("usage", "2026-01-01", "a\0b")}, 400, "cursor_invalid"),
        ({"cursor": made_up("transactions", "2026-01-01T00:00:00+00:00", 1)}, 400, "cursor_invalid"),
    ],
)  # fmt: skip
async def test_usage_that_can_not_be_asked_for_is_refused_by_its_own_code(
    api: httpx.AsyncClient, person: Person, query: dict[str, str], status: int, code: str
) -> None:
    assert_problem(await api.get(USAGE, params=query, headers=person.headers), status, code)


@pytest.mark.parametrize("route", [TRANSACTIONS, f"{USAGE}?from=2026-01-01&to=2026-01-31"])
async def test_either_key_will_do(stack: Stack, api: httpx.AsyncClient, person: Person, route: str) -> None:
    told = (await api.get(route, headers=person.headers)).json()
    for changes in ({"SUPABASE_SECRET_KEY": WRONG_KEY}, {"SUPABASE_PUBLISHABLE_KEY": WRONG_PUBLIC}):
        async with api_with(stack, changes) as client:
            assert (await client.get(route, headers=person.headers)).json() == told
    both = {"SUPABASE_SECRET_KEY": WRONG_KEY, "SUPABASE_PUBLISHABLE_KEY": WRONG_PUBLIC}
    async with api_with(stack, both) as client:
        assert_problem(await client.get(route, headers=person.headers), 503, "publishable_key_rejected")


async def test_the_newest_are_from_today(api: httpx.AsyncClient, person: Person) -> None:
    today = datetime.now(UTC).date().isoformat()
    assert len(await walk(api, person, **{"from": today})) == 1
