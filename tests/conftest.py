"""The fixtures that every kind of test may use. Both servers start once, when the first test asks for them.

`make test` has several processes run the tests, each with servers of its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator

import httpx
import psycopg
import pytest

from infra.local.stack import CHECKOUT, Stack, StackOptions, running_stack
from tests.support.databases import Database, DatabaseServer, running_database_server
from tests.support.logs import search_logs

TEST_LOGS = CHECKOUT / "build" / "test-logs" / os.environ.get("PYTEST_XDIST_WORKER", "alone")
# Modules that share servers of their own, which start once: one process runs all of them.
TOGETHER = ("contract/edge", "contract/faults", "contract/lambda", "contract/openrouter", "contract/pg_net")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What is made by a test and checked by it can be written by it."""
    parser.addoption("--write", action="store_true", help="write the pages that tests make, instead of comparing them")
    parser.addoption("--plays", type=int, default=1, help="how many times as long the plays of the ledger last")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says which tests one process runs: those of a module, or of modules that share servers."""
    for item in items:
        module = item.path.relative_to(CHECKOUT / "tests").as_posix()
        group = next((name for name in TOGETHER if module.startswith(f"{name}/")), module)
        for own_stack in {"installation", "patient"}.intersection(getattr(item, "fixturenames", ())):
            group = own_stack
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
async def stack() -> AsyncIterator[Stack]:
    """The whole of doorkey, running, without a schedule: tests sweep when they mean to.

    Shared: tests make users of their own in it and change nothing for others.
    """
    shutil.rmtree(TEST_LOGS, ignore_errors=True)
    async with running_stack(StackOptions(log_folder=TEST_LOGS, sweep_seconds=0, forgets=True)) as running:
        async with await psycopg.AsyncConnection.connect(running.superuser_url, autocommit=True) as database:
            # A run makes more keys than an hour may have.
            await database.execute("update doorkey.settings set max_keys_per_hour = null")
        yield running
        await search_logs(running)


@pytest.fixture(scope="session")
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """A client for everybody."""
    async with httpx.AsyncClient(timeout=30.0, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
async def database_server() -> AsyncIterator[DatabaseServer]:
    """A Postgres with the templates `hosted` and `doorkey`."""
    async with running_database_server() as server:
        yield server


@pytest.fixture
async def database(database_server: DatabaseServer) -> AsyncIterator[Database]:
    """A database of the test's own, with doorkey installed."""
    async with database_server.clone("doorkey") as clone:
        yield clone


@pytest.fixture
async def hosted_database(database_server: DatabaseServer) -> AsyncIterator[Database]:
    """A database of the test's own, as hosted gives it, without doorkey."""
    async with database_server.clone("hosted") as clone:
        yield clone
