"""What the API says of an account."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.accounts.answers import in_credits, status_of
from functions.provisioning.states import ProvisioningState


@given(micros=st.integers(-(2**63), 2**63 - 1), per_credit=st.integers(1, 6).map(lambda n: 10**n))
def test_credits_are_exact(micros: int, per_credit: int) -> None:
    amount = in_credits(micros, per_credit)
    assert amount * per_credit == micros
    assert "E" not in str(amount)


@pytest.mark.parametrize(
    ("micros", "per_credit", "shown"),
    [(0, 10**6, "0"), (5_000_000, 10**6, "5"), (100_000_000, 10**6, "100"), (1, 10**6, "0.000001"),
     (2_500_000, 10**6, "2.5"), (10**13, 10**6, "10000000")],
)  # fmt: skip
def test_credits_are_written_as_people_write_them(micros: int, per_credit: int, shown: str) -> None:
    assert str(in_credits(micros, per_credit)) == shown
    assert in_credits(micros, per_credit) == Decimal(shown)


def account(state: ProvisioningState, key_status: str | None) -> dict[str, Any]:
    return {"provisioning": {"state": state.value}, "key": None if key_status is None else {"status": key_status}}


def test_every_state_has_a_word_for_people() -> None:
    words = {state: status_of(account(state, None)) for state in ProvisioningState}
    assert words == {
        ProvisioningState.WAITING: "pending",
        ProvisioningState.DUE: "pending",
        ProvisioningState.WORKING: "pending",
        ProvisioningState.READY: "pending",
        ProvisioningState.DEAD: "failed",
        ProvisioningState.GONE: "revoked",
    }


@pytest.mark.parametrize("state", list(ProvisioningState))
def test_a_key_that_works_is_active_whatever_is_being_changed_about_it(state: ProvisioningState) -> None:
    assert status_of(account(state, "active")) == "active"
    assert status_of(account(state, "disabled")) == "disabled"
