"""Auth's admin API, which Lite lacks: create, list, get, update, ban, soft-delete, delete users.

The surprising thing: an update merges metadata, and null removes a key; everything else replaces.
Wordings, order of steps and statuses are those of Auth (supabase.md 2 and 3).
"""

import json
import re
import secrets
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import psycopg
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from infra.local.edge import users
from infra.local.edge.answers import Json, user_answer
from infra.local.edge.database import AuthDatabase, Cursor, Row
from infra.local.edge.refusals import AuthRefused, invalid

DEFAULT_PER_PAGE = 50
MAX_PER_PAGE = 1000
MIN_PASSWORD_LENGTH = 6
MAX_PASSWORD_BYTES = 72
GENERATED_PASSWORD_BYTES = 48

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_E164 = re.compile(r"[1-9][0-9]{1,14}")
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}


def ban_duration(text: str) -> timedelta:
    """A duration as Auth reads it ("24h", "1h30m", "none"). Raises AuthRefused."""
    if text == "none":
        return timedelta(0)
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise invalid(f'invalid format for ban duration: time: invalid duration "{text}"')
    return timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in parts))


async def read_object(request: Request) -> Json:
    """The body as a JSON object; an empty body is an empty object. Raises AuthRefused."""
    body = await request.body()
    try:
        parsed = json.loads(body) if body else {}
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise AuthRefused(400, "bad_json", "Could not parse request body as JSON")
    return parsed


@dataclass(frozen=True)
class UserParams:
    """What an admin call says about a user; absent and null are the same."""

    user_id: str
    email: str
    phone: str
    role: str
    password: str | None
    email_confirm: bool
    phone_confirm: bool
    user_metadata: dict[str, Any] | None
    app_metadata: dict[str, Any] | None
    ban: timedelta | None

    @classmethod
    def read(cls, body: Json) -> "UserParams":
        """Validates as Auth does. Raises AuthRefused."""

        def typed(name: str, kind: type, default: Any) -> Any:
            value = body.get(name)
            if value is None:
                return default
            if not isinstance(value, kind):
                raise AuthRefused(400, "bad_json", f"Could not parse request body: bad {name}")
            return value

        email = typed("email", str, "").lower()
        if email and not _EMAIL.fullmatch(email):
            raise invalid("Unable to validate email address: invalid format")
        phone = typed("phone", str, "").removeprefix("+").replace(" ", "")
        if phone and not _E164.fullmatch(phone):
            raise invalid("Invalid phone number format (E.164 required)")
        password = typed("password", str, None)
        if password is not None and len(password.encode()) > MAX_PASSWORD_BYTES:
            raise invalid("Password cannot be longer than 72 characters")
        duration = typed("ban_duration", str, "")
        return cls(
            user_id=typed("id", str, ""),
            email=email,
            phone=phone,
            role=typed("role", str, ""),
            password=password,
            email_confirm=typed("email_confirm", bool, False),
            phone_confirm=typed("phone_confirm", bool, False),
            user_metadata=typed("user_metadata", dict, None),
            app_metadata=typed("app_metadata", dict, None),
            ban=ban_duration(duration) if duration else None,
        )


class AdminApi:
    """The endpoints under /auth/v1/admin/users; the caller has been found to be service_role."""

    def __init__(self, database: AuthDatabase) -> None:
        self._database = database

    async def create(self, request: Request) -> Response:
        """POST /admin/users."""
        params = UserParams.read(await read_object(request))
        if not params.email and not params.phone:
            raise invalid("Cannot create a user without either an email or phone")
        user_id = _new_id(params.user_id)
        await self._refuse_duplicates(params)
        password = params.password or secrets.token_urlsafe(GENERATED_PASSWORD_BYTES)[:64]
        password_hash = await self._database.hash_password(password)
        try:
            async with self._database.transaction() as cursor:
                await _insert_as_auth(cursor, user_id, params, password_hash)
                answer = await _answer(cursor, user_id)
        except psycopg.Error as error:
            raise _failed("Database error creating new user") from error
        return JSONResponse(answer)

    async def list(self, request: Request) -> Response:
        """GET /admin/users?page=&per_page=, newest first, 50 a page."""
        page = _positive(request, "page", 1)
        per_page = min(_positive(request, "per_page", DEFAULT_PER_PAGE), MAX_PER_PAGE)
        async with self._database.transaction() as cursor:
            rows, total = await users.page(cursor, limit=per_page, offset=(page - 1) * per_page)
        last = -(-total // per_page)

        def link(number: int, relation: str) -> str:
            query = urlencode({"page": number, "per_page": per_page})
            return f'<{request.url.path}?{query}>; rel="{relation}"'

        links = [link(page + 1, "next")] if last > page else []
        headers = {"Link": ", ".join([*links, link(last, "last")]), "X-Total-Count": str(total)}
        body = {"users": [user_answer(row, None) for row in rows], "aud": users.AUDIENCE}
        return JSONResponse(body, headers=headers)

    async def get(self, request: Request) -> Response:
        """GET /admin/users/{user_id}."""
        async with self._database.transaction() as cursor:
            user = await _load(cursor, request)
            return JSONResponse(await _answer(cursor, user["id"]))

    async def update(self, request: Request) -> Response:
        """PUT /admin/users/{user_id}."""
        params = UserParams.read(await read_object(request))
        password_hash = None
        if params.password is not None:
            if len(params.password) < MIN_PASSWORD_LENGTH:
                minimum = f"Password should be at least {MIN_PASSWORD_LENGTH} characters."
                raise AuthRefused(422, "weak_password", minimum)
            password_hash = await self._database.hash_password(params.password)
        try:
            async with self._database.transaction() as cursor:
                user = await _load(cursor, request, lock=True)
                await _update_as_auth(cursor, user, params, password_hash)
                answer = await _answer(cursor, user["id"])
        except psycopg.Error as error:
            raise _failed("Error updating user") from error
        return JSONResponse(answer)

    async def delete(self, request: Request) -> Response:
        """DELETE /admin/users/{user_id}; body {"should_soft_delete": true} keeps the row."""
        soft = (await read_object(request)).get("should_soft_delete") is True
        try:
            async with self._database.transaction() as cursor:
                user = await _load(cursor, request, lock=True)
                if not soft:
                    await users.delete(cursor, user["id"])
                elif user["deleted_at"] is None:
                    await users.soft_delete(cursor, user)
        except psycopg.Error as error:
            kind = "Error soft deleting user" if soft else "Database error deleting user"
            raise _failed(kind) from error
        return JSONResponse({})

    async def _refuse_duplicates(self, params: UserParams) -> None:
        async with self._database.transaction() as cursor:
            if params.email and await users.is_taken(cursor, "email", params.email):
                message = "A user with this email address has already been registered"
                raise AuthRefused(422, "email_exists", message)
            if params.phone and await users.is_taken(cursor, "phone", params.phone):
                message = "Phone number already registered by another user"
                raise AuthRefused(422, "phone_exists", message)


def _failed(message: str) -> AuthRefused:
    return AuthRefused(500, "unexpected_failure", message)


def _new_id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text) if text else uuid.uuid4()
    except ValueError:
        raise invalid("ID must conform to the uuid v4 format") from None


def _positive(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit():
        raise invalid(f"Bad Pagination Parameters: invalid {name}")
    return max(int(text), 1)


async def _load(cursor: Cursor, request: Request, *, lock: bool = False) -> Row:
    try:
        user_id = uuid.UUID(request.path_params["user_id"])
    except ValueError:
        raise AuthRefused(404, "validation_failed", "user_id must be an UUID") from None
    user = await users.find(cursor, user_id, lock=lock)
    if user is None:
        raise AuthRefused(404, "user_not_found", "User not found")
    return user


async def _answer(cursor: Cursor, user_id: uuid.UUID) -> Json:
    user = await users.find(cursor, user_id)
    if user is None:
        raise _failed("Database error loading user")
    return user_answer(user, await users.find_identities(cursor, user_id))


async def _insert_as_auth(cursor: Cursor, user_id: uuid.UUID, params: UserParams, password_hash: str) -> None:
    providers = [name for name in ("email", "phone") if getattr(params, name)]
    await users.insert(
        cursor,
        user_id=user_id,
        email=params.email or None,
        phone=params.phone or None,
        password_hash=password_hash,
        app_metadata={"provider": providers[0], "providers": providers},
        user_metadata=params.user_metadata or {},
    )
    for provider in providers:
        address = getattr(params, provider)
        await users.set_identity(cursor, user_id, provider, address=address, verified=False)
    await users.update(cursor, user_id, role=params.role or "authenticated")
    if params.app_metadata is not None:
        await users.merge_metadata(cursor, user_id, "raw_app_meta_data", params.app_metadata)
    if params.email_confirm:
        await users.confirm_email(cursor, user_id)
    if params.phone_confirm:
        await users.confirm_phone(cursor, user_id)
    if params.ban is not None:
        await users.ban(cursor, user_id, params.ban)


async def _update_as_auth(cursor: Cursor, user: Row, params: UserParams, password_hash: str | None) -> None:
    user_id: uuid.UUID = user["id"]
    if params.role:
        await users.update(cursor, user_id, role=params.role)
    if params.email_confirm:
        await users.confirm_email(cursor, user_id)
    if params.phone_confirm:
        await users.confirm_phone(cursor, user_id)
    if password_hash is not None:
        await users.update(cursor, user_id, encrypted_password=password_hash)
    for provider, confirmed in (("email", params.email_confirm), ("phone", params.phone_confirm)):
        address = getattr(params, provider)
        if not address:
            continue
        await users.set_identity(cursor, user_id, provider, address=address, verified=confirmed)
        if user["is_anonymous"] and confirmed:
            await users.update(cursor, user_id, is_anonymous=False)
        await users.update(cursor, user_id, **{provider: address})
    if params.app_metadata is not None:
        await users.merge_metadata(cursor, user_id, "raw_app_meta_data", params.app_metadata)
    if params.user_metadata is not None:
        await users.merge_metadata(cursor, user_id, "raw_user_meta_data", params.user_metadata)
    if params.ban is not None:
        await users.ban(cursor, user_id, params.ban)
