"""The service key as it is at any moment: at the gateway, and in the secret that the functions read it from again.

The surprising thing: an outage may end with a new key that nobody is given. Whoever is rejected finds it in the secret,
as on Lambda.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from infra.local.faults import EDGE
from tests.crash.shared import Shared

# A minute of the functions': time runs faster here.
REMEMBERED_SECONDS = 0.5


class ServiceKey:
    """The service key as it is at any moment, at the gateway and in the secret.

    Args:
        gateway_url: of the edge, which says which keys are good.
        key: the one that is good at first.
        secret: the file that stands for the stage's secret.
        shared: told while it is dead.
    """

    def __init__(self, gateway_url: str, key: str, secret: Path, shared: Shared) -> None:
        self._url = f"{gateway_url}/edge/secret-keys"
        self._secret = secret
        self._shared = shared
        self.value = key
        self._store()

    @asynccontextmanager
    async def outage(self, *, is_rotated: bool) -> AsyncIterator[None]:
        """It is rejected until the end of the block; then it is good again, or another one is."""
        self._shared.kill_key(is_dead=True)
        await self._tell("DELETE", self.value)
        try:
            yield
        finally:
            if is_rotated:
                self.value = f"sb_secret_{secrets.token_urlsafe(24)}"
            await self._tell("POST", self.value)
            self._store()
            self._shared.kill_key(is_dead=False)

    async def _tell(self, method: str, key: str) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.request(method, self._url, json={"key": key}, headers={EDGE.header: "1"})
            answer.raise_for_status()

    def _store(self) -> None:
        whole = self._secret.with_suffix(".new")
        whole.touch(mode=0o600)
        whole.write_text(json.dumps({"SUPABASE_SECRET_KEY": self.value}))
        whole.replace(self._secret)


def read_secret_file(path: str) -> dict[str, str]:
    """In the place of Secrets Manager."""
    content: dict[str, str] = json.loads(Path(path).read_text())
    return content
