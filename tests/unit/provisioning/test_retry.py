"""How long to wait and when to stop."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from functions.provisioning.retry import (
    BASE_SECONDS,
    CAP_SECONDS,
    MAX_FAILURES,
    MAX_RETRY_AFTER_SECONDS,
    next_try,
)


class Highest(random.Random):
    """Chance at its worst."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002
        return b


class Lowest(random.Random):
    """Chance at its best."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002
        return a


def test_the_ceiling_doubles_after_some_short_pauses() -> None:
    ceilings = [next_try(failures, chance=Highest()).delay_seconds for failures in range(MAX_FAILURES - 1)]
    assert ceilings == [2, 2, 2, 2, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048]
    assert max(ceilings) <= CAP_SECONDS


@given(failures=st.integers(0, MAX_FAILURES - 2), seed=st.integers())
def test_the_jitter_stays_within_the_ceiling(failures: int, seed: int) -> None:
    plan = next_try(failures, chance=random.Random(seed))  # noqa: S311
    assert not plan.gives_up
    assert 0 <= plan.delay_seconds <= min(CAP_SECONDS, max(BASE_SECONDS, 2 ** (failures - 3)))


def test_the_jitter_is_full_so_that_those_who_failed_together_do_not_return_together() -> None:
    delays = {next_try(12, chance=random.Random(seed)).delay_seconds for seed in range(200)}  # noqa: S311
    assert min(delays) < 0.2 * 512
    assert max(delays) > 0.8 * 512
    assert len(delays) > 100


@given(failures=st.integers(0, MAX_FAILURES - 2), asked=st.floats(0, 1e12))
def test_what_the_other_side_asks_for_is_the_least_up_to_a_day(failures: int, asked: float) -> None:
    least = round(min(asked, MAX_RETRY_AFTER_SECONDS))
    assert next_try(failures, retry_after_seconds=asked, chance=Lowest()).delay_seconds == least
    assert next_try(failures, retry_after_seconds=asked).delay_seconds >= least
    # What the database takes.
    assert next_try(failures, retry_after_seconds=asked, chance=Highest()).delay_seconds <= 86_400


@given(failures=st.integers(MAX_FAILURES - 1, 10**6), asked=st.none() | st.floats(0, 1e6))
def test_it_gives_up_after_the_sixteenth_failure(failures: int, asked: float | None) -> None:
    plan = next_try(failures, retry_after_seconds=asked)
    assert plan.gives_up
    assert plan.delay_seconds == 0


def test_the_fifteenth_failure_is_not_the_last() -> None:
    assert not next_try(MAX_FAILURES - 2).gives_up
