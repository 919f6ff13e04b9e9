"""How a sweep shares out its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from functions.clients.supabase import SupabaseUnreachable
from functions.provisioning import store, sweeping
from functions.provisioning.steps import Provisioner
from functions.provisioning.sweeping import SweepSettings, sweep

BUDGET_SECONDS = 40.0


class Nothing:
    """Stands where nothing is asked for."""

    database = openrouter = project = None


async def test_chores_without_end_leave_half_of_the_budget_to_whoever_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    began: list[float] = []

    class Redriving:
        """Says when it was its turn, and whether there was time."""

        def __init__(self, *_: object) -> None:
            pass

        async def run(self, is_time_left: Callable[[], bool]) -> None:
            assert is_time_left()
            began.append(now)

        def facts(self) -> dict[str, int]:
            return {}

    async def start(*_: object, **__: object) -> store.SweepStart:
        return store.SweepStart(0, 0, 0, 0, 0, None, False)

    async def collect(*_: object, **__: object) -> None:
        raise SupabaseUnreachable("not asked")

    async def chore(_: str, is_time_left: Callable[[], bool]) -> int:
        nonlocal now
        pages = 0
        while is_time_left():
            now += 1
            pages += 1
        return pages

    monkeypatch.setattr(store, "start_sweep", start)
    monkeypatch.setattr(sweeping, "Redrive", Redriving)
    monkeypatch.setattr(sweeping, "collect_strays", collect)
    provisioner = cast(Provisioner, cast(Any, Nothing()))
    limits = SweepSettings(budget_seconds=BUDGET_SECONDS, stray_age_seconds=60)
    await sweep(provisioner, limits, {"renewed": chore, "expired": chore}, {}, request_id="r", clock=lambda: now)
    assert began == [BUDGET_SECONDS / 2]
