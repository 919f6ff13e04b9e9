"""A stack of a test module's own, whose functions can be deployed with other environments, and the commands run on it.

What `connect` and `rotate-sealing-key` change is what everybody else relies on, so it can't be the shared stack.
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from infra.connection.environments import EnvFile
from infra.local.functions import WEBHOOK_PATH
from infra.local.stack import CHECKOUT, Stack, StackOptions, running_stack
from tests.support.databases import Database
from tests.support.people import Person, database_of, token_for, until_state

SEALING_KEYS = "DOORKEY_SEALING_KEYS"
WEBHOOK_SECRETS = "DOORKEY_WEBHOOK_SECRETS"
MADE = (SEALING_KEYS, WEBHOOK_SECRETS)
MAX_POLLS = 500
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Run:
    """How a command ended.

    Attributes:
        code: its exit code.
        out: what it printed on standard output.
        err: and on standard error.
    """

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Everything, without line breaks."""
        return " ".join((self.out + self.err).split())


@dataclass
class Installation:
    """A running stack that is somebody's to change."""

    stack: Stack
    http: httpx.AsyncClient

    @property
    def database(self) -> Database:
        """Its database."""
        return database_of(self.stack)

    @property
    def url(self) -> str:
        """Where the hints go."""
        return self.stack.functions_url + WEBHOOK_PATH

    def given(self, **changes: str | None) -> dict[str, str]:
        """What an operator has before doorkey makes the rest; None takes a variable away."""
        base = {name: value for name, value in self.stack.functions_environment.items() if name not in MADE}
        return {name: value for name, value in {**base, **changes}.items() if value is not None}

    async def deploy(self, environment: Mapping[str, str]) -> None:
        """Starts the functions anew with these variables over the stack's own."""
        part = self.stack.parts["functions"]
        part = replace(part, environment={**part.environment, **environment})
        await self.stack.supervisor.stop("functions")
        await self.stack.supervisor.start(part)

    async def start_command(self, *words: str, environment: Mapping[str, str]) -> asyncio.subprocess.Process:
        """Starts a doorkey command as a process."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "infra.cli.main",
            *words,
            cwd=CHECKOUT,
            env={"PATH": os.environ["PATH"], "COLUMNS": "200", **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *words: str, environment: Mapping[str, str] | None = None) -> Run:
        """Runs a doorkey command to its end."""
        process = await self.start_command(*words, environment=self.given() if environment is None else environment)
        out, err = await process.communicate()
        return Run(process.returncode or 0, out.decode(), err.decode())

    async def reset(self) -> None:
        """As before anybody connected it: no address, no secret, nothing sealed. The functions are as the stack's."""
        await self.database.run("update doorkey.settings set webhook_url = null, webhook_secret = null")
        await self.database.run("delete from doorkey.sealed_secrets")
        await self.database.run("delete from net._http_response")

    async def signing_secret(self) -> str | None:
        """What the database signs with."""
        secret: str | None = await self.database.value("select webhook_secret from doorkey.settings")
        return secret

    async def somebody_ready(self) -> Person:
        """Somebody who signed up and has their key: there is no sweep, so a hint was accepted."""
        user_id = await self.somebody()
        await until_state(self.stack, user_id)
        return Person(user_id, token_for(self.stack, user_id), f"{user_id}@example.com")

    async def somebody(self) -> uuid.UUID:
        """Somebody who just signed up."""
        return await self.database.insert_user()

    async def shown_secret(self, person: Person) -> str:
        """The key that the API shows them."""
        answer = await self.http.get(f"{self.stack.functions_url}/v1/me/key", headers=person.headers)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["secret"])

    async def until_blocked(self) -> None:
        """Waits until somebody waits for a lock."""
        for _ in range(MAX_POLLS):
            if await self.database.value("select count(*) from pg_stat_activity where wait_event_type = 'Lock'"):
                return
            await asyncio.sleep(POLL_SECONDS)
        raise AssertionError("nobody came to wait")


@asynccontextmanager
async def running_installation(log_folder: Path) -> AsyncIterator[Installation]:
    """A stack without a sweep, of one's own."""
    async with (
        running_stack(StackOptions(log_folder=log_folder, sweep_seconds=0, forgets=True)) as stack,
        httpx.AsyncClient(timeout=30.0, trust_env=False) as http,
    ):
        yield Installation(stack, http)


async def kept(path: Path) -> dict[str, str]:
    """The variables in an env file."""
    return await EnvFile(path).read()


def split(environment: Mapping[str, str], name: str) -> list[str]:
    """The parts of a variable that lists several."""
    return [part for part in environment.get(name, "").split(",") if part]
