"""UTC days, weeks and months, which bound usage and limits, and the two ways answers write time.

Every window is a run of whole UTC days, a week Monday to Sunday (openrouter/facts.md 1.3, 1.4); so
usage kept per day answers for all of them.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

DAYS_PER_WEEK = 7
MONTHS_PER_YEAR = 12


@dataclass(frozen=True)
class Windows:
    """The first days (YYYY-MM-DD) of the windows that a moment lies in."""

    day: str
    week: str
    month: str

    @classmethod
    def at(cls, now: datetime) -> "Windows":
        """The windows around `now`."""
        today = now.astimezone(UTC).date()
        return cls(
            day=today.isoformat(),
            week=(today - timedelta(days=today.weekday())).isoformat(),
            month=today.replace(day=1).isoformat(),
        )


def resets_at(limit_reset: str | None, now: datetime) -> str | None:
    """When the current window of a limit ends, or None for a lifetime limit."""
    today = now.astimezone(UTC).date()
    if limit_reset == "daily":
        end = today + timedelta(days=1)
    elif limit_reset == "weekly":
        end = today + timedelta(days=DAYS_PER_WEEK - today.weekday())
    elif limit_reset == "monthly":
        after_december = today.month == MONTHS_PER_YEAR
        end = today.replace(
            year=today.year + after_december,
            month=1 if after_december else today.month + 1,
            day=1,
        )
    else:
        return None
    return iso_millis(datetime.combine(end, time.min, UTC))


def iso_micros(moment: datetime) -> str:
    """`2026-11-20T09:30:00.123456+00:00`: how created_at and updated_at are written.

    Real answers show both this form and the other one (openrouter/facts.md 1.4), so here both
    appear too, and a client must read both.
    """
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def iso_millis(moment: datetime) -> str:
    """`2026-11-20T09:30:00.123Z`: how the other moments are written. It sorts as text."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
