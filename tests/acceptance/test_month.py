"""A twentieth of the simulated month, in the suite; `make month` plays it whole."""

from __future__ import annotations

import json
import re

import pytest

from tests.month.run import faults, play
from tests.support.databases import Database


@pytest.mark.timeout(300)
async def test_at_the_end_of_a_month_every_micro_dollar_is_placed(database: Database) -> None:
    report = await play(database, users=25, calls=5_000, seed=1, show=lambda _: None)
    assert faults(report) == []
    # All that may happen did.
    assert {"answered", "late_receipt", "lost_answer", "aborted_stream", "direct"} <= report["counts"].keys()
    assert report["counts"]["rotations"]
    assert report["counts"]["renewals"]
    assert report["counts"]["plan_changes"]
    assert report["counts"]["leavers"]
    assert report["counts"]["last_words_micros"]
    assert report["counts"]["usage_returned_micros"]
    # For programs: all digits that count, and no others.
    amounts = re.findall(r'_micros": "([^"]*)"', json.dumps(report))
    assert "0" in amounts
    assert [amount for amount in amounts if not re.fullmatch(r"-?(0|[1-9]\d*)(\.\d*[1-9])?", amount)] == []
