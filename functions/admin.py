"""Lambda: an operator asked.

The surprising thing: the person's own token opens nothing here, however much of an admin they are. It only shows who
asks; the work is done with the service key, and noted under their name. So there is no other rung. See
docs/decisions/0022.
"""

from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, Header, Query, Request

from functions.accounts import administration
from functions.accounts.store import get_account
from functions.clients.outside import Clients, build_clients
from functions.credits import store as credits_store
from functions.kit.clock import Clock, system_clock
from functions.kit.errors import ProfileNotFound
from functions.kit.observability import start_logging
from functions.kit.settings import Settings
from functions.metering.drift_pages import DriftPage, DriftQuery, page_of_drift
from functions.plans import store as plans_store
from functions.web.application import OPERATOR_TOKEN, USER_TOKEN, ApplicationEntry, create_application
from functions.web.operators import Operators
from functions.web.sessions import Sessions

PREFIX = "/v1/admin"


def build(settings: Settings, clients: Clients, clock: Clock = system_clock) -> FastAPI:
    """The application for these settings; tests pass their own clients."""
    jwt_secret = settings.supabase_jwt_secret
    sessions = Sessions(
        issuer=f"{settings.supabase_url}/auth/v1",
        fetch_jwks=clients.supabase.fetch_jwks,
        hs256_secret=jwt_secret.get_secret_value() if jwt_secret else None,
    )
    operators = Operators(sessions, settings.doorkey_operator_token_sha256)
    app = create_application(
        "doorkey for operators",
        "Users, credits, plans and reports.",
        list(settings.doorkey_allowed_origins),
        openapi_url=f"{PREFIX}/openapi.json",
    )

    async def current_actor(
        request: Request,
        # For the API's description alone; the header is read and judged by `operators`.
        _user: Annotated[object, Depends(USER_TOKEN)],
        _operator: Annotated[object, Depends(OPERATOR_TOKEN)],
    ) -> str:
        return await operators.actor(request.headers.get("authorization"))

    def idempotency_key(
        key: Annotated[
            str | None, Header(alias="idempotency-key", description="Required. 1 to 180 characters.")
        ] = None,
    ) -> str:
        return administration.read_idempotency_key(key)

    Actor = Annotated[str, Depends(current_actor)]  # noqa: N806  types, used only here
    Key = Annotated[str, Depends(idempotency_key)]  # noqa: N806

    @app.get(f"{PREFIX}/users/{{user_id}}", summary="A user: profile, balance, key, and where they stand")
    async def user(user_id: UUID, _: Actor) -> administration.Account:
        account = await get_account(clients.supabase, user_id)
        if account is None:
            raise ProfileNotFound(str(user_id))
        return administration.account_of(account)

    @app.post(f"{PREFIX}/users/{{user_id}}/credits", summary="Give a user credits, or take them")
    async def post_credits(
        user_id: UUID, actor: Actor, key: Key, wish: administration.CreditsWish, request: Request
    ) -> administration.PostedCredits:
        posting = await credits_store.post(
            clients.supabase,
            user_id,
            type=wish.type,
            amount_micros=wish.amount_micros,
            idempotency_key=key,
            reason=wish.reason,
            actor=actor,
            expires_at=wish.expires_at,
            request_id=request.state.request_id,
        )
        return administration.PostedCredits.model_validate(posting, from_attributes=True)

    @app.post(f"{PREFIX}/users/{{user_id}}/plan", summary="Put a user on another plan")
    async def change_plan(
        user_id: UUID, actor: Actor, key: Key, wish: administration.PlanWish, request: Request
    ) -> administration.ChangedPlan:
        change = await plans_store.change_plan(
            clients.supabase,
            user_id,
            plan_id=wish.plan,
            takes_effect=wish.when,
            idempotency_key=key,
            actor=actor,
            reason=wish.reason,
            request_id=request.state.request_id,
        )
        return administration.ChangedPlan(
            plan=change.plan_id, effective_at=change.effective_at, period_ends_at=change.period_ends_at
        )

    @app.get(f"{PREFIX}/reports/drift", summary="Ledger, receipts and OpenRouter side by side, per key of a UTC day")
    async def report_drift(_: Actor, query: Annotated[DriftQuery, Query()]) -> DriftPage:
        return await page_of_drift(clients.supabase, query, clock())

    return app


def _build_from_environment() -> FastAPI:
    settings = Settings.from_environment()
    start_logging(metrics_stage=settings.doorkey_metrics_stage)
    return build(settings, build_clients(settings))


handler = ApplicationEntry(_build_from_environment)
