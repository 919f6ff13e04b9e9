"""What a client may send to the keys operations: strict in known fields, deaf to unknown ones.

An omitted field and an explicit null are different things; only `limit`, `limit_reset`,
`expires_at` and `creator_user_id` may be null (openrouter/facts.md 1.3, 1.6).
"""

import math
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import QueryParams

from infra.local.openrouter.answers import ACCOUNT_USER_ID, invalid
from infra.local.openrouter.keys import KeyFilter, NewKey

DEFAULT_WORKSPACE_ID = "00000000-0000-4000-8000-000000000001"
LIMIT_RESETS = ("daily", "weekly", "monthly")
MAX_EXTERNAL_USER_LENGTH = 512
MIN_EXTERNAL_SECRET_LENGTH = 32
MIN_EXTERNAL_SECRET_DISTINCT = 10  # "enough entropy" is all that's documented
MAX_OFFSET = 2**53

_UTC_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|\+00:00)", re.ASCII)
_OFFSET = re.compile(r"\d{1,16}", re.ASCII)


def read_new_key(body: Mapping[str, Any]) -> NewKey:
    """The body of POST /keys. Raises Refusal 400."""
    if "name" not in body:
        raise invalid("name is required")
    name = read_text(body["name"], "name")
    if not name:
        raise invalid("name must not be empty")
    creator = body.get("creator_user_id")
    if creator is not None and not read_text(creator, "creator_user_id"):
        raise invalid("creator_user_id must not be empty")
    external_user, external_secret = _read_external(body)
    return NewKey(
        name=name,
        workspace_id=_read_workspace_id(body.get("workspace_id", DEFAULT_WORKSPACE_ID)),
        creator_user_id=creator or ACCOUNT_USER_ID,
        limit_usd=_read_limit(body.get("limit")),
        limit_reset=_read_limit_reset(body.get("limit_reset")),
        include_byok_in_limit=_read_flag(body.get("include_byok_in_limit", False), "include_byok_in_limit"),
        expires_at=_read_expires_at(body.get("expires_at")),
        external_user=external_user,
        external_secret=external_secret,
    )


def read_changes(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of PATCH /keys/{hash}, as columns: only what was sent. Raises Refusal 400.

    `expires_at` is ignored like any unknown field: it can't be changed (openrouter/facts.md 1.6).
    """
    readers: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "name": ("name", lambda value: read_text(value, "name")),
        "disabled": ("disabled", lambda value: _read_flag(value, "disabled")),
        "limit": ("limit_usd", _read_limit),
        "limit_reset": ("limit_reset", _read_limit_reset),
        "include_byok_in_limit": (
            "include_byok_in_limit",
            lambda value: _read_flag(value, "include_byok_in_limit"),
        ),
        "workspace_id": ("workspace_id", _read_workspace_id),
    }
    return {column: read(body[field]) for field, (column, read) in readers.items() if field in body}


def read_key_filter(query: QueryParams) -> KeyFilter:
    """The query of GET /keys. Raises Refusal 400."""
    return KeyFilter(
        workspace_id=_read_workspace_id(query.get("workspace_id", DEFAULT_WORKSPACE_ID)),
        include_disabled=query.get("include_disabled", "").lower() == "true",
        include_expired=query.get("include_expired", "").lower() == "true",
        offset=read_whole_number(query, "offset", 0, MAX_OFFSET),
    )


def read_whole_number(query: QueryParams, name: str, default: int, maximum: int) -> int:
    """A number of a query string, 0 to `maximum`. Raises Refusal 400."""
    text = query.get(name, "") or str(default)
    if not _OFFSET.fullmatch(text) or int(text) > maximum:
        raise invalid(f"{name} must be a whole number from 0 to {maximum}")
    return int(text)


def read_text(value: object, name: str) -> str:
    """A string that can be stored. Raises Refusal 400."""
    if not isinstance(value, str):
        raise invalid(f"{name} must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(f"{name} has half a surrogate pair") from None
    return value


def _read_flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise invalid(f"{name} must be true or false")
    return value


def _read_limit(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid("limit must be a number or null")
    try:
        limit_usd = float(value)
    except OverflowError:
        limit_usd = math.inf
    if not math.isfinite(limit_usd) or limit_usd < 0:
        raise invalid("limit must be at least 0")
    return limit_usd


def _read_limit_reset(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in LIMIT_RESETS:
        raise invalid("limit_reset must be daily, weekly, monthly or null")
    return value


def _read_workspace_id(value: object) -> str:
    try:
        return str(uuid.UUID(read_text(value, "workspace_id")))
    except ValueError:
        raise invalid("workspace_id must be a UUID") from None


def _read_expires_at(value: object) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _UTC_MOMENT.fullmatch(value):
        raise invalid("expires_at must be UTC with seconds, as 2030-01-31T12:00:00Z")
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        raise invalid("expires_at is not a moment in time") from None


def _read_external(body: Mapping[str, Any]) -> tuple[str | None, str | None]:
    if "external" not in body:
        return None, None
    external = body["external"]
    if not isinstance(external, dict):
        raise invalid("external must be an object")
    user = read_text(external.get("user"), "external.user").strip()
    if not 1 <= len(user) <= MAX_EXTERNAL_USER_LENGTH or "\0" in user:
        raise invalid(f"external.user must have 1 to {MAX_EXTERNAL_USER_LENGTH} characters, no NUL")
    if "api_key" not in external:
        return user, None
    secret = read_text(external["api_key"], "external.api_key")
    too_short = len(secret) < MIN_EXTERNAL_SECRET_LENGTH
    if too_short or len(set(secret)) < MIN_EXTERNAL_SECRET_DISTINCT:
        raise invalid("external.api_key must have at least 32 characters and enough entropy")
    return user, secret
