"""Which worker waits on which core, where there are few of them (`affinity` says what for).

Workers that all host the same (``workers=N``) are placed from the start, if nobody else is at work: each on a core of
its own as far as there are so many. Others are placed while they leave the cores time to spare: neighbours share a core
where both fit in. Either is given up where a core is full while another is not, or others come, and that lasts, for the
system moves work that is not bound; and once it is not known what cores do. It is tried again later, and ever more
rarely.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from consecution.kernel import cores_allowed
from consecution.plan import Plan
from consecution.protocol.values import WorkerIndex
from consecution.runtime import fork_server
from consecution.runtime.assembly import source_tasks

LOOK_EVERY_S = 0.25
BAD_LOOKS = 4
"""So many in a row, and workers are let go."""
LEAST_WINDOW_S = 0.1
"""What was counted over a shorter time says little."""
CALM = 0.92
"""So much of each core may be in use, at most, when workers are placed by what they need."""
ALONE = 0.3
"""So much of one core may be in use by others, at most, when workers that are alike are placed; twice that, and they
are let go."""
FULL = 0.97
SPARE = 0.85
"""A core is full above the one, and has time to spare below the other."""
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0
LEAST_LOAD = 0.01
"""What a worker is taken to need that needs nothing: those are spread evenly."""


class Readings(Protocol):
    """What the system has counted so far, in seconds; tests put fakes in its place."""

    def cores(self) -> dict[int, tuple[float, float]]:
        """Core → (at work, idle). Empty: nobody says."""

    def process(self, pid: int) -> float | None:
        """The processor time of a process; None: it is gone."""


class ProcReadings:
    """Linux's, in its ticks of a hundredth of a second."""

    def __init__(self) -> None:
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")

    def cores(self) -> dict[int, tuple[float, float]]:
        found = {}
        with contextlib.suppress(OSError, ValueError):
            for line in Path("/proc/stat").read_text().splitlines():
                name, *counted = line.split()
                if name.startswith("cpu") and name != "cpu":
                    user, nice, system, idle, for_disk, *interrupts = (int(t) * self._tick_s for t in counted[:7])
                    found[int(name[3:])] = user + nice + system + sum(interrupts), idle + for_disk
        return found

    def process(self, pid: int) -> float | None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            return (int(fields[11]) + int(fields[12])) * self._tick_s
        return None


class Affinities:
    """Where the workers of one run are to wait. Used by one thread.

    ``cores`` that they may use, in order. ``cores_of`` holds the workers that are placed. ``helpers`` are processes of
    the run that host no worker.
    """

    def __init__(
        self, plan: Plan, cores: Sequence[int], readings: Readings, helpers: Callable[[], Iterable[int]], now_s: float
    ) -> None:
        self.cores_of: dict[WorkerIndex, int] = {}
        self._cores = cores
        self._readings = readings
        self._helpers = helpers
        self._workers = [WorkerIndex(worker.index) for worker in plan.workers]
        self._alike = _alike(plan)
        self._pause_s = FIRST_PAUSE_S
        self._due_s = now_s
        self._pids: dict[WorkerIndex, int] = {}
        self._bad_looks = 0
        self._count_from(now_s, ())

    @classmethod
    def of(cls, plan: Plan, now_s: float) -> Affinities | None:
        """None where the workers are left to the system: it does as well where it has cores to choose from."""
        cores = sorted(cores_allowed())
        count = len(_alike(plan) or plan.workers)
        if plan.options.affinity == "off" or count < 2 or len(cores) < 2 or len(cores) >= 2 * count:
            return None
        readings = ProcReadings()
        return cls(plan, cores, readings, _helpers, now_s) if set(cores) <= set(readings.cores()) else None

    def begin(self, now_s: float, pids: dict[WorkerIndex, int]) -> bool:
        """All workers are up, and have read nothing yet. Whether `cores_of` has changed.

        What it took to start them says nothing of what they will need.
        """
        if self._alike:
            return self._look(now_s, pids)
        self._count_from(now_s, pids.values())
        return False

    def _count_from(self, now_s: float, pids: Iterable[int]) -> None:
        """What was done before does not count at the next look."""
        self._looked_s, self._counted, self._used = now_s, self._readings.cores(), self._used_by(pids)

    def look(self, now_s: float, pids: dict[WorkerIndex, int]) -> bool:
        """Look what cores and workers have done since the last time, now and then. Whether `cores_of` has changed."""
        return now_s - self._looked_s >= LOOK_EVERY_S and self._look(now_s, pids)

    def _look(self, now_s: float, pids: dict[WorkerIndex, int]) -> bool:
        passed_s = now_s - self._looked_s
        if passed_s < LEAST_WINDOW_S:
            return False
        self._looked_s = now_s
        # What one that has died had taken looks like others' work, and its core is idle until it has been replaced.
        is_new, self._pids = pids != self._pids, pids
        use = self._use_of_cores()
        loads = self._loads(pids, passed_s)
        if not use:
            return bool(self.cores_of) and self._let_go(now_s)
        others = max(0.0, sum(use.values()) - sum(loads.values()))
        if self.cores_of:
            self._bad_looks = self._bad_looks + 1 if not is_new and self._is_bad(use, others) else 0
            return self._bad_looks == BAD_LOOKS and self._let_go(now_s)
        if now_s >= self._due_s:
            sharers = Counter(pids.values())
            of_workers = {worker: loads[pid] / sharers[pid] for worker, pid in pids.items() if pid in loads}
            self.cores_of = self._suitable(of_workers, others)
        return bool(self.cores_of)

    def _use_of_cores(self) -> dict[int, float]:
        """Core → the part of the time that it was at work; empty where nothing was counted of one of them."""
        before, now = self._counted, self._readings.cores()
        self._counted = now
        use = {}
        for core in self._cores:
            if core in before and core in now:
                worked, idle = now[core][0] - before[core][0], now[core][1] - before[core][1]
                if worked + idle > 0:
                    use[core] = worked / (worked + idle)
        return use if len(use) == len(self._cores) else {}

    def _loads(self, pids: dict[WorkerIndex, int], passed_s: float) -> dict[int, float]:
        """What part of a core each process of the run has taken; those that are new have taken all of it since."""
        before, self._used = self._used, self._used_by(pids.values())
        return {pid: max(0.0, used_s - before.get(pid, 0.0)) / passed_s for pid, used_s in self._used.items()}

    def _used_by(self, pids: Iterable[int]) -> dict[int, float]:
        """The processor time of these processes, and of the helpers."""
        found = {pid: self._readings.process(pid) for pid in {*self._helpers(), *pids}}
        return {pid: used_s for pid, used_s in found.items() if used_s is not None}

    def _is_bad(self, use: dict[int, float], others: float) -> bool:
        is_full = max(use[core] for core in self.cores_of.values()) > FULL
        return (is_full and min(use.values()) < SPARE) or (bool(self._alike) and others > 2 * ALONE)

    def _let_go(self, now_s: float) -> bool:
        self.cores_of, self._bad_looks = {}, 0
        self._due_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return True

    def _suitable(self, loads: dict[WorkerIndex, float], others: float) -> dict[WorkerIndex, int]:
        """Those that are alike take all there is, if they are alone; the rest must fit in beside what else runs."""
        if self._alike:
            return _spread(dict.fromkeys(self._alike, 1.0), self._cores) if others <= ALONE else {}
        if len(loads) < len(self._workers):
            return {}
        spread = _spread({worker: max(loads[worker], LEAST_LOAD) for worker in self._workers}, self._cores)
        fullest = max(sum(loads[worker] for worker in spread if spread[worker] == core) for core in self._cores)
        return spread if fullest + others / len(self._cores) <= CALM else {}


def _helpers() -> list[int]:
    """This process, and the one that starts the workers."""
    server = fork_server.server_pid()
    return [os.getpid()] if server is None else [os.getpid(), server]


def _alike(plan: Plan) -> list[WorkerIndex]:
    """The workers of ``workers=N``; not the one that only reads a source which cannot be shipped."""
    if plan.options.workers == "per-task":
        return []
    sources = set(source_tasks(plan))
    return [WorkerIndex(worker.index) for worker in plan.workers if not sources.issuperset(worker.tasks)]


def _spread(loads: dict[WorkerIndex, float], cores: Sequence[int]) -> dict[WorkerIndex, int]:
    """Neighbours beside each other, and each core with about as much: where the middle of a worker's load falls."""
    total, before, found = sum(loads.values()), 0.0, {}
    for worker, load in loads.items():
        middle = (before + load / 2) / total  # 1.0 beside a load that is too large for it to count
        found[worker] = cores[min(int(middle * len(cores)), len(cores) - 1)]
        before += load
    return found


__all__ = ["Affinities", "ProcReadings", "Readings"]
