"""Yesterday's differences without a known cause, for CloudWatch: looked for once an hour, some pages a sweep.

The surprising thing: where it is stands in the function's memory and nowhere else. It only reads, so two that look are
as good as one, and one that is replaced begins again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from functions.clients.supabase import Supabase
from functions.kit.clock import Clock
from functions.metering.drift import Totals, choose_day, read_pages

PAGES_PER_SWEEP = 4
EVERY_SECONDS = 3600


@dataclass
class _Look:
    """At one day, as far as it has come."""

    day: date
    totals: Totals = field(default_factory=Totals)
    after_key: str | None = None


class DriftWatch:
    """Looks at yesterday again and again.

    Args:
        database: the Data API.
        clock: tells the time.
    """

    def __init__(self, database: Supabase, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._look: _Look | None = None
        self._next_at = -math.inf

    async def go_on(self, is_time_left: Callable[[], bool]) -> Mapping[str, int]:
        """Reads on: `drift_micros`, rounded up, when all keys have been read; nothing before, or when it is not time.

        Raises:
            SupabaseError: the next call goes on behind the last page that was read.
        """
        look = self._present_look()
        if look is None or not is_time_left():
            return {}
        pages = 0
        async with aclosing(read_pages(self._database, look.day, look.after_key)) as reading:
            async for page in reading:
                look.totals.add(page)
                look.after_key = page[-1].key_hash if page else look.after_key
                pages += 1
                if pages == PAGES_PER_SWEEP or not is_time_left():
                    return {}
        self._look = None
        return {"drift_keys": look.totals.keys, "drift_micros": math.ceil(look.totals.unknown_micros)}

    def _present_look(self) -> _Look | None:
        """The one under way, or the next one when it is time; at another day it begins again."""
        now = self._clock()
        yesterday = choose_day(None, datetime.fromtimestamp(now, UTC).date())
        if self._look is None and now < self._next_at:
            return None
        if self._look is None or self._look.day != yesterday:
            self._look = _Look(yesterday)
            self._next_at = now + EVERY_SECONDS
        return self._look
