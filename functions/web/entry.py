"""How Lambda enters: one event loop per sandbox, and everything built once, on the first call.

An httpx client must not outlive its loop, and a sandbox serves many calls: so there is exactly one loop, and importing
a handler costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from functions.web.events import Event

Handle = Callable[[Event], Awaitable[dict[str, Any]]]


class LambdaEntry:
    """Callable as Lambda calls: ``handler(event, context)``.

    Args:
        build: makes the coroutine function that does the work; called once.
    """

    def __init__(self, build: Callable[[], Handle]) -> None:
        self._build = build
        self._handle: Handle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, event: Event, context: object = None) -> dict[str, Any]:  # noqa: ARG002  Lambda passes it
        """Handles one event to its end."""
        if self._loop is None or self._handle is None:
            self._loop = asyncio.new_event_loop()
            self._handle = self._build()
        return self._loop.run_until_complete(_finish(self._handle, event))


async def _finish(handle: Handle, event: Event) -> dict[str, Any]:
    return await handle(event)
