"""Who is asking: the management key, one of the account's keys, or nobody.

The two kinds never do each other's work: a management key buys no inference, and an ordinary key
manages no keys (openrouter/facts.md 1.1, 1.8). An unknown, a deleted and a mistyped key look alike.
"""

import hashlib
import hmac
from collections.abc import Callable
from datetime import datetime

from starlette.requests import Request

from infra.local.openrouter.answers import Refusal
from infra.local.openrouter.keys import Key, KeyStore


class Gate:
    """Reads the Authorization header; every refusal is a Refusal 401 or 403."""

    def __init__(self, management_key: str, keys: KeyStore, clock: Callable[[], datetime]) -> None:
        self._management_digest = hashlib.sha256(management_key.encode()).digest()
        self._keys = keys
        self._clock = clock

    def require_management(self, request: Request) -> None:
        """Lets only the management key pass."""
        if self.identify(request) is not None:
            raise Refusal(403, "Only management keys can perform this operation")

    def require_key(self, request: Request) -> Key:
        """The ordinary key that asks; what a management key is told is not documented anywhere."""
        key = self.identify(request)
        if key is None:
            raise Refusal(403, "Management keys cannot be used for inference")
        return key

    def identify(self, request: Request) -> Key | None:
        """The usable key that asks, or None for the management key."""
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise Refusal(401, "Missing Authentication header")
        digest = hashlib.sha256(secret.encode()).digest()
        if hmac.compare_digest(digest, self._management_digest):
            return None
        key = self._keys.find_by_secret(secret)
        if key is None:
            raise Refusal(401, "User not found.")
        if key.is_expired(self._clock()):
            raise Refusal(401, "API key expired")
        if key.disabled:
            raise Refusal(401, "API key is disabled")
        return key
