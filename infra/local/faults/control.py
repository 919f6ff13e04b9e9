"""The door through which faults are ordered: GET, PUT and DELETE on one path of each part.

There is no password here, so a page in somebody's browser must not reach it: the header forces a preflight that is
never granted, and only loopback names are served.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.faults.injector import Faults
from infra.local.faults.plan import PlanInvalid

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


def is_control_allowed(request: Request, header: str) -> bool:
    """Whether a request to a control path may be served."""
    return header in request.headers and request.url.hostname in LOOPBACK_NAMES


def control_routes(path: str, header: str, faults: Faults[Any]) -> list[Route]:
    """GET says the plan and the counts, PUT replaces the plan, DELETE ends it and says what it came to.

    A plan that can't be used is 422 with every problem, and the old one stays.
    """

    async def serve(request: Request) -> Response:
        if not is_control_allowed(request, header):
            return JSONResponse({"error": f"send {header} to a loopback address"}, 403)
        if request.method == "PUT":
            try:
                faults.order(faults.plan_type.read(await request.body()))
            except PlanInvalid as error:
                return JSONResponse({"error": str(error), "problems": error.problems}, 422)
        report = faults.report()
        if request.method == "DELETE":
            faults.order(faults.plan_type())
        return JSONResponse(report)

    return [Route(path, serve, methods=["GET", "PUT", "DELETE"])]
