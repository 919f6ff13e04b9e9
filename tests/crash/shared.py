"""What all processes of a run see at once: counters in shared memory. They outlive whoever counts.

The surprising thing: each process counts in a row of its own, so nothing is lost where two count at once. How often a
user's call was made is one number for all; two processes at work for the same user may see the same one.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter

from tests.crash.calls import CALLS, MOMENTS, OWN_CALLS, USERS_CALLS, Call
from tests.crash.plan import Act, Kind

_NUMBER = struct.Struct("=I")

Key = tuple[str, ...]
KEYS: tuple[Key, ...] = (
    *(("kill", str(call), moment) for call in CALLS for moment in MOMENTS),
    *(("hit", kind.value) for kind in Kind),
    *(("act", act.value) for act in Act),
    *(("carried", str(call)) for call in OWN_CALLS),
    ("out of time",),
    ("calls",),
    ("killed",),
    ("failed",),
)
_COLUMN = {key: column for column, key in enumerate(KEYS)}
_CALL_COLUMN = {call: column for column, call in enumerate(USERS_CALLS)}


class Shared:
    """Made before the first fork.

    Args:
        rows: how many processes count.
        users: how many users there are.
    """

    def __init__(self, rows: int, users: int) -> None:
        self._rows = rows
        self._counters = mmap.mmap(-1, rows * len(KEYS) * _NUMBER.size)
        self._made = mmap.mmap(-1, max(1, users * (len(USERS_CALLS) + 1)))
        self._asked = mmap.mmap(-1, max(1, users))
        self._done = mmap.mmap(-1, max(1, users))
        self._flags = mmap.mmap(-1, 2)

    @property
    def is_quiet(self) -> bool:
        """Whether the disturbances are over."""
        return self._flags[0] == 1

    def be_quiet(self) -> None:
        """Ends the disturbances, for everybody at once."""
        self._flags[0] = 1

    @property
    def is_key_dead(self) -> bool:
        """Whether the gateway rejects the service key."""
        return self._flags[1] == 1

    def kill_key(self, *, is_dead: bool) -> None:
        """Says so, to everybody at once."""
        self._flags[1] = int(is_dead)

    def answered(self, user: int) -> int:
        """How many of what they asked for themselves was answered, the one after the other."""
        return self._asked[user]

    def answer(self, user: int, number: int, *, is_done: bool) -> None:
        """Notes that it was, with yes (`is_done`) or no. Of two at once one may be forgotten: then less is judged."""
        self._asked[user] = max(self._asked[user], number + 1)
        self._done[user] |= is_done << number

    def is_done(self, user: int, number: int) -> bool:
        """Whether somebody was told that it is done."""
        return bool(self._done[user] >> number & 1)

    def count(self, row: int, *key: str) -> None:
        """Adds one."""
        at = (row * len(KEYS) + _COLUMN[key]) * _NUMBER.size
        _NUMBER.pack_into(self._counters, at, _NUMBER.unpack_from(self._counters, at)[0] + 1)

    def totals(self) -> Counter[Key]:
        """The sums over all processes."""
        sums: Counter[Key] = Counter()
        for row in range(self._rows):
            for key, column in _COLUMN.items():
                sums[key] += _NUMBER.unpack_from(self._counters, (row * len(KEYS) + column) * _NUMBER.size)[0]
        return sums

    def kills(self, call: Call, moment: str) -> int:
        """How many processes were killed there."""
        column = _COLUMN[("kill", str(call), moment)]
        return sum(
            _NUMBER.unpack_from(self._counters, (row * len(KEYS) + column) * _NUMBER.size)[0]
            for row in range(self._rows)
        )

    def number(self, user: int, call: Call) -> int:
        """How often this call was made for this user."""
        return self._made[self._at(user, call)]

    def made(self, user: int, call: Call) -> None:
        """Counts it."""
        at = self._at(user, call)
        self._made[at] = min(self._made[at] + 1, 255)

    def _at(self, user: int, call: Call) -> int:
        # A call that nobody foresaw has a place too; the plan has nothing for it.
        return user * (len(USERS_CALLS) + 1) + _CALL_COLUMN.get(call, len(USERS_CALLS))
