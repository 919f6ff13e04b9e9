"""Makes every API answer wait, as a network and a busy server would.

The wait comes before the work: a request that is waiting has changed nothing yet. It will, also when
its caller has stopped waiting.
"""

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.local.faults import OPENROUTER, arrived, is_control_allowed
from infra.local.openrouter.answers import Refusal, invalid, read_object
from infra.local.openrouter.config import MAX_LATENCY_MS


class Latency:
    """How long answers wait; one object, shared by the middleware and its control path."""

    def __init__(self, milliseconds: int) -> None:
        self.milliseconds = milliseconds

    async def answer(self, request: Request) -> Response:
        """GET and PUT /simulator/latency: `{"milliseconds": 300}`; PUT as for faults."""
        if request.method == "PUT":
            if not is_control_allowed(request, OPENROUTER.header):
                raise Refusal(403, f"send {OPENROUTER.header} to a loopback address")
            milliseconds = read_object(await request.body()).get("milliseconds")
            if type(milliseconds) is not int or not 0 <= milliseconds <= MAX_LATENCY_MS:
                raise invalid(f"milliseconds must be a whole number from 0 to {MAX_LATENCY_MS}")
            self.milliseconds = milliseconds
        return JSONResponse({"milliseconds": self.milliseconds})


class LatencyMiddleware:
    """Delays whatever lies behind it."""

    def __init__(self, app: ASGIApp, latency: Latency) -> None:
        self._app = app
        self._latency = latency

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http" and self._latency.milliseconds:
            receive = await arrived(receive)
            await asyncio.sleep(self._latency.milliseconds / 1_000)
        await self._app(scope, receive, send)
