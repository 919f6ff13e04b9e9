"""A sweep slows down when it is asked to, and comes back to its own pace."""

from __future__ import annotations

import time

import pytest

from functions.provisioning.redriving import MAX_GAP_SECONDS, MIN_GAP_SECONDS, TOLD_SECONDS, Pace
from functions.provisioning.steps import Outcome


async def seconds_for(pace: Pace, turns: int) -> float:
    """How long so many turns take; the first waits for what was before."""
    await pace.turn()
    started = time.monotonic()
    for _ in range(turns):
        await pace.turn()
    return time.monotonic() - started


async def test_nobody_waits_before_openrouter_asks_for_it() -> None:
    pace = Pace()
    pace.follow(Outcome.READY)
    pace.follow(Outcome.DEFERRED)
    assert pace.gap_seconds == 0


async def test_attempts_keep_the_distance_that_was_asked_for() -> None:
    pace = Pace()
    pace.follow(Outcome.LIMITED)
    assert pace.gap_seconds == MIN_GAP_SECONDS
    assert await seconds_for(pace, 5) >= 5 * MIN_GAP_SECONDS * 0.9


def test_those_who_were_told_together_count_once_and_success_brings_the_pace_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace()
    for _ in range(16):
        pace.follow(Outcome.LIMITED)
    assert pace.gap_seconds == MIN_GAP_SECONDS
    for _ in range(100):
        now += TOLD_SECONDS
        pace.follow(Outcome.LIMITED)
    assert pace.gap_seconds == MAX_GAP_SECONDS
    for _ in range(1_000):
        pace.follow(Outcome.READY)
    assert pace.gap_seconds < MIN_GAP_SECONDS
