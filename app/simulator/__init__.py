"""A stateful fake DashScope: regions, keys, tasks on its own clock, real PNG files, limits, faults, a bill, a journal.

A product of its own: it imports nothing from the rest of `app`, keeps nothing, and refuses production.
"""

from app.simulator.faults import Fault, FaultKind, Operation
from app.simulator.options import (
    BEIJING,
    SINGAPORE,
    Hostility,
    Limits,
    ProductionRefusedError,
    SimulatorKey,
    SimulatorOptions,
)
from app.simulator.server import Simulator, running_simulator, serve

__all__ = [
    "BEIJING",
    "SINGAPORE",
    "Fault",
    "FaultKind",
    "Hostility",
    "Limits",
    "Operation",
    "ProductionRefusedError",
    "Simulator",
    "SimulatorKey",
    "SimulatorOptions",
    "running_simulator",
    "serve",
]
