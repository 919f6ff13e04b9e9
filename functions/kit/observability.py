"""One structured line per unit of work, with every outcome folded in.

A `WorkLine` is opened when the work starts, collects facts and the milliseconds of its steps on the way, and is
written once, however the work ends. What must never be in it: secrets, tokens, e-mail addresses, whole rows.

The surprising thing: on Lambda the same line carries the metrics. CloudWatch takes them out of any line that has a
member `_aws` (the embedded metric format), so nothing is sent anywhere. See docs/decisions/0011.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TextIO

from functions.kit.errors import DoorkeyError

logger = logging.getLogger("doorkey")
# Until `start_logging` says where to: else Python would write bare events to a command's terminal.
logger.addHandler(logging.NullHandler())

MAX_FRAMES = 6

METRICS_NAMESPACE = "doorkey"
STAGE_DIMENSION = "Stage"

Fact = str | int | float | bool | None


@dataclass(frozen=True)
class Metric:
    """A number that CloudWatch keeps.

    Attributes:
        name: in CloudWatch's style; no fact is called so.
        unit: in CloudWatch's words.
    """

    name: str
    unit: Literal["Count", "Seconds"] = "Count"


KEYS_REJECTED = Metric("KeysRejected")


class WorkLine:
    """The line of one unit of work.

    Args:
        event: ``noun.past_tense``, such as ``provisioning.finished``.
        facts: what is known from the start.
    """

    def __init__(self, event: str, **facts: Fact) -> None:
        self.event = event
        self.facts: dict[str, Fact] = dict(facts)
        self.steps_ms: dict[str, float] = {}
        self.metrics: dict[Metric, float] = {}
        self._started = time.perf_counter()

    def add(self, **facts: Fact) -> None:
        """Adds facts, or replaces them."""
        self.facts.update(facts)

    def add_error(self, error: DoorkeyError) -> None:
        """Says what went wrong: the stable code, the sentence for people, the private detail. Counts a rejected key."""
        self.add(error=error.code, sentence=error.sentence, detail=error.private)
        self.count_rejected_key(error)

    def measure(self, metric: Metric, value: float) -> None:
        """Adds a number for CloudWatch; nothing of it is seen where metrics are not wanted."""
        self.metrics[metric] = value

    def count_rejected_key(self, error: DoorkeyError) -> None:
        """Counts it, if the error is that a key of ours was rejected."""
        if error.is_key_rejected:
            self.measure(KEYS_REJECTED, 1)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times a step; the same step done again adds up."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent_ms = (time.perf_counter() - started) * 1000
            self.steps_ms[name] = round(self.steps_ms.get(name, 0.0) + spent_ms, 1)

    def write(self, level: int = logging.INFO) -> None:
        """Writes the line, with the whole duration."""
        total_ms = round((time.perf_counter() - self._started) * 1000, 1)
        fields: dict[str, object] = {**self.facts, "total_ms": total_ms}
        if self.steps_ms:
            fields["steps_ms"] = self.steps_ms
        logger.log(level, self.event, extra={"fields": fields, "metrics": self.metrics})


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, event, fields; and the type and place of an exception.

    Not its message: messages of libraries quote what they were given.

    Args:
        metrics_stage: the value of the metrics' dimension; None: no metrics.
    """

    def __init__(self, metrics_stage: str | None = None) -> None:
        super().__init__()
        self._metrics_stage = metrics_stage

    def format(self, record: logging.LogRecord) -> str:
        """The line, without the line end."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["exception"] = type(error).__name__
            line["raised_at"] = _places(error)
        metrics: dict[Metric, float] = getattr(record, "metrics", {})
        if self._metrics_stage is not None and metrics:
            line |= _embedded(metrics, self._metrics_stage, record.created)
        return json.dumps(line, default=str, ensure_ascii=False)


def start_logging(stream: TextIO = sys.stderr, level: int = logging.INFO, *, metrics_stage: str | None = None) -> None:
    """Sends doorkey's own lines to `stream` as JSON; to be called once per process.

    Libraries stay silent below warnings: httpx logs every address it calls.

    Args:
        stream: where to.
        level: what is less is left out.
        metrics_stage: the value of the metrics' dimension; None: no metrics.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(metrics_stage))
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpcore").setLevel(logging.WARNING)


def _embedded(metrics: dict[Metric, float], stage: str, created_seconds: float) -> dict[str, object]:
    """The members by which CloudWatch knows the metrics in a line."""
    directive = {
        "Namespace": METRICS_NAMESPACE,
        "Dimensions": [[STAGE_DIMENSION]],
        "Metrics": [{"Name": metric.name, "Unit": metric.unit} for metric in metrics],
    }
    return {
        STAGE_DIMENSION: stage,
        **{metric.name: value for metric, value in metrics.items()},
        "_aws": {"Timestamp": int(created_seconds * 1000), "CloudWatchMetrics": [directive]},
    }


def _places(error: BaseException) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
