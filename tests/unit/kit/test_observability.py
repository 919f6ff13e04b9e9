"""The log: one line per unit of work, and nothing of what libraries quote."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from functions.clients.openrouter import ManagementKeyRejected
from functions.clients.supabase import PublishableKeyRejected, ServiceKeyRejected
from functions.kit.errors import DoorkeyError, UserTokenRejected
from functions.kit.observability import Metric, WorkLine, logger, start_logging


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What doorkey writes; the logger is as it was afterwards."""
    before = (logger.handlers[:], logger.level, logger.propagate)
    stream = io.StringIO()
    start_logging(stream)
    yield stream
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def lines_of(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_a_unit_of_work_is_one_line_with_everything_in_it(log: io.StringIO) -> None:
    line = WorkLine("key.made", request_id="r1")
    line.add(outcome="ready", attempt=1)
    with line.step("claim"):
        pass
    line.add(attempt=2)
    line.write()
    (written,) = lines_of(log)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", written.pop("time"))
    assert written.pop("total_ms") >= 0
    assert written.pop("steps_ms").keys() == {"claim"}
    assert written == {"level": "info", "event": "key.made", "request_id": "r1", "outcome": "ready", "attempt": 2}


def test_a_step_that_fails_is_timed_and_one_done_again_adds_up() -> None:
    line = WorkLine("key.made")
    for _ in range(2):
        with pytest.raises(KeyError), line.step("claim"):
            raise KeyError
    first = line.steps_ms["claim"]
    with line.step("claim"):
        sum(range(200_000))
    assert line.steps_ms["claim"] > first


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred", '"quoted"', "\u2028", "ünïcödé"])
def test_whatever_is_in_it_a_line_stays_one_line(log: io.StringIO, text: str) -> None:
    WorkLine("request.handled", detail=text).write()
    assert log.getvalue().count("\n") == 1
    assert json.loads(log.getvalue())["detail"] == text
    assert "\x1b" not in log.getvalue()


def test_no_message_of_an_exception_reaches_the_log(log: io.StringIO) -> None:
    try:
        try:
            json.loads("sk-or-v1-cause")
        except ValueError as cause:
            raise RuntimeError("somebody@example.com and sk-or-v1-secret") from cause
    except RuntimeError as error:
        error.add_note("sk-or-v1-note")
        logger.exception("request.failed", extra={"fields": {"request_id": "r1"}})
    (written,) = lines_of(log)
    assert written["exception"] == "RuntimeError"
    assert written["request_id"] == "r1"
    assert "test_no_message_of_an_exception_reaches_the_log" in written["raised_at"][-1]
    assert "sk-or" not in log.getvalue()
    assert "@" not in log.getvalue()


def test_only_the_last_places_are_named(log: io.StringIO) -> None:
    def deep(levels: int) -> None:
        if levels == 0:
            raise LookupError
        deep(levels - 1)

    try:
        deep(20)
    except LookupError:
        logger.exception("request.failed")
    assert len(lines_of(log)[0]["raised_at"]) == 6


def test_libraries_do_not_log_what_they_call(log: io.StringIO) -> None:
    for library in ("httpx", "httpcore"):
        assert not logging.getLogger(library).isEnabledFor(logging.INFO)
    assert not logger.propagate
    assert log.getvalue() == ""


def test_starting_twice_does_not_write_twice(log: io.StringIO) -> None:
    start_logging(log)
    WorkLine("request.handled").write()
    assert len(lines_of(log)) == 1


@pytest.fixture
def lambda_log() -> Iterator[io.StringIO]:
    """What doorkey writes where metrics are wanted."""
    before = (logger.handlers[:], logger.level, logger.propagate)
    stream = io.StringIO()
    start_logging(stream, metrics_stage="prod")
    yield stream
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def measured() -> WorkLine:
    line = WorkLine("sweep.finished", dead=3)
    line.measure(Metric("DeadRows"), 3)
    line.measure(Metric("OldestDueSeconds", "Seconds"), 0)
    return line


def test_a_line_carries_its_metrics_in_the_embedded_format(lambda_log: io.StringIO) -> None:
    measured().write()
    (written,) = lines_of(lambda_log)
    embedded = written["_aws"]
    assert abs(embedded["Timestamp"] / 1000 - datetime.fromisoformat(written["time"]).timestamp()) < 0.01
    assert embedded["CloudWatchMetrics"] == [
        {
            "Namespace": "doorkey",
            "Dimensions": [["Stage"]],
            "Metrics": [{"Name": "DeadRows", "Unit": "Count"}, {"Name": "OldestDueSeconds", "Unit": "Seconds"}],
        }
    ]
    assert (written["Stage"], written["DeadRows"], written["OldestDueSeconds"]) == ("prod", 3, 0)
    assert (written["event"], written["dead"]) == ("sweep.finished", 3)


def test_a_line_without_metrics_says_nothing_of_them(lambda_log: io.StringIO) -> None:
    WorkLine("request.handled").write()
    logger.warning("request.failed")
    for written in lines_of(lambda_log):
        assert not {"_aws", "Stage"} & set(written)


def test_where_metrics_are_not_wanted_lines_are_as_they_were(log: io.StringIO) -> None:
    measured().write()
    (written,) = lines_of(log)
    assert set(written) == {"time", "level", "event", "dead", "total_ms"}


@pytest.mark.parametrize(
    ("error", "code", "counted"),
    [
        (ServiceKeyRejected("x: 401"), "service_key_rejected", False),
        (PublishableKeyRejected("x: 401"), "publishable_key_rejected", False),
        (ManagementKeyRejected("x: 401"), "management_key_rejected", True),
        (UserTokenRejected("x: 401"), "user_token_rejected", False),
    ],
)
def test_a_rejected_management_key_is_counted_and_what_the_access_ladder_counts_is_not(
    lambda_log: io.StringIO, error: DoorkeyError, code: str, *, counted: bool
) -> None:
    line = WorkLine("request.handled")
    line.add_error(error)
    line.write()
    (written,) = lines_of(lambda_log)
    assert written["error"] == code
    assert ("KeysRejected" in written) is counted
