"""The rules of the usage sync that need neither a network nor a database: which page comes next, and when not to read.

The surprising thing: pages overlap by one key. The list is newest first and shifts while it is read: keys that are made
push others on, and they come twice; keys that are deleted pull others back, and they would be passed over. The last
key of a page is the anchor: if it doesn't come again on the next page, the page before is read once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

# facts.md 1.5: fixed by OpenRouter.
PAGE_KEYS = 100
ROUND_SECONDS = 3600
# Around midnight nobody knows whose day a figure "of today" is of: clocks differ.
MIDNIGHT_MARGIN = timedelta(minutes=2)


@dataclass(frozen=True)
class Cursor:
    """Where a round has come.

    Attributes:
        offset: where the next page begins.
        anchor: the key that must come again there; None: any may.
        is_second_look: this page was read before; it is not gone back a second time in a row, so that a round ends.
    """

    offset: int = 0
    anchor: str | None = None
    is_second_look: bool = False


def next_cursor(cursor: Cursor, page: Sequence[str], recorded: int | None = None) -> Cursor | None:
    """Where to go on after this page; None: it was the last.

    Args:
        cursor: where the page was read.
        page: its keys, newest first.
        recorded: how many of them were recorded, the first ones; two at least. None: all.
    """
    if cursor.anchor is not None and cursor.anchor not in page and not cursor.is_second_look:
        return Cursor(max(0, cursor.offset - PAGE_KEYS + 1), None, is_second_look=True)
    recorded = len(page) if recorded is None else recorded
    if recorded == len(page) < PAGE_KEYS:
        return None
    # After a second look the anchor may be missing because it was deleted itself.
    return Cursor(cursor.offset + recorded - 1, page[recorded - 1], cursor.is_second_look and cursor.anchor is None)


def is_near_midnight(now: datetime) -> bool:
    """Whether the UTC day is about to change, or just has.

    Args:
        now: in UTC.
    """
    return (now + MIDNIGHT_MARGIN).date() != (now - MIDNIGHT_MARGIN).date()
