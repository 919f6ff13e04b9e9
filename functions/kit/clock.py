"""The time, as something that can be passed in: tests move it."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds since 1970, UTC.
Clock = Callable[[], float]

system_clock: Clock = time.time
