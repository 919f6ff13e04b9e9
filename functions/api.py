"""Lambda: a signed-in user asked; and the signup door.

A person's own data is read with the person's own token, under row level security: a mistake here can't show them
somebody else's. See docs/decisions/0004.
"""

import asyncio
import hmac
from collections.abc import Callable
from hashlib import sha256
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPBearer
from mangum import Mangum
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from functions.accounts import answers
from functions.accounts.arrivals import Arrivals, is_pending
from functions.accounts.store import request_rotation, reveal_key
from functions.clients.outside import Clients, build_clients
from functions.health.checks import Check, worst_of
from functions.health.examination import examine
from functions.kit.errors import (
    BodyTooLarge,
    DoorkeyError,
    MethodNotAllowed,
    OperatorTokenRejected,
    ProfileNotFound,
    RequestInvalid,
    RouteNotFound,
)
from functions.kit.observability import start_logging
from functions.kit.settings import Settings
from functions.provisioning.steps import Provisioner
from functions.web.conventions import PROBLEM_TYPE, REQUEST_ID_HEADER, Conventions, Problem, problem_response
from functions.web.events import Event, NotARequest, choose_request_id, read_request, refuse
from functions.web.routes import LEGACY_BALANCE
from functions.web.sessions import Session, Sessions

MAX_SIGNUP_BODY_BYTES = 64 * 1024
# What Auth is told of the caller's page, besides the body. Not its User-Agent: the gateway refuses a secret key that
# seems to come from a browser (supabase.md 3).
SIGNUP_HEADERS = ("x-client-info", "x-supabase-api-version")
PENDING_RETRY_SECONDS = 2

USER_TOKEN = HTTPBearer(
    scheme_name="user", bearerFormat="JWT", description="Access token of Supabase Auth.", auto_error=False
)
OPERATOR_TOKEN = HTTPBearer(scheme_name="operator", description="The operator token.", auto_error=False)

T = TypeVar("T")


class Alive(BaseModel):
    """The function runs."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """Every dependency, checked just now."""

    status: Literal["ok", "warning", "broken"]
    checks: list[Check]


def build(settings: Settings, clients: Clients) -> FastAPI:
    """The application for these settings; tests pass their own clients."""
    jwt_secret = settings.supabase_jwt_secret
    sessions = Sessions(
        issuer=f"{settings.supabase_url}/auth/v1",
        fetch_jwks=clients.supabase.fetch_jwks,
        hs256_secret=jwt_secret.get_secret_value() if jwt_secret else None,
    )
    app = FastAPI(
        title="doorkey",
        version="1",
        description="Profile, credits and OpenRouter key of the signed-in user.",
        docs_url=None,
        redoc_url=None,
        # Else /v1/me/ would be answered with an address put together from what the caller says our name is.
        redirect_slashes=False,
        responses={"default": {"model": Problem, "description": "An error; see `code`."}},
    )
    _add_conventions(app, settings)

    async def current_session(
        request: Request,
        # For the API's description alone; the header is read and judged by `sessions`.
        _: Annotated[object, Depends(USER_TOKEN)],
    ) -> Session:
        return await sessions.verify(request.headers.get("authorization"))

    provisioner = Provisioner.build(settings, clients)
    arrivals = Arrivals(clients.supabase, provisioner)

    async def own_account(session: Annotated[Session, Depends(current_session)], request: Request) -> dict[str, Any]:
        return await arrivals.account(session, request_id=request.state.request_id)

    Account = Annotated[dict[str, Any], Depends(own_account)]  # noqa: N806  a type, used only here

    def not_yet(account: dict[str, Any], response: Response) -> answers.MyKey:
        _ask_again(response)
        return answers.key_of(account, None)

    async def show_key(
        account: dict[str, Any], session: Session, request: Request, response: Response
    ) -> answers.MyKey:
        if account["key"] is None:
            return not_yet(account, response)
        sealed = await reveal_key(clients.supabase, session, request_id=request.state.request_id)
        secret = None
        if sealed is not None and sealed.sealed_secret is not None:
            secret = provisioner.sealer.open(sealed.sealed_secret, user_id=session.user_id, key_hash=sealed.key_hash)
        return answers.key_of(account, secret)

    @app.get(
        "/v1/me",
        summary="Who I am, what I may spend, and where my key stands",
        responses={202: {"model": answers.Me, "description": "The key is being made; this is what is known."}},
    )
    async def me(account: Account, response: Response) -> answers.Me:
        if is_pending(account):
            _ask_again(response)
        return answers.me_of(account)

    @app.get(
        "/v1/me/key",
        summary="My OpenRouter key and its secret",
        responses={202: {"model": answers.MyKey, "description": "The key is not there yet."}},
    )
    async def my_key(
        account: Account,
        session: Annotated[Session, Depends(current_session)],
        request: Request,
        response: Response,
    ) -> answers.MyKey:
        return await show_key(account, session, request, response)

    @app.post(
        "/v1/me/key/rotate",
        summary="Another key in the place of mine: the new one and its secret",
        responses={202: {"model": answers.MyKey, "description": "The new key is not there yet; the old one is."}},
    )
    async def rotate_key(
        account: Account,
        session: Annotated[Session, Depends(current_session)],
        request: Request,
        response: Response,
        wish: answers.RotationWish | None = None,
    ) -> answers.MyKey:
        request_id = request.state.request_id
        await request_rotation(
            clients.supabase,
            session,
            grace_seconds=wish.grace_seconds if wish else None,
            request_id=request_id,
        )
        await provisioner.provision(session.user_id, request_id=request_id, session=session)
        account = await own_account(session, request)
        if account["provisioning"]["is_rotating"]:
            return not_yet(account, response)
        return await show_key(account, session, request, response)

    no_credits_yet: dict[int | str, dict[str, Any]] = {
        202: {"model": answers.Pending, "description": "The welcome credits are not granted yet."}
    }

    @app.get(
        "/v1/credits/balance", summary="What I may spend", responses=no_credits_yet, response_model=answers.Balance
    )
    async def balance(account: Account) -> answers.Balance | JSONResponse:
        return _there(account, answers.balance_of(account))

    @app.get(
        LEGACY_BALANCE,
        summary="What I may spend, for older clients",
        responses=no_credits_yet,
        response_model=answers.LegacyBalance,
    )
    async def legacy_balance(account: Account) -> answers.LegacyBalance | JSONResponse:
        return _there(account, answers.legacy_balance_of(account))

    @app.post("/v1/auth/signup", summary="Sign up: passed on to Supabase Auth, whose answer comes back unchanged")
    async def sign_up(request: Request) -> Response:
        body = await request.body()
        if len(body) > MAX_SIGNUP_BODY_BYTES:
            raise BodyTooLarge(f"{len(body)} bytes")
        answer = await clients.supabase.sign_up(
            body,
            request.url.query,
            request.client.host if request.client else None,
            {name: value for name, value in request.headers.items() if name in SIGNUP_HEADERS},
        )
        return Response(
            answer.body,
            status_code=answer.status,
            media_type=answer.content_type,
            headers=dict(answer.headers),
        )

    @app.get("/health", summary="The function runs")
    async def health() -> Alive:
        return Alive(status="ok")

    @app.get("/health/ready", summary="Every dependency checked; for operators")
    async def ready(request: Request, response: Response, _: Annotated[object, Depends(OPERATOR_TOKEN)]) -> Readiness:
        _require_operator(request, settings)
        checks = await examine(settings, clients)
        status = worst_of(checks)
        response.status_code = 503 if status == "broken" else 200
        return Readiness(status=status, checks=checks)

    return app


def _ask_again(response: Response) -> None:
    response.status_code = 202
    response.headers["retry-after"] = str(PENDING_RETRY_SECONDS)


def _there(account: dict[str, Any], answer: T | None) -> T | JSONResponse:
    """The balance, which is right whatever becomes of the key; or when to ask again for it."""
    if answer is not None:
        return answer
    if not is_pending(account):
        raise ProfileNotFound("no credits yet")
    response = JSONResponse(answers.Pending(status="pending").model_dump())
    _ask_again(response)
    return response


def _require_operator(request: Request, settings: Settings) -> None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    expected = settings.doorkey_operator_token_sha256
    sent = sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()
    if expected is None or scheme.lower() != "bearer" or not hmac.compare_digest(sent, expected):
        raise OperatorTokenRejected("none configured" if expected is None else "another token")


def _add_conventions(app: FastAPI, settings: Settings) -> None:
    """What holds for every route: request ids, problem details, one line per request, CORS."""

    async def show_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, DoorkeyError)  # noqa: S101  registered for nothing else
        request.state.error = error
        return problem_response(error, request.state.request_id)

    async def show_http_exception(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        named = {404: RouteNotFound, 405: MethodNotAllowed}.get(status, RequestInvalid)
        return await show_problem(request, named(str(status), getattr(error, "headers", None)))

    async def show_invalid(request: Request, error: Exception) -> Response:
        return await show_problem(request, RequestInvalid(type(error).__name__))

    app.add_exception_handler(DoorkeyError, show_problem)
    app.add_exception_handler(HTTPException, show_http_exception)
    app.add_exception_handler(RequestValidationError, show_invalid)
    app.add_middleware(Conventions)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(settings.doorkey_allowed_origins),
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-client-info", "apikey", REQUEST_ID_HEADER],
        expose_headers=[REQUEST_ID_HEADER, "retry-after"],
        max_age=600,
    )


class ApiEntry:
    """Callable as Lambda calls. Mangum guesses at what it is given; what is no HTTP request is refused before it."""

    def __init__(self, build_app: Callable[[], FastAPI]) -> None:
        self._build_app = build_app
        self._mangum: Mangum | None = None

    def __call__(self, event: Event, context: Any = None) -> dict[str, Any]:
        """Handles one event to its end."""
        try:
            request = read_request(event)
        except NotARequest as error:
            return refuse(RequestInvalid(f"not a request: {error}"), choose_request_id(None), "request.refused")
        if self._mangum is None:
            # One loop per sandbox, which Mangum takes for every call: the httpx client must not outlive it.
            asyncio.set_event_loop(asyncio.new_event_loop())
            self._mangum = Mangum(
                self._build_app(), lifespan="off", text_mime_types=["text/", "application/json", PROBLEM_TYPE]
            )
        try:
            return self._mangum(dict(event), context)
        except Exception as error:  # noqa: BLE001  Mangum reads more of an event than we do, and trusts it
            return refuse(
                RequestInvalid(f"not a request: {type(error).__name__}"), request.request_id, "request.refused"
            )


def _build_from_environment() -> FastAPI:
    settings = Settings.from_environment()
    start_logging(metrics_stage=settings.doorkey_metrics_stage)
    return build(settings, build_clients(settings))


handler = ApiEntry(_build_from_environment)
