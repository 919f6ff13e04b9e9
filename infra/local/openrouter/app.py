"""The simulator, put together.

Two doors: everything under /api/v1 is OpenRouter, everything under /simulator is about the
simulator itself, and neither latency nor a fault ever touches the second one.
"""

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.local.faults import (
    OPENROUTER,
    FaultMiddleware,
    Faults,
    Manner,
    SimulatorFaultPlan,
    control_routes,
)
from infra.local.openrouter.access import Gate
from infra.local.openrouter.answers import (
    Refusal,
    answer_fault,
    answer_refusal,
    answer_routing_error,
    refusal_body,
)
from infra.local.openrouter.chat import ChatApi, broken_stream
from infra.local.openrouter.config import Config
from infra.local.openrouter.keys import KeyStore
from infra.local.openrouter.latency import Latency, LatencyMiddleware
from infra.local.openrouter.management import ManagementApi
from infra.local.openrouter.reports import ReportsApi
from infra.local.openrouter.state import open_state
from infra.local.openrouter.usage import UsageStore

BASE_PATH = "/api/v1"

logger = logging.getLogger(__name__)


def create_app(config: Config) -> Starlette:
    """One simulator. Raises state.StateError when its file cannot be used.

    Faults stand around the API alone, inside the latency and outside everything that commits. They
    can answer instead of the API, or let it do its work and then lose, change or cut off the answer.
    """
    connection = open_state(config.state_file)
    keys = KeyStore(connection, config.clock)
    usage = UsageStore(connection, config.clock, config.usage_delay)
    gate = Gate(config.management_key, keys, config.clock)
    latency = Latency(config.latency_ms)
    faults = Faults(SimulatorFaultPlan)
    api = _answering_app(
        [
            *ManagementApi(gate, keys, usage, config.clock, faults).routes(),
            *ChatApi(gate, usage, config.clock, config.credits_usd).routes(),
            *ReportsApi(gate, usage, config.clock, config.credits_usd, BASE_PATH).routes(),
        ]
    )

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok", "keys": keys.count()})

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        connection.close()

    return _answering_app(
        [
            Mount(
                BASE_PATH,
                app=api,
                middleware=[
                    Middleware(LatencyMiddleware, latency=latency),
                    Middleware(FaultMiddleware, faults=faults, manner=Manner(refusal_body, broken_stream)),
                ],
            ),
            Route("/simulator/health", health),
            Route("/simulator/latency", latency.answer, methods=["GET", "PUT"]),
            *control_routes(OPENROUTER.path, OPENROUTER.header, faults),
        ],
        middleware=[Middleware(RequestLog)],
        lifespan=lifespan,
    )


def _answering_app(routes: Sequence[BaseRoute], **options: Any) -> Starlette:
    """An application whose refusals are answers already: what lies around it sees no exceptions."""
    app = Starlette(
        routes=routes,
        exception_handlers={
            Refusal: answer_refusal,
            HTTPException: answer_routing_error,
            Exception: answer_fault,
        },
        **options,
    )
    app.router.redirect_slashes = False
    return app


class RequestLog:
    """One log line per request. A path holds hashes at most, and the query is left out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 0  # stays 0 when the answer was lost on purpose

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            logger.info(
                "request.answered method=%s path=%s status=%d ms=%d",
                scope["method"],
                scope["path"],
                status,
                (time.monotonic() - started) * 1_000,
            )
