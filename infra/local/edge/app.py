"""Puts the edge together: routes, refusals, log lines, and faults on order.

The surprising thing: faults stand around everything public. They see a request before anything is
decided and an answer after everything is done, and never the control paths, so what was asked for
can always be undone.
"""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psycopg
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.local.edge.admin import AdminApi
from infra.local.edge.auth_api import AuthApi
from infra.local.edge.config import EdgeConfig
from infra.local.edge.control import PREFIX, Control
from infra.local.edge.data_api import DataApi
from infra.local.edge.database import AuthDatabase
from infra.local.edge.keys import KeyRefused, KeyRing
from infra.local.edge.proxy import InvalidPath, Proxy
from infra.local.edge.refusals import AuthRefused, gateway_refusal
from infra.local.edge.sessions import Sessions
from infra.local.edge.tokens import TokenTranslator
from infra.local.faults import FaultMiddleware, FaultPlan, Faults, Manner

Endpoint = Callable[[Request], Awaitable[Response]]

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
EXPOSED_HEADERS = ["Content-Range", "Content-Location", "Preference-Applied", "Link"]
PREFLIGHT_MAX_AGE_SECONDS = 86_400

log = logging.getLogger("doorkey.edge")


def create_app(config: EdgeConfig) -> Starlette:
    """The edge as an ASGI application.

    Raises ValueError or TypeError if the signing key is unfit.
    """
    ring = KeyRing(config.publishable_key, config.secret_keys, config.legacy_jwt_secret, config.project_ref)
    tokens = TokenTranslator(
        signing_key_pem=config.signing_key_pem,
        legacy_jwt_secret=config.legacy_jwt_secret,
        inner_jwt_secret=config.upstream_jwt_secret,
        issuer=f"{config.public_url}/auth/v1",
        project_ref=config.project_ref,
    )
    database = AuthDatabase(config.database_url)
    proxy = Proxy()
    sessions = Sessions(database, tokens, jwt_expiry_seconds=config.jwt_expiry_seconds)
    auth = AuthApi(config, ring, tokens, proxy, sessions)
    data = DataApi(config, ring, tokens, proxy)
    faults = Faults(FaultPlan)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await proxy.close()
        await database.close()

    cors = Middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_methods=METHODS,
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
        max_age=PREFLIGHT_MAX_AGE_SECONDS,
    )
    public = Starlette(
        routes=_public_routes(auth, AdminApi(database), data),
        middleware=[
            Middleware(RequestLog),
            Middleware(FaultMiddleware, faults=faults, manner=Manner(gateway_refusal)),
            cors,
        ],
        exception_handlers={
            KeyRefused: _key_refused,
            AuthRefused: _auth_refused,
            InvalidPath: _invalid_path,
            psycopg.Error: _database_failed,
        },
    )
    control = Mount(PREFIX, routes=Control(ring, faults).routes())
    return Starlette(routes=[control, Mount("/", app=public)], lifespan=lifespan)


def _public_routes(auth: AuthApi, admin: AdminApi, data: DataApi) -> list[BaseRoute]:
    def guarded(endpoint: Endpoint) -> Endpoint:
        async def serve(request: Request) -> Response:
            auth.let_admin_in(request)
            return await endpoint(request)

        return serve

    users, user = "/auth/v1/admin/users", "/auth/v1/admin/users/{user_id}"
    return [
        Route("/auth/v1/.well-known/jwks.json", auth.jwks),
        Route(users, guarded(admin.list), methods=["GET"]),
        Route(users, guarded(admin.create), methods=["POST"]),
        Route(user, guarded(admin.get), methods=["GET"]),
        Route(user, guarded(admin.update), methods=["PUT"]),
        Route(user, guarded(admin.delete), methods=["DELETE"]),
        Route("/auth/v1/{path:path}", auth.serve, methods=METHODS),
        Route("/rest/v1", data.serve, methods=METHODS),
        Route("/rest/v1/{path:path}", data.serve, methods=METHODS),
        Route("/{path:path}", _not_found, methods=METHODS),
    ]


async def _not_found(_request: Request) -> Response:
    return JSONResponse({"error": "requested path is invalid"}, 404)


async def _invalid_path(request: Request, _error: Exception) -> Response:
    return await _not_found(request)


async def _key_refused(_request: Request, error: Exception) -> Response:
    return JSONResponse(error.body() if isinstance(error, KeyRefused) else {}, 401)


async def _auth_refused(_request: Request, error: Exception) -> Response:
    refused = error if isinstance(error, AuthRefused) else AuthRefused(500, "", "")
    cause = refused.__cause__
    if isinstance(cause, psycopg.Error):
        # The class and code only: messages of Postgres quote values, and so e-mail addresses.
        log.warning("database.refused error=%s sqlstate=%s", type(cause).__name__, cause.sqlstate)
    headers = {"X-Sb-Error-Code": refused.error_code}
    return JSONResponse(refused.body(), refused.status, headers=headers)


async def _database_failed(request: Request, error: Exception) -> Response:
    refused = AuthRefused(500, "unexpected_failure", "Database error querying schema")
    refused.__cause__ = error
    return await _auth_refused(request, refused)


class RequestLog:
    """One line per request: what, status, how long, as which role. Never the query or a body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the request and logs it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        started = time.monotonic()
        status = 0  # stays 0 when the answer was lost on purpose

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            status = 500
            raise
        finally:
            log.info(
                "request.answered method=%s path=%s status=%d milliseconds=%d role=%s",
                scope["method"],
                scope["path"],
                status,
                (time.monotonic() - started) * 1000,
                scope["state"].get("role", "-"),
            )
