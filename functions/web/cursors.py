"""Where a page ended, as one opaque word: what the next page is asked for with.

The surprising thing: it says where, and nothing else. It is no secret and no permission, and what is made up by hand
is a place like any other: whose rows are seen is decided elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import json

from functions.kit.errors import CursorInvalid

MAX_CHARACTERS = 4_096

Part = str | int | None


def encode_cursor(kind: str, *parts: Part) -> str:
    """The word for a place in lists of one kind."""
    # As it is, not escaped: a name of three hundred emoji has room.
    text = json.dumps([kind, *parts], separators=(",", ":"), ensure_ascii=False)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, kind: str, *types: type | tuple[type, ...]) -> tuple[Part, ...]:
    """The place that a word names.

    Args:
        cursor: as the caller sent it.
        kind: the kind of list that it must be from.
        types: what its parts must be.

    Raises:
        CursorInvalid: it is none of ours, or of another kind of list.
    """
    if len(cursor) > MAX_CHARACTERS:
        raise CursorInvalid("too long")
    try:
        octets = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        found = json.loads(octets)
    except (ValueError, RecursionError, binascii.Error) as error:
        raise CursorInvalid(type(error).__name__) from None
    if not isinstance(found, list) or len(found) != len(types) + 1 or found[0] != kind:
        raise CursorInvalid(f"not of {kind}")
    parts = found[1:]
    # A bool is an int to Python, and to nobody else.
    if any(isinstance(part, bool) or not isinstance(part, of) for part, of in zip(parts, types, strict=True)):
        raise CursorInvalid(f"not the parts of {kind}")
    if not all(_can_be_stored(part) for part in parts if isinstance(part, str)):
        raise CursorInvalid("no text")
    return tuple(parts)


def _can_be_stored(text: str) -> bool:
    """Whether the database has such text: no half of a pair of surrogates, and no NUL."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
