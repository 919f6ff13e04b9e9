"""The ways to the simulator, which lives in this process: doorkey's own client, and the users' calls.

The surprising thing: users' calls take no HTTP client. There are very many, and it would take half of the time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
from starlette.types import ASGIApp, Message

HOST = "openrouter.local"
ADDRESS = f"http://{HOST}/api/v1"


class Wire(httpx.ASGITransport):
    """The way to the simulator; remembers the secret of each key that is made, as its user would."""

    secrets: dict[str, str]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        if request.method == "POST" and request.url.path.endswith("/keys"):
            made = json.loads(await answer.aread())
            self.secrets[made["data"]["hash"]] = made["key"]
        return answer


async def ask(app: ASGIApp, secret: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
    """One chat completion through a user's key; the status and the whole answer."""
    path = "/api/v1/chat/completions"
    asked = json.dumps(body).encode()
    said: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": asked, "more_body": False}

    async def send(message: Message) -> None:
        said.append(message)

    headers = {"host": HOST, "authorization": f"Bearer {secret}", "content-type": "application/json"}
    scope = {
        "type": "http",
        # Of this version on, a stream doesn't ask whether its client is still there.
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "server": (HOST, 80),
        "client": ("192.0.2.1", 1),
    }
    await app(scope, receive, send)
    return said[0]["status"], b"".join(message.get("body", b"") for message in said[1:])
