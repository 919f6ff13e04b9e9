"""An HTTP request as API Gateway hands it to Lambda (HTTP API, payload version 2.0), made plain.

The surprising thing: anybody can invoke a function with anything, a schedule's event for instance, and bodies may be
base64. What is not a request is said to be none, in one way.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from functions.kit.errors import DoorkeyError
from functions.kit.observability import WorkLine

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Event = Mapping[str, Any]


class NotARequest(Exception):
    """The event is not an HTTP request."""


@dataclass(frozen=True, repr=False)
class Request:
    """One request.

    Attributes:
        method: in capitals.
        path: as called, without the query.
        headers: names in lower case.
        body: the exact bytes.
        request_id: the caller's X-Request-Id where it is a sane one, else a new one.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    request_id: str


def read_request(event: Event) -> Request:
    """The request in an event.

    Raises:
        NotARequest: there is none.
    """
    try:
        http = event["requestContext"]["http"]
        headers = {str(name).lower(): str(value) for name, value in (event.get("headers") or {}).items()}
        body = event.get("body") or ""
        raw = base64.b64decode(body, validate=True) if event.get("isBase64Encoded") else str(body).encode()
        return Request(
            method=str(http["method"]).upper(),
            path=str(event["rawPath"]),
            headers=headers,
            body=raw,
            request_id=choose_request_id(headers.get("x-request-id")),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise NotARequest(type(error).__name__) from None


def choose_request_id(proposed: str | None) -> str:
    """The caller's own id if it can't do harm in a log or a header, else a new one."""
    if proposed is not None and _REQUEST_ID.fullmatch(proposed):
        return proposed
    return uuid.uuid4().hex


def answer(status: int, body: Mapping[str, Any], request_id: str) -> dict[str, Any]:
    """A JSON answer in Lambda's form."""
    return {
        "statusCode": status,
        "headers": {"content-type": "application/json", "x-request-id": request_id, "cache-control": "no-store"},
        "body": json.dumps(body),
    }


def problem(error: DoorkeyError, request_id: str) -> dict[str, Any]:
    """An error in Lambda's form: RFC 9457, nothing internal."""
    response = answer(error.status, problem_body(error, request_id), request_id)
    response["headers"] |= {"content-type": "application/problem+json", **error.headers}
    return response


def refuse(error: DoorkeyError, request_id: str, event_name: str) -> dict[str, Any]:
    """An error in Lambda's form, and the log's line about it."""
    line = WorkLine(event_name, request_id=request_id, code=error.code, detail=error.private)
    line.write(logging.WARNING if error.status < 500 else logging.ERROR)
    return problem(error, request_id)


def problem_body(error: DoorkeyError, request_id: str) -> dict[str, Any]:
    """The members of an RFC 9457 problem."""
    return {
        "type": f"urn:doorkey:error:{error.code}",
        "title": error.sentence,
        "status": error.status,
        "code": error.code,
        "request_id": request_id,
    }
