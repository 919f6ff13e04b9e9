"""Auth's users in SQL: what Auth writes for each admin call, in the order in which it writes it.

The surprising thing: Auth inserts the row first (role empty, not confirmed, custom app_metadata
not there yet) and fills the rest by UPDATEs of the same transaction, so a trigger AFTER INSERT
sees an unfinished user (supabase.md 2). A local stack that inserts the finished row would let
triggers pass that break on hosted. Each function takes the cursor of a running transaction.
"""

import base64
import hashlib
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from infra.local.edge.database import Cursor, Row

AUDIENCE = "authenticated"
OBFUSCATED_PHONE_LENGTH = 15

# Lite stores JSON as a string inside jsonb; both forms are read.
_JSON_COLUMN = "case jsonb_typeof({0}) when 'string' then ({0} #>> '{{}}')::jsonb else {0} end as {0}"
_USER_COLUMNS = ", ".join(
    [
        "id, aud, role, email, phone, encrypted_password, email_confirmed_at, phone_confirmed_at",
        "confirmed_at, invited_at, confirmation_sent_at, recovery_sent_at, last_sign_in_at",
        "email_change, email_change_sent_at, phone_change, phone_change_sent_at, banned_until",
        "coalesce(banned_until > now(), false) as is_banned, deleted_at, is_anonymous",
        "created_at, updated_at",
        _JSON_COLUMN.format("raw_app_meta_data"),
        _JSON_COLUMN.format("raw_user_meta_data"),
    ]
)
_IDENTITY_COLUMNS = ", ".join(
    [
        "id, provider, provider_id, user_id, last_sign_in_at, created_at, updated_at, email",
        _JSON_COLUMN.format("identity_data"),
    ]
)


async def find(cursor: Cursor, user_id: uuid.UUID, *, lock: bool = False) -> Row | None:
    """The user's row, or None. With `lock` until the transaction ends."""
    statement = f"select {_USER_COLUMNS} from auth.users where id = %s"  # noqa: S608
    await cursor.execute(statement + (" for update" if lock else ""), [user_id])
    return await cursor.fetchone()


async def find_identities(cursor: Cursor, user_id: uuid.UUID) -> list[Row]:
    """The user's identities, oldest first."""
    statement = (
        f"select {_IDENTITY_COLUMNS} from auth.identities "  # noqa: S608
        "where user_id = %s order by created_at, id"
    )
    await cursor.execute(statement, [user_id])
    return await cursor.fetchall()


async def page(cursor: Cursor, *, limit: int, offset: int) -> tuple[list[Row], int]:
    """One page of users, newest first, and how many there are in all."""
    await cursor.execute(
        f"select {_USER_COLUMNS} from auth.users where aud = %s "  # noqa: S608
        "order by created_at desc, id limit %s offset %s",
        [AUDIENCE, limit, offset],
    )
    rows = await cursor.fetchall()
    await cursor.execute("select count(*) as total from auth.users where aud = %s", [AUDIENCE])
    total = await cursor.fetchone()
    return rows, int(total["total"]) if total else 0


async def is_taken(cursor: Cursor, column: str, value: str) -> bool:
    """Whether another user has this e-mail or phone."""
    statement = sql.SQL("select exists (select from auth.users where {} = %s) as taken")
    await cursor.execute(statement.format(sql.Identifier(column)), [value])
    row = await cursor.fetchone()
    return bool(row and row["taken"])


async def insert(
    cursor: Cursor,
    *,
    user_id: uuid.UUID,
    email: str | None,
    phone: str | None,
    password_hash: str,
    app_metadata: dict[str, Any],
    user_metadata: dict[str, Any],
    is_anonymous: bool = False,
) -> None:
    """The bare row, as Auth first inserts it: no role, nothing confirmed."""
    await cursor.execute(
        "insert into auth.users (id, aud, role, email, phone, encrypted_password, "
        "raw_app_meta_data, raw_user_meta_data, is_anonymous, created_at, updated_at) "
        "values (%s, %s, '', %s, %s, %s, %s, %s, %s, now(), now())",
        [
            user_id,
            AUDIENCE,
            email,
            phone,
            password_hash,
            Jsonb(app_metadata),
            Jsonb(user_metadata),
            is_anonymous,
        ],
    )


async def update(cursor: Cursor, user_id: uuid.UUID, **columns: object) -> None:
    """One UPDATE of the named columns, as Auth does one per step."""
    assignments = sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in columns)
    statement = sql.SQL("update auth.users set {}, updated_at = now() where id = %s")
    values = [Jsonb(value) if isinstance(value, dict) else value for value in columns.values()]
    await cursor.execute(statement.format(assignments), [*values, user_id])


def merged(current: dict[str, Any] | None, changes: dict[str, Any]) -> dict[str, Any]:
    """Metadata after a change: keys are merged, and null removes a key."""
    both = (current or {}) | changes
    return {key: value for key, value in both.items() if value is not None}


async def merge_metadata(cursor: Cursor, user_id: uuid.UUID, column: str, changes: dict[str, Any]) -> None:
    """Merges into raw_app_meta_data or raw_user_meta_data."""
    user = await find(cursor, user_id, lock=True)
    if user is not None:
        await update(cursor, user_id, **{column: merged(user[column], changes)})


async def confirm_email(cursor: Cursor, user_id: uuid.UUID) -> None:
    """Confirms now; Auth also notes it in the user's metadata."""
    await update(cursor, user_id, confirmation_token=None, email_confirmed_at=datetime.now(UTC))
    await merge_metadata(cursor, user_id, "raw_user_meta_data", {"email_verified": True})


async def confirm_phone(cursor: Cursor, user_id: uuid.UUID) -> None:
    """Confirms now."""
    await update(cursor, user_id, confirmation_token=None, phone_confirmed_at=datetime.now(UTC))


async def ban(cursor: Cursor, user_id: uuid.UUID, duration: timedelta) -> None:
    """Bans for `duration` from now; a duration of zero lifts the ban."""
    await update(cursor, user_id, banned_until=datetime.now(UTC) + duration if duration else None)


async def set_identity(cursor: Cursor, user_id: uuid.UUID, provider: str, *, address: str, verified: bool) -> None:
    """Creates the e-mail or phone identity, or gives the existing one its new address."""
    data = {provider: address, f"{provider}_verified": verified}
    identities = await find_identities(cursor, user_id)
    existing = next((i for i in identities if i["provider"] == provider), None)
    if existing is not None:
        await cursor.execute(
            "update auth.identities set identity_data = %s, updated_at = now() where id = %s",
            [Jsonb(merged(existing["identity_data"], data)), existing["id"]],
        )
        return
    claims = {"sub": str(user_id), "email_verified": False, "phone_verified": False} | data
    await cursor.execute(
        "insert into auth.identities (id, provider, provider_id, user_id, identity_data, "
        "last_sign_in_at, created_at, updated_at) values (%s, %s, %s, %s, %s, now(), now(), now())",
        [uuid.uuid4(), provider, str(user_id), user_id, Jsonb(claims)],
    )


async def end_sessions(cursor: Cursor, user_id: uuid.UUID) -> None:
    """Signs the user out everywhere. (Lite's refresh tokens have no foreign key to users.)"""
    await cursor.execute("delete from auth.refresh_tokens where user_id = %s", [user_id])
    await cursor.execute("delete from auth.sessions where user_id = %s", [user_id])


async def delete(cursor: Cursor, user_id: uuid.UUID) -> None:
    """Deletes the row; identities and sessions go with it, and whatever cascades from it."""
    await cursor.execute("delete from auth.refresh_tokens where user_id = %s", [user_id])
    await cursor.execute("delete from auth.users where id = %s", [user_id])


def obfuscated(user_id: uuid.UUID, value: str) -> str:
    """One way: the value is gone, yet equal values of one user stay equal."""
    digest = hashlib.sha256(f"{user_id}{value}".encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


async def soft_delete(cursor: Cursor, user: Row) -> None:
    """Keeps the row, sets deleted_at, and leaves nothing in it that tells who it was."""
    user_id: uuid.UUID = user["id"]
    await update(
        cursor,
        user_id,
        email=obfuscated(user_id, user["email"] or ""),
        phone=obfuscated(user_id, user["phone"] or "")[:OBFUSCATED_PHONE_LENGTH],
        email_change=obfuscated(user_id, user["email_change"] or ""),
        phone_change=obfuscated(user_id, user["phone_change"] or ""),
        encrypted_password=None,
        confirmation_token=None,
        recovery_token=None,
        email_change_token_current=None,
        email_change_token_new=None,
        phone_change_token=None,
        deleted_at=datetime.now(UTC),
    )
    await update(cursor, user_id, raw_user_meta_data={})
    await update(cursor, user_id, raw_app_meta_data={})
    for identity in await find_identities(cursor, user_id):
        provider_id = obfuscated(user_id, f"{identity['provider']}:{identity['provider_id']}")
        await cursor.execute(
            "update auth.identities set identity_data = '{}', provider_id = %s, updated_at = now() where id = %s",
            [provider_id, identity["id"]],
        )
    await end_sessions(cursor, user_id)
