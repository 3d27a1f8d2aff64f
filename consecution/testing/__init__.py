"""Seeded crash schedules against the protocol core that ships: a whole pipeline simulated in one thread.

``run_schedule(seed)`` builds a small random pipeline, runs it while workers die, messages are late and
items raise, and checks after every step that the promises hold. The same seed gives the same schedule. Every
second seed has durable tasks, in the shell that ships, over simulated stores, files and databases.
``python -m consecution.testing --schedules 1000000 --seed 7`` runs many.

``check_sink`` puts a sink, ours or yours, through its contract.
"""

from consecution.testing.schedule import Kill, Schedule, make_schedule
from consecution.testing.simulation import Outcome, Simulation, Summary, run_schedule, run_schedules
from consecution.testing.sinks import BrokenSinkError, check_sink
from consecution.testing.violation import Violation

__all__ = [
    "BrokenSinkError",
    "Kill",
    "Outcome",
    "Schedule",
    "Simulation",
    "Summary",
    "Violation",
    "check_sink",
    "make_schedule",
    "run_schedule",
    "run_schedules",
]
