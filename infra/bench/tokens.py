"""What our stricter look at an access token costs beside PyJWT's bare one: same token, same key, both cached.

The time is the processor's: neither side waits for anything but the processor, and who else wants it is not the point.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from functions.web.sessions import Sessions
from infra.bench.measuring import Effort, Measured
from infra.bench.people import claims_of
from infra.local.edge.tokens import TokenTranslator

PAIRS = 200
VERIFICATIONS = 50
MICROS = 1_000_000
ISSUER = "https://project.example/auth/v1"


async def measure(effort: Effort) -> Measured:
    """Verifies one token again and again."""
    count = effort.size(VERIFICATIONS, 5)
    signer = _signer()
    keys = signer.jwks()

    async def fetch_jwks() -> Any:
        return keys

    sessions = Sessions(ISSUER, fetch_jwks)
    token = signer.sign(claims_of(uuid.uuid4()))
    key = jwt.PyJWK(keys["keys"][0])
    header = f"Bearer {token}"

    async def ours() -> float:
        started = time.thread_time()
        for _ in range(count):
            await sessions.verify(header)
        return (time.thread_time() - started) / count * MICROS

    async def floor() -> float:
        started = time.thread_time()
        for _ in range(count):
            jwt.decode(token, key, algorithms=["ES256"], audience="authenticated", issuer=ISSUER)
        return (time.thread_time() - started) / count * MICROS

    return await effort.pairs(effort.size(PAIRS, 2), ours, floor)


def _signer() -> TokenTranslator:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return TokenTranslator(
        signing_key_pem=pem.decode(),
        legacy_jwt_secret="none",  # noqa: S106
        inner_jwt_secret="none",  # noqa: S106
        issuer=ISSUER,
        project_ref="bench",
    )
