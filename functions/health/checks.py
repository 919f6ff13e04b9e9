"""What is wrong, and how to mend it. The API's /health/ready says it; the doctor and the console will say the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from pydantic import BaseModel, Field

from functions.clients.openrouter import ManagementKeyRejected, OpenRouter
from functions.clients.supabase import ServiceKeyRejected, Supabase
from functions.health.store import get_health
from functions.kit.errors import DoorkeyError

# A row that is due longer than this was missed by the hint and by the sweep.
LATE_SECONDS = 300


class Check(BaseModel):
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "warning", "broken"]
    finding: str = Field(description="What was found, in a sentence.")
    mend: str | None = Field(default=None, description="What to do about it.")


async def check_database(database: Supabase) -> list[Check]:
    """The service key, the migrations, the triggers, the hints and the queue: one call."""
    try:
        health = await get_health(database)
    except ServiceKeyRejected as error:
        return [_broken("database", error, "Set SUPABASE_SECRET_KEY to a secret key of this project.")]
    except DoorkeyError as error:
        return [_broken("database", error, "Check SUPABASE_URL, and that the migrations are applied.")]
    checks = [Check(name="database", state="ok", finding="The database answers to the secret key.")]
    checks.append(
        Check(name="triggers", state="ok", finding="The triggers on auth.users are in place.")
        if health["are_triggers_present"]
        else Check(
            name="triggers",
            state="broken",
            finding="A trigger on auth.users is missing or switched off: signups go unnoticed.",
            mend="Apply the migrations again.",
        )
    )
    if not health["is_pg_net_present"]:
        hints = Check(
            name="hints",
            state="warning",
            finding="pg_net is not installed: nobody hears of a signup until the next sweep.",
            mend="Run `create extension pg_net with schema extensions`.",
        )
    elif not health["is_webhook_configured"]:
        hints = Check(
            name="hints",
            state="warning",
            finding="The webhook's address or secret is not stored in the database.",
            mend="Run `doorkey connect`.",
        )
    else:
        hints = Check(name="hints", state="ok", finding="The database can ring.")
    checks.append(hints)
    late_seconds = health["oldest_due_seconds"]
    if health["is_any_dead"]:
        queue = Check(
            name="queue",
            state="warning",
            finding="Some users' provisioning was given up.",
            mend="See doorkey.provisioning where state = 'dead'.",
        )
    elif late_seconds > LATE_SECONDS:
        queue = Check(
            name="queue",
            state="warning",
            finding=f"The oldest user who is due has waited {late_seconds} seconds.",
            mend="Check that the webhook's address is right and the functions run.",
        )
    else:
        queue = Check(name="queue", state="ok", finding=f"The longest wait is {late_seconds} seconds.")
    return [*checks, queue]


async def check_jwks(fetch_jwks: Callable[[], Awaitable[object]], is_hs256_configured: bool) -> list[Check]:
    """Whether access tokens can be verified."""
    try:
        document = await fetch_jwks()
    except DoorkeyError as error:
        return [_broken("access_tokens", error, "Check SUPABASE_URL.")]
    if isinstance(document, dict) and document.get("keys"):
        return [Check(name="access_tokens", state="ok", finding="Auth publishes its signing keys.")]
    if is_hs256_configured:
        return [Check(name="access_tokens", state="ok", finding="Access tokens are verified with the JWT secret.")]
    return [
        Check(
            name="access_tokens",
            state="broken",
            finding="Auth publishes no signing keys, so nobody's access token can be verified.",
            mend="Switch the project to asymmetric signing keys, or set SUPABASE_JWT_SECRET.",
        )
    ]


async def check_openrouter(openrouter: OpenRouter) -> list[Check]:
    """Whether keys can be made."""
    try:
        await openrouter.check()
    except ManagementKeyRejected as error:
        return [_broken("openrouter", error, "Set OPENROUTER_MANAGEMENT_KEY to a valid management key.")]
    except DoorkeyError as error:
        return [_broken("openrouter", error, "Check OPENROUTER_BASE_URL and OpenRouter's status page.")]
    return [Check(name="openrouter", state="ok", finding="OpenRouter accepts the management key.")]


async def check_all(database: Supabase, openrouter: OpenRouter, is_hs256_configured: bool) -> list[Check]:
    """Every check, side by side."""
    groups = await asyncio.gather(
        check_database(database),
        check_jwks(database.fetch_jwks, is_hs256_configured),
        check_openrouter(openrouter),
    )
    return [check for group in groups for check in group]


def _broken(name: str, error: DoorkeyError, mend: str) -> Check:
    return Check(name=name, state="broken", finding=error.sentence, mend=mend)
