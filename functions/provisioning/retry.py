"""How long to wait before the next attempt, and when to stop. Pure: the database keeps the answer."""

from __future__ import annotations

import random
from dataclasses import dataclass

MAX_FAILURES = 16
BASE_SECONDS = 2.0
# The first pauses are equally short: most faults are over at once, and somebody waits for their key. What lasts is seen
# by how many meet it, and holds the whole queue.
SHORT_PAUSES = 5
CAP_SECONDS = 3600.0
MAX_RETRY_AFTER_SECONDS = 86_400


@dataclass(frozen=True)
class NextTry:
    """When to try again; or that enough has been tried."""

    delay_seconds: int
    gives_up: bool


def next_try(
    failures: int, *, retry_after_seconds: float | None = None, chance: random.Random | None = None
) -> NextTry:
    """Exponential backoff with full jitter after some short pauses; what the other side asks for is the least.

    Args:
        failures: attempts that failed before this one.
        retry_after_seconds: what the other side asked for, if anything.
        chance: the source of randomness; tests pass their own.
    """
    if failures + 1 >= MAX_FAILURES:
        return NextTry(delay_seconds=0, gives_up=True)
    ceiling = min(CAP_SECONDS, BASE_SECONDS * 2.0 ** max(0, failures - SHORT_PAUSES + 1))
    delay = (chance or random.SystemRandom()).uniform(0, ceiling)
    asked = min(retry_after_seconds or 0.0, MAX_RETRY_AFTER_SECONDS)
    return NextTry(delay_seconds=round(max(delay, asked)), gives_up=False)
