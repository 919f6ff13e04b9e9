"""/rest/v1: PostgREST as hosted serves it, from Lite's Data API.

The surprising thing: a bad user token is answered here and never forwarded. PostgREST's refusal
(401 with a PGRST code) is what tells clients and doorkey a token problem from a key problem.
"""

import json

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from infra.local.edge.answers import corrected_data_error
from infra.local.edge.callers import identify
from infra.local.edge.config import EdgeConfig
from infra.local.edge.keys import KeyRing, secret_key_required
from infra.local.edge.proxy import Proxy, data_api_authorization, returned, unavailable
from infra.local.edge.tokens import POSTGREST_SKEW_SECONDS, TokenRefused, TokenTranslator

ROOT_PATHS = ("/rest/v1", "/rest/v1/")


class DataApi:
    """Serves /rest/v1 for one project."""

    def __init__(self, config: EdgeConfig, ring: KeyRing, tokens: TokenTranslator, proxy: Proxy) -> None:
        self._config = config
        self._ring = ring
        self._tokens = tokens
        self._proxy = proxy

    async def serve(self, request: Request) -> Response:
        """Any request. Raises KeyRefused."""
        caller = identify(request, self._ring)
        is_root = request.url.path in ROOT_PATHS
        if is_root and caller.key.role == "anon":
            raise secret_key_required()
        role: str = caller.key.role
        if caller.token is None:
            inner = self._tokens.mint_for_key(role)
        else:
            try:
                claims = self._tokens.verify(caller.token, skew_seconds=POSTGREST_SKEW_SECONDS)
            except TokenRefused as refused:
                return _token_refused(refused)
            role = str(claims.get("role", "anon"))
            inner = self._tokens.mint(claims)
        request.state.role = role
        config = self._config
        # Lite describes its schema to its secret key alone.
        api_key = config.upstream_secret_key if is_root else config.upstream_publishable_key
        try:
            upstream = await self._proxy.forward(
                request,
                config.rest_url,
                api_key=api_key,
                authorization=data_api_authorization(inner),
                trusted=caller.key.role == "service_role",
            )
        except httpx.HTTPError as error:
            return unavailable(error)
        return _corrected(upstream, role)


def _token_refused(refused: TokenRefused) -> Response:
    body = {
        "code": refused.code,
        "details": refused.details,
        "hint": None,
        "message": refused.message,
    }
    description = json.dumps(refused.message)
    challenge = f'Bearer error="invalid_token", error_description={description}'
    headers = {"Proxy-Status": f"PostgREST; error={refused.code}", "WWW-Authenticate": challenge}
    return JSONResponse(body, 401, headers=headers)


def _corrected(upstream: httpx.Response, role: str) -> Response:
    if upstream.status_code < httpx.codes.BAD_REQUEST:
        return returned(upstream)
    try:
        body = upstream.json()
    except ValueError:
        return returned(upstream)
    if not isinstance(body, dict) or "code" not in body:
        return returned(upstream)
    status, body = corrected_data_error(upstream.status_code, body, role)
    headers = [("Proxy-Status", f"PostgREST; error={body['code']}")]
    if status == httpx.codes.UNAUTHORIZED:
        headers.append(("WWW-Authenticate", "Bearer"))
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    return returned(upstream, status=status, content=content, headers=headers)
