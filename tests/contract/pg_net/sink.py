"""An HTTP server that writes down, in order, everything that happens at it.

The surprising thing: what a request gets is said in its path, so a test never has to prepare an
answer. The first segment is the behaviour (``/ok``, ``/status/500``, ``/redirect/307``, ``/hold``,
``/slam``), the last one is the tag by which the test finds its request again. ``/hold`` doesn't
answer until told to.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, urlsplit

from tests.contract.pg_net.polling import attempts


@dataclass(frozen=True)
class Arrival:
    """A request as it came in: names and values of headers untouched, the body's raw bytes."""

    tag: str
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    second: float

    def header(self, name: str) -> str | None:
        """The only value of a header, or None."""
        values = [value for key, value in self.headers if key.lower() == name]
        assert len(values) <= 1
        return values[0] if values else None


class Sink:
    """The record, and the URLs that lead here."""

    def __init__(self) -> None:
        self.port = 0
        self.arrivals: list[Arrival] = []
        # Words such as "arrived slow" and "hung_up slow", in order: what tests of ordering look at.
        self.events: list[str] = []
        self._gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    @classmethod
    @asynccontextmanager
    async def listening(cls) -> AsyncIterator[Sink]:
        sink = cls()
        server = await asyncio.start_server(sink._converse, "127.0.0.1", 0)
        sink.port = server.sockets[0].getsockname()[1]
        try:
            yield sink
        finally:
            for gate in sink._gates.values():
                gate.set()
            server.close()

    def url(self, path: str, *, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"

    def redirect(self, code: int, tag: str, to: str) -> str:
        return self.url(f"redirect/{code}/{tag}?to={quote(to, safe='')}")

    def release(self, tag: str) -> None:
        """Lets every held request of this tag have its answer."""
        self._gates[tag].set()

    def of(self, tag: str) -> list[Arrival]:
        return [arrival for arrival in self.arrivals if arrival.tag == tag]

    async def arrival(self, tag: str, *, count: int = 1) -> Arrival:
        """The latest arrival of a tag, once there are that many."""
        async for _ in attempts(f"{count} of {tag}"):
            if len(self.of(tag)) >= count:
                break
        return self.of(tag)[-1]

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._answer(await self._read(reader), reader, writer)
        writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Arrival:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("utf-8").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        pairs = [line.partition(":") for line in head[1:] if line]
        headers = [(name, value.strip()) for name, _, value in pairs]
        lengths = [int(value) for name, value in headers if name.lower() == "content-length"]
        body = await reader.readexactly(lengths[0]) if lengths else b""
        tag = urlsplit(target).path.rsplit("/", 1)[-1]
        now = asyncio.get_running_loop().time()
        arrival = Arrival(tag, method, target, headers, body, now)
        self.arrivals.append(arrival)
        self.events.append(f"arrived {tag}")
        return arrival

    async def _answer(self, arrival: Arrival, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parts = urlsplit(arrival.target)
        behaviour = parts.path.split("/")[1:]
        status, location, content = "200", "", b'{"fine": true}'
        match behaviour:
            case ["hold", *_]:
                if await self._is_hung_up_before_release(arrival.tag, reader):
                    self.events.append(f"hung_up {arrival.tag}")
                    return
            case ["slam", *_]:
                return
            case ["status", status, *_]:
                pass
            case ["empty", *_]:
                content = b""
            case ["binary", *_]:
                content = b"before\0after"
            case ["redirect", status, *_]:
                location = f"Location: {parse_qs(parts.query)['to'][0]}\r\n"
            case _:
                pass
        self.events.append(f"answered {arrival.tag}")
        head = (
            f"HTTP/1.1 {status} Whatever\r\nContent-Type: application/json\r\nX-Tag: {arrival.tag}\r\n"
            f"X-Twice: first\r\nX-Twice: second\r\n{location}"
            f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + content)
        await writer.drain()

    async def _is_hung_up_before_release(self, tag: str, reader: asyncio.StreamReader) -> bool:
        hang_up = asyncio.ensure_future(reader.read(1))
        release = asyncio.ensure_future(self._gates[tag].wait())
        done, pending = await asyncio.wait({hang_up, release}, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return hang_up in done
