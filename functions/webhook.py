"""Lambda: a user appeared, changed or left in Supabase.

A webhook is a hint. It is refused unless it is signed, one fact is kept of it, the user id, and what is to be done is
asked of the database. So a hint that is repeated, replayed or forged by somebody with the secret does no harm.

A ping, signed like a hint, is answered with the ids of the sealing keys: that is how an operator learns with which
environment the functions run, before anything is switched that they must know.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from functions.clients.outside import Clients, build_clients
from functions.kit.clock import Clock, system_clock
from functions.kit.errors import BodyTooLarge, DoorkeyError, InternalError, MethodNotAllowed, WebhookRefused
from functions.kit.observability import logger, start_logging
from functions.kit.settings import Settings
from functions.provisioning.steps import Provisioner
from functions.web.entry import Handle, LambdaEntry
from functions.web.events import (
    Event,
    NotARequest,
    Request,
    answer,
    choose_request_id,
    problem,
    read_request,
    refuse,
)
from functions.web.signatures import SHARED_SECRET_HEADER, SignatureWrong, verify_shared_secret, verify_signature

MAX_BODY_BYTES = 256 * 1024
PING_TYPE = "PING"
EVENT_TYPES = ("INSERT", "UPDATE", "DELETE")
REFUSED = "webhook.refused"


def build(settings: Settings, clients: Clients, clock: Clock = system_clock) -> Handle:
    """The handler for these settings; tests pass their own clients and time."""
    provisioner = Provisioner.build(settings, clients)
    shared_secret = settings.doorkey_webhook_shared_secret

    def check_sender(request: Request) -> None:
        try:
            if SHARED_SECRET_HEADER in request.headers:
                verify_shared_secret(request.headers, shared_secret.get_secret_value() if shared_secret else None)
            else:
                verify_signature(request.headers, request.body, settings.webhook_secrets, now_seconds=clock())
        except SignatureWrong as error:
            raise WebhookRefused(str(error)) from None

    async def handle_request(request: Request) -> dict[str, Any]:
        if request.method != "POST":
            raise MethodNotAllowed(request.method, headers={"allow": "POST"})
        if len(request.body) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"{len(request.body)} bytes")
        check_sender(request)
        if is_ping(request.body):
            return {"outcome": "pong", "sealing_key_ids": [key.key_id for key in settings.sealing_keys]}
        user_id = read_user_id(request.body)
        if user_id is None:
            return {"outcome": "ignored"}
        outcome = await provisioner.provision(user_id, request_id=request.request_id)
        return {"outcome": outcome.value}

    async def handle(event: Event) -> dict[str, Any]:
        try:
            request = read_request(event)
        except NotARequest as error:
            return refuse(WebhookRefused(f"not a request: {error}"), choose_request_id(None), REFUSED)
        try:
            return answer(200, await handle_request(request), request.request_id)
        except DoorkeyError as error:
            return refuse(error, request.request_id, REFUSED)
        except Exception:  # noqa: BLE001  the last resort: nothing internal may leave, and the log must know
            logger.exception("webhook.failed", extra={"fields": {"request_id": request.request_id}})
            return problem(InternalError(), request.request_id)

    return handle


def is_ping(body: bytes) -> bool:
    """Whether an operator asks with which environment the functions run."""
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(payload, dict) and (payload.get("type"), payload.get("schema")) == (PING_TYPE, "doorkey")


def read_user_id(body: bytes) -> UUID | None:
    """The user a database webhook is about; None when it is about something else.

    Raises:
        WebhookRefused: it is not a database webhook, or names no user.
    """
    try:
        payload = json.loads(body)
        if (payload["schema"], payload["table"]) != ("auth", "users") or payload["type"] not in EVENT_TYPES:
            return None
        record = payload["old_record"] if payload["type"] == "DELETE" else payload["record"]
        user_id = record["id"]
        if not isinstance(user_id, str):
            raise WebhookRefused("the id is no text")
        return UUID(user_id)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WebhookRefused(f"malformed: {type(error).__name__}") from None


def _build_from_environment() -> Handle:
    settings = Settings.from_environment()
    start_logging(metrics_stage=settings.doorkey_metrics_stage)
    return build(settings, build_clients(settings))


handler = LambdaEntry(_build_from_environment)
