"""What the functions that are FastAPI applications share: how they are made and entered, and who an operator is.

The surprising thing: Mangum guesses at what it is given and trusts it; so what is no HTTP request is refused before it.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPBearer
from mangum import Mangum
from starlette.exceptions import HTTPException

from functions.kit.errors import (
    DoorkeyError,
    MethodNotAllowed,
    OperatorTokenRejected,
    RequestInvalid,
    RouteNotFound,
)
from functions.web.conventions import PROBLEM_TYPE, REQUEST_ID_HEADER, Conventions, Problem, problem_response
from functions.web.events import Event, NotARequest, choose_request_id, read_request, refuse

# For the API's description alone: the header is read and judged elsewhere.
USER_TOKEN = HTTPBearer(
    scheme_name="user", bearerFormat="JWT", description="Access token of Supabase Auth.", auto_error=False
)
OPERATOR_TOKEN = HTTPBearer(scheme_name="operator", description="The operator token.", auto_error=False)
# What a page's script may read of an answer, besides what every script may.
EXPOSED_HEADERS = [REQUEST_ID_HEADER, "retry-after", "x-next-cursor"]


def create_application(
    title: str, description: str, allowed_origins: list[str], openapi_url: str = "/openapi.json"
) -> FastAPI:
    """An application with what holds for every route: request ids, problem details, one line per request, CORS."""
    app = FastAPI(
        title=title,
        version="1",
        description=description,
        openapi_url=openapi_url,
        docs_url=None,
        redoc_url=None,
        # Else /v1/me/ would be answered with an address put together from what the caller says our name is.
        redirect_slashes=False,
        responses={"default": {"model": Problem, "description": "An error; see `code`."}},
    )

    async def show_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, DoorkeyError)  # noqa: S101  registered for nothing else
        request.state.error = error
        return problem_response(error, request.state.request_id)

    async def show_http_exception(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        named = {404: RouteNotFound, 405: MethodNotAllowed}.get(status, RequestInvalid)
        return await show_problem(request, named(str(status), getattr(error, "headers", None)))

    async def show_invalid(request: Request, error: Exception) -> Response:
        return await show_problem(request, RequestInvalid(type(error).__name__))

    app.add_exception_handler(DoorkeyError, show_problem)
    app.add_exception_handler(HTTPException, show_http_exception)
    app.add_exception_handler(RequestValidationError, show_invalid)
    app.add_middleware(Conventions)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=allowed_origins,
        allow_methods=["GET", "POST"],
        allow_headers=[
            *("authorization", "content-type", "idempotency-key", "x-client-info", "apikey", REQUEST_ID_HEADER)
        ],
        expose_headers=EXPOSED_HEADERS,
        max_age=600,
    )
    return app


def is_operator(authorization: str | None, token_sha256: str | None) -> bool:
    """Whether a header brings the operator token; never, where none is configured.

    Args:
        authorization: the header.
        token_sha256: of the token, in hexadecimal: the token itself is kept nowhere.
    """
    scheme, _, token = (authorization or "").partition(" ")
    sent = sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()
    return token_sha256 is not None and scheme.lower() == "bearer" and hmac.compare_digest(sent, token_sha256)


def require_operator(request: Request, token_sha256: str | None) -> None:
    """Refuses whoever doesn't bring the operator token.

    Raises:
        OperatorTokenRejected: with the reason, for the log.
    """
    if not is_operator(request.headers.get("authorization"), token_sha256):
        raise OperatorTokenRejected("none configured" if token_sha256 is None else "another token")


class ApplicationEntry:
    """Callable as Lambda calls. Mangum guesses at what it is given; what is no HTTP request is refused before it."""

    def __init__(self, build_app: Callable[[], FastAPI]) -> None:
        self._build_app = build_app
        self._mangum: Mangum | None = None

    def __call__(self, event: Event, context: Any = None) -> dict[str, Any]:
        """Handles one event to its end."""
        try:
            request = read_request(event)
        except NotARequest as error:
            return refuse(RequestInvalid(f"not a request: {error}"), choose_request_id(None), "request.refused")
        if self._mangum is None:
            # One loop per sandbox, which Mangum takes for every call: the httpx client must not outlive it.
            asyncio.set_event_loop(asyncio.new_event_loop())
            self._mangum = Mangum(
                self._build_app(), lifespan="off", text_mime_types=["text/", "application/json", PROBLEM_TYPE]
            )
        try:
            return self._mangum(dict(event), context)
        except Exception as error:  # noqa: BLE001  Mangum reads more of an event than we do, and trusts it
            return refuse(
                RequestInvalid(f"not a request: {type(error).__name__}"), request.request_id, "request.refused"
            )
