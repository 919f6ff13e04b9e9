"""`doorkey redrive` as an operator runs it, against the running stack."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import uuid

import httpx
import pytest

from infra.cli.redrive import MAX_DUE_COUNTED, sentence_of
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
    return await given_up(Scene(stack, http, uuid.uuid4()))


async def given_up(scene: Scene) -> Scene:
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


async def test_while_the_queue_is_held_it_says_how_many_are_due_and_why_they_wait(dead: Scene) -> None:
    await dead.sql("update doorkey.provisioning set state = 'due' where user_id = %s", dead.user_id)
    await dead.make_due_now()
    await dead.sql("update doorkey.settings set held_reason = 'openrouter_account_empty', held_until = now()")
    try:
        code, printed = await redrive(dead.stack, "--error", "no_such_error")
        another = await given_up(Scene(dead.stack, dead.http, uuid.uuid4()))
        _, of_the_dead = await redrive(dead.stack, "--user", str(another.user_id))
    finally:
        await dead.release_queue()
    assert code == 0
    assert re.search(r"[1-9]\d* users? (is|are) due already; they wait until the queue is no longer held\.", printed)
    for said in (printed, of_the_dead):
        assert (
            "The queue is held, and nobody gets a key: openrouter_account_empty. One probe a minute finds out" in said
        )
        assert "-> Buy credits" in said
        assert "the next sweep works on" not in said
    assert "1 user is due again; they wait until" in of_the_dead


def test_who_is_due_already_is_counted_as_far_as_was_looked() -> None:
    assert sentence_of(0, 0, is_held=True) == "Nobody to redrive: no row that was given up or waits fits."
    assert sentence_of(0, 1, is_held=False).endswith("fits. 1 user is due already; the next sweep works on them.")
    assert "At least 1,000 users are due already" in sentence_of(0, MAX_DUE_COUNTED, is_held=True)
    assert sentence_of(2, 2, is_held=False) == "2 users are due again; the next sweep works on them."


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
