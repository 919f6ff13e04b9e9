"""Who is calling: the API key, and the user token that may come with it.

The surprising thing: the key only opens the gate. When a JWT stands in Authorization it alone
decides the role, so a secret key with a user's token runs as that user, not as service_role
(supabase.md 3).
"""

from dataclasses import dataclass
from urllib.parse import unquote_plus

from starlette.requests import Request

from infra.local.edge.keys import ApiKey, KeyRing, secret_key_required
from infra.local.edge.refusals import AuthRefused
from infra.local.edge.tokens import Claims, TokenRefused, TokenTranslator


@dataclass(frozen=True)
class Caller:
    """A caller whose key is valid. `token` is None when only a key was sent."""

    key: ApiKey
    token: str | None


def split_query(query: str) -> tuple[str, str | None]:
    """The query without `apikey`, byte for byte, and the key. PostgREST would filter by it."""
    kept: list[str] = []
    key = None
    for pair in query.split("&") if query else []:
        name, _, value = pair.partition("=")
        if unquote_plus(name) == "apikey":
            key = unquote_plus(value)
        else:
            kept.append(pair)
    return "&".join(kept), key


def identify(request: Request, ring: KeyRing) -> Caller:
    """Lets the caller in. Raises KeyRefused."""
    query_key = split_query(request.scope["query_string"].decode("latin-1"))[1]
    text = request.headers.get("apikey") or query_key
    key = ring.examine(text, request.headers.get("user-agent", ""))
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    token = value.strip() if scheme.lower() == "bearer" else None
    # supabase-py sends the key a second time as Bearer; the gateway replaces it by the key's JWT.
    return Caller(key, None if token == text else token)


def claims_for_auth(caller: Caller, tokens: TokenTranslator) -> Claims | None:
    """The verified user token, or None. Raises AuthRefused (403 bad_jwt) as Auth does."""
    if caller.token is None:
        return None
    try:
        return tokens.verify(caller.token)
    except TokenRefused as refused:
        raise AuthRefused(403, "bad_jwt", refused.auth_message) from None


def require_admin(caller: Caller, tokens: TokenTranslator) -> None:
    """Admin endpoints: a secret key (or legacy service_role), and no user token beside it.

    Raises KeyRefused for a publishable key, AuthRefused for anybody else who is not service_role.
    """
    if caller.key.kind == "publishable":
        raise secret_key_required()
    claims = claims_for_auth(caller, tokens)
    role = caller.key.role if claims is None else claims.get("role")
    if role != "service_role":
        raise AuthRefused(403, "not_admin", "User not allowed")
