"""Every table and function of ours, tried at the Data API of the running stack by everybody.

As in test_doors.py, but as strangers, people and servers come: with the publishable key, with a person's token beside
it, with the secret key. A refusal is 42501 with 401 for anon and 403 for others (supabase.md 3), or a code of
PostgREST's own where the address leads nowhere; never a 500, never an empty answer where there are rows.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row

from infra.local.stack import Stack
from tests.database.catalog import Catalog
from tests.database.declared_grants import FUNCTIONS, INSERTS, TABLES
from tests.database.door_calls import (
    PEOPLE,
    READABLE,
    REFUSALS,
    SUBJECTS,
    Function,
    SubjectName,
    call_of,
    readable_columns,
    role_of,
)

pytestmark = pytest.mark.parametrize("subject", SUBJECTS)

READY_SECONDS = 20.0
READY_POLL_SECONDS = 0.1
RETIRED_PLAN = f"retired_{uuid.uuid4().hex[:8]}"

OUR_TABLES = sorted(TABLES)
PUBLIC_TABLES = [table for table in OUR_TABLES if table.startswith("public.")]
HIDDEN_TABLES = [table for table in OUR_TABLES if table.startswith("doorkey.")]
PUBLIC_FUNCTIONS = [signature for signature in FUNCTIONS if signature.startswith("public.")]
HIDDEN_FUNCTIONS = [signature for signature in FUNCTIONS if signature.startswith("doorkey.")]


@dataclass(frozen=True)
class Caller:
    """What somebody sends with every request."""

    headers: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class DataApi:
    """The running stack's Data API, two people who signed up there, and all that come to it."""

    url: str
    http: httpx.AsyncClient
    database_url: str = field(repr=False)
    people: dict[SubjectName, uuid.UUID]
    callers: dict[SubjectName, Caller]
    columns: dict[str, list[str]]
    argument_names: dict[str, list[str]]

    async def ask(
        self, subject: SubjectName, method: str, path: str, *, profile: str | None = None, **options: Any
    ) -> httpx.Response:
        """One request; `profile` names another schema than the first exposed one."""
        headers = dict(self.callers[subject].headers)
        if profile is not None:
            headers["Accept-Profile" if method in ("GET", "HEAD") else "Content-Profile"] = profile
        headers |= options.pop("headers", {})
        answer = await self.http.request(method, f"{self.url}/{path}", headers=headers, **options)
        assert answer.status_code < 500, f"{method} {path} as {subject}: {answer.text}"
        return answer

    async def stored(self, table: str, condition: str) -> list[dict[str, Any]]:
        """Whole rows, past all doors."""
        async with await psycopg.AsyncConnection.connect(self.database_url, row_factory=dict_row) as connection:
            statement = f"select * from {table} where {condition} order by 1"
            return await (await connection.execute(statement)).fetchall()

    async def contents(self, table: str) -> list[dict[str, Any]]:
        """All rows about the two people; all rows of a table that is about nobody."""
        person = READABLE[table].person if table in READABLE else "user_id"
        owner, other = self.people.values()
        return await self.stored(table, f"{person} in ('{owner}', '{other}')" if person else "true")


@pytest.fixture(scope="module")
async def data_api(stack: Stack, http: httpx.AsyncClient) -> AsyncIterator[DataApi]:
    """Shared by all tests here: none of them may change what is stored."""
    publishable = {"apikey": stack.secrets.publishable_key}
    sign_ups = {person: await sign_up(stack, http) for person in PEOPLE}
    callers = {person: Caller(publishable | {"Authorization": f"Bearer {s[1]}"}) for person, s in sign_ups.items()}
    catalog = Catalog(stack.superuser_url)
    api = DataApi(
        url=f"{stack.supabase_url}/rest/v1",
        http=http,
        database_url=stack.superuser_url,
        people={person: user_id for person, (user_id, _) in sign_ups.items()},
        callers=callers | {"anon": Caller(publishable), "service_role": Caller({"apikey": stack.secrets.secret_key})},
        columns=await catalog.columns(),
        argument_names=await catalog.argument_names(),
    )
    async with await psycopg.AsyncConnection.connect(stack.superuser_url, autocommit=True) as database:
        await database.execute(
            "insert into public.plans (id, name, is_active) values (%s, 'Retired', false)", (RETIRED_PLAN,)
        )
        try:
            for person in PEOPLE:
                await key_of(api, person)
            tables = ("doorkey.provisioning", *PUBLIC_TABLES)
            before = {table: await api.contents(table) for table in tables}
            assert all(before.values()), "a refusal says most where there is something to see"
            yield api
            assert {table: await api.contents(table) for table in tables} == before
        finally:
            await database.execute("delete from public.plans where id = %s", (RETIRED_PLAN,))


async def sign_up(stack: Stack, http: httpx.AsyncClient) -> tuple[uuid.UUID, str]:
    """A new person: id and token."""
    answer = await http.post(
        f"{stack.supabase_url}/auth/v1/signup",
        headers={"apikey": stack.secrets.publishable_key},
        json={"email": f"{uuid.uuid4()}@example.com", "password": str(uuid.uuid4())},
    )
    answer.raise_for_status()
    return uuid.UUID(answer.json()["user"]["id"]), answer.json()["access_token"]


async def key_of(api: DataApi, person: SubjectName) -> None:
    """Waits until the person's key is there."""
    async with asyncio.timeout(READY_SECONDS):
        while True:
            account = (await api.ask(person, "POST", "rpc/get_my_account", json={})).json()
            if account["provisioning"]["state"] == "ready":
                return
            await asyncio.sleep(READY_POLL_SECONDS)


def assert_refused(answer: httpx.Response, subject: SubjectName, kind: str, name: str) -> None:
    """Postgres said no to this subject at this very object."""
    what = f"{answer.request.method} {answer.request.url.path} as {subject}"
    assert answer.status_code == (401 if subject == "anon" else 403), f"{what}: {answer.text}"
    body = answer.json()
    assert (body["code"], body["message"]) == ("42501", f"permission denied for {kind} {name}"), what


def assert_leads_nowhere(answer: httpx.Response, status: int, code: str) -> None:
    """There is no such address, whoever asks."""
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


@pytest.mark.parametrize("table", PUBLIC_TABLES)
async def test_tables_show_exactly_what_is_declared(data_api: DataApi, subject: SubjectName, table: str) -> None:
    name, columns, rows = table.removeprefix("public."), data_api.columns[table], READABLE[table]
    readable = readable_columns(table, role_of(subject), columns)
    if readable:
        params = {"select": ",".join(readable)}
        if subject == "service_role":
            expected = [str(row[rows.key]) for row in await data_api.contents(table)]
            # Among all that there are by now: an answer holds 1,000 rows at most.
            params[rows.key] = f"in.({','.join(expected)})"
        else:
            visible = rows.condition_for(subject, data_api.people)
            expected = [str(row[rows.key]) for row in await data_api.stored(table, visible)]
        assert expected
        answer = await data_api.ask(subject, "GET", name, params=params)
        assert answer.status_code == 200, answer.text
        assert sorted(str(row[rows.key]) for row in answer.json()) == sorted(expected)
        assert all(list(row) == readable for row in answer.json())
    if readable != columns:
        assert_refused(await data_api.ask(subject, "GET", name), subject, "table", name)
    for column in set(columns) - set(readable):
        key = next(iter(readable), columns[0])
        for params in ({"select": column}, {"select": key, column: "not.is.null"}, {"select": key, "order": column}):
            assert_refused(await data_api.ask(subject, "GET", name, params=params), subject, "table", name)


@pytest.mark.parametrize("table", PUBLIC_TABLES)
async def test_nobody_writes_to_a_table(data_api: DataApi, subject: SubjectName, table: str) -> None:
    name, key = table.removeprefix("public."), READABLE[table].key
    row = {READABLE[table].person or key: str(data_api.people.get(subject, uuid.uuid4()))}
    upsert = {"Prefer": "resolution=merge-duplicates"}
    everything = {key: "not.is.null"}
    inserted = await data_api.ask(subject, "POST", name, json=row)
    if role_of(subject) in INSERTS.get(table, {}):
        # What they may insert is tried in test_own_rows.py: not this.
        assert (inserted.status_code, inserted.json()["code"]) == (403, "42501"), inserted.text
        assert "violates row-level security policy" in inserted.json()["message"]
    else:
        assert_refused(inserted, subject, "table", name)
    for answer in (
        await data_api.ask(subject, "POST", name, json=row, headers=upsert),
        await data_api.ask(subject, "PATCH", name, json=row, params=everything),
        await data_api.ask(subject, "DELETE", name, params=everything),
    ):
        assert_refused(answer, subject, "table", name)


@pytest.mark.parametrize("signature", PUBLIC_FUNCTIONS)
async def test_functions_answer_their_callers_and_nobody_else(
    data_api: DataApi, subject: SubjectName, signature: str
) -> None:
    function = Function.parse(signature)
    call = call_of(function)
    is_caller = role_of(subject) in FUNCTIONS[signature]
    arguments = dict(zip(data_api.argument_names[signature], map(as_json, call.arguments), strict=True))
    if not is_caller and "user_id" in arguments:
        # About somebody who exists: if it did get through, it would show.
        arguments["user_id"] = str(data_api.people["owner"])
    answer = await data_api.ask(subject, "POST", f"rpc/{function.name}", json=arguments)
    if not is_caller:
        assert_refused(answer, subject, "function", function.name)
    elif call.answer in REFUSALS:
        assert (answer.status_code, answer.json()["message"]) == (REFUSALS[call.answer], call.answer)
    else:
        assert answer.status_code == 200, answer.text
        result = answer.json()
        if call.answer == "account":
            assert result["user_id"] == str(data_api.people[subject])
        elif call.answer == "health":
            assert len(result["triggers"]) == 3
        elif call.answer == "progress":
            assert [row["provision_on"] for row in result] == ["confirmed"]
        elif call.answer == "rows":
            assert result
        else:
            assert result == {"null": None, "true": True}.get(call.answer, [])


def as_json(argument: object) -> object:
    """UUIDs travel as text."""
    return str(argument) if isinstance(argument, uuid.UUID) else argument


@pytest.mark.parametrize("table", HIDDEN_TABLES)
async def test_hidden_tables_are_at_no_address(data_api: DataApi, subject: SubjectName, table: str) -> None:
    name = table.removeprefix("doorkey.")
    for path in (name, table):
        assert_leads_nowhere(await data_api.ask(subject, "GET", path), 404, "PGRST205")
    for method, body in (("GET", None), ("POST", {}), ("PATCH", {}), ("DELETE", None)):
        answer = await data_api.ask(subject, method, name, profile="doorkey", json=body)
        assert_leads_nowhere(answer, 406, "PGRST106")


@pytest.mark.parametrize("signature", HIDDEN_FUNCTIONS)
async def test_hidden_functions_are_at_no_address(data_api: DataApi, subject: SubjectName, signature: str) -> None:
    function = Function.parse(signature)
    arguments = dict.fromkeys(data_api.argument_names[signature])
    path = f"rpc/{function.name}"
    answer = await data_api.ask(subject, "POST", path, profile="doorkey", json=arguments)
    assert_leads_nowhere(answer, 406, "PGRST106")
    # The name of a door in public may be the same; its arguments are not.
    assert_leads_nowhere(await data_api.ask(subject, "POST", path, json=arguments | {"p_": 1}), 404, "PGRST202")


@pytest.mark.parametrize("schema", ["doorkey", "auth", "net", "extensions", "supabase_migrations", "pg_catalog"])
async def test_only_public_is_exposed(data_api: DataApi, subject: SubjectName, schema: str) -> None:
    assert_leads_nowhere(await data_api.ask(subject, "GET", "users", profile=schema), 406, "PGRST106")


async def test_an_embedded_table_shows_no_more_than_by_itself(data_api: DataApi, subject: SubjectName) -> None:
    answer = await data_api.ask(
        subject, "GET", "credit_accounts", params={"select": "user_id,credit_transactions(idempotency_key)"}
    )
    if subject == "service_role":
        assert answer.status_code == 200
    else:
        assert_refused(answer, subject, "table", "credit_accounts" if subject == "anon" else "credit_transactions")


async def test_a_count_counts_only_what_is_theirs(data_api: DataApi, subject: SubjectName) -> None:
    answer = await data_api.ask(subject, "HEAD", "profiles", headers={"Prefer": "count=exact"})
    if subject == "anon":
        assert answer.status_code == 401
    else:
        count = int(answer.headers["Content-Range"].rpartition("/")[2])
        assert (count >= 2) if subject == "service_role" else (count == 1)
