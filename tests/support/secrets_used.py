"""What must never stand in a log: every secret and e-mail address that the tests have used.

Whoever makes one remembers it here; when a shared stack stops, every log of it is searched for it.
"""

from __future__ import annotations

import json
import re

# Shorter ones would be found by chance.
MIN_CHARACTERS = 6

PATTERNS = {
    "a JWT": re.compile(rb"eyJ[A-Za-z0-9_-]{5,}\.eyJ[A-Za-z0-9_-]{5,}"),
    "an OpenRouter key": re.compile(rb"sk-or-v1-[0-9a-f]{64}"),
    "a Supabase secret key": re.compile(rb"sb_secret_[A-Za-z0-9_-]{3,}"),
    "a webhook secret": re.compile(rb"whsec_[A-Za-z0-9+/]{8,}"),
    "an e-mail address": re.compile(rb"[A-Za-z0-9._%+-]+(?:@|%40)[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"),
    "a password in an address": re.compile(rb"://[^/\s:@]+:[^/\s@]+@"),
    "a private key": re.compile(rb"BEGIN [A-Z ]*PRIVATE KEY"),
    "a password's hash": re.compile(rb"\$2[aby]\$[0-9]{2}\$"),
}

_remembered: dict[str, str] = {}


def remember(what: str, *values: str | None) -> None:
    """Notes values that no log may show; `what` says what they are, and is all that a failure repeats."""
    for value in values:
        if value:
            if len(value) < MIN_CHARACTERS:
                raise ValueError(f"{what} is too short to be searched for")
            _remembered[value] = what


def remembered() -> int:
    """How many values there are."""
    return len(_remembered)


def leaks(log: bytes) -> set[str]:
    """What a log shows that it must not: kinds, never values."""
    found = {kind for kind, pattern in PATTERNS.items() if pattern.search(log)}
    for value, what in _remembered.items():
        # As it is, and as JSON writes it.
        if value.encode() in log or json.dumps(value)[1:-1].encode() in log:
            found.add(what)
    return found
