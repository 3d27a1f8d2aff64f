"""As much of a plan as the shells of simulated tasks ask for."""

from __future__ import annotations

from typing import Any

from consecution.options import Options
from consecution.protocol.values import TaskIndex
from consecution.testing.world import NodeShape


class TrialPlan:
    """It is plan, task and node in one."""

    name = "task"

    def __init__(self, options: Options, shape: NodeShape) -> None:
        self.options = options
        self.error_policy = shape.policy
        self.timer_s = shape.timer_s

    def task(self, task: TaskIndex) -> Any:
        return self

    def node(self, task: object) -> Any:
        return self
