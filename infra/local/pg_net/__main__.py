"""The worker as a process: ``python -m infra.local.pg_net``.

Its one setting is a secret, so it comes in the environment: ``PG_NET_DATABASE_URL``. SIGTERM and
SIGINT let the running batch finish; SIGKILL loses what pg_net would lose.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys

from infra.local.pg_net.session import CannotStart
from infra.local.pg_net.worker import Worker

URL_VARIABLE = "PG_NET_DATABASE_URL"

log = logging.getLogger(__name__)


async def _work(database_url: str) -> None:
    worker = Worker(database_url)
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, worker.stop)
    await worker.run()


def main() -> int:
    """Runs the worker until it is told to stop; 1 when it can't start."""
    argparse.ArgumentParser(
        prog="python -m infra.local.pg_net",
        description=f"Worker of the pg_net stand-in, in the database of {URL_VARIABLE}.",
    ).parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # httpx logs each request's URL, and a URL can carry a secret.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    database_url = os.environ.get(URL_VARIABLE)
    if not database_url:
        log.error("worker.cannot_start reason=%s is not set", URL_VARIABLE)
        return 1
    try:
        asyncio.run(_work(database_url))
    except CannotStart as reason:
        log.error("worker.cannot_start reason=%s", " ".join(str(reason).split()))  # noqa: TRY400
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
