"""The supervisor's memory of who is alive and who has switched to the newest wiring.

The rules it keeps: everybody is told of a new wiring before anybody replays; a dead task counts as
switched (it will be told when it is back); the replay is ordered once all tasks live and have switched.
A fresh start is the same thing with nothing to replay: until then every origin holds back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from consecution.protocol.values import TaskIndex


@dataclass(frozen=True, slots=True)
class StartTask:
    """Make sure the old incarnation is gone, then start a new one."""

    task: TaskIndex


@dataclass(frozen=True, slots=True)
class WireTasks:
    """Tell these tasks the endpoints of all; each answers "switched" with the version."""

    version: int
    tasks: tuple[TaskIndex, ...]
    endpoints: dict[TaskIndex, str]


@dataclass(frozen=True, slots=True)
class OrderReplay:
    """Every task has switched: all origins replay what is undecided (or abandon it, without a journal)."""

    version: int


Order = StartTask | WireTasks | OrderReplay


class Recovery:
    """Events in, orders out. The orders of one call are carried out in their order."""

    def __init__(self, tasks: Iterable[TaskIndex]) -> None:
        self._endpoints: dict[TaskIndex, str | None] = dict.fromkeys(tasks)
        self._switched: set[TaskIndex] = set()
        self.version = 0
        self.replayed_version = 0

    @property
    def settled(self) -> bool:
        """All tasks live, are wired, and the replay has been ordered."""
        return self._ordered and None not in self._endpoints.values()

    @property
    def _ordered(self) -> bool:
        return self.version > 0 and self.replayed_version == self.version

    def begin(self) -> list[Order]:
        return [StartTask(task) for task in self._endpoints]

    def died(self, task: TaskIndex) -> list[Order]:
        """The old incarnation's endpoint is void from now on."""
        self._endpoints[task] = None
        self._switched.discard(task)
        return [StartTask(task)]

    def retired(self, task: TaskIndex) -> list[Order]:
        """A task that will not come back and that nobody sends to any more."""
        del self._endpoints[task]
        self._switched.discard(task)
        return self._replay_if_ready()

    def started(self, task: TaskIndex, endpoint: str) -> list[Order]:
        """A new incarnation listens at ``endpoint``. Once all do, all are wired anew."""
        self._endpoints[task] = endpoint
        endpoints = {t: e for t, e in self._endpoints.items() if e is not None}
        if len(endpoints) < len(self._endpoints):
            return []
        self.version += 1
        self._switched.clear()
        return [WireTasks(self.version, tuple(endpoints), endpoints)]

    def switched(self, task: TaskIndex, version: int) -> list[Order]:
        """A task has closed its old sockets and connected to the endpoints of ``version``."""
        if version == self.version and self._endpoints.get(task) is not None:
            self._switched.add(task)
        return self._replay_if_ready()

    def _replay_if_ready(self) -> list[Order]:
        alive = {task for task, endpoint in self._endpoints.items() if endpoint is not None}
        everybody = len(alive) == len(self._endpoints)
        if self._ordered or not everybody or not alive <= self._switched:
            return []
        self.replayed_version = self.version
        return [OrderReplay(self.version)]
