"""What can be looked up afterwards: models, one generation, the account's credits, its activity.

Activity knows completed days only: what was spent today is in the keys' own usage and nowhere here
(openrouter/facts.md 2.4).
"""

import re
import uuid
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.openrouter.access import Gate
from infra.local.openrouter.answers import invalid, not_found
from infra.local.openrouter.bodies import read_whole_number
from infra.local.openrouter.catalogue import MODELS, MODELS_BY_ID
from infra.local.openrouter.money import usd
from infra.local.openrouter.usage import ACTIVITY_DAYS, UsageStore
from infra.local.openrouter.windows import Windows

MODELS_PER_PAGE = 500
MAX_MODELS_PER_PAGE = 1_000
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
# Keys of a generation that the simulated models never have anything to say about.
_ALWAYS_NULL = (
    "app_id",
    "cache_discount",
    "moderation_latency",
    "native_tokens_completion_images",
    "num_fetches",
    "num_input_audio_prompt",
    "num_media_completion",
    "num_media_prompt",
    "num_search_results",
    "preset_id",
    "provider_responses",
    "request_id",
    "response_cache_source_id",
    "router",
    "service_tier",
    "session_id",
    "upstream_id",
    "web_search_engine",
)


class ReportsApi:
    """The routes that only read."""

    def __init__(
        self,
        gate: Gate,
        usage: UsageStore,
        clock: Callable[[], datetime],
        credits_usd: Decimal,
        base_path: str,
    ) -> None:
        self._gate = gate
        self._usage = usage
        self._clock = clock
        self._credits_usd = credits_usd
        self._base_path = base_path

    def routes(self) -> list[Route]:
        """All of them are GET."""
        return [
            Route("/models", self.models),
            Route("/generation", self.generation),
            Route("/credits", self.credits),
            Route("/activity", self.activity),
        ]

    async def models(self, request: Request) -> Response:
        """GET /models: needs no key; paged by `offset` and `limit`, other filters are ignored."""
        offset = read_whole_number(request.query_params, "offset", 0, len(MODELS))
        limit = read_whole_number(request.query_params, "limit", MODELS_PER_PAGE, MAX_MODELS_PER_PAGE)
        if limit < 1:
            raise invalid("limit must be at least 1")
        end = offset + limit
        following = f"{self._base_path}/models?offset={end}&limit={limit}"
        return JSONResponse(
            {
                "data": [model.shown(self._base_path) for model in MODELS[offset:end]],
                "links": {"next": following if end < len(MODELS) else None},
                "total_count": len(MODELS),
            }
        )

    async def generation(self, request: Request) -> Response:
        """GET /generation?id=: for the key that made it; for every other one it doesn't exist."""
        key = self._gate.identify(request)
        generation_id = request.query_params.get("id", "")
        if not generation_id:
            raise invalid("id is required")
        row = None if key is None else self._usage.find(generation_id, key.hash)
        if row is None:
            raise not_found()
        tokens = {
            f"{prefix}tokens_{part}": row[f"{part}_tokens"]
            for prefix in ("", "native_")
            for part in ("prompt", "completion")
        }
        plain = ("id", "created_at", "model", "finish_reason", "external_user", "http_referer")
        data: dict[str, Any] = {
            **dict.fromkeys(_ALWAYS_NULL),
            **{field: row[field] for field in plain},
            **tokens,
            "native_tokens_reasoning": 0,
            "native_tokens_cached": 0,
            "native_finish_reason": row["finish_reason"],
            "total_cost": usd(row["nanos"]),
            "usage": usd(row["nanos"]),
            "upstream_inference_cost": usd(row["byok_nanos"]),
            "is_byok": row["byok_nanos"] > 0,
            "streamed": bool(row["streamed"]),
            "cancelled": False,
            "latency": 0,
            "generation_time": 0,
            "provider_name": MODELS_BY_ID[row["model"]].provider,
            "origin": "",
            "api_type": "completions",
            "user_agent": row["user_agent"],
            "data_region": "global",
            "workspace_id": row["workspace_id"],
        }
        return JSONResponse({"data": data})

    async def credits(self, request: Request) -> Response:
        """GET /credits: what was bought and what was spent; the balance is the difference."""
        self._gate.require_management(request)
        spent = usd(self._usage.total_nanos())
        bought = float(self._credits_usd)
        return JSONResponse({"data": {"total_credits": bought, "total_usage": spent}})

    async def activity(self, request: Request) -> Response:
        """GET /activity: per completed UTC day and model."""
        self._gate.require_management(request)
        query = request.query_params
        group_by = query.get("group_by")
        if group_by not in (None, "workspace"):
            raise invalid("group_by must be workspace")
        filters = {name: query.get(name) for name in ("date", "api_key_hash", "workspace_id")}
        if filters["date"] is not None:
            self._check_date(filters["date"])
        by_workspace = group_by == "workspace"
        rows = self._usage.activity(filters, by_workspace=by_workspace)
        return JSONResponse({"data": [_activity_item(dict(row), by_workspace) for row in rows]})

    def _check_date(self, text: str) -> None:
        today = date.fromisoformat(Windows.at(self._clock()).day)
        try:
            asked = date.fromisoformat(text) if _DATE.fullmatch(text) else None
        except ValueError:
            asked = None
        if asked is None or not today - timedelta(days=ACTIVITY_DAYS) <= asked < today:
            raise invalid(f"date must be one of the last {ACTIVITY_DAYS} completed UTC days")


def _activity_item(row: dict[str, Any], by_workspace: bool) -> dict[str, Any]:
    model = row["model"]
    item = {
        "date": row["day"],
        "model": model,
        "model_permaslug": model,
        "endpoint_id": str(uuid.uuid5(uuid.NAMESPACE_URL, model)),
        "provider_name": MODELS_BY_ID[model].provider,
        "usage": usd(row["nanos"]),
        "byok_usage_inference": usd(row["byok_nanos"]),
        "requests": row["requests"],
        "prompt_tokens": row["prompt_tokens"],
        "completion_tokens": row["completion_tokens"],
        "reasoning_tokens": 0,
        "cached_tokens": 0,
    }
    return item | {"workspace_id": row["workspace_id"]} if by_workspace else item
