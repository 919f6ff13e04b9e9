"""Fixtures of the pg_net contract: one database for the whole suite, one sink for each module.

By default the stand-in, on a Postgres of the suite's own. With ``PG_NET_CONTRACT_DATABASE_URL`` set
to a superuser's URL (database ``postgres`` of a server that preloads pg_net), the same tests hold
the real extension to the same guarantees.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from infra.local.postgres import prepare
from tests.contract.pg_net.net import CHECKOUT, Net, RealExtension, StandIn
from tests.contract.pg_net.sink import Sink

URL_VARIABLE = "PG_NET_CONTRACT_DATABASE_URL"


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """Others may enter it: as root, the server runs as somebody else."""
    with tempfile.TemporaryDirectory(prefix="pg_net_contract_") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="session")
async def net(server_folder: Path) -> AsyncIterator[Net]:
    """A database whose worker is up."""
    url = os.environ.get(URL_VARIABLE)
    if url:
        real = RealExtension(url)
        await real.rows("create extension if not exists pg_net")
        await real.wait_until_up()
        yield real
        await real.disconnect()
        return
    stand_in = StandIn(prepare(CHECKOUT, server_folder, "throw-away", _free_port()))
    try:
        await stand_in.start()
        yield stand_in
    finally:
        await stand_in.stop()


@pytest.fixture(scope="session")
def own_server(net: Net) -> StandIn:
    """For what needs a server to be stopped and started."""
    if not isinstance(net, StandIn):
        pytest.skip("the suite can't restart a server that it didn't start")
    return net


@pytest.fixture(scope="session")
def stand_in(net: Net) -> StandIn:
    """For what only the stand-in has, such as a process of its own."""
    if not isinstance(net, StandIn):
        pytest.skip("about the stand-in's process, which the real extension doesn't have")
    return net


@pytest.fixture(scope="module")
async def sink() -> AsyncIterator[Sink]:
    async with Sink.listening() as sink:
        yield sink


@pytest.fixture(scope="module")
async def other_sink() -> AsyncIterator[Sink]:
    """Another host, as far as a redirect is concerned."""
    async with Sink.listening() as sink:
        yield sink


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
