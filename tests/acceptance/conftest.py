"""Stacks for those who change what others rely on; one for all of a kind, because it takes seconds to start."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import TEST_LOGS
from tests.support.installations import Installation, running_installation
from tests.support.patients import Patient


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


@pytest.fixture(scope="session")
async def ward() -> AsyncIterator[Installation]:
    """Running; broken in whichever way the test before did it."""
    async with running_installation(TEST_LOGS.with_name("test-logs-doctor")) as running:
        yield running


@pytest.fixture
async def patient(ward: Installation) -> Patient:
    """For the doctor: well, whatever the test before did."""
    patient = Patient(ward)
    await patient.heal()
    return patient
