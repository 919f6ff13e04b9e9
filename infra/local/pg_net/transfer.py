"""Sends one queued request as libcurl does for pg_net, and says what came of it (supabase.md 1).

The surprising thing: redirects are followed by hand. pg_net keeps a DELETE a DELETE, sends custom
headers on to another host and drops only Authorization and Cookie, and it records the headers of
the *first* answer beside the body of the last.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from infra.local.pg_net import VERSION
from infra.local.pg_net.request_queue import Outcome, QueuedRequest

MAX_REDIRECTS = 30

_REDIRECTS = {301, 302, 303, 307, 308}
_REDIRECTS_WITHOUT_BODY = {301, 302, 303}
_FOR_THE_FIRST_HOST_ONLY = {b"authorization", b"cookie"}
_FORM = (b"Content-Type", b"application/x-www-form-urlencoded")
_TEXT = "utf-8"

Header = tuple[bytes, bytes]

log = logging.getLogger(__name__)


def new_client(tls: ssl.SSLContext) -> httpx.AsyncClient:
    """A client for one batch: no proxies, no queueing for connections, no time-out of its own."""
    return httpx.AsyncClient(
        verify=tls,
        trust_env=False,
        timeout=None,  # noqa: S113 - each request carries its own, around all of its redirects
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
    )


async def send(client: httpx.AsyncClient, request: QueuedRequest) -> Outcome:
    """Sends a request once, redirects included, and returns what pg_net would record.

    No failure of the network or of HTTP raises: it becomes an outcome.
    """
    seconds = request.timeout_milliseconds / 1000
    clock = _Clock()
    try:
        # Zero and less mean no limit, as for libcurl.
        async with asyncio.timeout(seconds if seconds > 0 else None):
            return await _follow(client, request, clock)
    except TimeoutError:
        message = clock.time_out(request.timeout_milliseconds)
        return Outcome(request.id, timed_out=True, error_msg=message)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        log.info("request.failed id=%d reason=%s", request.id, type(error).__name__)
        return Outcome(request.id, error_msg=_reason(error))


async def _follow(client: httpx.AsyncClient, request: QueuedRequest, clock: _Clock) -> Outcome:
    url = first_url = httpx.URL(request.url)
    method, body = request.method.upper(), request.body
    first_headers: dict[str, str] | None = None
    for _ in range(MAX_REDIRECTS + 1):
        headers = _headers(request.headers, body, is_first_host=_origin(url) == _origin(first_url))
        answer, content = await _exchange(client, method, url, headers, body, clock)
        first_headers = first_headers or _recorded_headers(answer)
        location = answer.headers.get("location")
        if answer.status_code not in _REDIRECTS or location is None:
            return Outcome(
                request.id,
                status_code=answer.status_code,
                content_type=answer.headers.get("content-type"),
                headers=first_headers,
                content=_recorded_content(content),
            )
        if answer.status_code in _REDIRECTS_WITHOUT_BODY:
            method, body = ("GET" if method == "POST" else method), None
        url = url.join(location)
    raise httpx.TooManyRedirects("too many redirects")


async def _exchange(
    client: httpx.AsyncClient,
    method: str,
    url: httpx.URL,
    headers: list[Header],
    body: bytes | None,
    clock: _Clock,
) -> tuple[httpx.Response, bytes]:
    if method == "POST" and body is None:
        body = b""  # so that Content-Length: 0 is said
    # Built by hand: a client's own build_request adds headers that libcurl doesn't send.
    request = httpx.Request(method, url, headers=headers, content=body, extensions={"trace": clock.on_event})
    answer = await client.send(request, stream=True)
    try:
        # Raw: an answer that is compressed without having been asked for is recorded as it came.
        return answer, b"".join([part async for part in answer.aiter_raw()])
    finally:
        await answer.aclose()


def _headers(queued: list[list[str]], body: bytes | None, *, is_first_host: bool) -> list[Header]:
    # libcurl takes a header without a value as the wish to leave it out.
    custom = [(name.encode(_TEXT), value.strip().encode(_TEXT)) for name, value in queued if value.strip()]
    if not is_first_host:
        custom = [header for header in custom if header[0].lower() not in _FOR_THE_FIRST_HOST_ONLY]
    names = {name.lower() for name, _ in custom}
    headers = [] if b"accept" in names else [(b"Accept", b"*/*")]
    headers += custom
    headers.append((b"User-Agent", f"pg_net/{VERSION}".encode()))
    if body is not None and b"content-type" not in names:
        headers.append(_FORM)
    return headers


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _recorded_headers(answer: httpx.Response) -> dict[str, str]:
    """Names as the server spells them; of repeated ones the last stays, as in jsonb."""
    raw = answer.headers.raw
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}


def _recorded_content(content: bytes) -> str | None:
    """Text up to the first zero byte, as in C; nothing at all is null."""
    return content.split(b"\0", 1)[0].decode(_TEXT, errors="replace") or None


def _reason(error: Exception) -> str:
    """libcurl's words for the common failures."""
    causes: list[BaseException] = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return "SSL peer certificate or SSH remote key was not OK"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return "SSL connect error"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return "Couldn't resolve host name"
    sentences: Mapping[type[Exception], str] = {
        httpx.ConnectError: "Couldn't connect to server",
        httpx.RemoteProtocolError: "Server returned nothing (no headers, no data)",
        httpx.ReadError: "Failure when receiving data from the peer",
        httpx.WriteError: "Failed sending data to the peer",
        httpx.UnsupportedProtocol: "Unsupported protocol",
        httpx.InvalidURL: "URL using bad/illegal format or missing URL",
        httpx.TooManyRedirects: "Number of redirects hit maximum amount",
    }
    return sentences.get(type(error), f"{type(error).__name__}: {error}")


@dataclass
class _Clock:
    """How long a request has spent in which phase; pg_net says so when it times out."""

    started: float = field(default_factory=time.monotonic)
    connecting: float | None = None
    connected: float | None = None

    async def on_event(self, name: str, _info: Mapping[str, Any]) -> None:
        """httpcore's trace hook; a redirect starts the phases again."""
        if name == "connection.connect_tcp.started":
            self.connecting, self.connected = time.monotonic(), None
        elif name in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self.connected = time.monotonic()

    def time_out(self, timeout_milliseconds: int) -> str:
        """The sentence of a time-out; resolving a name counts as connecting, so its time is 0."""
        now = time.monotonic()
        connecting = now if self.connecting is None else self.connecting
        connected = now if self.connected is None else self.connected
        total, handshake, http = (
            1000 * phase for phase in (now - self.started, connected - connecting, now - connected)
        )
        return (
            f"Timeout of {timeout_milliseconds} ms reached. Total time: {total:f} ms "
            f"(DNS time: {0:f} ms, TCP/SSL handshake time: {handshake:f} ms, "
            f"HTTP Request/Response time: {http:f} ms)"
        )
