"""`doorkey uninstall` as an operator runs it: against a stack of its own, and against clones where no key is needed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from infra.cli.uninstall import Uninstallation, UninstallPlan
from infra.local.faults.remote import OPENROUTER, FaultControl
from infra.local.stack import CHECKOUT, Stack, StackOptions, running_stack
from tests.conftest import TEST_LOGS
from tests.support.databases import Database
from tests.support.doors import Doors
from tests.support.people import database_of, insert_person, sign_up, until_state

PEOPLE = 20
MAX_POLLS = 1_500
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Run:
    """How a command ended: its exit code, and all that it printed, without line breaks."""

    code: int
    said: str


async def uninstall(*words: str, typed: str = "", **environment: str) -> Run:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "infra.cli.main", "uninstall", *words),
        cwd=CHECKOUT,
        env={"PATH": os.environ["PATH"], "COLUMNS": "200", **environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate(typed.encode())
    assert b"Traceback" not in printed, printed.decode()
    return Run(process.returncode or 0, " ".join(printed.decode().split()))


def address(database: Database) -> dict[str, str]:
    return {"DATABASE_URL": database.url("postgres")}


@pytest.fixture(scope="module")
async def own_stack() -> AsyncIterator[Stack]:
    """A stack that may be taken apart."""
    options = StackOptions(log_folder=TEST_LOGS.with_name("test-logs-uninstall"), sweep_seconds=0)
    async with running_stack(options) as running:
        yield running


async def keys_at_openrouter(stack: Stack, http: httpx.AsyncClient) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {stack.secrets.management_key}"}
    keys: list[dict[str, Any]] = (await http.get(f"{stack.openrouter_url}/keys", headers=headers)).json()["data"]
    return keys


async def test_keys_go_first_resumably_and_then_everything_else(own_stack: Stack, http: httpx.AsyncClient) -> None:
    database, openrouter = database_of(own_stack), FaultControl(OPENROUTER, own_stack.openrouter_url)
    people = [await insert_person(own_stack) for _ in range(PEOPLE)]
    for person in people:
        await until_state(own_stack, person.user_id)
    given = {
        **address(database),
        "OPENROUTER_BASE_URL": own_stack.openrouter_url,
        "OPENROUTER_MANAGEMENT_KEY": own_stack.secrets.management_key,
    }
    words = ("--delete-keys", "--keep-ledger", "--yes")
    live = "select count(*) from public.openrouter_user_keys where status <> 'deleted'"

    # OpenRouter deletes some and then refuses: what is deleted is noted, and nothing else has happened.
    await openrouter.order(only=("DELETE /keys",), latency_ms=1_500)
    process = asyncio.create_task(uninstall(*words, **given))
    for _ in range(MAX_POLLS):
        if await database.value(live) <= PEOPLE - 3:
            break
        await asyncio.sleep(POLL_SECONDS)
    await openrouter.order(refuse_status=401)
    stopped = await process
    assert stopped.code == 1
    assert "management_key_rejected" in stopped.said
    await openrouter.clear()
    left = await database.value(live)
    assert 0 < left < PEOPLE
    assert len(await keys_at_openrouter(own_stack, http)) == left
    # Whose key is gone gets no other one meanwhile: nobody may make any.
    waiting = await insert_person(own_stack)
    await http.get(f"{own_stack.functions_url}/v1/me", headers=waiting.headers)
    await until_state(own_stack, waiting.user_id, "due")
    assert len(await keys_at_openrouter(own_stack, http)) == left

    finished = await uninstall(*words, **given)
    assert finished.code == 0, finished.said
    assert f"{left} keys are deleted at OpenRouter" in finished.said
    assert "can still spend" not in finished.said
    assert await keys_at_openrouter(own_stack, http) == []
    assert await database.value("select count(*) from doorkey.openrouter_user_keys where status = 'deleted'") == PEOPLE
    assert await database.value("select sum(available_micros) from doorkey.credit_accounts") == PEOPLE * 5_000_000

    # The host goes on as before.
    await sign_up(own_stack, http)
    again = await uninstall("--keep-ledger", "--yes", **given)
    assert (again.code, "as an archive in schema doorkey" in again.said) == (0, True), again.said


async def test_what_can_still_spend_is_said_before_and_after(database: Database) -> None:
    doors = Doors(database)
    for _ in range(3):
        await doors.make_ready(await database.insert_user())
    run = await uninstall("--yes", **address(database))
    assert run.code == 0, run.said
    assert "3 live keys at OpenRouter, which can still spend: $15.00" in run.said
    assert "3 live keys stay at OpenRouter and can still spend" in run.said
    assert await database.value("select to_regnamespace('doorkey')") is None


@pytest.mark.parametrize(("typed", "code"), [("{name}\n", 0), ("yes\n", 1), ("", 1)])
async def test_the_name_is_to_be_typed(database: Database, typed: str, code: int) -> None:
    name = f"127.0.0.1/{database.name}"
    run = await uninstall(typed=typed.format(name=name), **address(database))
    assert run.code == code, run.said
    assert f"Type {name}" in run.said
    assert (await database.value("select to_regnamespace('doorkey')") is None) == (code == 0)


async def test_nothing_to_uninstall_is_said(hosted_database: Database) -> None:
    run = await uninstall("--yes", **address(hosted_database))
    assert (run.code, "not installed in this database" in run.said) == (0, True), run.said


async def test_uninstalled_already_is_said_and_nobody_is_asked(database: Database) -> None:
    doors, given = Doors(database), address(database)
    await doors.make_ready(await database.insert_user())
    assert (await uninstall("--keep-ledger", "--yes", **given)).code == 0
    again = await uninstall("--keep-ledger", **given)
    assert (again.code, "uninstalled already" in again.said, "Type" in again.said) == (0, True, False), again.said
    assert "1 live key at OpenRouter, which can still spend: $5.00; with --delete-keys" in again.said

    # What is left of it is asked about: the key, or the ledger.
    key = {"OPENROUTER_MANAGEMENT_KEY": "nobody-asks"}
    for words in (("--keep-ledger", "--delete-keys"), ()):
        run = await uninstall(*words, typed="no\n", **given, **key)
        assert (run.code, "Type" in run.said) == (1, True), run.said
    await database.run("update doorkey.openrouter_user_keys set status = 'deleted', deleted_at = now()")
    run = await uninstall("--keep-ledger", "--delete-keys", **given, **key)
    assert (run.code, "uninstalled already" in run.said, "live key" in run.said) == (0, True, False), run.said


async def test_functions_of_the_hosts_that_will_fail_are_named(database: Database) -> None:
    await database.run(
        "create function public.my_balance() returns bigint language plpgsql as $$ begin"
        " return (select available_micros from public.credit_accounts where user_id = auth.uid()); end $$",
        role="postgres",
    )
    run = await uninstall(typed="no\n", **address(database))
    assert "speak of doorkey and will fail: public.my_balance()" in run.said or "fail: my_balance()" in run.said
    assert "get_my_account" not in run.said


async def test_what_stands_in_the_way_is_said_in_a_sentence(database: Database) -> None:
    given = address(database)
    await database.run(
        "create view public.theirs as select available_micros from public.credit_accounts", role="postgres"
    )
    run = await uninstall("--yes", **given)
    assert (run.code, "view theirs depends on table" in run.said.replace("public.", "")) == (1, True), run.said
    await database.run("drop view public.theirs")
    async with database.connect(autocommit=False) as somebody:
        await somebody.execute("lock table auth.users in row exclusive mode")
        run = await uninstall("--yes", **given)
    assert (run.code, "try again at a quieter moment" in run.said) == (1, True), run.said
    run = await uninstall("--yes", DATABASE_URL=database.url("authenticator"))
    assert run.code == 1
    assert "role" in run.said
    assert await database.value("select count(*) from doorkey.settings") == 1


async def test_without_what_it_needs_it_does_nothing(database: Database) -> None:
    given = address(database)
    secret = database.password
    for words, environment, reason in (
        (("--yes",), {}, "set DATABASE_URL"),
        (("--yes",), {"DATABASE_URL": "postgresql://postgres:wrong@127.0.0.1:1/postgres"}, "does not let us in"),
        (("--yes", "--delete-keys"), given, "needs OPENROUTER_MANAGEMENT_KEY"),
        (("--yes", "--database-url", given["DATABASE_URL"]), {}, "PGPASSWORD"),
    ):
        run = await uninstall(*words, **environment)
        assert (run.code, reason in run.said) == (1, True), run.said
        assert secret not in run.said
    assert await database.value("select count(*) from doorkey.settings") == 1


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://postgres@db.abcdefghij.supabase.co:5432/postgres", "abcdefghij"),
        ("postgresql://postgres.abcdefghij@aws-0-eu-central-1.pooler.supabase.com:6543/postgres", "abcdefghij"),
        ("postgresql://postgres@localhost/app", "localhost/app"),
    ],
)
def test_a_hosted_project_is_called_by_its_reference(url: str, name: str) -> None:
    plan = UninstallPlan(keeps_ledger=False, deletes_keys=False)
    assert Uninstallation(None, url, plan, {}).name == name  # type: ignore[arg-type]
