"""Both parts, started once; every test finds and leaves them without faults, and none may make them stumble."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.contract.faults.parts import FaultyProcess, running_edge, running_simulator


@pytest.fixture(scope="session")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, FaultyProcess]]:
    """The simulator and the edge, by name."""
    folder = tmp_path_factory.mktemp("faults")
    async with running_simulator(folder) as simulator, running_edge(folder) as edge:
        yield {part.name: part for part in (simulator, edge)}
    for log in folder.glob("*.log"):
        assert "Traceback" not in log.read_text(), "a fault is what was ordered, and no bug besides"


@pytest.fixture(params=["openrouter", "edge"])
async def part(request: pytest.FixtureRequest, both: dict[str, FaultyProcess]) -> AsyncIterator[FaultyProcess]:
    """One after the other."""
    chosen = both[request.param]
    yield chosen
    await chosen.control.clear()


@pytest.fixture
async def simulator(both: dict[str, FaultyProcess]) -> AsyncIterator[FaultyProcess]:
    """For what only OpenRouter does."""
    yield both["openrouter"]
    await both["openrouter"].control.clear()
