"""Lambda: a signed-in user asked; and the signup door.

A person's own data is read with the person's own token, under row level security: a mistake here can't show them
somebody else's. See docs/decisions/0004.
"""

from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, FastAPI, Query, Request, Response
from pydantic import BaseModel
from starlette.responses import JSONResponse

from functions.accounts import answers, transactions, usage
from functions.accounts.arrivals import Arrivals, is_pending
from functions.accounts.store import request_rotation, reveal_key
from functions.clients.outside import Clients, build_clients
from functions.health.checks import Check, worst_of
from functions.health.examination import examine
from functions.kit.clock import system_clock
from functions.kit.errors import BodyTooLarge, ProfileNotFound
from functions.kit.observability import start_logging
from functions.kit.settings import Settings
from functions.provisioning.steps import Provisioner
from functions.web import csv_text
from functions.web.application import (
    OPERATOR_TOKEN,
    USER_TOKEN,
    ApplicationEntry,
    create_application,
    require_operator,
)
from functions.web.routes import LEGACY_BALANCE
from functions.web.sessions import Session, Sessions

MAX_SIGNUP_BODY_BYTES = 64 * 1024
# What Auth is told of the caller's page, besides the body. Not its User-Agent: the gateway refuses a secret key that
# seems to come from a browser (supabase.md 3).
SIGNUP_HEADERS = ("x-client-info", "x-supabase-api-version")
PENDING_RETRY_SECONDS = 2

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
    app = create_application(
        "doorkey", "Profile, credits and OpenRouter key of the signed-in user.", list(settings.doorkey_allowed_origins)
    )

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

    @app.get(
        "/v1/credits/transactions",
        summary="What happened to my credits, newest first",
        response_model=transactions.TransactionPage,
        responses={200: {"content": {csv_text.MEDIA_TYPE: {}}}},
    )
    async def my_transactions(
        session: Annotated[Session, Depends(current_session)],
        query: Annotated[transactions.TransactionQuery, Query()],
        request: Request,
    ) -> transactions.TransactionPage | Response:
        page = await transactions.list_transactions(clients.supabase, session, query)
        if not transactions.wants_csv(query, request.headers.get("accept", "")):
            return page
        following = {transactions.NEXT_CURSOR_HEADER: page.next_cursor} if page.next_cursor else {}
        return Response(transactions.csv_of(page), media_type=csv_text.MEDIA_TYPE, headers=following)

    @app.get("/v1/usage", summary="What I was charged, by day and model, the newest day first")
    async def my_usage(
        session: Annotated[Session, Depends(current_session)], query: Annotated[usage.UsageQuery, Query()]
    ) -> usage.UsagePage:
        return await usage.list_usage(clients.supabase, session, query, system_clock())

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
        require_operator(request, settings.doorkey_operator_token_sha256)
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


def _build_from_environment() -> FastAPI:
    settings = Settings.from_environment()
    start_logging(metrics_stage=settings.doorkey_metrics_stage)
    return build(settings, build_clients(settings))


handler = ApplicationEntry(_build_from_environment)
