"""What Lambda hands to a function: requests, the clock's tick, and what anybody else may put there."""

from __future__ import annotations

import base64
from typing import Any

SCHEDULED: dict[str, Any] = {
    "version": "0",
    "id": "5f2b8f0c-0000-4000-8000-000000000000",
    "detail-type": "Scheduled Event",
    "source": "aws.events",
    "account": "123456789012",
    "time": "2026-01-01T00:00:00Z",
    "region": "us-east-1",
    "resources": ["arn:aws:events:us-east-1:123456789012:rule/doorkey-prod"],
    "detail": {},
}


def event(
    path: str = "/health", method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """What API Gateway sends: an HTTP API's request, payload version 2.0."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path.partition("?")[0],
        "rawQueryString": path.partition("?")[2],
        "headers": {"host": "api.example", "x-forwarded-proto": "https", "x-forwarded-port": "443", **(headers or {})},
        "requestContext": {
            "http": {
                "method": method,
                "path": path.partition("?")[0],
                "protocol": "HTTP/1.1",
                "sourceIp": "203.0.113.7",
            },
            "stage": "$default",
        },
        **({} if body is None else {"body": base64.b64encode(body).decode()}),
        "isBase64Encoded": body is not None,
    }


def garbage() -> list[Any]:
    """What anybody who may invoke the function can pass to it."""
    good = event()
    http = good["requestContext"]["http"]
    return [
        {}, [], None, "text", 5, {"Records": [{"eventSource": "aws:sqs", "body": "{}"}]},
        {"version": "0", "source": "aws.events", "detail-type": "Scheduled Event", "detail": {}, "resources": []},
        {"version": "1.0", "httpMethod": "GET", "path": "/health", "headers": {}, "requestContext": {}},
        {name: value for name, value in good.items() if name != "requestContext"},
        {**good, "requestContext": {"http": None}},
        {**good, "body": "not base64!", "isBase64Encoded": True},
        {**good, "body": "\u00fc", "isBase64Encoded": True},
        {**good, "body": {"a": 1}, "isBase64Encoded": True},
        {**good, "headers": ["a"]},
        # From here on our own reading finds a request, and Mangum doesn't.
        {name: value for name, value in good.items() if name != "version"},
        {**good, "version": "1.0"},
        {**good, "version": None},
        {**good, "requestContext": {"http": {"method": "GET"}}},
        {**good, "requestContext": {"http": {name: value for name, value in http.items() if name != "sourceIp"}}},
        {**good, "requestContext": {"http": {**http, "path": None}}},
        {**good, "headers": {"host": "[::1]:80", "x-number": 5}},
        {**good, "headers": {"host": "api.example:port"}},
        {**good, "headers": {"x-half": "\ud800"}},
        {**good, "cookies": 5},
        {**good, "rawQueryString": 5},
    ]  # fmt: skip
