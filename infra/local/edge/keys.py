"""API keys: which are valid now, and the exact words for those that are not.

The surprising thing: hosted's gateway answers a bad key with 401 and a body without `code`, in
words that vary by case, and clients tell a rejected key from a refused row by exactly that. The
words here are those of supabase.md 3; hints that page only quotes in part are completed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import jwt

Role = Literal["anon", "service_role"]
KeyKind = Literal["publishable", "secret", "legacy"]

SECRET_KEY = re.compile(r"sb_secret_[A-Za-z0-9_-]{3,}")
PUBLISHABLE_KEY = re.compile(r"sb_publishable_[A-Za-z0-9_-]{3,}")
BROWSER_USER_AGENT = re.compile(r"\s*Mozilla\s*/\s*5\s*\.\s*0", re.IGNORECASE)

LEGACY_ISSUER = "supabase"
# Fixed, so that the stack, the edge and the tests derive the very same pair from one secret.
LEGACY_ISSUED_AT = 1_700_000_000
LEGACY_EXPIRES_AT = 2_015_360_000

INVALID_HINT = "Double check your API key."


class KeyRefused(Exception):
    """The gateway's 401: a `message`, often a `hint`, never a `code`."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def body(self) -> dict[str, str]:
        """The JSON that clients see."""
        return {"message": self.message} | ({"hint": self.hint} if self.hint else {})


@dataclass(frozen=True)
class ApiKey:
    """A valid key: what kind it is and the role it stands for when no user token is sent."""

    kind: KeyKind
    role: Role


def legacy_key(jwt_secret: str, role: Role, project_ref: str = "local") -> str:
    """The legacy JWT key for `role`: always the same string for the same secret and project."""
    claims = {
        "iss": LEGACY_ISSUER,
        "ref": project_ref,
        "role": role,
        "iat": LEGACY_ISSUED_AT,
        "exp": LEGACY_EXPIRES_AT,
    }
    return jwt.encode(claims, jwt_secret, algorithm="HS256")


def secret_key_required() -> KeyRefused:
    """A publishable key knocked at a door for secret keys (Auth admin, the Data API's root)."""
    return KeyRefused("Secret API key required", "Only secret API keys can be used for this endpoint.")


class KeyRing:
    """The keys that are valid at this moment; several secret keys at once, as on hosted.

    Deleting a secret key is final on hosted, but a ring may be given the same key again: tests
    rotate back and forth. The legacy pair goes on and off together.
    """

    def __init__(
        self,
        publishable_key: str,
        secret_keys: Iterable[str],
        legacy_jwt_secret: str,
        project_ref: str,
    ) -> None:
        self._publishable = publishable_key
        self._secrets = set(secret_keys)
        pair: tuple[Role, Role] = ("anon", "service_role")
        self._legacy: dict[str, Role] = {legacy_key(legacy_jwt_secret, role, project_ref): role for role in pair}
        self._legacy_disabled_at: datetime | None = None

    def add_secret(self, key: str) -> None:
        """Makes `key` valid. Raises ValueError unless it looks like sb_secret_..."""
        if not SECRET_KEY.fullmatch(key):
            raise ValueError("a secret key looks like sb_secret_...")
        self._secrets.add(key)

    def revoke_secret(self, key: str) -> None:
        """Makes `key` unregistered; raises KeyError if it was not valid."""
        self._secrets.remove(key)

    def switch_legacy(self, *, enabled: bool) -> None:
        """Switches anon and service_role on or off as a pair: hosted has no single switch."""
        self._legacy_disabled_at = None if enabled else datetime.now(UTC)

    def examine(self, key: str | None, user_agent: str = "") -> ApiKey:
        """Which key this is. Raises KeyRefused in hosted's words."""
        if not key:
            raise KeyRefused(
                "No API key found in request",
                "No `apikey` request header or url param was found.",
            )
        if key in self._secrets:
            if BROWSER_USER_AGENT.match(user_agent):
                raise KeyRefused("Forbidden use of secret API key in browser")
            return ApiKey("secret", "service_role")
        if key == self._publishable:
            return ApiKey("publishable", "anon")
        if key in self._legacy:
            return ApiKey("legacy", self._examine_legacy(key))
        if SECRET_KEY.fullmatch(key) or PUBLISHABLE_KEY.fullmatch(key):
            raise KeyRefused("Unregistered API key", INVALID_HINT)
        raise KeyRefused("Invalid API key", INVALID_HINT)

    def _examine_legacy(self, key: str) -> Role:
        if self._legacy_disabled_at is None:
            return self._legacy[key]
        disabled_at = self._legacy_disabled_at.isoformat(timespec="milliseconds")
        raise KeyRefused(
            "Legacy API keys are disabled",
            f"Your legacy API keys (anon, service_role) were disabled on {disabled_at}. "
            "Re-enable them in the Supabase dashboard, or use the new publishable and secret "
            "API keys.",
        )
