"""What CloudWatch keeps of metering. An alarm in infra/aws names it; a test holds the names together."""

from __future__ import annotations

from functions.kit.observability import Metric

# A gauge, about once an hour: differences of yesterday that have no known cause, in micro-dollars.
DRIFT_MICROS = Metric("DriftMicros")
# Counted: rounds of the usage sync that came to their end.
USAGE_ROUNDS_FINISHED = Metric("UsageRoundsFinished")
