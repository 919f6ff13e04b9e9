"""Deletes at OpenRouter every key that the database knows to be alive, before doorkey is uninstalled.

Each deletion is noted at once, so a run that was stopped goes on where it was. The surprising thing: nobody may make
keys any more before the first one is deleted, because a function that misses a key makes another.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
import psycopg
from psycopg.sql import SQL, Composed, Identifier
from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from functions.clients.openrouter import (
    OpenRouter,
    OpenRouterAnswerLost,
    OpenRouterError,
    OpenRouterLimited,
    OpenRouterUnreachable,
)
from functions.kit.counting import counted
from functions.kit.settings import Settings

CONCURRENCY = 8
PAGE_KEYS = 200
MAX_PAGES = 100_000
MAX_TRIES = 6
MAX_PAUSE_SECONDS = 60.0
OUTSIDE_SECONDS = 10.0
# Longer than a lease, if nobody has said otherwise.
MAX_POLLS = 180
POLL_SECONDS = 1.0

COUNT = SQL("select count(*) from {} where status <> 'deleted'")
PAGE = SQL("select key_hash from {} where status <> 'deleted' order by key_hash limit {}")
NOTE = SQL("update {} set status = 'deleted', deleted_at = now(), updated_at = now() where key_hash = %s")
MAKERS = SQL(
    "select p.oid::regprocedure::text as door from pg_proc as p where p.proname = 'claim_provisioning'"
    " and p.pronamespace = 'doorkey'::regnamespace"
)
UNDER_WAY = SQL("select count(*) from doorkey.provisioning where state = 'working' and lease_expires_at > now()")

Connection = psycopg.AsyncConnection[dict[str, Any]]


class KeysNotDeleted(Exception):
    """Keys can't be deleted; the message says why."""


@dataclass(frozen=True)
class Account:
    """Of the functions' settings, what deleting keys takes."""

    openrouter_management_key: SecretStr
    openrouter_base_url: str
    openrouter_workspace_id: UUID | None = field(default=None)


def openrouter_account(environment: Mapping[str, str]) -> Account:
    """The account whose keys are deleted.

    Raises:
        KeysNotDeleted: there is no management key.
    """
    key = environment.get("OPENROUTER_MANAGEMENT_KEY", "").strip()
    if not key or re.search(r"[^!-~]", key):
        raise KeysNotDeleted("--delete-keys needs OPENROUTER_MANAGEMENT_KEY, one word. Nothing was changed.")
    default_url = str(Settings.model_fields["openrouter_base_url"].default)
    return Account(SecretStr(key), environment.get("OPENROUTER_BASE_URL", "").rstrip("/") or default_url)


async def delete_keys(console: Console, connection: Connection, keys_table: Identifier, account: Account) -> int:
    """Deletes every live key; says how many.

    Args:
        console: for the progress.
        connection: of role `postgres`, in autocommit.
        keys_table: where the keys stand.
        account: whose they are.

    Raises:
        KeysNotDeleted: attempts are still under way.
        OpenRouterError: OpenRouter refuses. What is deleted is noted.
    """
    await _stop_making_keys(console, connection)
    async with httpx.AsyncClient(timeout=OUTSIDE_SECONDS, follow_redirects=False) as http:
        openrouter = OpenRouter(http, account)
        columns = (TextColumn("Keys"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            (row,) = await _rows(connection, COUNT.format(keys_table))
            task = progress.add_task("", total=row["count"])
            deleted = 0
            for _ in range(MAX_PAGES):
                page = await _rows(connection, PAGE.format(keys_table, PAGE_KEYS))
                if not page:
                    break
                deletion = _Deletion(openrouter, connection, keys_table)
                await asyncio.gather(*(deletion.delete(str(row["key_hash"])) for row in page))
                deleted += deletion.deleted
                progress.update(task, completed=deleted)
                if deletion.failure is not None:
                    raise deletion.failure
    return deleted


async def _stop_making_keys(console: Console, connection: Connection) -> None:
    doors = await _rows(connection, MAKERS)
    if not doors:
        return  # an archive: nobody makes keys
    for row in doors:
        await connection.execute(f"revoke execute on function {row['door']} from service_role".encode())
    with console.status("Waiting for attempts under way"):
        for _ in range(MAX_POLLS):
            (row,) = await _rows(connection, UNDER_WAY)
            if not row["count"]:
                return
            await asyncio.sleep(POLL_SECONDS)
    raise KeysNotDeleted(
        f"{counted(row['count'], 'key is', 'keys are')} still being made or changed. Run it again in some minutes."
    )


class _Deletion:
    """A page of keys; after the first failure no other is begun."""

    def __init__(self, openrouter: OpenRouter, connection: Connection, keys_table: Identifier) -> None:
        self._openrouter = openrouter
        self._connection = connection
        self._keys_table = keys_table
        self._room = asyncio.Semaphore(CONCURRENCY)
        self.deleted = 0
        self.failure: OpenRouterError | None = None

    async def delete(self, key_hash: str) -> None:
        """Deletes one, when there is room, and notes it; `failure` says why it could not."""
        async with self._room:
            if self.failure is not None:
                return
            try:
                await self._delete(key_hash)
            except OpenRouterError as error:
                self.failure = error
                return
            await self._connection.execute(NOTE.format(self._keys_table), (key_hash,))
            self.deleted += 1

    async def _delete(self, key_hash: str) -> None:
        for tries_before in range(MAX_TRIES):
            try:
                await self._openrouter.delete_key(key_hash)
            except (OpenRouterLimited, OpenRouterAnswerLost, OpenRouterUnreachable) as error:
                if tries_before + 1 == MAX_TRIES:
                    raise
                await asyncio.sleep(min(error.retry_after_seconds or 2.0**tries_before, MAX_PAUSE_SECONDS))
            else:
                return


async def _rows(connection: Connection, statement: SQL | Composed) -> list[dict[str, Any]]:
    return await (await connection.execute(statement)).fetchall()
