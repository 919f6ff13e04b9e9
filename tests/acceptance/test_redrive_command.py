"""`doorkey redrive` as an operator runs it, against the running stack."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid

import httpx
import pytest

from infra.local.stack import CHECKOUT, Stack
from tests.support.scenes import Scene


async def redrive(stack: Stack, *words: str, **settings: str) -> tuple[int, str]:
    """The command's exit code and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "infra.cli.main",
        "redrive",
        *words,
        cwd=CHECKOUT,
        env={"PATH": os.environ["PATH"], "COLUMNS": "200", **stack.functions_environment, **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    return process.returncode or 0, printed.decode()


@pytest.fixture
async def dead(stack: Stack, http: httpx.AsyncClient) -> Scene:
    """Somebody whose provisioning was given up."""
    scene = Scene(stack, http, uuid.uuid4())
    await scene.sql("insert into auth.users (id, email) values (%s, %s)", scene.user_id, f"{scene.user_id}@example.com")
    await scene.sql(
        "update doorkey.provisioning set state = 'dead', last_error = 'openrouter_refused' where user_id = %s",
        scene.user_id,
    )
    return scene


@pytest.mark.parametrize("which", ["user", "error", "all"])
async def test_a_dead_row_is_due_again_and_the_command_says_how_many(dead: Scene, which: str) -> None:
    words = {"user": ["--user", str(dead.user_id)], "error": ["--error", "openrouter_refused"], "all": ["--all"]}[which]
    code, printed = await redrive(dead.stack, *words)
    assert code == 0
    assert "due again; the next sweep works on" in printed
    row = await dead.row()
    assert (row["state"], row["last_error"], row["failures"]) == ("due", None, 0)


async def test_nobody_to_redrive_is_said(dead: Scene) -> None:
    code, printed = await redrive(dead.stack, "--error", "no_such_error")
    assert code == 0
    assert "Nobody to redrive" in printed
    assert (await dead.row())["state"] == "dead"


async def test_it_must_be_said_whom(stack: Stack) -> None:
    for words in ([], ["--all", "--error", "x"]):
        code, printed = await redrive(stack, *words)
        assert code == 2
        assert "Say whom" in printed


async def test_a_wrong_key_is_a_sentence_and_no_traceback(stack: Stack) -> None:
    code, printed = await redrive(stack, "--all", SUPABASE_SECRET_KEY="sb_secret_" + "0" * 32)
    assert code == 1
    assert "service_key_rejected" in printed
    assert "Traceback" not in printed
    assert "sb_secret_" not in printed
