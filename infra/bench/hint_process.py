"""``python -m infra.bench.hint_process``: provisions the users named on its standard input, for a profiler to watch."""

from __future__ import annotations

import asyncio
import sys
import uuid

from functions import webhook
from functions.clients.outside import build_clients
from functions.kit.settings import Settings
from infra.bench.provisioning import lines_to_nowhere, provision


async def _provision_all(user_ids: list[uuid.UUID]) -> None:
    settings = Settings.from_environment()
    clients = build_clients(settings)
    handle = webhook.build(settings, clients)
    async with clients.http:
        for user_id in user_ids:
            await provision(handle, settings, user_id)


def main() -> None:
    """One after the other, as warm calls of one sandbox."""
    user_ids = [uuid.UUID(line) for line in sys.stdin.read().split()]
    with lines_to_nowhere():
        asyncio.run(_provision_all(user_ids))


if __name__ == "__main__":
    main()
