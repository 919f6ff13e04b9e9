"""/auth/v1: Auth as hosted serves it, from Lite's Auth plus what Lite lacks.

The surprising thing: every answer with a session is rewritten. Lite's access token never leaves;
the client gets one signed with the project's ES256 key, in JSON and in the fragment of the
redirect that an e-mail link ends in.
"""

import json
from urllib.parse import parse_qsl, urlencode

import httpx
import psycopg
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from infra.local.edge.admin import read_object
from infra.local.edge.answers import Json, repair_timestamps
from infra.local.edge.callers import Caller, claims_for_auth, identify, require_admin
from infra.local.edge.config import EdgeConfig
from infra.local.edge.database import Row
from infra.local.edge.keys import KeyRing
from infra.local.edge.proxy import Proxy, returned, unavailable
from infra.local.edge.refusals import AuthRefused
from infra.local.edge.sessions import Sessions
from infra.local.edge.tokens import TokenTranslator

PREFIX = "/auth/v1"
JWKS_MAX_AGE_SECONDS = 600

# Reached by links in e-mails and by other servers, which send no key.
_WITHOUT_KEY = ("/callback", "/authorize", "/verify", "/.well-known/")
_WITH_USER = ("/user", "/logout", "/reauthenticate", "/factors")
_METHODS_BY_PATH = {"/signup": "password", "/verify": "otp"}
_METHODS_BY_GRANT = {"password": "password", "pkce": "oauth"}


class AuthApi:
    """Serves /auth/v1 for one project."""

    def __init__(
        self,
        config: EdgeConfig,
        ring: KeyRing,
        tokens: TokenTranslator,
        proxy: Proxy,
        sessions: Sessions,
    ) -> None:
        self._config = config
        self._ring = ring
        self._tokens = tokens
        self._proxy = proxy
        self._sessions = sessions

    async def jwks(self, _request: Request) -> Response:
        """The public keys, cacheable for ten minutes as on hosted (supabase.md 4)."""
        headers = {"Cache-Control": f"public, max-age={JWKS_MAX_AGE_SECONDS}"}
        return JSONResponse(self._tokens.jwks(), headers=headers)

    def let_admin_in(self, request: Request) -> None:
        """Raises KeyRefused or AuthRefused unless the caller is service_role."""
        require_admin(identify(request, self._ring), self._tokens)
        request.state.role = "service_role"

    async def serve(self, request: Request) -> Response:
        """Any request that no other route takes. Raises KeyRefused or AuthRefused."""
        path = request.url.path.removeprefix(PREFIX)
        if request.method == "GET" and path.startswith(_WITHOUT_KEY):
            return await self._forward(request, path, authorization=None)
        if path.startswith("/admin"):
            self.let_admin_in(request)
        caller = identify(request, self._ring)
        user: Row | None = None
        inner = self._tokens.mint_for_key(caller.key.role)
        request.state.role = caller.key.role
        if path.startswith(_WITH_USER):
            claims = claims_for_auth(caller, self._tokens)
            if claims is not None:
                user = await self._sessions.current_user(claims)
                inner = self._tokens.mint(claims)
                request.state.role = claims.get("role")
        elif request.method == "POST":
            answer = await self._before(request, path)
            if answer is not None:
                return answer
        authorization = f"Bearer {inner}"
        return await self._forward(request, path, authorization=authorization, caller=caller, user=user)

    async def _before(self, request: Request, path: str) -> Response | None:
        """What Lite would get wrong: anonymous sign-in, phones, banned users."""
        grant = request.query_params.get("grant_type")
        if path not in ("/signup", "/token"):
            return None
        body = await read_object(request)
        if path == "/signup" and not body.get("email"):
            if body.get("phone"):
                raise AuthRefused(400, "phone_provider_disabled", "Phone signups are disabled")
            return await self._sign_in_anonymously(body)
        if path == "/token" and grant == "password" and isinstance(body.get("email"), str):
            await self._sessions.refuse_banned_sign_in(body["email"])
        if path == "/token" and grant == "refresh_token":
            await self._sessions.refuse_banned_refresh(str(body.get("refresh_token", "")))
        return None

    async def _sign_in_anonymously(self, body: Json) -> Response:
        if not self._config.anonymous_sign_ins:
            message = "Anonymous sign-ins are disabled"
            raise AuthRefused(422, "anonymous_provider_disabled", message)
        metadata = body.get("data")
        try:
            session = await self._sessions.sign_in_anonymously(metadata if isinstance(metadata, dict) else {})
        except psycopg.Error as error:
            message = "Database error creating anonymous user"
            raise AuthRefused(500, "unexpected_failure", message) from error
        return JSONResponse(session)

    async def _forward(
        self,
        request: Request,
        path: str,
        *,
        authorization: str | None,
        caller: Caller | None = None,
        user: Row | None = None,
    ) -> Response:
        try:
            upstream = await self._proxy.forward(
                request,
                self._config.auth_url,
                api_key=self._config.upstream_publishable_key,
                authorization=authorization,
                trusted=caller is not None and caller.key.role == "service_role",
            )
        except httpx.HTTPError as error:
            return unavailable(error)
        if "location" in upstream.headers:
            location = await self._rewritten_location(upstream.headers["location"])
            return returned(upstream, headers=[("location", location)])
        try:
            answer = upstream.json()
        except ValueError:
            return returned(upstream)
        if not isinstance(answer, dict):
            return returned(upstream)
        if path == "/signup" and upstream.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
            # A trigger of the project refused the insert; hosted's words (supabase.md 2).
            raise AuthRefused(500, "unexpected_failure", "Database error saving new user")
        await self._correct(request, path, answer, user)
        content = json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()
        return returned(upstream, content=content)

    async def _correct(self, request: Request, path: str, answer: Json, user: Row | None) -> None:
        """Rewrites Lite's answer in place."""
        repair_timestamps(answer)
        shown = answer.get("user", answer)
        if isinstance(answer.get("access_token"), str):
            grant = request.query_params.get("grant_type", "")
            method = _METHODS_BY_PATH.get(path, _METHODS_BY_GRANT.get(grant))
            token, user = await self._sessions.reissue(answer["access_token"], method)
            answer["access_token"] = token
        if user is not None and isinstance(shown, dict) and "is_anonymous" in shown:
            shown["is_anonymous"] = user["is_anonymous"]
            # Lite writes metadata as JSON strings and may show them as such.
            shown["app_metadata"] = user["raw_app_meta_data"] or {}
        if path == "/settings" and isinstance(answer.get("external"), dict):
            answer["external"]["anonymous_users"] = self._config.anonymous_sign_ins

    async def _rewritten_location(self, location: str) -> str:
        """The redirect after an e-mail link: its fragment holds a whole session."""
        address, _, fragment = location.partition("#")
        pairs = dict(parse_qsl(fragment, keep_blank_values=True))
        if "access_token" not in pairs:
            return location
        pairs["access_token"] = (await self._sessions.reissue(pairs["access_token"], "otp"))[0]
        return f"{address}#{urlencode(pairs)}"
