"""A stack for those who change what others rely on; one for all of them, because it takes seconds to start."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import TEST_LOGS
from tests.support.installations import Installation, running_installation


@pytest.fixture(scope="session")
async def installed() -> AsyncIterator[Installation]:
    """Running; in whichever state the test before left it."""
    async with running_installation(TEST_LOGS.with_name("test-logs-connect")) as running:
        yield running


@pytest.fixture
async def installation(installed: Installation) -> Installation:
    """Not connected, and nothing sealed."""
    await installed.reset()
    return installed
