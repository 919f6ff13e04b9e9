"""The states of a project's keys, and of what they open: the columns of the matrix in docs/access.md.

"Rotated" needs Secrets Manager, which a vault of moto's plays; what is ordered of the gateway is about the Data API
alone, so that tokens can be verified meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from infra.local.edge import legacy_key
from infra.local.faults import EDGE, FaultControl
from infra.local.faults.plan import MAX_WAIT_SECONDS
from infra.local.stack import Stack
from tests.support.access import WRONG_KEY

DATA_API = ["POST /rest/v1/rpc/"]
# The functions wait a moment for an answer that doesn't come while anybody looks. Were it only late, a process that
# stood still for so long would find it there, before it noticed that its time was over.
TIMEOUT_SECONDS = "1.5"
LATENCY_MS = MAX_WAIT_SECONDS * 1_000


@dataclass(frozen=True)
class Keys:
    """One state.

    Attributes:
        changes: of the functions' settings.
        faults: what is ordered of the gateway.
        legacy: whether the legacy pair is on.
    """

    changes: dict[str, str] = field(default_factory=dict)
    faults: dict[str, Any] = field(default_factory=dict)
    legacy: bool = True


def states_of(stack: Stack, secret_id: str) -> dict[str, Keys]:
    """All of them, by name."""
    secret = stack.secrets.legacy_jwt_secret
    pair = {
        "SUPABASE_SECRET_KEY": legacy_key(secret, "service_role"),
        "SUPABASE_PUBLISHABLE_KEY": legacy_key(secret, "anon"),
    }
    rejected = {"SUPABASE_SECRET_KEY": WRONG_KEY}
    return {
        "good key": Keys(),
        "good legacy pair": Keys(pair),
        "rejected": Keys(rejected),
        "rejected, then rotated": Keys({**rejected, "DOORKEY_SECRET_ID": secret_id}),
        "legacy pair off": Keys(pair, legacy=False),
        "database down": Keys(faults={"errors": 1.0, "error_status": 503, "only": DATA_API}),
        "slow": Keys(
            {"DOORKEY_OUTSIDE_TIMEOUT_SECONDS": TIMEOUT_SECONDS}, {"latency_ms": LATENCY_MS, "only": DATA_API}
        ),
    }


@asynccontextmanager
async def in_state(stack: Stack, keys: Keys) -> AsyncIterator[None]:
    """While the gateway is so. The functions' settings are for whoever builds a sandbox."""
    faults = FaultControl(EDGE, stack.supabase_url)
    try:
        if keys.faults:
            await faults.order(**keys.faults)
        if not keys.legacy:
            await _switch_legacy(stack, on=False)
        yield
    finally:
        if keys.faults:
            await faults.clear()
        if not keys.legacy:
            await _switch_legacy(stack, on=True)


async def _switch_legacy(stack: Stack, *, on: bool) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.put(
            f"{stack.supabase_url}/edge/legacy-keys", json={"enabled": on}, headers={EDGE.header: "1"}
        )
        assert answer.status_code == 204
