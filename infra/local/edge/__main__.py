"""`python -m infra.local.edge`: runs the edge on loopback until it is told to stop."""

import argparse
import logging
import os
import sys

from infra.local.edge.app import create_app
from infra.local.edge.config import BadConfiguration, read_config
from infra.local.serving import CannotListen, listen, serve

HOST = "127.0.0.1"


def main() -> None:
    """Reads flags and environment, serves, and exits with 1 and one sentence if it cannot."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.edge")
    parser.add_argument("--port", type=int, required=True, help="0 takes any free port")
    parser.add_argument("--rest-url", required=True, help="the Lite that serves the Data API")
    parser.add_argument("--auth-url", required=True, help="the Lite that serves Auth")
    parser.add_argument("--public-url", help="what clients call; default: this address")
    flags = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs queries
    log = logging.getLogger("doorkey.edge")
    try:
        listener = listen(HOST, flags.port)
        address = f"http://{HOST}:{listener.getsockname()[1]}"
        config = read_config(
            os.environ,
            rest_url=flags.rest_url,
            auth_url=flags.auth_url,
            public_url=flags.public_url or address,
        )
        app = create_app(config)
    except CannotListen as error:
        log.error("The edge cannot start: %s.", error)  # noqa: TRY400 - one sentence, no traceback
        raise SystemExit(1) from None
    except BadConfiguration as error:
        log.error("%s", error)  # noqa: TRY400 - one sentence, no traceback
        raise SystemExit(1) from None
    except (ValueError, TypeError):
        # No details: what a key loader says may quote the key.
        log.error("The edge cannot start: EDGE_SIGNING_KEY is no ES256 private key in PEM form.")  # noqa: TRY400
        raise SystemExit(1) from None
    log.info("edge.started address=%s", address)
    serve(app, listener)
    log.info("edge.stopped")


if __name__ == "__main__":
    main()
