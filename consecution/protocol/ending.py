"""The end of a bounded stream: which nodes run ``end()``, and when.

End is control, not data: when the source is exhausted and everything it gave is decided, the nodes that
have an ``end`` run it one after another in topological order; each has nothing open any more before the
next begins. So ``end()`` runs after all parents', and once.
"""

from __future__ import annotations

from collections.abc import Sequence

from consecution.protocol.values import TaskIndex


class Ending:
    """Steps through the nodes that want an end. ``stages``: the tasks of each, in topological order."""

    def __init__(self, stages: Sequence[Sequence[TaskIndex]]) -> None:
        self._stages = [set(stage) for stage in stages if stage]
        self._started = False
        self._over: list[TaskIndex] = []

    @property
    def started(self) -> bool:
        return self._started

    @property
    def finished(self) -> bool:
        return self._started and not self._stages

    @property
    def due(self) -> list[TaskIndex]:
        """The tasks that run ``end`` now and have not said that they are done."""
        return sorted(self._stages[0]) if self._started and self._stages else []

    @property
    def told(self) -> list[TaskIndex]:
        """All tasks that were to run ``end`` so far: a new incarnation of one of them was not told yet."""
        return sorted({*self._over, *self.due})

    def source_finished(self) -> list[TaskIndex]:
        """The stream is over. Returns the tasks that now run ``end``; harmless when repeated."""
        if self._started:
            return []
        self._started = True
        return self.due

    def task_ended(self, task: TaskIndex) -> list[TaskIndex]:
        """A task has run ``end`` and everything it pushed is processed. Returns the next ones to end."""
        if not self._started or not self._stages or task not in self._stages[0]:
            return []
        self._stages[0].discard(task)
        self._over.append(task)
        if self._stages[0]:
            return []
        self._stages.pop(0)
        return self.due
