"""The two parts that take faults, each as a process of its own, and what counts as work done behind each.

The edge stands in front of a little server of the test's own, which counts what arrives: that is all a commit is here.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from infra.local.faults import EDGE, OPENROUTER, FaultControl
from infra.local.stack import CHECKOUT
from infra.local.supervisor import Part, Supervisor, answers, free_port
from tests.contract.edge.stack import Edge

MANAGEMENT_KEY = f"sk-or-mgmt-{secrets.token_hex(16)}"
UPSTREAM_ANSWER = b'{"state": "ready"}'


@dataclass
class FaultyProcess:
    """A running part.

    Attributes:
        name: `openrouter` or `edge`.
        origin: its address without a path.
        base_url: where its API begins.
        client: speaks to the API with the key that may do everything.
        control: orders faults.
        work: the path of a POST that changes something, as faults name it.
        other: the path of another.
    """

    name: str
    origin: str
    base_url: str
    client: httpx.AsyncClient = field(repr=False)
    control: FaultControl
    work: str
    other: str
    upstream: Counter[str]

    async def post(self, path: str = "") -> httpx.Response:
        """Asks for work."""
        return await self.client.post(self.base_url + (path or self.work), json={"name": "n"})

    async def done(self) -> int:
        """How much work was done so far, whatever was answered."""
        if self.name == "edge":
            return self.upstream.total()
        keys: int = (await self.client.get(f"{self.origin}/simulator/health")).json()["keys"]
        return keys


@asynccontextmanager
async def running_simulator(folder: Path) -> AsyncIterator[FaultyProcess]:
    """A simulator without a past."""
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    part = Part(
        name="openrouter",
        command=[sys.executable, "-m", "infra.local.openrouter", f"--port={port}"],
        is_ready=answers(f"{origin}/simulator/health"),
        environment={"SIMULATOR_MANAGEMENT_KEY": MANAGEMENT_KEY},
        folder=CHECKOUT,
    )
    headers = {"Authorization": f"Bearer {MANAGEMENT_KEY}"}
    async with _running(part, folder), httpx.AsyncClient(headers=headers, trust_env=False) as client:
        control = FaultControl(OPENROUTER, origin)
        yield FaultyProcess(
            "openrouter", origin, f"{origin}/api/v1", client, control, "/keys", "/chat/completions", Counter()
        )


@asynccontextmanager
async def running_edge(folder: Path) -> AsyncIterator[FaultyProcess]:
    """An edge before a server that answers everything and counts it."""
    upstream: Counter[str] = Counter()

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        upstream[head.split()[1].decode()] += 1
        length = len(UPSTREAM_ANSWER)
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n")
        writer.write(f"content-length: {length}\r\n\r\n".encode() + UPSTREAM_ANSWER)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(count, "127.0.0.1", 0, family=socket.AF_INET)
    behind = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    port = free_port()
    edge = Edge(f"http://127.0.0.1:{port}", "postgresql://nobody@127.0.0.1:9/none", folder / "edge.log")
    part = Part(
        name="edge",
        command=[
            *(sys.executable, "-m", "infra.local.edge", f"--port={port}"),
            *(f"--rest-url={behind}", f"--auth-url={behind}"),
        ],
        is_ready=answers(f"{edge.url}/edge/health"),
        environment=edge.environment(),
        folder=CHECKOUT,
    )
    headers = {"apikey": edge.secret}
    async with server, _running(part, folder), httpx.AsyncClient(headers=headers, trust_env=False) as client:
        yield FaultyProcess(
            "edge",
            edge.url,
            edge.url,
            client,
            FaultControl(EDGE, edge.url),
            "/rest/v1/rpc/finish_provisioning",
            "/rest/v1/rpc/claim_provisioning",
            upstream,
        )


@asynccontextmanager
async def _running(part: Part, folder: Path) -> AsyncIterator[None]:
    supervisor = Supervisor(folder)
    try:
        await supervisor.start(part)
        yield
    finally:
        await supervisor.stop_all()
