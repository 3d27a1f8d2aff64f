"""The supervisor's memory of who is alive and who has switched to the newest wiring.

What lives and dies is a worker, with all the tasks that it hosts.

The rules it keeps: everybody is told of a new wiring before anybody replays; a dead worker counts as
switched (it will be told when it is back); the replay is ordered once all workers live and have switched.
A fresh start is the same thing with nothing to replay: until then every origin holds back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from consecution.protocol.values import WorkerIndex


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Make sure the old incarnation is gone, then start a new one."""

    worker: WorkerIndex


@dataclass(frozen=True, slots=True)
class WireWorkers:
    """Tell these workers the endpoints of all; each answers "switched" with the version."""

    version: int
    workers: tuple[WorkerIndex, ...]
    endpoints: dict[WorkerIndex, str]


@dataclass(frozen=True, slots=True)
class OrderReplay:
    """Every worker has switched: all origins replay what is undecided (or abandon it, without a journal)."""

    version: int


Order = StartWorker | WireWorkers | OrderReplay


class Recovery:
    """Events in, orders out. The orders of one call are carried out in their order."""

    def __init__(self, workers: Iterable[WorkerIndex]) -> None:
        self._endpoints: dict[WorkerIndex, str | None] = dict.fromkeys(workers)
        self._switched: set[WorkerIndex] = set()
        self.version = 0
        self.replayed_version = 0

    @property
    def settled(self) -> bool:
        """All workers live, are wired, and the replay has been ordered."""
        return self._ordered and None not in self._endpoints.values()

    @property
    def _ordered(self) -> bool:
        return self.version > 0 and self.replayed_version == self.version

    def begin(self) -> list[Order]:
        return [StartWorker(worker) for worker in self._endpoints]

    def died(self, worker: WorkerIndex) -> list[Order]:
        """The old incarnation's endpoint is void from now on."""
        self._endpoints[worker] = None
        self._switched.discard(worker)
        return [StartWorker(worker)]

    def retired(self, worker: WorkerIndex) -> list[Order]:
        """A worker that will not come back and that nobody sends to any more."""
        del self._endpoints[worker]
        self._switched.discard(worker)
        return self._replay_if_ready()

    def started(self, worker: WorkerIndex, endpoint: str) -> list[Order]:
        """A new incarnation listens at ``endpoint``. Once all do, all are wired anew."""
        self._endpoints[worker] = endpoint
        endpoints = {w: e for w, e in self._endpoints.items() if e is not None}
        if len(endpoints) < len(self._endpoints):
            return []
        self.version += 1
        self._switched.clear()
        return [WireWorkers(self.version, tuple(endpoints), endpoints)]

    def switched(self, worker: WorkerIndex, version: int) -> list[Order]:
        """A worker has closed its old sockets and connected to the endpoints of ``version``."""
        if version == self.version and self._endpoints.get(worker) is not None:
            self._switched.add(worker)
        return self._replay_if_ready()

    def _replay_if_ready(self) -> list[Order]:
        alive = {worker for worker, endpoint in self._endpoints.items() if endpoint is not None}
        everybody = len(alive) == len(self._endpoints)
        if self._ordered or not everybody or not alive <= self._switched:
            return []
        self.replayed_version = self.version
        return [OrderReplay(self.version)]
