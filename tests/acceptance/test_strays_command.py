"""`doorkey strays` as an operator runs it, against the running stack."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import uvicorn

from functions.provisioning.names import KeyName
from infra.local.openrouter.app import BASE_PATH, create_app
from infra.local.openrouter.config import Config
from infra.local.serving import listen
from infra.local.stack import CHECKOUT, PROJECT, Stack
from tests.support.scenes import Scene


async def strays(stack: Stack, *words: str, **settings: str) -> tuple[int, str]:
    """The command's exit code and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "infra.cli.main",
        "strays",
        *words,
        cwd=CHECKOUT,
        env={"PATH": os.environ["PATH"], "COLUMNS": "200", **stack.functions_environment, **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    return process.returncode or 0, printed.decode()


@pytest.fixture
async def an_hour_ago(stack: Stack) -> AsyncIterator[str]:
    """The address of a simulator in whose eyes every key is made an hour ago."""
    config = Config(stack.secrets.management_key, clock=lambda: datetime.now(UTC) - timedelta(hours=1))
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(config), log_config=None, log_level="warning"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    yield f"http://127.0.0.1:{listener.getsockname()[1]}{BASE_PATH}"
    server.should_exit = True
    await serving


async def test_strays_are_shown_and_deleted_only_when_asked_to(
    stack: Stack, http: httpx.AsyncClient, an_hour_ago: str
) -> None:
    scene = Scene(stack, http, uuid.uuid4())
    await scene.sql("insert into auth.users (id, email) values (%s, %s)", scene.user_id, f"{scene.user_id}@example.com")
    await scene.sql("update doorkey.provisioning set attempt = 7 where user_id = %s", scene.user_id)
    name = str(KeyName(PROJECT, scene.user_id, 7))
    openrouter = httpx.AsyncClient(headers={"Authorization": f"Bearer {stack.secrets.management_key}"})
    async with openrouter:

        async def names() -> list[str]:
            return [key["name"] for key in (await openrouter.get(f"{an_hour_ago}/keys")).json()["data"]]

        for made in (name, "made by hand"):
            await openrouter.post(f"{an_hour_ago}/keys", json={"name": made, "limit": 0})
        code, printed = await strays(stack, OPENROUTER_BASE_URL=an_hour_ago)
        assert code == 0, printed
        assert name in printed
        assert "1 stray. Nothing was deleted" in printed
        assert name in await names()
        code, printed = await strays(stack, "--delete", OPENROUTER_BASE_URL=an_hour_ago)
        assert (code, "1 stray is deleted." in printed) == (0, True), printed
        assert await names() == ["made by hand"]
        code, printed = await strays(stack, OPENROUTER_BASE_URL=an_hour_ago)
        assert (code, "No strays" in printed) == (0, True), printed


async def test_what_cannot_be_asked_is_said_in_a_sentence(stack: Stack) -> None:
    code, printed = await strays(stack, OPENROUTER_MANAGEMENT_KEY="sk-or-v1-wrong")
    assert code == 1
    assert "management_key_rejected" in printed
    assert "Traceback" not in printed
