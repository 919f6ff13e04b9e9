"""The switches that hosted has in its dashboard: keys added, revoked, switched off, at run time. And faults.

The surprising thing: there is no password here, so a page in somebody's browser must not reach
it. The header below forces a preflight that is never granted, and only loopback names are served.
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.edge.admin import read_object
from infra.local.edge.keys import KeyRing
from infra.local.faults import EDGE, FaultPlan, Faults, control_routes, is_control_allowed

CONTROL_HEADER = EDGE.header
PREFIX = "/edge"


class Control:
    """`/edge/...`: for the supervisor and for tests."""

    def __init__(self, ring: KeyRing, faults: Faults[FaultPlan]) -> None:
        self._ring = ring
        self._faults = faults

    def routes(self) -> list[Route]:
        """Paths below /edge."""
        return [
            Route("/health", self.health),
            Route("/secret-keys", self.change_secret_keys, methods=["POST", "DELETE"]),
            Route("/legacy-keys", self.switch_legacy_keys, methods=["PUT"]),
            *control_routes(EDGE.path.removeprefix(PREFIX), EDGE.header, self._faults),
        ]

    async def health(self, _request: Request) -> Response:
        """The edge answers; says nothing of what stands behind it."""
        return JSONResponse({"status": "ok"})

    async def change_secret_keys(self, request: Request) -> Response:
        """POST {"key"} makes it valid, DELETE {"key"} makes it unregistered; 204."""
        if not is_control_allowed(request, CONTROL_HEADER):
            return _forbidden()
        key = (await read_object(request)).get("key")
        try:
            if request.method == "POST":
                self._ring.add_secret(str(key))
            else:
                self._ring.revoke_secret(str(key))
        except ValueError:
            return JSONResponse({"error": "not a secret key"}, 422)
        except KeyError:
            return JSONResponse({"error": "no such key"}, 404)
        return Response(status_code=204)

    async def switch_legacy_keys(self, request: Request) -> Response:
        """PUT {"enabled": bool} switches anon and service_role as a pair; 204."""
        if not is_control_allowed(request, CONTROL_HEADER):
            return _forbidden()
        enabled = (await read_object(request)).get("enabled")
        if not isinstance(enabled, bool):
            return JSONResponse({"error": "enabled must be true or false"}, 422)
        self._ring.switch_legacy(enabled=enabled)
        return Response(status_code=204)


def _forbidden() -> Response:
    return JSONResponse({"error": f"send {CONTROL_HEADER} to a loopback address"}, 403)
