"""The log: one line per unit of work, and nothing of what libraries quote."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from functions.kit.observability import WorkLine, logger, start_logging


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
