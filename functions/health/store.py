"""The whole SQL vocabulary of health."""

from __future__ import annotations

import hmac
import secrets
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from functions.clients.supabase import Rpc, Supabase

GET_HEALTH = Rpc("get_doorkey_health", (), "service_role")
PROVE_WEBHOOK_SECRET = Rpc("prove_webhook_secret", ("nonce",), "service_role")

NONCE_BYTES = 16


@dataclass(frozen=True)
class SecretProof:
    """The database's word that it holds a signing secret, over a nonce of either side.

    Attributes:
        signed: what was signed.
        signature: as the database made it; None: it has no secret.
    """

    signed: bytes
    signature: str | None

    def place_among(self, keys: Sequence[bytes]) -> int | None:
        """Which of these secrets the database holds; None: none of them."""
        for place, key in enumerate(keys):
            expected = "v1," + b64encode(hmac.digest(key, self.signed, "sha256")).decode()
            if self.signature is not None and hmac.compare_digest(expected, self.signature):
                return place
        return None


async def get_health(database: Supabase) -> dict[str, Any]:
    """What the database knows of its own state."""
    health: dict[str, Any] = await database.call(GET_HEALTH, {})
    return health


async def prove_webhook_secret(database: Supabase) -> SecretProof:
    """Has the database show which secret signs its hints, without showing it."""
    nonce = secrets.token_hex(NONCE_BYTES)
    (row,) = await database.call(PROVE_WEBHOOK_SECRET, {"nonce": nonce})
    return SecretProof(f"doorkey.doctor.{row['database_nonce']}{nonce}".encode(), row["proof"])
