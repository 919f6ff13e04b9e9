"""The stand-in's worker as a process, and its schema as a file. The real extension has neither."""

from __future__ import annotations

import subprocess

import psycopg
import pytest

from infra.local.pg_net import SCHEMA
from tests.contract.pg_net.net import StandIn, start_worker_process
from tests.contract.pg_net.polling import WAIT_SECONDS


def last_words(url: str | None) -> tuple[int, str]:
    """The exit code and the log of a worker that must not start."""
    process = start_worker_process(url, stderr=subprocess.PIPE)
    try:
        _, words = process.communicate(timeout=WAIT_SECONDS)
    finally:
        process.kill()
    return process.returncode, words.decode()


async def test_a_second_worker_exits_with_a_sentence_and_leaves_the_first_alone(
    stand_in: StandIn,
) -> None:
    first = await stand_in.worker_pid()
    code, words = last_words(stand_in.url)
    assert code == 1
    assert words.count("\n") == 1
    assert "another pg_net worker is running" in words
    assert await stand_in.worker_pid() == first


def test_without_a_database_it_exits_with_a_sentence(stand_in: StandIn) -> None:
    code, words = last_words(stand_in.url.replace("@127.0.0.1:", "@127.0.0.1:1"))
    assert (code, "can't reach the database" in words, words.count("\n")) == (1, True, 1)
    assert "throw-away" not in words


def test_without_its_setting_it_exits_with_a_sentence() -> None:
    code, words = last_words(None)
    assert (code, "PG_NET_DATABASE_URL is not set" in words, words.count("\n")) == (1, True, 1)


def test_without_its_schema_it_exits_with_a_sentence(stand_in: StandIn) -> None:
    code, words = last_words(stand_in.url.replace("/postgres", "/template1"))
    assert (code, "apply schema.sql first" in words, words.count("\n")) == (1, True, 1)


async def test_schema_can_be_applied_again_and_keeps_what_is_there(stand_in: StandIn) -> None:
    async with await stand_in.connect() as connection:
        await connection.execute("insert into net._http_response (id) values (-1)")
        await connection.execute(SCHEMA.read_bytes())
        cursor = await connection.execute("delete from net._http_response where id = -1 returning id")
        assert await cursor.fetchall() == [{"id": -1}]


async def test_schema_refuses_an_owner_without_superuser_rights(stand_in: StandIn) -> None:
    async with await stand_in.connect(autocommit=False) as connection:
        await connection.execute("create role owner_to_be nologin; set local role owner_to_be")
        with pytest.raises(psycopg.errors.RaiseException, match="must be owned by a superuser"):
            await connection.execute(SCHEMA.read_bytes())


async def test_nobody_else_may_touch_the_row_that_tells_a_death_from_a_stop(
    stand_in: StandIn,
) -> None:
    async with await stand_in.connect(autocommit=False) as connection:
        await connection.execute("create role meddler nologin; set local role meddler")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute("update net._stand_in_worker set running = false")
