"""Waiting for the outside world with a bound, for loops that say what they wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

POLL_SECONDS = 0.02
WAIT_SECONDS = 10.0


async def attempts(what: str) -> AsyncIterator[None]:
    """Yields again and again; whoever is content leaves the loop.

    Raises:
        AssertionError: nobody left it in time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WAIT_SECONDS
    while loop.time() < deadline:
        yield
        await asyncio.sleep(POLL_SECONDS)
    raise AssertionError(f"waited {WAIT_SECONDS} s in vain for {what}")
