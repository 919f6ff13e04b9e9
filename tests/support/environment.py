"""Settings that are right, for tests that change one thing about them. Nothing listens at these addresses."""

from __future__ import annotations

import base64

from functions.kit.settings import Settings

SEALING_KEY = "k1:" + base64.b64encode(bytes(range(32))).decode()
OTHER_SEALING_KEY = "k2:" + base64.b64encode(bytes(range(1, 33))).decode()
WEBHOOK_SECRET = "whsec_" + base64.b64encode(bytes(range(2, 34))).decode()
OTHER_WEBHOOK_SECRET = "whsec_" + base64.b64encode(bytes(range(3, 35))).decode()

COMPLETE = {
    "SUPABASE_URL": "https://project.example",
    "SUPABASE_PUBLISHABLE_KEY": "sb_publishable_of-the-unit-tests",
    "SUPABASE_SECRET_KEY": "sb_secret_of-the-unit-tests",
    "OPENROUTER_BASE_URL": "https://openrouter.example/api/v1",
    "OPENROUTER_MANAGEMENT_KEY": "sk-or-v1-of-the-unit-tests",
    "DOORKEY_PROJECT": "app",
    "DOORKEY_SEALING_KEYS": SEALING_KEY,
}


def environment(**changes: str | None) -> dict[str, str]:
    """The complete environment with changes; None takes a variable away."""
    changed = {**COMPLETE, **changes}
    return {name: value for name, value in changed.items() if value is not None}


def settings(**changes: str | None) -> Settings:
    """Settings from `environment`."""
    return Settings.from_environment(environment(**changes))
