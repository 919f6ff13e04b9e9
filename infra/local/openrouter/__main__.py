"""Runs the simulator: `python -m infra.local.openrouter --port 8787`.

The management key comes through the environment, never as an argument: arguments are visible to
everybody on the machine.
"""

import argparse
import logging
import os
import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path

from infra.local.openrouter.app import create_app
from infra.local.openrouter.config import Config
from infra.local.openrouter.state import StateError
from infra.local.serving import CannotListen, listen, serve

MANAGEMENT_KEY_VARIABLE = "SIMULATOR_MANAGEMENT_KEY"

logger = logging.getLogger("infra.local.openrouter")


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="infra.local.openrouter", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--state-file", type=Path, help="keeps keys and usage over a restart")
    parser.add_argument("--latency-ms", type=int, default=0, help="how long every answer waits")
    parser.add_argument("--credits-usd", type=_dollars, default=Decimal(10_000), help="what the account has bought")
    return parser.parse_args(words)


def _dollars(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise argparse.ArgumentTypeError("not an amount") from None
    if not amount.is_finite() or amount < 0:
        raise argparse.ArgumentTypeError("not an amount")
    return amount


def main() -> None:
    """Serves until it's told to stop; exits with one sentence when it cannot start."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    arguments = parse_arguments()
    management_key = os.environ.get(MANAGEMENT_KEY_VARIABLE, "")
    if not management_key:
        sys.exit(f"The OpenRouter simulator needs {MANAGEMENT_KEY_VARIABLE} in its environment.")
    try:
        config = Config(
            management_key=management_key,
            state_file=arguments.state_file,
            latency_ms=arguments.latency_ms,
            credits_usd=arguments.credits_usd,
        )
        listener = listen(arguments.host, arguments.port)
        app = create_app(config)
    except (ValueError, StateError, CannotListen) as error:
        sys.exit(f"The simulator cannot start: {error}")
    host, port = listener.getsockname()[:2]
    logger.info("simulator.started address=http://%s:%d", host, port)
    serve(app, listener)


if __name__ == "__main__":
    main()
