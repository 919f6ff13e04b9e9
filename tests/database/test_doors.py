"""Every table and function of ours, tried in SQL by everybody: what is allowed works, all else is refused.

Refused means by Postgres itself, at the object that was asked for: neither an error further inside nor an empty
answer will do. The same at the Data API: test_data_api_doors.py.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import psycopg
import pytest

from tests.database.catalog import Catalog
from tests.database.declared_grants import FUNCTIONS, INSERTS, OBJECTS, SEQUENCES, TABLES, VIEWS
from tests.database.door_calls import (
    PEOPLE,
    READABLE,
    REFUSALS,
    SUBJECTS,
    Call,
    Function,
    SubjectName,
    call_of,
    readable_columns,
    role_of,
    without_a_call,
    without_rows,
)
from tests.support.credit_doors import Credits
from tests.support.databases import Connection, Database, DatabaseServer, Row
from tests.support.doors import Doors

pytestmark = pytest.mark.parametrize("subject", SUBJECTS)


@dataclass(frozen=True)
class House:
    """A database with two people in it, each with a key, and a plan that isn't offered any more."""

    database: Database
    people: dict[SubjectName, uuid.UUID]
    columns: dict[str, list[str]]
    connections: dict[SubjectName, Connection]

    async def refused(self, subject: SubjectName, statement: str, kind: str, path: str) -> None:
        """The statement is refused, because this subject may not use this very object."""
        schema, name = path.split(".")
        kind, name = ("schema", schema) if (schema, subject) == ("doorkey", "anon") else (kind, name)
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
            await self.connections[subject].execute(statement)
        assert caught.value.diag.message_primary == f"permission denied for {kind} {name}", statement
        # Refused by something behind the door would be too late.
        assert caught.value.diag.context is None, f"{subject} got past {path}: {caught.value.diag.context}"

    async def contents(self) -> dict[str, list[Row]]:
        """All rows of all tables."""
        return {
            table: await self.database.rows(f"select to_jsonb(t) as row from {table} as t order by 1::text")
            for table in TABLES
        }


@pytest.fixture(scope="module")
async def house(database_server: DatabaseServer) -> AsyncIterator[House]:
    """Shared by all tests here: none of them may change it."""
    async with database_server.clone("doorkey") as database:
        await database.run("insert into public.plans (id, name, is_active) values ('retired', 'Retired', false)")
        await database.run("insert into doorkey.used_proofs values ('seen', now())")
        people = {person: await database.insert_user() for person in PEOPLE}
        for user_id in people.values():
            await Doors(database).make_ready(user_id)
            await Credits(database).reserve(user_id)
            await database.run(
                "select doorkey.post_unheld_cost(%s, p.key_hash, current_date, 1, %s, 'r')"
                " from doorkey.provisioning as p where p.user_id = %s",
                (user_id, str(user_id), user_id),
            )
        await database.run("insert into doorkey.key_usage_days select key_hash, '2026-01-01', 1 from doorkey.key_usage")
        await database.run("select doorkey.find_usage(array['seen'], 'foreign', array[1])")
        await fill_offers_and_takings(database, people["owner"])
        columns = await Catalog(database.superuser_url).columns()
        async with AsyncExitStack() as stack:
            connections = {
                subject: await stack.enter_async_context(database.acting_as(role_of(subject), people.get(subject)))
                for subject in SUBJECTS
            }
            house = House(database, people, columns, connections)
            before = await house.contents()
            assert not [table for table, rows in before.items() if not rows], (
                "a refusal says most where there is something to see"
            )
            yield house
            assert await house.contents() == before


async def fill_offers_and_takings(database: Database, user_id: uuid.UUID) -> None:
    """A row in each table that is empty until an operator does something."""
    await database.run("insert into doorkey.welcome_offers (code, amount_micros) values ('seen', 1)")
    await database.run("insert into doorkey.welcome_arms (experiment, arm, amount_micros) values ('seen', 'a', 1)")
    await database.run(
        "insert into doorkey.welcomes (user_id, amount_micros, review) values (%s, 1, 'none')", (user_id,)
    )
    await database.run(
        "insert into doorkey.promised_credits"
        " (user_id, about_user_id, waits_for, amount_micros, idempotency_key, reason, lapses_at)"
        " values (%s, %s, 'review', 1, 'seen', 'seen', now() + interval '1 day')",
        (user_id, user_id),
    )
    await database.run("insert into doorkey.known_people (person_hash, user_id) values ('seen', %s)", (user_id,))
    await database.run("insert into doorkey.signup_ranges (user_id, range_hash) values (%s, 'seen')", (user_id,))
    await database.run("select * from doorkey.post_credits(%s, 'bonus', 1, 'seen', 's', 's', null, 'r')", (user_id,))
    await database.run(
        "select doorkey.take_credits(%s, 'adjustment', 1, 'seen', 'A mistake', 'operator', 'r', null)", (user_id,)
    )
    await database.run("select doorkey.change_plan(%s, 'starter', 'now', 'seen', 'operator', 'seen', 'r')", (user_id,))


async def test_every_open_door_is_tried(house: House, subject: SubjectName) -> None:
    del subject
    found = await Catalog(house.database.superuser_url).objects()
    for kind in ("table", "function", "sequence"):
        assert found[kind] == OBJECTS[kind], f"say in declared_grants.py who may use this {kind}, and it will be tried"
    assert not without_a_call(), "say in door_calls.py how these are called, and what they answer"
    assert not without_rows(), "say in door_calls.py which rows of these are whose"


@pytest.mark.parametrize("table", TABLES)
async def test_tables_show_exactly_what_is_declared(house: House, subject: SubjectName, table: str) -> None:
    columns = house.columns[table]
    readable = readable_columns(table, role_of(subject), columns)
    if readable:
        rows = READABLE[table]
        expected = await house.database.rows(
            f"select {', '.join(readable)} from {table}"
            f" where {rows.condition_for(subject, house.people)} order by {rows.key}"
        )
        cursor = await house.connections[subject].execute(
            f"select {', '.join(readable)} from {table} order by {rows.key}"
        )
        assert await cursor.fetchall() == expected
        assert expected
        if subject in PEOPLE and rows.person:
            assert len(expected) < len(await house.database.rows(f"select from {table}")), "all of it is theirs?"
    if readable != columns:
        await house.refused(subject, f"select * from {table}", kind_of(table), table)
    for column in set(columns) - set(readable):
        await house.refused(subject, f"select {column} from {table}", kind_of(table), table)
        await house.refused(subject, f"select 1 from {table} where {column} is null", kind_of(table), table)


def kind_of(table: str) -> str:
    """What a refusal calls it."""
    return "view" if table in VIEWS else "table"


@pytest.mark.parametrize("table", [table for table in TABLES if table not in VIEWS])
async def test_nobody_writes_to_a_table(house: House, subject: SubjectName, table: str) -> None:
    column = house.columns[table][0]
    if role_of(subject) in INSERTS.get(table, {}):
        # What they may insert is tried in test_own_rows.py: not this.
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="violates row-level security policy"):
            await house.connections[subject].execute(f"insert into {table} default values")
    else:
        await house.refused(subject, f"insert into {table} default values", kind_of(table), table)
    for statement in (
        f"update {table} set {column} = default",
        f"delete from {table}",
        f"truncate {table}",
        f"create trigger mine before insert on {table} for each row execute function pg_catalog.suppress_redundant_updates_trigger()",  # noqa: E501
    ):
        if table not in VIEWS or not statement.startswith(("truncate", "create")):
            await house.refused(subject, statement, kind_of(table), table)


async def test_nobody_writes_to_a_view(house: House, subject: SubjectName) -> None:
    """They are told from tables: there is nothing to write to, whoever asks."""
    for statement in (
        "insert into doorkey.ledger_entries values (1, 'spendable', 1)",
        "delete from doorkey.ledger_entries",
        "update doorkey.key_costs set cost_micros = 0",
        "delete from doorkey.key_costs",
    ):
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)):
            await house.connections[subject].execute(statement)


@pytest.mark.parametrize("signature", FUNCTIONS)
async def test_functions_answer_their_callers_and_nobody_else(
    house: House, subject: SubjectName, signature: str
) -> None:
    function = Function.parse(signature)
    path = f"{function.schema}.{function.name}"
    if role_of(subject) in FUNCTIONS[signature]:
        call = call_of(function)
        placeholders = ", ".join(f"%s::{name}" for name in function.types)
        statement = f"select * from {path}({placeholders})"
        await assert_answer(house.connections[subject], statement, call, house.people.get(subject))
    else:
        nulls = ", ".join(f"null::{name}" for name in function.types)
        await house.refused(subject, f"select {path}({nulls})", "function", path)


async def assert_answer(connection: Connection, statement: str, call: Call, user_id: uuid.UUID | None) -> None:
    if call.answer in REFUSALS:
        with pytest.raises(psycopg.Error, match=call.answer) as caught:
            await connection.execute(statement, call.arguments)
        assert caught.value.sqlstate == f"PT{REFUSALS[call.answer]}"
        return
    rows = await (await connection.execute(statement, call.arguments)).fetchall()
    if call.answer == "nothing":
        assert rows == []
        return
    if call.answer == "progress":
        assert [row["provision_on"] for row in rows] == ["confirmed"]
        return
    if call.answer == "rows":
        assert rows
        return
    ((answer,),) = (tuple(row.values()) for row in rows)
    if call.answer in ("null", "true", "there"):
        assert answer == {"null": None, "true": True}.get(call.answer, call.answer)
        return
    if call.answer == "account":
        assert answer["user_id"] == str(user_id)
        assert answer["key"]["hash"]
    else:
        assert len(answer["triggers"]) == 3


@pytest.mark.parametrize("sequence", SEQUENCES)
async def test_nobody_touches_a_sequence(house: House, subject: SubjectName, sequence: str) -> None:
    for statement in (
        f"select nextval('{sequence}')",
        f"select setval('{sequence}', 1)",
        f"select last_value from {sequence}",
    ):
        await house.refused(subject, statement, "sequence", sequence)


async def test_nobody_makes_anything_in_the_hidden_schema(house: House, subject: SubjectName) -> None:
    await house.refused(subject, "create table doorkey.mine (id int)", "schema", "doorkey.doorkey")
