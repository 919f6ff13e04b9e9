"""Carries out what the injector decided, around everything that commits.

A lost answer is a closed connection without a byte, which no ASGI message can say: `infra.local.serving` puts the means
into the scope.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.local.faults.injector import Faults, Turn
from infra.local.serving import HANG_UP

# A comment and the first token: so every stream has a middle.
PASSED_CHUNKS = 2
HTML_STATUS = 502
RATE_LIMITED_STATUS = 429
PAGE = """<!DOCTYPE html>
<html>
<head><title>502 Bad Gateway</title></head>
<body><center><h1>502 Bad Gateway</h1></center><hr><center>cloudflare</center></body>
</html>
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manner:
    """How the part that is stood in for words its refusals.

    Attributes:
        refusal: the JSON body for a status.
        cut_stream: the last event of a stream that breaks, given the event before it.
    """

    refusal: Callable[[int], Mapping[str, Any]]
    cut_stream: Callable[[bytes], bytes] = lambda _: b""


class FaultMiddleware:
    """One request after the other meets what is ordered."""

    def __init__(self, app: ASGIApp, faults: Faults[Any], manner: Manner) -> None:
        self._app = app
        self._faults = faults
        self._manner = manner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        path = scope["path"].removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else ""
        turn = self._faults.turn(scope["method"], path) if scope["type"] == "http" else None
        if turn is None:
            await self._app(scope, receive, send)
            return
        if turn.latency_seconds:
            receive = await arrived(receive)
            await asyncio.sleep(turn.latency_seconds)
        if turn.instead is not None:
            _log(turn.instead, scope)
            await self._answer(turn, turn.instead, scope, receive, send)
        elif turn.after is not None:
            await self._app(scope, receive, _swallow)
            _log(turn.after, scope)
            if turn.is_stalled:
                await asyncio.sleep(turn.plan.stall_seconds)
            await self._answer(turn, turn.after, scope, receive, send)
        else:
            await self._app(scope, receive, self._changed(turn, scope, send))

    async def _answer(self, turn: Turn, fault: str, scope: Scope, receive: Receive, send: Send) -> None:
        if fault in ("lose_answers", "lose_requests", "is_away"):
            await _hang_up(scope, receive)
        else:
            await self._response(turn, fault)(scope, receive, send)

    def _response(self, turn: Turn, fault: str) -> Response:
        plan = turn.plan
        seconds = plan.retry_after_seconds
        retry_after = {} if seconds is None else {"Retry-After": str(seconds)}
        if fault == "html_errors":
            return HTMLResponse(PAGE, HTML_STATUS, headers=retry_after)
        if fault == "empty_answers":
            return JSONResponse({})
        if fault == "refuse_status" and plan.refuse_status is not None:
            return JSONResponse(self._manner.refusal(plan.refuse_status), plan.refuse_status)
        status = plan.error_status if fault == "errors" else RATE_LIMITED_STATUS
        return JSONResponse(self._manner.refusal(status), status, headers=retry_after)

    def _changed(self, turn: Turn, scope: Scope, send: Send) -> Send:
        """Sends the answer on: late, or only the first half of a stream, or as it is."""
        passed = 0
        is_cut = False

        async def change(message: Message) -> None:
            nonlocal passed, is_cut
            if message["type"] == "http.response.start":
                if turn.is_stalled:
                    _log("stall", scope)
                    await asyncio.sleep(turn.plan.stall_seconds)
                is_cut = turn.is_cut and _is_stream(message) and self._faults.take("cut_streams")
                if is_cut:
                    _log("cut_streams", scope)
            elif is_cut:
                passed += 1
                if passed > PASSED_CHUNKS:
                    return
                if passed == PASSED_CHUNKS:
                    await send({**message, "more_body": True})
                    message = {**message, "body": self._manner.cut_stream(message["body"]), "more_body": False}
            await send(message)

        return change


async def arrived(receive: Receive) -> Receive:
    """Takes the whole request in, so that its work is done even where the caller has stopped waiting by then."""
    messages: list[Message] = []
    while not messages or messages[-1].get("more_body", False):
        messages.append(await receive())

    async def replay() -> Message:
        return messages.pop(0) if messages else await receive()

    return replay


async def _swallow(_message: Message) -> None:
    """Nobody hears it."""


async def _hang_up(scope: Scope, receive: Receive) -> None:
    """Closes the connection, and waits until the server has noticed: else it would answer 500 for us."""
    hang_up = scope.get("extensions", {}).get(HANG_UP)
    if hang_up is None:
        raise RuntimeError("Only a part that is served by infra.local.serving can lose an answer.")
    hang_up()
    while (await receive())["type"] != "http.disconnect":
        pass


def _is_stream(start: Message) -> bool:
    headers = dict(start["headers"])
    return bool(headers.get(b"content-type", b"").startswith(b"text/event-stream"))


def _log(fault: str, scope: Scope) -> None:
    logger.info("fault.injected fault=%s method=%s path=%s", fault, scope["method"], scope["path"])
