"""What CloudWatch does with log lines and alarms, as far as its documentation says: a stand-in for a service that
can't run here.

It takes the metrics out of lines by the embedded metric format, puts them into periods, and judges the newest periods
by the alarm's own properties. It knows nothing of delays, of late data, and of several alarms' moods.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MILLIS = 1_000
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "GreaterThanOrEqualToThreshold": operator.ge,
    "LessThanThreshold": operator.lt,
}
STATISTICS: dict[str, Callable[[Iterable[float]], float]] = {"Sum": sum, "Maximum": max}


@dataclass(frozen=True)
class Datapoint:
    """One value of one metric."""

    namespace: str
    name: str
    dimensions: tuple[tuple[str, str], ...]
    at_seconds: float
    value: float


def datapoints_of(log: str) -> list[Datapoint]:
    """The metrics in a log, one line after the other.

    A directive that CloudWatch would drop without a word is an error here.
    """
    found = []
    for line in log.splitlines():
        if not line.startswith("{"):
            continue
        members = json.loads(line)
        embedded = members.get("_aws")
        if embedded is None:
            continue
        assert isinstance(embedded["Timestamp"], int)
        for directive in embedded["CloudWatchMetrics"]:
            assert 1 <= len(directive["Metrics"]) <= 100
            for dimension_set in directive["Dimensions"]:
                assert 1 <= len(dimension_set) <= 30
                dimensions = tuple(sorted((name, members[name]) for name in dimension_set))
                assert all(isinstance(value, str) and value for _, value in dimensions)
                for metric in directive["Metrics"]:
                    value = members[metric["Name"]]
                    assert isinstance(value, int | float)
                    assert not isinstance(value, bool)
                    assert metric["Unit"] in ("Count", "Seconds")
                    at_seconds = embedded["Timestamp"] / MILLIS
                    found.append(Datapoint(directive["Namespace"], metric["Name"], dimensions, at_seconds, value))
    return found


def state_of(alarm: Mapping[str, Any], datapoints: Iterable[Datapoint], *, now_seconds: float, before: str) -> str:
    """``ALARM`` or ``OK``, by the periods that end now.

    Args:
        alarm: its properties in the template, references resolved.
        datapoints: whatever there is; those of other metrics are passed over.
        now_seconds: the end of the newest period.
        before: the state until now, which stays where missing data is ignored.
    """
    wanted = tuple(sorted((d["Name"], d["Value"]) for d in alarm["Dimensions"]))
    mine = [
        point
        for point in datapoints
        if (point.namespace, point.name, point.dimensions) == (alarm["Namespace"], alarm["MetricName"], wanted)
    ]
    compare, statistic = COMPARISONS[alarm["ComparisonOperator"]], STATISTICS[alarm["Statistic"]]
    verdicts: list[bool] = []
    for number in range(alarm["EvaluationPeriods"]):
        end = now_seconds - number * alarm["Period"]
        values = [point.value for point in mine if end - alarm["Period"] < point.at_seconds <= end]
        if values:
            verdicts.append(compare(statistic(values), alarm["Threshold"]))
        elif alarm["TreatMissingData"] != "ignore":
            verdicts.append(alarm["TreatMissingData"] == "breaching")
    if len(verdicts) < alarm["EvaluationPeriods"]:
        return before
    return "ALARM" if sum(verdicts) >= alarm.get("DatapointsToAlarm", alarm["EvaluationPeriods"]) else "OK"
