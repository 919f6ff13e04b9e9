"""`doorkey ledger verify` as an operator runs it, on the running stack, where other tests may have left differences."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from decimal import Decimal
from typing import Any

import httpx
import pytest

from functions.clients.outside import build_clients
from functions.clients.supabase import DatabaseBusy
from functions.credits import ledger
from functions.kit.settings import Settings
from infra.local.stack import CHECKOUT, Stack
from tests.support.scenes import Between, Scene, instead


async def verify(stack: Stack, *words: str) -> tuple[int, str, str]:
    """The command's exit code, what it printed for programs, and what for people."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "infra.cli.main",
        "ledger",
        "verify",
        *words,
        cwd=CHECKOUT,
        env={"PATH": os.environ["PATH"], "COLUMNS": "200", **stack.functions_environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, noted = await process.communicate()
    return process.returncode or 0, printed.decode(), noted.decode()


@pytest.fixture
async def scene(stack: Stack, http: httpx.AsyncClient) -> Scene:
    """Somebody with an account."""
    scene = Scene(stack, http, uuid.uuid4())
    await scene.sql("insert into auth.users (id, email) values (%s, %s)", scene.user_id, f"{scene.user_id}@example.com")
    await scene.sql("update doorkey.provisioning set state = 'due' where user_id = %s", scene.user_id)
    await scene.provision()
    return scene


def of(scene: Scene, report: dict[str, Any]) -> list[dict[str, Any]]:
    return [found for found in report["differences"] if found["user_id"] == str(scene.user_id)]


async def test_what_differs_is_named_and_is_an_exit_code(scene: Scene) -> None:
    code, printed, noted = await verify(scene.stack, "--json")
    report = json.loads(printed)
    assert of(scene, report) == []
    assert code == (1 if report["different"] else 0)
    assert ("differ" if report["different"] else "Nothing differs") in noted
    assert report["users"] >= 1
    corrupt = "update public.credit_accounts set available_micros = available_micros + %s where user_id = %s"
    await scene.sql(corrupt, 7, scene.user_id)
    code, printed, noted = await verify(scene.stack, "--json")
    different = of(scene, json.loads(printed))
    assert code == 1
    assert [found["what"] for found in different] == ["available"]
    assert (different[0]["stored_micros"], different[0]["computed_micros"]) == (5_000_007, 5_000_000)
    code, printed, _ = await verify(scene.stack)
    assert code == 1
    assert "By the entries" in printed
    assert "from the entries" in printed
    await scene.sql(corrupt, -7, scene.user_id)


async def test_a_fraction_that_differs_is_named_exactly(scene: Scene) -> None:
    """What keys were charged has fractions: the command must not stop over one."""
    corrupt = "update public.openrouter_user_keys set charged_cost_micros = charged_cost_micros + %s where user_id = %s"
    # With the zeros that a sum brings along.
    await scene.sql(corrupt, Decimal("1.2500000000"), scene.user_id)
    code, printed, _ = await verify(scene.stack, "--json")
    (different,) = of(scene, json.loads(printed))
    assert code == 1
    assert (different["what"], different["stored_micros"], different["computed_micros"]) == (
        "cost of the keys",
        "1.25",
        0,
    )
    await scene.sql(corrupt, Decimal("-1.25"), scene.user_id)


async def test_a_user_with_many_transactions_is_verified_over_many_pages(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whoever waits is told whose they are."""
    for _ in range(3):
        await scene.sql(
            "select doorkey.grant_credits(%s, 'purchase', 5, %s, 'Paid', 'test', null, 'r')",
            scene.user_id,
            str(uuid.uuid4()),
        )
    monkeypatch.setattr(ledger, "TRANSACTIONS_PER_PAGE", 1)
    monkeypatch.setattr(ledger, "HOLDS_PER_PAGE", 2)
    clients = build_clients(Settings.from_environment(scene.stack.functions_environment))
    async with clients.http:
        pages = [page async for page in ledger.verify(clients.supabase)]
    assert sum(page.users for page in pages) == pages[0].all_users
    # The welcome, and what was paid.
    assert sum(page.unfinished == scene.user_id for page in pages) == 4
    assert [found for page in pages for found in page.differences if found.user_id == scene.user_id] == []


async def test_a_page_that_takes_too_long_is_asked_for_again_and_shorter(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    async def before(request: httpx.Request) -> httpx.Response | None:
        asked.append(json.loads(request.content).get("user_rows", 0))
        if asked[-1] > 1:
            return httpx.Response(
                500, json={"code": "57014", "message": "canceling statement due to statement timeout"}
            )
        return None

    monkeypatch.setattr(ledger, "USERS_PER_PAGE", 4)
    clients = build_clients(Settings.from_environment(scene.stack.functions_environment), transport=Between(before))
    async with clients.http:
        pages = [page async for page in ledger.verify(clients.supabase)]
    assert asked[:3] == [4, 2, 1]
    assert sum(page.users for page in pages) == pages[0].all_users
    clients = build_clients(
        Settings.from_environment(scene.stack.functions_environment),
        transport=Between(before=instead("verify_ledger", 500, '{"code": "57014", "message": "too long"}')),
    )
    async with clients.http:
        with pytest.raises(DatabaseBusy):
            [page async for page in ledger.verify(clients.supabase)]
