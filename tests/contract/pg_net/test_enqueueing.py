"""What a caller sees in the database: signatures, grants, what can raise (supabase.md 1.3, 1.4).

Nothing is sent here: every transaction is rolled back.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import psycopg
import pytest

from tests.contract.pg_net.net import Connection, Net

HEADERS_DEFAULT = """'{"Content-Type": "application/json"}'::jsonb"""
SIGNATURES = {
    "http_get": (
        "url text, params jsonb DEFAULT '{}'::jsonb, headers jsonb DEFAULT '{}'::jsonb,"
        " timeout_milliseconds integer DEFAULT 5000",
        "bigint",
    ),
    "http_post": (
        "url text, body jsonb DEFAULT '{}'::jsonb, params jsonb DEFAULT '{}'::jsonb,"
        f" headers jsonb DEFAULT {HEADERS_DEFAULT}, timeout_milliseconds integer DEFAULT 5000",
        "bigint",
    ),
    "http_delete": (
        "url text, params jsonb DEFAULT '{}'::jsonb, headers jsonb DEFAULT '{}'::jsonb,"
        " timeout_milliseconds integer DEFAULT 5000, body jsonb DEFAULT NULL::jsonb",
        "bigint",
    ),
    "wake": ("", "void"),
    "worker_restart": ("", "boolean"),
    "check_worker_is_up": ("", "void"),
}
COLUMNS = {
    "http_request_queue": [
        "id bigint not null",
        "method net.http_method not null",
        "url text not null",
        "headers jsonb",
        "body bytea",
        "timeout_milliseconds integer not null",
    ],
    "_http_response": [
        "id bigint",
        "status_code integer",
        "content_type text",
        "headers jsonb",
        "content text",
        "timed_out boolean",
        "error_msg text",
        "created timestamp with time zone not null",
    ],
}


@pytest.fixture
async def caller(net: Net) -> AsyncIterator[Connection]:
    """A transaction that will be rolled back."""
    async with await net.connect(autocommit=False) as connection:
        yield connection
        await connection.rollback()


async def value(caller: Connection, statement: str) -> object:
    row = await (await caller.execute(statement)).fetchone()
    assert row
    return next(iter(row.values()))


@pytest.mark.parametrize("name", SIGNATURES)
async def test_function_has_the_signature_and_security_of_pg_net(net: Net, name: str) -> None:
    found = await net.rows(
        "select pg_get_function_arguments(oid) as arguments, pg_get_function_result(oid) as result,"
        " prosecdef, proisstrict, provolatile, proconfig,"
        " has_function_privilege('public', oid, 'execute') as is_public"
        " from pg_proc where pronamespace = 'net'::regnamespace and proname = %s",
        name,
    )
    assert found == [
        {
            "arguments": SIGNATURES[name][0],
            "result": SIGNATURES[name][1],
            "prosecdef": False,
            "proisstrict": False,
            "provolatile": "v",
            "proconfig": None,
            "is_public": True,
        }
    ]


@pytest.mark.parametrize("table", COLUMNS)
async def test_table_is_unlogged_with_the_columns_of_pg_net_and_open_to_everybody(net: Net, table: str) -> None:
    columns = await net.rows(
        "select attname || ' ' || format_type(atttypid, null)"
        " || case when attnotnull then ' not null' else '' end as line"
        " from pg_attribute where attrelid = %s::regclass and attnum > 0 order by attnum",
        f"net.{table}",
    )
    assert [column["line"] for column in columns] == COLUMNS[table]
    (facts,) = await net.rows(
        "select relpersistence, (select rolsuper from pg_roles where oid = relowner) as by_superuser,"
        " (select count(*) from pg_constraint where conrelid = c.oid and contype = 'p') as keys,"
        " has_table_privilege('public', oid, 'select') and has_table_privilege('public', oid, 'insert')"
        " and has_table_privilege('public', oid, 'update')"
        " and has_table_privilege('public', oid, 'delete') as is_public"
        " from pg_class c where oid = %s::regclass",
        f"net.{table}",
    )
    assert facts == {"relpersistence": "u", "by_superuser": True, "keys": 0, "is_public": True}


async def test_responses_are_indexed_by_creation(net: Net) -> None:
    found = await net.rows(
        "select pg_get_indexdef(indexrelid) as line from pg_index where indrelid = 'net._http_response'::regclass"
    )
    assert [row["line"].rpartition(" USING ")[2] for row in found] == ["btree (created)"]


async def test_any_role_can_enqueue_and_reads_the_secrets_of_others(caller: Connection) -> None:
    await caller.execute("create role somebody nologin")
    await caller.execute("select net.http_post('http://127.0.0.1/', headers => '{\"apikey\": \"s3cret\"}')")
    await caller.execute("set local role somebody")
    await caller.execute("select net.http_post('http://127.0.0.1/')")
    assert await value(caller, "select count(*) from net.http_request_queue") == 2
    assert await value(caller, "select max(headers ->> 'apikey') from net.http_request_queue") == ("s3cret")


async def test_revoking_as_another_role_than_the_owner_silently_changes_nothing(
    caller: Connection,
) -> None:
    await caller.execute("create role migrator nologin createrole bypassrls")
    await caller.execute("set local role migrator")
    await caller.execute("revoke all on net.http_request_queue from public")
    await caller.execute("revoke execute on function net.http_post(text, jsonb, jsonb, jsonb, int) from public")
    await caller.execute("select net.http_post('http://127.0.0.1/')")


async def test_enqueueing_works_with_an_empty_search_path(caller: Connection) -> None:
    await caller.execute("set local search_path = ''")
    await caller.execute("select net.http_post('http://127.0.0.1/', params => '{\"a\": \"b c\"}')")


async def test_ids_are_given_in_order(caller: Connection) -> None:
    first = await value(caller, "select net.http_get('http://127.0.0.1/')")
    second = await value(caller, "select net.http_delete('http://127.0.0.1/')")
    assert isinstance(first, int)
    assert second == first + 1


async def test_without_words_the_queue_holds_the_defaults(caller: Connection) -> None:
    await caller.execute("select net.http_post('http://127.0.0.1')")
    rows = await (
        await caller.execute(
            "select method::text, url, headers, body, timeout_milliseconds from net.http_request_queue"
        )
    ).fetchall()
    assert rows == [
        {
            "method": "POST",
            "url": "http://127.0.0.1/",
            "headers": {"Content-Type": "application/json"},
            "body": b"{}",
            "timeout_milliseconds": 5000,
        }
    ]


@pytest.mark.parametrize(
    ("call", "sqlstate"),
    [
        ("net.http_post(null)", "23502"),
        ("net.http_get(null)", "23502"),
        ("net.http_delete(null)", "23502"),
        ("net.http_post('http://h/', timeout_milliseconds => null)", "23502"),
        ("""net.http_post('http://h/', headers => '{"Content-Type": "text/plain"}')""", "P0001"),
        (
            "net.http_post('http://h/', headers =>"
            """ '{"content-type": "application/json; charset=utf-8"}')""",
            "P0001",
        ),
        ("net.http_post('')", "XX000"),
        ("net.http_post('no-scheme.example/path')", "XX000"),
        ("net.http_post('http://')", "XX000"),
        ("net.http_post('http://h/with space')", "XX000"),
        ("net.http_post('http://h:65536/')", "XX000"),
    ],
)
async def test_a_bad_call_raises_in_the_caller_s_transaction(caller: Connection, call: str, sqlstate: str) -> None:
    with pytest.raises(psycopg.Error) as raised:
        await caller.execute(f"select {call}")
    assert raised.value.sqlstate == sqlstate


async def test_an_exception_block_around_a_bad_call_saves_the_transaction(
    caller: Connection,
) -> None:
    await caller.execute("create temporary table signups (id int)")
    await caller.execute(
        "do $$ begin insert into signups values (1);"
        " begin perform net.http_post(null); exception when others then null; end; end $$"
    )
    assert await value(caller, "select count(*) from signups") == 1


@pytest.mark.parametrize(
    ("url", "params", "queued"),
    [
        ("http://h", '{"a": "b c&d=é/~"}', "http://h/?a=b%20c%26d%3D%C3%A9%2F~"),
        ("http://h?x=1", '{"a": 1}', "http://h/?x=1&a=1"),
        ("http://h/p?x=1&#frag", '{"a": null, "b": true}', "http://h/p?x=1&b=true#frag"),
        ("HTTPS://u:p@Host.example:443/%zz?", "{}", "https://u:p@Host.example:443/%ZZ"),
        ("http://h/p?q", "null", "http://h/p?q"),
    ],
)
async def test_params_are_encoded_into_the_query(caller: Connection, url: str, params: str, queued: str) -> None:
    await caller.execute("select net.http_get(%s, params => nullif(%s, 'null')::jsonb)", (url, params))
    # Some releases of libcurl write the hexadecimal digits in small letters.
    found = str(await value(caller, "select url from net.http_request_queue"))
    assert re.sub("%..", lambda escape: escape[0].upper(), found) == queued


async def test_the_queue_takes_only_get_post_and_delete(caller: Connection) -> None:
    statement = "insert into net.http_request_queue (method, url, timeout_milliseconds) values (%s, 'http://h/', 1)"
    await caller.execute(statement, ("dElEtE",))
    with pytest.raises(psycopg.errors.CheckViolation):
        await caller.execute(statement, ("PUT",))
