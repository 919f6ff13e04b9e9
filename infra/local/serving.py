"""How the Python parts of the stack serve HTTP: one way for all of them.

Three defaults cost days. A listener whose protocol is not named keeps Nagle's algorithm on, and every answer takes
40 ms. Uvicorn closes idle connections after five seconds, just as a client takes them up again. And it believes
whoever calls from this machine about their address.

And one thing that ASGI has no message for: an application can close its connection without an answer, by the function
under `HANG_UP` among the scope's extensions. That is how a stand-in loses an answer.
"""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

BACKLOG = 1_024
KEEP_ALIVE_SECONDS = 75
SHUTDOWN_SECONDS = 5
HANG_UP = "doorkey.hang_up"


class CannotListen(Exception):
    """The address can't be had; the message is a sentence that says why."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        CannotListen: the address is in use, or none of this machine's.
    """
    listener: socket.socket | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        # Named, as socket.create_server does not: asyncio turns Nagle off only on sockets that say they are TCP.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise CannotListen(f"{host}:{port} can't be had ({reason}); choose another port") from None
    return listener


class HangUpProtocol(H11Protocol):
    """HTTP/1.1 whose applications can hang up; there is one of these for each connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Gives the application the means."""
        super().connection_made(transport)
        inner = self.app

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope.setdefault("extensions", {})[HANG_UP] = transport.abort
            await inner(scope, receive, send)

        self.app = app


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serves until the process is told to stop."""
    options = uvicorn.Config(
        app,
        http=HangUpProtocol,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    uvicorn.Server(options).run(sockets=[listener])
