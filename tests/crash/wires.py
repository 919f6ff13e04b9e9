"""The wires between a worker and the world, on which the plan is played: calls are lost, held up, refused, and at some
of them the worker dies.

The code above is the code that ships. What is lost is lost for real: the call was made, and committed. The function's
time-out is kept too, as Lambda keeps it: a worker that takes longer is killed at its next call.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx
import jwt

from tests.crash.acts import Actor
from tests.crash.calls import AFTER, ANY, BEFORE, CLAIM, DURING, OWN, OWN_CALLS, SWEEP, Call, name_of
from tests.crash.plan import Hit, KillPoint, Kind, Plan, Script
from tests.crash.shared import Shared

# As on Lambda: longer than a lease here, because late workers are wanted, and shorter than a stray's age.
FUNCTION_SECONDS = 12.0
LATE_SECONDS = 8.0
LATE_POLL_SECONDS = 0.2
SLOW_SECONDS = 1.6
IN_FLIGHT_SECONDS = 0.002
# Made before the first fork: it is what costs most at the birth of a worker, and nothing here uses it.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
GARBAGE = "<html>bad gateway</html>"
OWN_DOORS = {call.name: call for call in OWN_CALLS}
OWN_CLAIM = Call(OWN, "claim_my_provisioning")


@dataclass
class Doing:
    """What the running task is at."""

    script: Script
    attempt: int
    purpose: str
    since: float


# Of the running task: the sweep works for many users at once, each in a task of its own.
_doing: ContextVar[Doing | None] = ContextVar("doing", default=None)


class Wires(httpx.AsyncBaseTransport):
    """One process's connections.

    Args:
        plan: what happens.
        shared: counts; says when it is over.
        row: of the counters.
        actor: does what happens to users in the middle of a call.
        is_sweeper: whether it sweeps.
        end: where this life ends by itself, if it is a sweeper's; may be taken away.
    """

    def __init__(
        self,
        plan: Plan,
        shared: Shared,
        row: int,
        actor: Actor,
        *,
        is_sweeper: bool = False,
        end: KillPoint | None = None,
    ) -> None:
        self._inner = httpx.AsyncHTTPTransport(verify=NO_TLS)
        self._by_user = plan.by_user
        self._shared = shared
        self._row = row
        self._actor = actor
        self._is_sweeper = is_sweeper
        self.end = end

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._inner.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Makes the call, with what the plan has for it."""
        self._shared.count(self._row, "calls")
        name = name_of(request)
        if name in OWN_DOORS:
            return await self._own(OWN_DOORS[name], request)
        if self._shared.is_key_dead and "/rpc/" in request.url.path:
            # No call that does anything. Whoever may goes on to a person's own door, and is hit there.
            return await self._inner.handle_async_request(request)
        if name == CLAIM:
            return await self._claim(Call(ANY, CLAIM), uuid.UUID(json.loads(request.content)["user_id"]), request)
        doing = _doing.get()
        if doing is None:
            return await self._call_of_nobody(Call(SWEEP, name), request)
        if time.monotonic() - doing.since > FUNCTION_SECONDS:
            self._shared.count(self._row, "out of time")
            self._die()
        call = Call(doing.purpose, name)
        if doing.script.is_hopeless and name == "POST /keys" and not self._shared.is_quiet:
            return httpx.Response(400, json={"error": {"code": 400, "message": "no"}}, request=request)
        hits = self._hits(doing.script, call)
        await self._before(call, hits, request)
        answer = await self._send(call, hits, request)
        return await self._after(call, hits, request, answer)

    async def _own(self, call: Call, request: httpx.Request) -> httpx.Response:
        """Through a person's own door: whose, their token says."""
        claims = jwt.decode(request.headers["authorization"].split()[1], options={"verify_signature": False})
        user_id = uuid.UUID(claims["sub"])
        if call == OWN_CLAIM:
            answer = await self._claim(call, user_id, request)
        else:
            hits = self._hits(self._by_user[user_id], call)
            await self._before(call, hits, request)
            answer = await self._after(call, hits, request, await self._send(call, hits, request))
        if answer.is_success:
            self._shared.count(self._row, "carried", str(call))
        return answer

    async def _claim(self, asked: Call, user_id: uuid.UUID, request: httpx.Request) -> httpx.Response:
        script = self._by_user.get(user_id)
        if script is None:
            return await self._inner.handle_async_request(request)
        hits = self._hits(script, asked)
        _doing.set(None)
        started = time.monotonic()
        await self._before(asked, hits, request)
        answer = await self._send(asked, hits, request)
        rows: list[dict[str, Any]] = json.loads(answer.content) if answer.is_success else []
        if rows:
            # What it is for is known now, and only now.
            _doing.set(Doing(script, rows[0]["attempt"], rows[0]["action"], started))
            claimed = Call(rows[0]["action"], CLAIM)
            answer = await self._after(claimed, self._hits(script, claimed), request, answer)
        return await self._after(asked, hits, request, answer)

    def _hits(self, script: Script, call: Call) -> tuple[Hit, ...]:
        if self._shared.is_quiet:
            return ()
        hits = script.hits.get((call, self._shared.number(script.index, call)), ())
        # A late call would hold up a whole sweep; and one whose own end is to come first must not be killed.
        left_to_others = {Kind.BE_LATE} if self._is_sweeper else set()
        left_to_others |= {Kind.KILL} if self.end is not None else set()
        if any(hit.kind in left_to_others for hit in hits):
            return ()
        self._shared.made(script.index, call)
        return hits

    async def _before(self, call: Call, hits: tuple[Hit, ...], request: httpx.Request) -> None:
        for hit in hits:
            if hit.moment != BEFORE or hit.kind in (Kind.GARBLE, Kind.LOSE_ANSWER):
                continue
            if hit.kind is Kind.KILL:
                self._die_at(call, BEFORE)
            self._shared.count(self._row, "hit", hit.kind.value)
            if hit.kind is Kind.LOSE_REQUEST:
                raise httpx.ReadTimeout("never sent, on purpose", request=request)
            await self._disturb(hit, call)

    async def _send(self, call: Call, hits: tuple[Hit, ...], request: httpx.Request) -> httpx.Response:
        refusal = next((hit for hit in hits if hit.kind is Kind.REFUSE), None)
        if refusal is not None:
            headers = {"retry-after": "1"} if refusal.status == 429 else {}
            return httpx.Response(refusal.status, content=GARBAGE, headers=headers, request=request)
        if any(hit.kind is Kind.KILL and hit.moment == DURING for hit in hits):
            sending = asyncio.ensure_future(self._inner.handle_async_request(request))
            await asyncio.wait([sending], timeout=IN_FLIGHT_SECONDS)
            self._die_at(call, DURING)
        answer = await self._inner.handle_async_request(request)
        await answer.aread()
        return answer

    async def _after(
        self, call: Call, hits: tuple[Hit, ...], request: httpx.Request, answer: httpx.Response
    ) -> httpx.Response:
        for hit in hits:
            if hit.kind is Kind.LOSE_ANSWER:
                self._shared.count(self._row, "hit", hit.kind.value)
                raise httpx.ReadError("lost on purpose", request=request)
            if hit.kind is Kind.GARBLE:
                self._shared.count(self._row, "hit", hit.kind.value)
                return httpx.Response(hit.status, content=GARBAGE, request=request)
            if hit.moment != AFTER:
                continue
            if hit.kind is Kind.KILL:
                self._die_at(call, AFTER)
            self._shared.count(self._row, "hit", hit.kind.value)
            await self._disturb(hit, call)
        return answer

    async def _disturb(self, hit: Hit, call: Call) -> None:
        doing = _doing.get()
        if hit.kind is Kind.ACT and hit.act is not None and doing is not None:
            await self._actor.perform(hit.act, doing.script, f"{call}/{doing.attempt}")
        elif hit.kind is Kind.BE_SLOW:
            await asyncio.sleep(SLOW_SECONDS)
        elif hit.kind is Kind.BE_LATE and doing is not None:
            await self._until_somebody_took_over(doing)

    async def _until_somebody_took_over(self, doing: Doing) -> None:
        """Every other one comes back while the other is still at it, the rest when the other has finished."""
        waits_for_the_end = doing.script.index % 2 == 0
        database = await self._actor.connection("operator")
        deadline = time.monotonic() + LATE_SECONDS
        while time.monotonic() < deadline:
            await asyncio.sleep(LATE_POLL_SECONDS)
            cursor = await database.execute(
                "select attempt, state::text from doorkey.provisioning where user_id = %s", (doing.script.user_id,)
            )
            row = await cursor.fetchone()
            if row and row[0] > doing.attempt and not (waits_for_the_end and row[1] == "working"):  # type: ignore[operator]
                return

    async def _call_of_nobody(self, call: Call, request: httpx.Request) -> httpx.Response:
        is_the_end = self.end is not None and self.end[0] == call and not self._shared.is_quiet
        if is_the_end and self.end is not None and self.end[1] == BEFORE:
            self._die_at(call, BEFORE)
        answer = await self._inner.handle_async_request(request)
        await answer.aread()
        if is_the_end:
            self._die_at(call, AFTER)
        return answer

    def _die_at(self, call: Call, moment: str) -> None:
        self._shared.count(self._row, "kill", str(call), moment)
        self._die()

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
