"""Pairs of measurements, and what they come to.

The surprising thing: a ratio is the median of the pairs' ratios and not the ratio of the medians. The two of a pair
follow each other at once, so the machine was in the same mood for both; between pairs it may change.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

Measure = Callable[[], Awaitable[float]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Goal:
    """What the ratio of ours to the floor must keep to.

    Attributes:
        bound: the ratio that is just good enough.
        is_most: whether less is better.
        text: the goal as people say it, where it is no ratio.
    """

    bound: float
    is_most: bool = True
    text: str = ""

    def __str__(self) -> str:
        return self.text or f"{'<=' if self.is_most else '>='} {self.bound:g} x"

    def holds(self, ratio: float) -> bool:
        """Whether a ratio is good enough."""
        return ratio <= self.bound if self.is_most else ratio >= self.bound


@dataclass(frozen=True)
class Check:
    """What must be true besides the ratio.

    Attributes:
        name: what was looked at.
        found: what was seen.
        wanted: what it must be, for people.
        holds: whether it is.
    """

    name: str
    found: str
    wanted: str
    holds: bool


@dataclass(frozen=True)
class Measured:
    """What one row came to.

    Attributes:
        ours: one number for each pair, in the row's unit.
        floor: likewise; the two of a pair have the same place.
        checks: what must be true besides.
        notes: what else is worth knowing.
    """

    ours: list[float]
    floor: list[float]
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Ours by floor, for each pair."""
        return [ours / floor for ours, floor in zip(self.ours, self.floor, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of the pairs' ratios: half of them lie between."""
        if len(self.ratios) == 1:
            return self.ratios[0], self.ratios[0]
        lower, _, upper = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return lower, upper


@dataclass(frozen=True)
class Effort:
    """How much is to be measured, and who is told how far it is.

    Attributes:
        is_quick: tiny numbers, which only show that everything runs.
        progress: told how many steps of how many are done.
    """

    is_quick: bool
    progress: Progress = lambda _done, _total: None

    def size(self, full: int, quick: int) -> int:
        """How many of something."""
        return quick if self.is_quick else full

    async def pairs(self, count: int, ours: Measure, floor: Measure, warm_ups: int = 1) -> Measured:
        """Measures so many pairs. Who is first changes from pair to pair: what the first leaves behind meets both."""
        for _ in range(warm_ups):
            await ours()
            await floor()
        found: dict[Measure, list[float]] = {ours: [], floor: []}
        for number in range(count):
            for measure in (ours, floor) if number % 2 == 0 else (floor, ours):
                found[measure].append(await measure())
            self.progress(number + 1, count)
        return Measured(found[ours], found[floor])
