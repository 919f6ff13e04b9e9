"""What every answer has in common: JSON, and one shape for every refusal.

The HTTP status and `error.code` are always the same number (openrouter/facts.md 1.8).
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

ACCOUNT_USER_ID = "user_simulator"
UNAUTHORIZED = 401

# What it says by itself (openrouter/facts.md 1.8, 2.3); the phrase of the status where nothing is known.
_MESSAGES = {
    400: "Invalid request parameters",
    401: "User not found.",
    402: "Insufficient credits. Add more using https://openrouter.ai/credits",
    403: "Only management keys can perform this operation",
    404: "Resource not found",
    409: "Resource conflict. Please try again later.",
    429: "Rate limit exceeded",
}
_METADATA: dict[int, dict[str, Any]] = {
    402: {"limit_source": "openrouter_credits", "remedy_hint": "Add credits."},
}


class Refusal(Exception):
    """A request is answered with an error: `status` is both the HTTP status and `error.code`."""

    def __init__(self, status: int, message: str, metadata: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.metadata = metadata


def invalid(detail: str) -> Refusal:
    """400: the request's body or query is wrong, and this is how."""
    return Refusal(400, f"Invalid request parameters: {detail}")


def not_found() -> Refusal:
    """404: there is no such thing, or it's not yours."""
    return Refusal(404, "Resource not found")


def read_object(raw: bytes) -> dict[str, Any]:
    """A request body as a JSON object.

    Raises Refusal 400 for anything else, also for NaN and Infinity, which Python would accept.
    """

    def refuse_constant(name: str) -> None:
        raise invalid(f"{name} is not a number")

    try:
        body = json.loads(raw, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        raise invalid("the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise invalid("the body must be an object")
    return body


def error_body(status: int, message: str, metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The one shape of an error, with the top-level `user_id` that real bodies often carry.

    Not on a 401, which knows of nobody.
    """
    error: dict[str, Any] = {"code": status, "message": message}
    if metadata is not None:
        error["metadata"] = dict(metadata)
    return {"error": error} if status == UNAUTHORIZED else {"error": error, "user_id": ACCOUNT_USER_ID}


def refusal_body(status: int) -> dict[str, Any]:
    """What it says to everybody with this status, whatever was asked."""
    known = status in HTTPStatus.__members__.values()
    phrase = HTTPStatus(status).phrase if known else "Unknown error"
    return error_body(status, _MESSAGES.get(status, phrase), _METADATA.get(status))


async def answer_refusal(_request: Request, refusal: Exception) -> Response:
    """Turns a Refusal that a route raised into its answer."""
    if not isinstance(refusal, Refusal):
        raise refusal
    return JSONResponse(error_body(refusal.status, refusal.message, refusal.metadata), refusal.status)


async def answer_routing_error(_request: Request, error: Exception) -> Response:
    """Turns the framework's own 404 and 405 into the same shape."""
    if not isinstance(error, HTTPException):
        raise error
    return JSONResponse(error_body(error.status_code, error.detail), error.status_code, headers=error.headers)


async def answer_fault(_request: Request, _error: Exception) -> Response:
    """500 for what was not foreseen; the details go to the log only."""
    return JSONResponse(error_body(500, "Internal Server Error"), 500)
