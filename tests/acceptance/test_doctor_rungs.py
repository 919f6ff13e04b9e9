"""`doorkey doctor` where a key was rotated, and the stage's secret has the new one: what is live, and what mends it.

Secrets Manager is played by moto. What the doctor says must be what the functions do; so they are asked as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.patients import Patient
from tests.support.vaults import Vault, running_vault

BOTH = ("SUPABASE_SECRET_KEY", "SUPABASE_PUBLISHABLE_KEY")
WRONG = {
    "SUPABASE_SECRET_KEY": "sb_secret_of-nobody-at-all-0000",
    "SUPABASE_PUBLISHABLE_KEY": "sb_publishable_of-nobody-at-all",
}
# What was rotated, and the lines that aren't ok.
ROTATED = {
    "the secret key": (("SUPABASE_SECRET_KEY",), {"secret_key": "warning"}),
    "the publishable key": (("SUPABASE_PUBLISHABLE_KEY",), {"publishable_key": "warning"}),
    "both": (BOTH, {"publishable_key": "warning", "secret_key": "warning"}),
}


@pytest.fixture(scope="module")
def vault() -> Iterator[Vault]:
    """Secrets Manager, with the stage's secret."""
    with running_vault() as vault:
        yield vault


@pytest.mark.parametrize("name", ROTATED)
async def test_a_key_that_is_found_again_in_the_secret_is_a_warning_and_says_what_is_live(
    patient: Patient, vault: Vault, name: str
) -> None:
    rotated, expected = ROTATED[name]
    vault.store({key: patient.environment[key] for key in BOTH})
    found = await patient.examine({**vault.environment, **{key: WRONG[key] for key in rotated}})
    assert found.not_ok() == expected
    for line in expected:
        assert "by the one in Secrets Manager" in found.checks[line]["finding"]
        assert "make deploy" in found.checks[line]["mend"]
    assert ("rung 2" in found.checks["secret_key"]["finding"]) == ("SUPABASE_SECRET_KEY" in rotated)
    assert (found.status, found.run.code) == ("warning", 1)


async def test_with_the_publishable_key_found_again_people_are_served_without_the_secret_key(
    patient: Patient, vault: Vault
) -> None:
    right = patient.environment["SUPABASE_PUBLISHABLE_KEY"]
    vault.store({"SUPABASE_SECRET_KEY": WRONG["SUPABASE_SECRET_KEY"], "SUPABASE_PUBLISHABLE_KEY": right})
    found = await patient.examine({**vault.environment, **WRONG})
    assert found.not_ok() == {
        "publishable_key": "warning", "secret_key": "broken", "database": "skipped", "clock": "skipped",
    }  # fmt: skip
    assert "rung 3" in found.checks["secret_key"]["finding"]


async def test_where_the_secret_has_rejected_keys_too_nothing_is_found(patient: Patient, vault: Vault) -> None:
    vault.store(WRONG)
    found = await patient.examine({**vault.environment, **WRONG})
    assert found.not_ok() == {
        "publishable_key": "broken", "secret_key": "broken", "database": "skipped", "clock": "skipped",
    }  # fmt: skip
    assert "rung 4" in found.checks["secret_key"]["finding"]


async def test_a_secret_that_can_not_be_read_is_said_before_a_key_is_rotated(patient: Patient, vault: Vault) -> None:
    vault.store({key: patient.environment[key] for key in BOTH})
    assert (await patient.examine(vault.environment)).not_ok() == {}
    found = await patient.examine({**vault.environment, "DOORKEY_SECRET_ID": "doorkey/mistyped"})
    assert found.not_ok() == {"stage_secret": "warning"}
    assert "ResourceNotFoundException" in found.checks["stage_secret"]["finding"]
    assert "DOORKEY_SECRET_ID=doorkey/STAGE" in found.checks["stage_secret"]["mend"]
    assert (found.status, found.run.code) == ("warning", 1)


async def test_a_secret_without_usable_keys_is_said_too(patient: Patient, vault: Vault) -> None:
    right = {key: patient.environment[key] for key in BOTH}
    vault.store({"SUPABASE_SECRET_KEY": right["SUPABASE_SECRET_KEY"]})
    found = await patient.examine(vault.environment)
    assert found.not_ok() == {"stage_secret": "warning"}
    assert "holds no SUPABASE_PUBLISHABLE_KEY" in found.checks["stage_secret"]["finding"]
    vault.store({**right, "SUPABASE_SECRET_KEY": right["SUPABASE_PUBLISHABLE_KEY"]})
    found = await patient.examine(vault.environment)
    assert found.not_ok() == {"stage_secret": "warning"}
    assert "SUPABASE_SECRET_KEY: holds a publishable key" in found.checks["stage_secret"]["finding"]
