"""Who may act for others: whoever has the operator token, or signed in as an admin of the project.

The surprising thing: an admin is one by `app_metadata`, which only a server can write, and never by `user_metadata`,
which users write themselves. Either way the work is done with the service key; who asked is kept in the audit log.
"""

from __future__ import annotations

from functions.kit.errors import AdminRequired, OperatorTokenRejected
from functions.web.application import is_operator
from functions.web.sessions import Sessions

OPERATOR = "operator"


class Operators:
    """Tells operators from others.

    Args:
        sessions: verifies tokens of users.
        token_sha256: of the operator token; None: there is none, and only admins are operators.
    """

    def __init__(self, sessions: Sessions, token_sha256: str | None) -> None:
        self._sessions = sessions
        self._token_sha256 = token_sha256

    async def actor(self, authorization: str | None) -> str:
        """Who asks, for the ledger and the audit log: `operator`, or `admin:` and their user id.

        Raises:
            OperatorTokenRejected: neither the operator token nor a user's.
            UserTokenRejected: a user's, and not valid.
            AdminRequired: a user's who is no admin.
            SupabaseUnreachable: the public keys are needed and can't be had.
        """
        if is_operator(authorization, self._token_sha256):
            return OPERATOR
        # Two dots are what a JWT has.
        if (authorization or "").count(".") != 2:
            raise OperatorTokenRejected("neither the operator token nor a JWT")
        session = await self._sessions.verify(authorization)
        if not session.is_admin:
            raise AdminRequired(str(session.user_id))
        return f"admin:{session.user_id}"
