"""The addresses that older clients know, in one table: they keep working without a change."""

from __future__ import annotations

from collections.abc import Mapping

# The answer is the same.
ALIASES: Mapping[str, str] = {
    "/core/v1/auth/signup": "/v1/auth/signup",
    "/api/health": "/health",
}

# The answer has a form of its own.
LEGACY_BALANCE = "/api/v1/credits/balance"
