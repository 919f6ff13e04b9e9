"""Decides which request meets which fault, and counts.

Each request that the plan is about takes the same number of draws, whatever is ordered: so raising one share changes
nothing about the others.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from infra.local.faults.plan import FaultPlan

Plan = TypeVar("Plan", bound=FaultPlan)

# In the order of their draws. A new one goes to the end, or old seeds mean something else.
DRAWN = (
    "lose_requests", "rate_limited", "errors", "html_errors", "stall", "lose_answers", "empty_answers", "cut_streams",
)  # fmt: skip
BEFORE_WORK = ("lose_requests", "rate_limited", "errors", "html_errors")
AFTER_WORK = ("lose_answers", "errors", "html_errors", "empty_answers")
MOVED_BY_ERRORS_AFTER_WORK = ("errors", "html_errors")


@dataclass(frozen=True)
class Turn:
    """What one request meets.

    Attributes:
        plan: as it was when the request came.
        latency_seconds: to wait before anything else.
        instead: the fault that takes the place of the work; None: the work is done.
        after: the fault that takes the place of the answer.
        is_stalled: whether the answer waits.
        is_cut: whether the answer ends in its middle, if it is a stream.
    """

    plan: FaultPlan
    latency_seconds: float
    instead: str | None = None
    after: str | None = None
    is_stalled: bool = False
    is_cut: bool = False


class TokenBucket:
    """So many a second, with room for the requests of one second at once."""

    def __init__(self, per_second: float, now: float) -> None:
        self._per_second = per_second
        self._room = max(1.0, per_second)
        self._tokens = self._room
        self._at = now

    def take(self, now: float) -> bool:
        """Takes a token, if there is one."""
        self._tokens = min(self._room, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Faults(Generic[Plan]):
    """The plan of one part, and what came of it. One event loop only."""

    def __init__(self, plan_type: type[Plan], clock: Callable[[], float] = time.monotonic) -> None:
        self.plan_type = plan_type
        self._clock = clock
        self.order(plan_type())

    def order(self, plan: Plan) -> None:
        """Replaces the whole plan; draws and counts begin anew."""
        self.plan = plan
        self.counts: Counter[str] = Counter()
        self.requests = 0
        self._draws = random.Random(plan.seed)  # noqa: S311 - no secret: it shall be repeatable
        rate = plan.requests_per_second
        self._bucket = None if rate is None else TokenBucket(rate, self._clock())

    def report(self) -> dict[str, Any]:
        """The plan, how many requests it was about, and how often each fault was injected."""
        shown = [name for name in self.plan.names() if self.plan.has(name) or self.counts[name]]
        return {
            "plan": self.plan.model_dump(mode="json"),
            "requests": self.requests,
            "counts": {name: self.counts[name] for name in shown},
        }

    def take(self, name: str) -> bool:
        """Counts an injected fault; False: the plan has had all that it may, so it must not be."""
        if self.plan.at_most is not None and self._taken >= self.plan.at_most:
            return False
        self.counts[name] += 1
        return True

    def turn(self, method: str, path: str) -> Turn | None:
        """What this request meets; None: the plan is not about it."""
        plan = self.plan
        if plan.only and not any(_is_about(route, method, path) for route in plan.only):
            return None
        self.requests += 1
        drawn = {name: self._draws.random() for name in DRAWN}
        latency_ms = plan.latency_ms + plan.latency_jitter_ms * self._draws.random()
        if latency_ms:
            self.counts["latency_ms"] += 1

        def hits(name: str) -> bool:
            return drawn[name] < getattr(plan, name, 0.0) and self.take(name)

        moved = MOVED_BY_ERRORS_AFTER_WORK
        before = [name for name in BEFORE_WORK if not (plan.errors_after_work and name in moved)]
        after = [name for name in AFTER_WORK if plan.errors_after_work or name not in moved]
        instead = self._for_everybody() or next((name for name in before if hits(name)), None)
        if instead is not None:
            return Turn(plan, latency_ms / 1_000, instead=instead)
        return Turn(
            plan,
            latency_ms / 1_000,
            after=next((name for name in after if hits(name)), None),
            is_stalled=hits("stall"),
            is_cut=drawn["cut_streams"] < getattr(plan, "cut_streams", 0.0),
        )

    @property
    def _taken(self) -> int:
        return self.counts.total() - self.counts["latency_ms"]

    def _for_everybody(self) -> str | None:
        """The faults that no chance decides."""
        if self.plan.is_away and self.take("is_away"):
            return "is_away"
        if self.plan.refuse_status is not None and self.take("refuse_status"):
            return "refuse_status"
        if self._bucket is not None and not self._bucket.take(self._clock()) and self.take("requests_per_second"):
            return "requests_per_second"
        return None


def _is_about(route: str, method: str, path: str) -> bool:
    """Whether a request begins as the route says; ``POST /keys`` is not about ``POST /keystones``."""
    wanted_method, _, wanted = route.partition(" ")
    wanted = wanted.rstrip("/")
    return method == wanted_method and (path == wanted or path.startswith(f"{wanted}/"))
