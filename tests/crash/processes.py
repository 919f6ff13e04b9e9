"""The processes that are killed: workers that take hints, and two that sweep; and one that only collects strays.

The surprising thing: they are forked from a nursery, a process without threads or an event loop that has imported
everything. A worker costs some milliseconds then, so that thousands can die. The nursery itself is forked before the
driver has a loop.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import json
import logging
import os
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

from functions import sweep, webhook
from functions.clients import access
from functions.clients.outside import Clients, build_clients
from functions.kit.observability import WorkLine, start_logging
from functions.kit.settings import Settings
from functions.provisioning import sweeping
from functions.provisioning.steps import Provisioner
from tests.crash.acts import Actor
from tests.crash.asking import Asker
from tests.crash.calls import AFTER, BEFORE, SWEEPS_CALLS
from tests.crash.mutations import apply_in_python
from tests.crash.plan import Crew, KillPoint, Plan
from tests.crash.service_key import REMEMBERED_SECONDS, read_secret_file
from tests.crash.shared import Shared
from tests.crash.wires import Wires

SWEEPER, COLLECTOR = "sweeper", "collector"
CREW: tuple[Crew | str, ...] = (Crew.ROUGH, Crew.ROUGH, Crew.CALM, Crew.QUIET, SWEEPER, SWEEPER, COLLECTOR)
HINTS_AT_ONCE = {Crew.ROUGH: 5, Crew.CALM: 24, Crew.QUIET: 24}
MAX_HINT_BYTES = 16 * 1024
# A process that ends without being killed has met an error that nobody foresaw.
MAX_FAILED = 20
# So many sweeps a sweeper waits for one kind of end.
SWEEPS_OF_A_KIND = 3
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, repr=False)
class Place:
    """What the processes must know of the stack.

    Attributes:
        environment: the functions' settings.
        superuser_url, role_password: of the database, for what happens to users.
        log: where the functions' lines go.
        sweep_pause_seconds: between two sweeps of one sweeper.
        sweeps_clock_ahead_seconds: so much later it is for them, or a stray would be too young all the time.
    """

    environment: dict[str, str]
    superuser_url: str
    role_password: str
    log: str
    sweep_pause_seconds: float
    sweeps_clock_ahead_seconds: float


class Nursery:
    """The handle on the processes, in the driver."""

    def __init__(self, plan: Plan, shared: Shared, mutation: str | None) -> None:
        """Forks; to be called before there is an event loop."""
        hints = {kind: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for kind in Crew}
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _be_the_nursery(plan, shared, mutation, theirs, {kind: pair[0] for kind, pair in hints.items()})
        theirs.close()
        self._control = ours
        self._is_stopped = False
        self.hints = {kind: pair[1] for kind, pair in hints.items()}
        for pair in hints.values():
            pair[0].close()
            pair[1].setblocking(False)

    def start(self, place: Place) -> None:
        """Has the crew started."""
        self._control.sendall(json.dumps(asdict(place)).encode() + b"\n")

    @property
    def is_alive(self) -> bool:
        """Whether it is at work still; one that met an error is not."""
        self._is_stopped = self._is_stopped or os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        return not self._is_stopped

    def stop(self) -> None:
        """Kills everybody. Once is enough."""
        if not self.is_alive:
            return
        self._is_stopped = True
        self._control.close()
        os.kill(self.pid, signal.SIGTERM)
        os.waitpid(self.pid, 0)


def _be_the_nursery(
    plan: Plan, shared: Shared, mutation: str | None, control: socket.socket, hints: dict[Crew, socket.socket]
) -> NoReturn:
    crew: dict[int, int] = {}

    def end(*_: object) -> NoReturn:
        for pid in crew:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)

    try:
        _die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, end)
        line = control.makefile("rb").readline()
        if not line:
            end()
        place = Place(**json.loads(line))
        log = Path(place.log).open("a", buffering=1)  # noqa: SIM115  for the life of the process
        os.dup2(log.fileno(), sys.stderr.fileno())
        access.REMEMBERED_SECONDS = access.REREAD_SECONDS = REMEMBERED_SECONDS
        apply_in_python(mutation)
        gc.collect()
        gc.freeze()
        lives = [0] * len(CREW)
        while shared.totals()[("failed",)] <= MAX_FAILED:
            for member in sorted(set(range(len(CREW))) - set(crew.values())):
                pid = os.fork()
                if pid == 0:
                    _be_a_worker(plan, shared, place, member, lives[member], hints)
                crew[pid] = member
                lives[member] += 1
            pid, status = os.waitpid(-1, 0)
            del crew[pid]
            was_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            shared.count(len(CREW), "killed" if was_killed else "failed")
    except Exception:  # whatever it was is logged, and the verdict counts the process as failed
        logging.exception("nursery.failed")
    end()


def _be_a_worker(
    plan: Plan, shared: Shared, place: Place, member: int, life: int, hints: dict[Crew, socket.socket]
) -> NoReturn:
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _die_with_parent()
        start_logging()
        crew = CREW[member]
        if crew == SWEEPER:
            asyncio.run(_sweep(plan, shared, place, member, life))
        elif crew == COLLECTOR:
            asyncio.run(_collect(plan, shared, place, member))
        elif isinstance(crew, Crew):
            asyncio.run(_take_hints(plan, shared, place, member, hints[crew], HINTS_AT_ONCE[crew]))
    except Exception:  # whatever it was is logged, and the verdict counts the process as failed
        logging.exception("worker.failed")
    os._exit(1)


async def _take_hints(
    plan: Plan, shared: Shared, place: Place, member: int, hints: socket.socket, at_once: int
) -> None:
    settings = Settings.from_environment(place.environment)
    clients = _clients(settings, Wires(plan, shared, member, _actor(place, shared, member)))
    handle = webhook.build(settings, clients)
    asker = Asker.build(settings, clients, shared)
    hints.setblocking(False)
    loop = asyncio.get_running_loop()
    room = asyncio.Semaphore(at_once)
    running: set[asyncio.Task[None]] = set()

    async def one(event: dict[str, Any]) -> None:
        async with room:
            if (asked := event.get("ask")) is None:
                await handle(event)
            else:
                await asker.ask(asked["index"], UUID(asked["user_id"]), asked["token"], asked["number"])

    while True:
        # Taken only when there is room: what waits in the socket outlives this process.
        async with room:
            event = json.loads(await loop.sock_recv(hints, MAX_HINT_BYTES))
        task = asyncio.create_task(one(event))
        running.add(task)
        task.add_done_callback(running.discard)
        await asyncio.sleep(0)


async def _sweep(plan: Plan, shared: Shared, place: Place, member: int, life: int) -> None:
    settings = Settings.from_environment(place.environment)
    wires = Wires(plan, shared, member, _actor(place, shared, member), is_sweeper=True)
    clients = _clients(settings, wires)
    handle = sweep.build(settings, clients, clock=lambda: time.time() + place.sweeps_clock_ahead_seconds)
    for number in itertools.count():
        # Some sweeps long its life is to end where a user's hit comes, then at a call of its own, and so on.
        wires.end = next_end(shared) if (life + number // SWEEPS_OF_A_KIND) % 2 else None
        await handle({"source": "aws.events"})
        await asyncio.sleep(place.sweep_pause_seconds)


async def _collect(plan: Plan, shared: Shared, place: Place, member: int) -> None:
    """Collects strays and does nothing else, as an operator does with `doorkey strays`: more often than any sweep."""
    settings = Settings.from_environment(place.environment)
    wires = Wires(plan, shared, member, _actor(place, shared, member), is_sweeper=True)
    provisioner = Provisioner.build(settings, _clients(settings, wires))
    limits = sweeping.SweepSettings(budget_seconds=0, stray_age_seconds=settings.doorkey_stray_age_seconds)
    while True:
        line = WorkLine("strays.collected")
        await sweeping._collect(  # the sweep's own, so that a mutation of it is one here
            provisioner, limits, line, lambda: time.time() + place.sweeps_clock_ahead_seconds
        )
        line.write()
        await asyncio.sleep(place.sweep_pause_seconds)


def next_end(shared: Shared) -> KillPoint:
    """At which call of its own a sweeper is to end: where the fewest did."""
    return min(
        ((call, moment) for call in SWEEPS_CALLS for moment in (BEFORE, AFTER)), key=lambda turn: shared.kills(*turn)
    )


def _clients(settings: Settings, wires: Wires) -> Clients:
    return build_clients(settings, transport=wires, reading=read_secret_file)


def _actor(place: Place, shared: Shared, member: int) -> Actor:
    openrouter = (place.environment["OPENROUTER_BASE_URL"], place.environment["OPENROUTER_MANAGEMENT_KEY"])
    return Actor(
        place.superuser_url, place.role_password, openrouter, lambda act: shared.count(member, "act", act.value)
    )


def _die_with_parent() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
