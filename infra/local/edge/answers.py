"""What clients see where Lite's answer is not hosted's.

The surprising thing: for an error class that Lite does not know it answers 500 "SUP" and drops
the SQLSTATE, so a plain `raise exception` can only be told from Postgres's own errors by the
message. The list below names the messages that must stay 500; whatever else comes as "SUP" was
raised by SQL on purpose, which is 400 P0001 on hosted. Not repairable here: `raise ... using
errcode` of a class unknown to Lite keeps its status (400) but shows P0001, and `detail` and
`hint` are lost. Sources: supabase.md 3 and 11, PostgREST's table of statuses.
"""

import re
import uuid
from datetime import UTC, datetime
from typing import Any

from infra.local.edge.database import Row

Json = dict[str, Any]

# "2026-11-20 23:17:08.21+00": a zone without minutes, which is no ISO 8601 to pydantic.
_SHORT_ZONE = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d(?:\.\d+)?)\+00(?::?00)?")

_POSTGRES_ERROR = re.compile(r"^(?:PostgresError|error): ", re.IGNORECASE)
_ENGINE_MESSAGES = (
    (re.compile(r"^canceling statement due to lock timeout"), "55P03"),
    (re.compile(r"^canceling statement due to"), "57014"),
    (re.compile(r"^terminating connection due to"), "57P01"),
    (re.compile(r"^(?:new row for relation|value for domain) .* violates check constr"), "23514"),
    (re.compile(r"^conflicting key value violates exclusion constraint"), "23P01"),
    (re.compile(r"^deadlock detected$"), "40P01"),
    (re.compile(r"^could not serialize access"), "40001"),
    (re.compile(r"^query returned no rows$"), "P0002"),
    (re.compile(r"^query returned more than one row$"), "P0003"),
    (re.compile(r"^assertion failed$"), "P0004"),
    (re.compile(r"^control reached end of function without RETURN$"), "2F005"),
    (re.compile(r"^stack depth limit exceeded$"), "54001"),
    (re.compile(r"^cannot execute .* in a read-only transaction$"), "25006"),
    (re.compile(r"^current transaction is aborted"), "25P02"),
    (re.compile(r"^cache lookup failed|^could not (?:open|read|write)"), "XX000"),
)
_STATUS_BY_SQLSTATE = {
    "23503": 409, "23505": 409, "25006": 405, "21000": 500, "53400": 500, "57P01": 503,
    "P0001": 400, "42883": 404, "42P01": 404, "42P17": 500,
}  # fmt: skip
_STATUS_BY_CLASS = {
    "08": 503, "09": 500, "0L": 403, "0P": 403, "25": 500, "28": 403, "2D": 500, "38": 500,
    "39": 500, "3B": 500, "40": 500, "53": 503, "54": 500, "55": 500, "57": 500, "58": 500,
    "F0": 500, "HV": 500, "P0": 500, "XX": 500,
}  # fmt: skip


def status_of(sqlstate: str, message: str, role: str) -> int:
    """The HTTP status that PostgREST gives a database error."""
    if sqlstate == "42501":
        return 401 if role == "anon" else 403
    if sqlstate == "22023" and message.startswith("role") and message.endswith("does not exist"):
        return 401
    return _STATUS_BY_SQLSTATE.get(sqlstate) or _STATUS_BY_CLASS.get(sqlstate[:2], 400)


def corrected_data_error(status: int, body: Json, role: str) -> tuple[int, Json]:
    """PostgREST's status, code and message for an error that the Data API's Lite answered."""
    code, message = body.get("code"), str(body.get("message", ""))
    if code == "SUP" and _POSTGRES_ERROR.match(message):
        message = _POSTGRES_ERROR.sub("", message, count=1)
        known = (sqlstate for pattern, sqlstate in _ENGINE_MESSAGES if pattern.match(message))
        code = next(known, "P0001")
        body = body | {"code": code, "message": message}
    if isinstance(code, str) and re.fullmatch(r"[0-9A-Z]{5}", code) and not code.startswith("PT"):
        status = status_of(code, message, role)
    return status, body


def timestamp(value: datetime | None) -> str | None:
    """As Auth writes it: UTC, ending in Z."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z") if value else None


def repair_timestamps(answer: Json) -> None:
    """Gives Auth's own time fields a zone that clients can parse; metadata is left alone."""
    for name, value in answer.items():
        if isinstance(value, str) and (name.endswith("_at") or name == "banned_until"):
            match = _SHORT_ZONE.fullmatch(value)
            if match:
                answer[name] = f"{match[1]}T{match[2]}Z"
    for nested in [answer.get("user"), *(answer.get("identities") or [])]:
        if isinstance(nested, dict):
            repair_timestamps(nested)


def identity_answer(identity: Row) -> Json:
    """An identity as Auth shows it: `id` is the provider's, `identity_id` its own."""
    email = {"email": identity["email"]} if identity["email"] else {}
    return {
        "identity_id": str(identity["id"]),
        "id": identity["provider_id"],
        "user_id": str(identity["user_id"]),
        "identity_data": identity["identity_data"],
        "provider": identity["provider"],
        "last_sign_in_at": timestamp(identity["last_sign_in_at"]),
        "created_at": timestamp(identity["created_at"]),
        "updated_at": timestamp(identity["updated_at"]),
    } | email


def user_answer(user: Row, identities: list[Row] | None) -> Json:
    """A user as Auth shows it; lists of users carry no identities (null)."""
    optional = {
        name: timestamp(user[name])
        for name in (
            "email_confirmed_at",
            "phone_confirmed_at",
            "confirmed_at",
            "invited_at",
            "confirmation_sent_at",
            "recovery_sent_at",
            "email_change_sent_at",
            "phone_change_sent_at",
            "last_sign_in_at",
            "banned_until",
            "deleted_at",
        )
    } | {"new_email": user["email_change"], "new_phone": user["phone_change"]}
    shown = {name: value for name, value in optional.items() if value}
    return shown | {
        "id": str(uuid.UUID(str(user["id"]))),
        "aud": user["aud"],
        "role": user["role"],
        "email": user["email"] or "",
        "phone": user["phone"] or "",
        "app_metadata": user["raw_app_meta_data"] or {},
        "user_metadata": user["raw_user_meta_data"] or {},
        "identities": None if identities is None else [identity_answer(i) for i in identities],
        "created_at": timestamp(user["created_at"]),
        "updated_at": timestamp(user["updated_at"]),
        "is_anonymous": user["is_anonymous"],
    }
