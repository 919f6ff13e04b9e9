"""Forwards requests to the two Lites, and their answers back.

The surprising thing is `Bearer` followed by two spaces. Lite's middleware looks every user token
up in auth.users before it serves the Data API, which `authenticator` may not read (and PostgREST
does not do: a deleted user's token works until it expires). That lookup gives up on a token that
starts with a space, while the Data API itself trims it.
"""

from collections.abc import Iterable

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from infra.local.edge.callers import split_query

UPSTREAM_TIMEOUT_SECONDS = 30.0
MAX_UPSTREAM_CONNECTIONS = 200

_HOP_BY_HOP = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
    "transfer-encoding", "upgrade",
}  # fmt: skip
# Credentials are replaced; the caller's address is this process's to say, except with a secret key.
_NOT_FORWARDED = _HOP_BY_HOP | {
    "host", "content-length", "accept-encoding", "authorization", "apikey", "x-forwarded-for",
    "sb-forwarded-for", "user-agent",
}  # fmt: skip
_NOT_RETURNED = _HOP_BY_HOP | {"content-length", "content-encoding", "date", "server"}


class InvalidPath(Exception):
    """The path leads out of its service: each Lite serves both APIs, and only one may be reached."""


def data_api_authorization(inner_token: str) -> str:
    """Authorization for the Data API's Lite; see the module's first lines."""
    return f"Bearer  {inner_token}"


class Proxy:
    """One HTTP client for both upstreams."""

    def __init__(self) -> None:
        limits = httpx.Limits(
            max_connections=MAX_UPSTREAM_CONNECTIONS,
            max_keepalive_connections=MAX_UPSTREAM_CONNECTIONS,
            # Below Lite's own 5 s, so that a connection is never reused while Lite closes it.
            keepalive_expiry=3.0,
        )
        self._client = httpx.AsyncClient(timeout=UPSTREAM_TIMEOUT_SECONDS, limits=limits, trust_env=False)

    async def close(self) -> None:
        """Closes the upstream connections."""
        await self._client.aclose()

    async def forward(
        self,
        request: Request,
        base_url: str,
        *,
        api_key: str,
        authorization: str | None,
        trusted: bool = False,
    ) -> httpx.Response:
        """Sends the request on with Lite's credentials in place of the client's.

        `trusted` (a secret key) lets Sb-Forwarded-For through. Raises httpx.HTTPError and InvalidPath.
        """
        if any(segment in (".", "..") for segment in request.scope["path"].split("/")):
            raise InvalidPath
        raw_path: bytes = request.scope.get("raw_path") or request.url.path.encode()
        query = split_query(request.scope["query_string"].decode("latin-1"))[0]
        url = base_url + raw_path.decode("latin-1") + (f"?{query}" if query else "")
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name not in _NOT_FORWARDED or (trusted and name == "sb-forwarded-for")
        ]
        headers += [("apikey", api_key), ("accept-encoding", "identity")]
        # The browser check on secret keys has been made; Lite must not repeat it on its own key.
        agent = request.headers.get("user-agent", "")
        headers.append(("user-agent", f"edge {agent}".strip()))
        if request.client is not None:
            headers.append(("x-forwarded-for", request.client.host))
        if authorization is not None:
            headers.append(("authorization", authorization))
        body = await request.body()
        return await self._client.request(request.method, url, headers=headers, content=body)


def returned(
    upstream: httpx.Response,
    *,
    status: int | None = None,
    content: bytes | None = None,
    headers: Iterable[tuple[str, str]] = (),
) -> Response:
    """The upstream's answer for the client, unchanged where nothing else is said."""
    body = upstream.content if content is None else content
    response = Response(body, status_code=status or upstream.status_code)
    length = response.headers.get("content-length")
    replaced = {name.lower() for name, _ in headers}
    kept = [
        (name, value) for name, value in upstream.headers.multi_items() if name.lower() not in _NOT_RETURNED | replaced
    ]
    if upstream.request.method == "HEAD":
        length = upstream.headers.get("content-length")
    lengths = [("content-length", length)] if length is not None else []
    response.raw_headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in [*kept, *headers, *lengths]
    ]
    return response


def unavailable(error: httpx.HTTPError) -> Response:
    """The gateway's answer when the service behind it does not: 504 for a time-out, else 502."""
    if isinstance(error, httpx.TimeoutException):
        return JSONResponse({"message": "The upstream server is timing out"}, 504)
    message = "An invalid response was received from the upstream server"
    return JSONResponse({"message": message}, 502)
