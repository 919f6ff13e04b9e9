"""What one simulator is told at its start.

The clock is part of it, so that a test can stand on a Sunday night and watch a week begin.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

MAX_LATENCY_MS = 60_000


def utc_now() -> datetime:
    """The present moment, aware and in UTC."""
    return datetime.now(UTC)


def at_once(_model: str) -> timedelta:
    """Usage shows as soon as a call is answered."""
    return timedelta(0)


@dataclass(frozen=True)
class Config:
    """One simulator's settings; the management key never shows when it is printed.

    `state_file` None keeps everything in memory. `credits_usd` is what the account has bought:
    spent, every inference answers 402 (openrouter/facts.md 2.3). `usage_delay` says of a model how long after
    a call a key shows what it cost, and counts it against its limit.
    """

    management_key: str = field(repr=False)
    state_file: Path | None = None
    latency_ms: int = 0
    credits_usd: Decimal = Decimal(10_000)
    clock: Callable[[], datetime] = utc_now
    usage_delay: Callable[[str], timedelta] = at_once

    def __post_init__(self) -> None:
        """Raises ValueError for a setting that no simulator could run with."""
        if not self.management_key:
            raise ValueError("The management key must not be empty.")
        if not 0 <= self.latency_ms <= MAX_LATENCY_MS:
            raise ValueError(f"The latency must be 0 to {MAX_LATENCY_MS} milliseconds.")
