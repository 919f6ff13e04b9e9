"""Orders faults from another process: for the command line, and for tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx

from infra.local.faults.plan import FaultPlan, PlanInvalid, SimulatorFaultPlan

TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class FaultyPart:
    """A part that takes orders.

    Attributes:
        name: as on the command line.
        path: where it takes them.
        header: what must be sent along, so that no page in a browser can do it.
        plan_type: what can be ordered.
    """

    name: str
    path: str
    header: str
    plan_type: type[FaultPlan]


OPENROUTER = FaultyPart("openrouter", "/simulator/faults", "X-Simulator-Control", SimulatorFaultPlan)
EDGE = FaultyPart("edge", "/edge/faults", "X-Edge-Control", FaultPlan)
PARTS = (OPENROUTER, EDGE)


class ControlFailed(Exception):
    """The part did not take the order; the message is a sentence for people."""


@dataclass(frozen=True)
class FaultReport:
    """What is on, and what came of it.

    Attributes:
        plan: all of it.
        requests: how many requests it was about.
        counts: how often each fault was injected.
    """

    plan: FaultPlan
    requests: int
    counts: dict[str, int]


class FaultControl:
    """The switch of one running part. Any path in the address is left out."""

    def __init__(self, part: FaultyPart, url: str) -> None:
        self.part = part
        self._url = str(httpx.URL(url).copy_with(path=part.path, query=None, fragment=None))

    async def order(self, **fields: Any) -> FaultReport:
        """Replaces the whole plan by one with these fields; counts begin anew.

        Raises:
            ControlFailed: the part is not there, or refused.
        """
        return await self._send("PUT", fields)

    async def report(self) -> FaultReport:
        """What is on. Raises ControlFailed."""
        return await self._send("GET")

    async def clear(self) -> FaultReport:
        """Ends it; says what it came to. Raises ControlFailed."""
        return await self._send("DELETE")

    async def _send(self, method: str, plan: dict[str, Any] | None = None) -> FaultReport:
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False) as client:
                answer = await client.request(method, self._url, headers={self.part.header: "1"}, json=plan)
        except httpx.HTTPError:
            raise ControlFailed(f"Nothing that takes faults for {self.part.name} answers at {self._url}.") from None
        try:
            body = answer.json()
            if answer.is_success:
                plan_read = self.part.plan_type.read(json.dumps(body["plan"]).encode())
                return FaultReport(plan_read, body["requests"], body["counts"])
            sentence = body["error"]
        except (ValueError, KeyError, TypeError, PlanInvalid):
            sentence = None
        if not isinstance(sentence, str):
            raise ControlFailed(f"What answers at {self._url} takes no faults for {self.part.name}.")
        raise ControlFailed(sentence)
