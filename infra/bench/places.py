"""Where is measured: a stack in which nothing happens by itself, or a Postgres on a disk; and crowds of users."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import psycopg

from functions.kit.settings import Settings
from infra.local.migrations import migrate
from infra.local.scratch import ScratchServer, running_scratch_server
from infra.local.stack import CHECKOUT, Stack, StackOptions, running_stack

# Nothing listens there; the bell is rung, and nobody carries it out.
SILENT_URL = "http://127.0.0.1:9/webhooks/supabase"


@asynccontextmanager
async def quiet_stack(options: StackOptions | None = None, *, rings: bool = False) -> AsyncIterator[Stack]:
    """A stack without a schedule and without a brake, and without hints unless `rings`."""
    async with running_stack(replace(options or StackOptions(), sweep_seconds=0)) as stack:
        await run_sql(stack.superuser_url, "update doorkey.settings set max_keys_per_hour = null")
        if not rings:
            await run_sql(stack.superuser_url, "update doorkey.settings set webhook_url = null")
        yield stack


def settings_of(stack: Stack) -> Settings:
    """What the stack's functions are told."""
    return Settings.from_environment(stack.functions_environment)


async def insert_users(stack: Stack, count: int) -> list[uuid.UUID]:
    """So many confirmed users in one statement, by the role that Auth is."""
    async with await psycopg.AsyncConnection.connect(
        stack.role_url("supabase_auth_admin"), autocommit=True
    ) as database:
        rows = await database.execute(
            """insert into auth.users (id, aud, role, email, email_confirmed_at, created_at, updated_at)
               select id, 'authenticated', 'authenticated', id || '@example.com', now(), now(), now()
                 from (select gen_random_uuid() as id from generate_series(1, %s)) as made
               returning id""",
            (count,),
        )
        return [user_id for (user_id,) in await rows.fetchall()]


async def run_sql(url: str, statement: str, parameters: Sequence[object] | None = None) -> None:
    """Runs one statement, or several without parameters."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as database:
        await database.execute(statement, parameters)


@asynccontextmanager
async def durable_server() -> AsyncIterator[ScratchServer]:
    """A Postgres with its data on a disk, fsync on, whose database `postgres` is as hosted gives it."""
    async with running_scratch_server(is_durable=True) as server:
        yield server


async def new_database(server: ScratchServer, name: str, template: str = "postgres") -> None:
    """Another database, made from a template that nobody is in."""
    async with await psycopg.AsyncConnection.connect(server.url(database="template1"), autocommit=True) as database:
        await database.execute(f"create database {name} template {template}")
        # Grants on a database are not cloned with it.
        await database.execute(f"grant create, connect, temporary on database {name} to postgres")


async def install_doorkey(server: ScratchServer, name: str) -> None:
    """doorkey in one of the databases, connected: its triggers ring."""
    await migrate(CHECKOUT, server.url("postgres", name))
    await run_sql(
        server.url(database=name),
        "update doorkey.settings set webhook_url = %s, webhook_secret = 'whsec_' || %s, max_keys_per_hour = null",
        (SILENT_URL, "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
    )
