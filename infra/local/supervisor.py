"""Starts the parts of the stack in order, watches them, and stops them all.

The surprising thing: a part must not outlive its supervisor, however that ends. On Linux the kernel signals each
part when the supervisor dies; a folder left behind by a killed one is removed by the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

READY_POLL_SECONDS = 0.02
STOP_SECONDS = 10.0
LAST_LINES = 12
PORTS = range(20_000, 32_000, 20)
PORT_TRIES = 200

_PR_SET_PDEATHSIG = 1
_block: list[int] = []
_anchors: list[socket.socket] = []


@dataclass(frozen=True)
class Identity:
    """A user and group of the operating system to run as."""

    uid: int
    gid: int


class PartFailed(Exception):
    """A part of the stack could not start, or died.

    Attributes:
        part: its name.
        reason: a sentence for people that says what to do, as far as is known.
        last_lines: the end of its log.
    """

    def __init__(self, part: str, reason: str, last_lines: Sequence[str] = ()) -> None:
        super().__init__(f"{part}: {reason}")
        self.part = part
        self.reason = reason
        self.last_lines = tuple(last_lines)


@dataclass(frozen=True)
class Part:
    """One process of the stack.

    Attributes:
        name: short; also the name of its log file and the prefix of its lines.
        command: the words to execute; no secrets among them, everybody can see them.
        is_ready: asked again and again until it says yes.
        environment: all that it gets besides PATH, HOME and the like; secrets go here.
        folder: working directory.
        identity: whom to run as; None for the current user.
        stop_signal: what asks it to end in good order.
        start_seconds: how long it may take to become ready.
        is_stdout_logged: whether standard output goes to the log beside standard error; no for programs that print
            their keys.
    """

    name: str
    command: Sequence[str]
    is_ready: Callable[[], Awaitable[bool]]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    folder: Path | None = None
    identity: Identity | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    start_seconds: float = 30.0
    is_stdout_logged: bool = True


@dataclass
class _Running:
    part: Part
    process: asyncio.subprocess.Process
    watcher: asyncio.Task[None] | None = None


class Supervisor:
    """Keeps the running parts. One event loop only.

    Args:
        log_folder: where each part's output goes, in a file of its own: ``<name>.log``.
    """

    def __init__(self, log_folder: Path) -> None:
        self.log_folder = log_folder
        self._running: dict[str, _Running] = {}
        self._death: asyncio.Future[PartFailed] = asyncio.get_running_loop().create_future()

    def pid(self, name: str) -> int:
        """The process id of a running part."""
        return self._running[name].process.pid

    async def start(self, part: Part) -> None:
        """Starts a part and waits until it is ready.

        Raises:
            PartFailed: it ended before it was ready, took too long, or could not be executed.
        """
        log = self.log_path(part.name)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PartFailed(part.name, f"can't write its log: {error}") from None
        # Only what a process needs to run: a developer's shell must not colour a part.
        inherited = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")
        environment = {name: os.environ[name] for name in inherited if name in os.environ}
        environment |= part.environment
        user = (
            {}
            if part.identity is None
            else {
                "user": part.identity.uid,
                "group": part.identity.gid,
                "extra_groups": [],
            }
        )
        with log.open("ab") as output:
            try:
                process = await asyncio.create_subprocess_exec(
                    *part.command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output if part.is_stdout_logged else asyncio.subprocess.DEVNULL,
                    stderr=output,
                    env=environment,
                    cwd=part.folder,
                    start_new_session=True,
                    preexec_fn=_die_with_parent(part.stop_signal),
                    **user,  # type: ignore[arg-type]
                )
            except OSError as error:
                raise PartFailed(part.name, f"could not be started: {error}") from error
        running = _Running(part, process)
        self._running[part.name] = running
        try:
            await self._until_ready(running)
        except PartFailed:
            await self.stop(part.name)
            raise
        running.watcher = asyncio.create_task(self._watch(running))

    async def _until_ready(self, running: _Running) -> None:
        part = running.part
        deadline = time.monotonic() + part.start_seconds
        while time.monotonic() < deadline:
            if running.process.returncode is not None:
                raise self._failure(part.name, f"ended with code {running.process.returncode} while starting")
            if await part.is_ready():
                return
            await asyncio.sleep(READY_POLL_SECONDS)
        raise self._failure(part.name, f"was not ready after {part.start_seconds:.0f} seconds")

    async def _watch(self, running: _Running) -> None:
        code = await running.process.wait()
        if not self._death.done():
            how = signal.Signals(-code).name if code < 0 else f"code {code}"
            self._death.set_result(self._failure(running.part.name, f"ended with {how}"))

    async def death(self) -> PartFailed:
        """Waits until any part dies by itself, and says which and why."""
        return await asyncio.shield(self._death)

    async def stop(self, name: str, stop_signal: signal.Signals | None = None) -> None:
        """Asks a part to end, and kills it and whatever it started after a while."""
        running = self._running.pop(name, None)
        if running is None:
            return
        if running.watcher is not None:
            running.watcher.cancel()
        process = running.process
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(stop_signal or running.part.stop_signal)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
        # Its session too: no grandchild may stay behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    async def stop_all(self) -> None:
        """Stops all parts, the last started first."""
        for name in reversed(list(self._running)):
            await self.stop(name)

    def log_path(self, name: str) -> Path:
        """The log file of a part."""
        return self.log_folder / f"{name}.log"

    def _failure(self, name: str, reason: str) -> PartFailed:
        with self.log_path(name).open(errors="replace") as log:
            return PartFailed(name, reason, [line.rstrip() for line in deque(log, LAST_LINES)])


def free_port() -> int:
    """A port on 127.0.0.1 for a part of this process's stack, and no other's.

    Ports come in blocks. Whoever binds the first of a block has the others, until the process ends: so stacks that
    start at the same moment can't be given the same one. And they come from below the range that systems take outgoing
    connections' ports from: one of those would take a port away between the look and the start of a part.

    Raises:
        PartFailed: none is free.
    """
    for _ in range(PORT_TRIES):
        while _block:
            port = _block.pop()
            if is_port_free(port):
                return port
        first = secrets.choice(PORTS)
        anchor = socket.socket()
        try:
            anchor.bind(("127.0.0.1", first))
        except OSError:
            anchor.close()
            continue
        _anchors.append(anchor)
        _block.extend(range(first + 1, first + PORTS.step))
    raise PartFailed("ports", f"none found between {PORTS.start} and {PORTS.stop}; is something using them all")


def is_port_free(port: int) -> bool:
    """Whether a server could listen on it now, on 127.0.0.1."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still being forgotten is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def answers(url: str) -> Callable[[], Awaitable[bool]]:
    """A readiness check: does the URL answer with anything below 500?"""

    async def check() -> bool:
        try:
            async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
                return (await client.get(url)).status_code < 500
        except httpx.HTTPError:
            return False

    return check


def _die_with_parent(stop_signal: signal.Signals) -> Callable[[], None] | None:
    """Has the kernel send the signal when the supervisor is gone. Linux only; elsewhere nothing."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, int(stop_signal))

    return arm
