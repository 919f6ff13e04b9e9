"""The API in the test's own process, for settings that the running stack does not have."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx

from functions import api
from functions.clients.outside import build_clients
from functions.kit.settings import Settings
from infra.local.stack import Stack


class Listening(httpx.AsyncBaseTransport):
    """Sends requests on as they are, and keeps them."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self._inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


@asynccontextmanager
async def api_with(
    stack: Stack,
    changes: Mapping[str, str] | None = None,
    *,
    listening: httpx.AsyncBaseTransport | None = None,
    caller_address: str = "203.0.113.7",
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an API against the running stack, with some settings changed.

    Args:
        stack: what it runs against.
        changes: settings, by their names in the environment.
        listening: hears what the API calls.
        caller_address: whom the API sees calling.
    """
    settings = Settings.from_environment({**stack.functions_environment, **(changes or {})})
    clients = build_clients(settings, listening)
    transport = httpx.ASGITransport(api.build(settings, clients), client=(caller_address, 1))
    async with clients.http, httpx.AsyncClient(transport=transport, base_url="http://api.example") as client:
        yield client
