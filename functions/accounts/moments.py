"""Times as callers give them and as the database writes them."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time
from typing import Annotated

from pydantic import BeforeValidator

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def read_moment(value: object) -> datetime:
    """A time with its zone, ISO 8601; a day alone is its beginning in UTC.

    Raises:
        ValueError: neither.
    """
    if isinstance(value, datetime):
        moment = value
    elif isinstance(value, str):
        day = _DAY.fullmatch(value)
        moment = datetime.combine(date.fromisoformat(value), time(), UTC) if day else datetime.fromisoformat(value)
    else:
        raise ValueError("no time")  # noqa: TRY004  what pydantic takes for a wrong value
    if moment.tzinfo is None:
        raise ValueError("a time without its zone")
    # Near the ends of the calendar another zone has no date for it.
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("beyond the calendar") from None


Moment = Annotated[datetime, BeforeValidator(read_moment)]
