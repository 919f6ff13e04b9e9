"""Sessions as clients see them: hosted's claims, bans respected, anonymous sign-in.

The surprising thing: Lite never looks at `banned_until` and calls nobody anonymous, so before a
session leaves the edge the user's row is read again, and what the token says comes from the row.
How somebody signed in (`amr`) is kept nowhere by Lite: exact at sign-in, after a refresh it is
derived from the user (anonymous, has a password, neither).
"""

import time
import uuid
from datetime import UTC, datetime
from typing import Any

from infra.local.edge import users
from infra.local.edge.answers import Json, user_answer
from infra.local.edge.database import AuthDatabase, Cursor, Row
from infra.local.edge.refusals import AuthRefused, banned
from infra.local.edge.tokens import Claims, TokenTranslator


def access_claims(user: Row, session: Row, method: str | None) -> Claims:
    """The claims of an access token, without times and issuer (supabase.md 4)."""
    derived = "password" if user["encrypted_password"] else "otp"
    if user["is_anonymous"]:
        derived = "anonymous"
    created_at: datetime = session["created_at"]
    return {
        "sub": str(user["id"]),
        "aud": user["aud"],
        "role": user["role"],
        "email": user["email"] or "",
        "phone": user["phone"] or "",
        "app_metadata": user["raw_app_meta_data"] or {},
        "user_metadata": user["raw_user_meta_data"] or {},
        "aal": session["aal"] or "aal1",
        "amr": [{"method": method or derived, "timestamp": int(created_at.timestamp())}],
        "session_id": str(session["id"]),
        "is_anonymous": user["is_anonymous"],
    }


class Sessions:
    """Issues and reissues sessions of one project."""

    def __init__(self, database: AuthDatabase, tokens: TokenTranslator, *, jwt_expiry_seconds: int) -> None:
        self._database = database
        self._tokens = tokens
        self._jwt_expiry_seconds = jwt_expiry_seconds

    async def reissue(self, inner_token: str, method: str | None) -> tuple[str, Row]:
        """Lite's access token signed anew as hosted's, and the user's row.

        Raises AuthRefused if the user is banned (the session just made is ended) or gone.
        """
        inner = self._tokens.read_inner(inner_token)
        user_id, session_id = uuid.UUID(inner["sub"]), uuid.UUID(inner["session_id"])
        async with self._database.transaction() as cursor:
            user = await users.find(cursor, user_id)
            session = await _find_session(cursor, session_id)
            if user is None or session is None:
                raise AuthRefused(403, "session_not_found", "Session does not exist")
            if user["is_banned"]:
                await cursor.execute("delete from auth.sessions where id = %s", [session_id])
        if user["is_banned"]:
            raise banned()
        claims = access_claims(user, session, method)
        times = {"iat": inner["iat"], "exp": inner["exp"]}
        return self._tokens.sign(claims | times), user

    async def refuse_banned_sign_in(self, email: str) -> None:
        """Raises AuthRefused if this e-mail's user is banned; before the password is looked at."""
        async with self._database.transaction() as cursor:
            await cursor.execute(
                "select 1 from auth.users where email = lower(%s) and banned_until > now() "
                "and encrypted_password <> ''",
                [email],
            )
            if await cursor.fetchone() is not None:
                raise banned(400)

    async def refuse_banned_refresh(self, refresh_token: str) -> None:
        """Raises AuthRefused if the token's user is banned; the token is left unused."""
        async with self._database.transaction() as cursor:
            await cursor.execute(
                "select 1 from auth.refresh_tokens t join auth.users u on u.id = t.user_id "
                "where t.token = %s and u.banned_until > now()",
                [refresh_token],
            )
            if await cursor.fetchone() is not None:
                raise banned(400, "Invalid Refresh Token: User Banned")

    async def current_user(self, claims: Claims) -> Row | None:
        """The row behind a verified token, or None. Raises AuthRefused if banned."""
        try:
            user_id = uuid.UUID(str(claims.get("sub")))
        except ValueError:
            return None  # Lite words it as Auth does
        async with self._database.transaction() as cursor:
            user = await users.find(cursor, user_id)
        if user is not None and user["is_banned"]:
            raise banned()
        return user

    async def sign_in_anonymously(self, metadata: dict[str, Any]) -> Json:
        """A new anonymous user with a session, all in one transaction."""
        user_id = uuid.uuid4()
        async with self._database.transaction() as cursor:
            await users.insert(
                cursor,
                user_id=user_id,
                email=None,
                phone=None,
                password_hash="",
                app_metadata={},
                user_metadata=metadata,
                is_anonymous=True,
            )
            await users.update(cursor, user_id, role="authenticated")
            session_id, refresh_token = await _insert_session(cursor, user_id)
            await users.update(cursor, user_id, last_sign_in_at=datetime.now(UTC))
            user = await users.find(cursor, user_id)
            session = await _find_session(cursor, session_id)
            if user is None or session is None:
                # A trigger of the project may have deleted the user again.
                raise AuthRefused(500, "unexpected_failure", "Database error loading user")
        now = int(time.time())
        times = {"iat": now, "exp": now + self._jwt_expiry_seconds}
        return {
            "access_token": self._tokens.sign(access_claims(user, session, "anonymous") | times),
            "token_type": "bearer",
            "expires_in": self._jwt_expiry_seconds,
            "expires_at": times["exp"],
            "refresh_token": refresh_token,
            "user": user_answer(user, []),
        }


async def _find_session(cursor: Cursor, session_id: uuid.UUID) -> Row | None:
    await cursor.execute("select id, aal, created_at from auth.sessions where id = %s", [session_id])
    return await cursor.fetchone()


async def _insert_session(cursor: Cursor, user_id: uuid.UUID) -> tuple[uuid.UUID, str]:
    """A session that Lite refreshes like its own: its refresh tokens are UUIDs."""
    session_id, refresh_token = uuid.uuid4(), str(uuid.uuid4())
    await cursor.execute(
        "insert into auth.sessions (id, user_id, aal, created_at, updated_at) values (%s, %s, 'aal1', now(), now())",
        [session_id, user_id],
    )
    await cursor.execute(
        "insert into auth.refresh_tokens "
        "(id, token, user_id, session_id, revoked, created_at, updated_at) "
        "values (%s, %s, %s, %s, false, now(), now())",
        [str(uuid.uuid4()), refresh_token, user_id, session_id],
    )
    return session_id, refresh_token
