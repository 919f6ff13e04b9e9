"""Faults on order, for every stand-in that speaks HTTP: answers lost after the work, stalls, refusals, limits.

The surprising thing: whether a request is hit is drawn when it arrives, from a generator with a seed. So the same
requests in the same order meet the same faults, however long the work behind them takes.
"""

from infra.local.faults.control import control_routes, is_control_allowed
from infra.local.faults.injector import Faults
from infra.local.faults.middleware import FaultMiddleware, Manner, arrived
from infra.local.faults.plan import FaultPlan, SimulatorFaultPlan
from infra.local.faults.remote import EDGE, OPENROUTER, PARTS, ControlFailed, FaultControl, FaultReport

__all__ = [
    "EDGE",
    "OPENROUTER",
    "PARTS",
    "ControlFailed",
    "FaultControl",
    "FaultMiddleware",
    "FaultPlan",
    "FaultReport",
    "Faults",
    "Manner",
    "SimulatorFaultPlan",
    "arrived",
    "control_routes",
    "is_control_allowed",
]
