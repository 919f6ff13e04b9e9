"""The whole SQL vocabulary of the report on signups.

The surprising thing: it reads no users. It counts the rows that signups leave with doorkey, so whom the trigger missed
counts from when the sweep found them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import date
from typing import Any

from functions.clients.supabase import Rpc, Supabase

REPORT = Rpc("report_signups", ("from_day", "to_day"), "service_role")


@dataclass(frozen=True)
class SignupDay:
    """What became of the signups of one UTC day, by now.

    Attributes:
        day: which one.
        signups: how many; each is in one of the counts below.
        eager, lazy, by_sweep, by_unknown: have had a key; asked for by the hint, by their own request, by the sweep, or
            by a caller who did not say.
        waiting: for their confirmation, or to be provisioned by hand.
        under_way: a key is wanted and not there yet.
        dead: given up.
        gone: left before there was one.
        median_seconds, p95_seconds: from when a key was wanted until it was there; None: nobody has one.
    """

    day: date
    signups: int = 0
    eager: int = 0
    lazy: int = 0
    by_sweep: int = 0
    by_unknown: int = 0
    waiting: int = 0
    under_way: int = 0
    dead: int = 0
    gone: int = 0
    median_seconds: float | None = None
    p95_seconds: float | None = None

    @property
    def provisioned(self) -> int:
        """How many have had a key."""
        return self.eager + self.lazy + self.by_sweep + self.by_unknown

    @property
    def success_rate(self) -> float | None:
        """The share of those for whom a key is wanted who have had one; None: it was wanted for nobody."""
        wanted = self.provisioned + self.under_way + self.dead
        return self.provisioned / wanted if wanted else None


async def report_signups(database: Supabase, *, from_day: date, to_day: date) -> list[SignupDay]:
    """The days from the first to the last, both included; 366 at most."""
    rows: list[dict[str, Any]] = await database.call(
        REPORT, {"from_day": from_day.isoformat(), "to_day": to_day.isoformat()}
    )
    names = [field.name for field in fields(SignupDay)]
    return [SignupDay(**{name: row[name] for name in names} | {"day": date.fromisoformat(row["day"])}) for row in rows]
