"""The functions behind a local server: the same handlers as on Lambda.

The surprising thing: like Lambda, it works on after the caller has hung up. The database waits one second for an
answer and a provisioning may take longer.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from functions import admin, api, sweep, webhook
from functions.clients.outside import build_clients
from functions.kit.observability import logger, start_logging
from functions.kit.settings import Settings, SettingsInvalid
from functions.web.entry import Handle
from infra.local.serving import CannotListen, listen, serve

WEBHOOK_PATH = "/webhooks/supabase"


def create_app(settings: Settings, sweep_seconds: float = 0.0) -> Starlette:
    """All functions in one application, on the paths that the HTTP API gives them.

    Args:
        settings: of all of them.
        sweep_seconds: how often the sweep runs; 0: never.
    """
    clients = build_clients(settings)
    handle = webhook.build(settings, clients)
    running: set[asyncio.Task[dict[str, Any]]] = set()

    async def receive_webhook(request: Request) -> Response:
        task = asyncio.create_task(invoke(handle, request, await request.body()))
        running.add(task)
        task.add_done_callback(running.discard)
        result = await asyncio.shield(task)
        return Response(result["body"], status_code=result["statusCode"], headers=result["headers"])

    @asynccontextmanager
    async def on_schedule(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(_sweep_again_and_again(sweep.build(settings, clients), sweep_seconds))
        yield
        task.cancel()

    return Starlette(
        lifespan=on_schedule if sweep_seconds else None,
        routes=[
            Route(WEBHOOK_PATH, receive_webhook, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
            # Not mounted: its routes have their whole path, as behind the gateway.
            Route(f"{admin.PREFIX}/{{path:path}}", admin.build(settings, clients)),
            Mount("/", api.build(settings, clients)),
        ],
    )


async def _sweep_again_and_again(handle: Handle, sweep_seconds: float) -> None:
    """As EventBridge does: at a fixed rate, the first time after one interval."""
    while True:
        await asyncio.sleep(sweep_seconds)
        try:
            await handle({"source": "aws.events"})
        except Exception:  # noqa: BLE001  a schedule goes on whatever one run met
            logger.exception("sweep.failed")


async def invoke(handle: Handle, request: Request, body: bytes) -> dict[str, Any]:
    """Calls a plain handler with the event that API Gateway would make of this request."""
    return await handle(
        {
            "version": "2.0",
            "rawPath": request.url.path,
            "rawQueryString": request.url.query,
            "headers": dict(request.headers),
            "requestContext": {
                "http": {
                    "method": request.method,
                    "path": request.url.path,
                    "sourceIp": request.client.host if request.client else "",
                }
            },
            # Always: that is how bytes that are no text arrive on Lambda too.
            "body": base64.b64encode(body).decode(),
            "isBase64Encoded": True,
        }
    )


def main() -> None:
    """``python -m infra.local.functions --port N``, settings from the environment."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.functions", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sweep-seconds", type=float, default=60.0, help="how often the sweep runs; 0: never")
    arguments = parser.parse_args()
    start_logging()
    try:
        settings = Settings.from_environment()
        listener = listen(arguments.host, arguments.port)
    except (SettingsInvalid, CannotListen) as error:
        raise SystemExit(str(error)) from None
    serve(create_app(settings, arguments.sweep_seconds), listener)


if __name__ == "__main__":
    main()
