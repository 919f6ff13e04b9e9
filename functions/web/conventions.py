"""What holds for every route of an ASGI application: aliases, request ids, one log line, and no stray exception.

The surprising thing: this catches what nobody caught. Left alone, an exception would be logged by the server with
its message, and messages quote what they were given.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.kit.errors import DoorkeyError, InternalError
from functions.kit.observability import WorkLine, logger
from functions.web.events import choose_request_id, problem_body
from functions.web.routes import ALIASES

REQUEST_ID_HEADER = "x-request-id"
PROBLEM_TYPE = "application/problem+json"


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(description="Names the kind of problem: urn:doorkey:error:<code>.")
    title: str = Field(description="A sentence for people.")
    status: int
    code: str = Field(description="Stable; what clients branch on.")
    request_id: str = Field(description="Finds the line in the log.")


def problem_response(error: DoorkeyError, request_id: str) -> Response:
    """An error as an RFC 9457 answer."""
    headers = {"cache-control": "no-store", **error.headers}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(
        json.dumps(problem_body(error, request_id)), status_code=error.status, media_type=PROBLEM_TYPE, headers=headers
    )


class Conventions:
    """ASGI middleware. Sets ``request.state.request_id``; reads ``request.state.error`` for the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = choose_request_id(Request(scope).headers.get(REQUEST_ID_HEADER))
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        scope["path"] = ALIASES.get(scope["path"], scope["path"])
        line = WorkLine("request.handled", request_id=request_id, method=scope["method"])
        status: int | None = None

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                headers.append((REQUEST_ID_HEADER.encode(), request_id.encode()))
                if not any(name == b"cache-control" for name, _ in headers):
                    # What a person sees of their own must not stay in a cache between.
                    headers.append((b"cache-control", b"no-store"))
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except Exception as error:  # noqa: BLE001  the last resort, see above
            logger.exception("request.failed", extra={"fields": {"request_id": request_id}})
            state["error"] = InternalError(type(error).__name__)
            if status is None:
                await problem_response(InternalError(), request_id)(scope, receive, send_marked)
        self._write(line, scope, status)

    def _write(self, line: WorkLine, scope: Scope, status: int | None) -> None:
        # The route's template, never the path as called: people put anything into a path.
        route = getattr(scope.get("route"), "path", None)
        line.add(route=route, status=status)
        error = scope["state"].get("error")
        if isinstance(error, DoorkeyError):
            line.add(code=error.code, detail=error.private)
            line.count_rejected_key(error)
        line.write(logging.ERROR if status is None or status >= 500 else logging.INFO)
