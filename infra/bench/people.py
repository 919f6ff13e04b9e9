"""Access tokens as Auth issues them, without the time that it takes to hash a password."""

from __future__ import annotations

import time
import uuid
from typing import Any

from infra.local.edge.tokens import TokenTranslator
from infra.local.stack import Stack

LIFE_SECONDS = 3_600


def token_for(stack: Stack, user_id: uuid.UUID) -> str:
    """An hour's token of one user of the stack."""
    signer = TokenTranslator(
        signing_key_pem=stack.secrets.signing_key_pem,
        legacy_jwt_secret=stack.secrets.legacy_jwt_secret,
        inner_jwt_secret=stack.secrets.lite_keys.jwt_secret,
        issuer=f"{stack.supabase_url}/auth/v1",
        project_ref="local",
    )
    return signer.sign(claims_of(user_id))


def claims_of(user_id: uuid.UUID) -> dict[str, Any]:
    """What hosted Auth writes into an access token, the issuer apart."""
    now = int(time.time())
    return {
        "sub": str(user_id), "aud": "authenticated", "role": "authenticated", "iat": now, "exp": now + LIFE_SECONDS,
        "aal": "aal1", "amr": [{"method": "password", "timestamp": now}], "session_id": str(uuid.uuid4()),
        "email": f"{user_id}@example.com", "phone": "", "is_anonymous": False,
        "app_metadata": {"provider": "email", "providers": ["email"]},
        "user_metadata": {"email": f"{user_id}@example.com", "email_verified": True, "sub": str(user_id)},
    }  # fmt: skip
