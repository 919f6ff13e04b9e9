"""A wire that can be cut: passes bytes on to a server, and ends its connections on order."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

CHUNK_BYTES = 65_536


class Relay:
    """What passes between callers and one server.

    Attributes:
        connections: how many callers have opened.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (str(parts.hostname), int(parts.port or 80))
        self._open: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes one connection on, both ways."""
        self.connections += 1
        self._open.add(writer)
        try:
            to_reader, to_writer = await asyncio.open_connection(*self._target)
            await asyncio.gather(_pass(reader, to_writer), _pass(to_reader, writer))
        finally:
            self._open.discard(writer)

    def cut(self, *, with_reset: bool) -> int:
        """Ends every connection: in good order, or as a router does that has forgotten it. Says how many."""
        victims = list(self._open)
        for writer in victims:
            if with_reset:
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()
        return len(victims)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def relay_to(target: str) -> AsyncIterator[Relay]:
    """A relay to this address, for as long as it is needed."""
    relay = Relay(target)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield relay
    finally:
        server.close()
        relay.cut(with_reset=True)
