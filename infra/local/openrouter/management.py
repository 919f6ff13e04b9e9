"""The keys operations, and GET /key, by which any key looks at itself.

A secret leaves this process once, in the answer that creates it (openrouter/facts.md 1.3).
"""

import sqlite3
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.faults import Faults, SimulatorFaultPlan
from infra.local.openrouter.access import Gate
from infra.local.openrouter.answers import ACCOUNT_USER_ID, invalid, not_found, read_object
from infra.local.openrouter.bodies import (
    DEFAULT_WORKSPACE_ID,
    read_changes,
    read_key_filter,
    read_new_key,
)
from infra.local.openrouter.catalogue import MODELS
from infra.local.openrouter.keys import PAGE_SIZE, Key, KeyStore, NewKey
from infra.local.openrouter.money import usd
from infra.local.openrouter.usage import UsageStore
from infra.local.openrouter.windows import resets_at

FREE_REQUESTS_PER_DAY = 1_000
HIDE_NEW_KEYS = "hide_new_keys_seconds"
KEYS_BETWEEN_PAGES = "keys_between_pages"
FREE_MODELS = frozenset(model.id for model in MODELS if model.is_free)


class ManagementApi:
    """The routes of the keys API."""

    def __init__(
        self,
        gate: Gate,
        keys: KeyStore,
        usage: UsageStore,
        clock: Callable[[], datetime],
        faults: Faults[SimulatorFaultPlan],
    ) -> None:
        self._gate = gate
        self._faults = faults
        self._keys = keys
        self._usage = usage
        self._clock = clock

    def routes(self) -> list[Route]:
        """Every path with and without its trailing slash: the documents show both."""
        return [
            Route(path + slash, endpoint, methods=[method])
            for path, endpoint, method in (
                ("/keys", self.create, "POST"),
                ("/keys", self.list_page, "GET"),
                ("/keys/{hash}", self.get, "GET"),
                ("/keys/{hash}", self.update, "PATCH"),
                ("/keys/{hash}", self.delete, "DELETE"),
                ("/key", self.current, "GET"),
                ("/auth/key", self.current, "GET"),
            )
            for slash in ("", "/")
        ]

    async def create(self, request: Request) -> Response:
        """POST /keys: 201, with the secret beside `data`, not in it."""
        self._gate.require_management(request)
        new = read_new_key(read_object(await request.body()))
        try:
            secret, key = self._keys.create(new)
        except sqlite3.IntegrityError:
            raise invalid("external.api_key is in use") from None
        return JSONResponse({"data": key.shown(), "key": secret}, 201)

    async def list_page(self, request: Request) -> Response:
        """GET /keys: one page, newest first."""
        self._gate.require_management(request)
        chosen = read_key_filter(request.query_params)
        seen_until = self._seen_until()
        if seen_until is not None and self._keys.has_made_since(seen_until) and self._faults.take(HIDE_NEW_KEYS):
            chosen = replace(chosen, made_until=seen_until)
        page = self._keys.page(chosen)
        if len(page) == PAGE_SIZE:
            self._make_others(chosen.workspace_id)
        return JSONResponse({"data": [key.shown() for key in page]})

    async def get(self, request: Request) -> Response:
        """GET /keys/{hash}."""
        self._gate.require_management(request)
        self._check_seen(request.path_params["hash"])
        return self._answer(self._keys.find(request.path_params["hash"]))

    async def update(self, request: Request) -> Response:
        """PATCH /keys/{hash}."""
        self._gate.require_management(request)
        changes = read_changes(read_object(await request.body()))
        self._check_seen(request.path_params["hash"])
        return self._answer(self._keys.change(request.path_params["hash"], changes))

    async def delete(self, request: Request) -> Response:
        """DELETE /keys/{hash}: 200 with a body, not 204."""
        self._gate.require_management(request)
        if not self._keys.delete(request.path_params["hash"]):
            raise not_found()
        return JSONResponse({"deleted": True})

    async def current(self, request: Request) -> Response:
        """GET /key: what the asking key may spend; it says neither its name nor its hash."""
        key = self._gate.identify(request)
        own = _management_key_usage() if key is None else key.shown_usage()
        budgets = [] if key is None else self._budgets(key)
        used = self._usage.count_requests_today(FREE_MODELS)
        account = {
            "is_free_tier": False,
            "is_management_key": key is None,
            "is_provisioning_key": key is None,
            "organization_id": None,
            "allowed_data_regions": ["global"],
            "budgets": budgets,
            "effective_budget": budgets[0] if budgets else None,
            "free_model_daily_requests": {
                "limit": FREE_REQUESTS_PER_DAY,
                "used": used,
                "remaining": max(0, FREE_REQUESTS_PER_DAY - used),
            },
            "rate_limit": {"requests": -1, "interval": "10s", "note": "Deprecated."},
        }
        return JSONResponse({"data": own | account})

    def _answer(self, key: Key | None) -> Response:
        if key is None:
            raise not_found()
        return JSONResponse({"data": key.shown()})

    def _seen_until(self) -> datetime | None:
        """What is younger is out of sight; None: nothing is."""
        seconds = self._faults.plan.hide_new_keys_seconds
        return self._clock() - timedelta(seconds=seconds) if seconds else None

    def _check_seen(self, key_hash: str) -> None:
        """Raises Refusal 404 for a key that is too young to be seen."""
        seen_until = self._seen_until()
        key = self._keys.find(key_hash) if seen_until is not None else None
        if (
            seen_until is not None
            and key is not None
            and not key.is_made_until(seen_until)
            and self._faults.take(HIDE_NEW_KEYS)
        ):
            raise not_found()

    def _make_others(self, workspace_id: str) -> None:
        """Keys of somebody else, between two pages: they push the rest of the list along."""
        wanted = self._faults.plan.keys_between_pages
        if not wanted or not self._faults.take(KEYS_BETWEEN_PAGES):
            return
        for _ in range(wanted):
            self._keys.create(NewKey(f"somebody-elses-{uuid.uuid4()}", workspace_id, ACCOUNT_USER_ID))

    def _budgets(self, key: Key) -> list[dict[str, Any]]:
        remaining = key.remaining_usd
        if remaining is None:
            return []
        return [
            {
                "scope": "key_limit",
                "limit_usd": key.limit_usd,
                "spend_usd": usd(key.spent_nanos),
                "remaining_usd": float(remaining),
                "reset_interval": key.limit_reset,
                "resets_at": resets_at(key.limit_reset, self._clock()),
                "include_byok": key.include_byok_in_limit,
                "budget_id": None,
                "guardrail_id": None,
            }
        ]


def _management_key_usage() -> dict[str, Any]:
    windows = ("", "_daily", "_weekly", "_monthly")
    return {
        "label": "management key",
        "limit": None,
        "limit_remaining": None,
        "limit_reset": None,
        "include_byok_in_limit": False,
        "creator_user_id": ACCOUNT_USER_ID,
        "workspace_id": DEFAULT_WORKSPACE_ID,
        "expires_at": None,
        **{kind + window: 0.0 for kind in ("usage", "byok_usage") for window in windows},
    }
