"""How exact amounts are written."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.kit.amounts import plain


@pytest.mark.parametrize(
    ("amount", "written"),
    [
        ("0E-20", "0"),
        ("-0.00", "0"),
        ("0E+3", "0"),
        ("1.250000", "1.25"),
        ("1E+3", "1000"),
        ("100", "100"),
        ("100.00", "100"),
        ("1E-7", "0.0000001"),
        ("-1234.50", "-1234.5"),
        ("123456789012345678901234567890.10", "123456789012345678901234567890.1"),
    ],
)
def test_an_amount_has_all_digits_that_count_and_no_others(amount: str, written: str) -> None:
    assert plain(Decimal(amount)) == written


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**40), max_value=10**40))
def test_what_is_written_is_the_amount_itself(amount: Decimal) -> None:
    written = plain(amount)
    assert Decimal(written) == amount
    assert set(written) <= set("-.0123456789")
    assert plain(amount, is_grouped=True).replace(",", "") == written


def test_for_people_it_is_grouped() -> None:
    assert plain(Decimal("1234567.50"), is_grouped=True) == "1,234,567.5"
