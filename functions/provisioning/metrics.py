"""What CloudWatch keeps of provisioning. The alarms in infra/aws name these metrics; a test holds the names together.

A gauge is written by every sweep, whatever its value, so that silence means that no sweep came that far.
"""

from __future__ import annotations

from functions.kit.observability import Metric

# Gauges, by the sweep.
DEAD_ROWS = Metric("DeadRows")
OLDEST_DUE_SECONDS = Metric("OldestDueSeconds", "Seconds")
QUEUE_HELD = Metric("QueueHeld")
HOURLY_BRAKE = Metric("HourlyBrake")
STRAY_KEYS = Metric("StrayKeys")
OLDEST_STRAY_SECONDS = Metric("OldestStraySeconds", "Seconds")

# Counted.
SWEEPS_FINISHED = Metric("SweepsFinished")


def attempts(outcome: str) -> Metric:
    """Attempts that ended so: ``lease_lost`` is counted as ``AttemptsLeaseLost``."""
    return Metric("Attempts" + "".join(word.capitalize() for word in outcome.split("_")))
