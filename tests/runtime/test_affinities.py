"""Which worker is to wait on which core, over made-up readings of a machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest

from consecution import Map, Pipeline, Producer, Sink
from consecution.plan import Plan, set_apart
from consecution.protocol.values import TaskIndex, WorkerIndex
from consecution.runtime import affinities
from consecution.runtime.affinities import (
    BAD_LOOKS,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    LOOK_EVERY_S,
    Affinities,
    ProcReadings,
)

OURSELVES = 1000


class Machine:
    """Cores and processes whose use is set by the test; time passes only there. Workers' pids are their indices."""

    def __init__(self, plan: Plan, cores: int = 2) -> None:
        self.now_s = 100.0
        self.plan = plan
        self.count = cores
        self.silent = False
        self._cores = dict.fromkeys(range(cores), (50.0, 60.0))
        self._used = {OURSELVES: 5.0}
        self.pids = {WorkerIndex(worker.index): worker.index for worker in plan.workers}
        self.affinities = Affinities(plan, range(cores), self, lambda: [OURSELVES], self.now_s)

    def cores(self) -> dict[int, tuple[float, float]]:
        return {} if self.silent else dict(self._cores)

    def process(self, pid: int) -> float | None:
        return self._used.get(pid)

    @property
    def cores_of(self) -> dict[int, int]:
        return {int(worker): core for worker, core in self.affinities.cores_of.items()}

    def live(self, seconds: float, use: list[float], loads: dict[int, float]) -> None:
        """So long the cores are used like this, by these processes and by others."""
        self.now_s += seconds
        for core, part in enumerate(use):
            worked, idle = self._cores[core]
            self._cores[core] = worked + part * seconds, idle + (1.0 - part) * seconds
        for pid, load in loads.items():
            self._used[pid] = self._used.get(pid, 0.0) + load * seconds

    def begin(self, use: list[float], loads: dict[int, float]) -> bool:
        self.live(0.3, use, loads)
        return self.affinities.begin(self.now_s, dict(self.pids))

    def look(self, use: list[float], loads: dict[int, float], seconds: float = LOOK_EVERY_S) -> bool:
        self.live(seconds, use, loads)
        return self.affinities.look(self.now_s, dict(self.pids))

    def looks_until_let_go(self, use: list[float], loads: dict[int, float]) -> int:
        looks = 1
        while not self.look(use, loads):
            assert self.cores_of
            looks += 1
        assert self.cores_of == {}
        return looks


def same(item: Any) -> Any:
    return item


def plan_of(*, replicas: int = 1, **options: Any) -> Plan:
    """Per task: the source, the replicas, the sink. ``workers``: so many that have all of it."""
    nodes = Map(same, "map") if replicas == 1 else Map(same, "map") * replicas
    return Pipeline(Producer([1]) | nodes | Sink("sink")).plan(mode="process", **options)


ALONE: dict[int, float] = {OURSELVES: 0.4, 0: 0.7, 1: 0.7}
"""Starting takes time, too; that is not somebody else's."""


@pytest.mark.parametrize(
    ("workers", "cores", "places"),
    [
        (2, 2, {0: 0, 1: 1}),
        (2, 3, {0: 0, 1: 2}),
        (4, 2, {0: 0, 1: 0, 2: 1, 3: 1}),
        (3, 2, {0: 0, 1: 1, 2: 1}),
    ],
)
def test_workers_that_are_alike_are_spread_before_they_read(workers: int, cores: int, places: dict[int, int]) -> None:
    machine = Machine(plan_of(workers=workers), cores)
    loads = dict.fromkeys(range(workers), 0.9 * cores / workers)

    assert machine.begin([0.9] * cores, loads)

    assert machine.cores_of == places


def test_they_are_not_placed_while_somebody_else_is_at_work_but_once_he_is_done() -> None:
    machine = Machine(plan_of(workers=2))

    first = machine.begin([1.0, 1.0], {OURSELVES: 0.2, 0: 0.4, 1: 0.4})
    second = machine.look([1.0, 1.0], {0: 0.5, 1: 0.5})
    assert (first, second, machine.cores_of) == (False, False, {})

    assert machine.look([1.0, 1.0], {0: 0.95, 1: 0.95})
    assert machine.cores_of == {0: 0, 1: 1}


def test_they_are_let_go_when_others_come_and_placed_again_ever_later() -> None:
    machine = Machine(plan_of(workers=2))
    machine.begin([0.9, 0.9], ALONE)
    busy, quiet = {0: 0.5, 1: 0.7}, {0: 1.0, 1: 1.0}

    assert not machine.look([1.0, 1.0], quiet)
    pauses_s = []
    for _ in range(9):
        assert machine.looks_until_let_go([1.0, 1.0], busy) == BAD_LOOKS
        assert machine.cores_of == {}
        let_go_s = machine.now_s
        while not machine.look([1.0, 1.0], quiet):
            assert machine.cores_of == {}
        pauses_s.append(machine.now_s - let_go_s)

    assert pauses_s == pytest.approx([min(FIRST_PAUSE_S * 2**n, LONGEST_PAUSE_S) for n in range(9)])


def test_they_are_let_go_when_one_core_is_full_and_another_is_not() -> None:
    machine = Machine(plan_of(workers=2))
    machine.begin([0.9, 0.9], ALONE)

    for _ in range(2 * BAD_LOOKS):
        assert not machine.look([1.0, 0.9], {0: 1.0, 1: 0.9})
    for _ in range(BAD_LOOKS - 1):
        assert not machine.look([1.0, 0.5], {0: 1.0, 1: 0.5})
    assert not machine.look([0.8, 0.5], {0: 0.8, 1: 0.5})

    assert machine.looks_until_let_go([1.0, 0.5], {0: 1.0, 1: 0.5}) == BAD_LOOKS


def test_the_death_of_one_is_no_sign_of_others() -> None:
    machine = Machine(plan_of(workers=2))
    machine.begin([0.9, 0.9], ALONE)
    machine.pids[WorkerIndex(1)] = 11

    assert not machine.look([1.0, 0.8], {0: 1.0, 11: 0.1}), "the rest was the last one's"
    assert machine.looks_until_let_go([1.0, 0.5], {0: 1.0, 11: 0.5}) == BAD_LOOKS, "now it counts"


def test_workers_of_a_task_each_are_left_to_the_system_as_they_begin() -> None:
    machine = Machine(plan_of())

    assert not machine.begin([0.5, 0.5], {OURSELVES: 0.4, 0: 0.2, 1: 0.2, 2: 0.2})

    assert machine.cores_of == {}


def test_what_it_took_to_start_them_does_not_count() -> None:
    machine = Machine(plan_of())
    machine.begin([1.0, 1.0], {OURSELVES: 0.2, 0: 0.6, 1: 0.6, 2: 0.6})

    assert machine.look([0.4, 0.4], {0: 0.4, 1: 0.2, 2: 0.2})

    assert machine.cores_of == {0: 0, 1: 1, 2: 1}


@pytest.mark.parametrize(
    ("loads", "places"),
    [
        ({0: 0.7, 1: 0.3, 2: 0.5}, {0: 0, 1: 1, 2: 1}),
        ({0: 0.3, 1: 0.3, 2: 0.7}, {0: 0, 1: 0, 2: 1}),
        ({0: 0.0, 1: 0.0, 2: 0.0}, {0: 0, 1: 1, 2: 1}),
    ],
)
def test_they_are_placed_beside_their_neighbours_where_all_fit_in(
    loads: dict[int, float], places: dict[int, int]
) -> None:
    machine = Machine(plan_of())
    each = sum(loads.values()) / 2

    assert machine.look([each, each], loads)

    assert machine.cores_of == places


@pytest.mark.parametrize(
    ("use", "loads"),
    [
        ([0.9, 0.9], {0: 0.1, 1: 0.7, 2: 0.9}),  # no way to share that out
        ([0.9, 0.9], {0: 0.6, 1: 0.2, 2: 0.2}),  # somebody else is at work
        ([0.3, 0.3], {0: 0.3, 1: 0.3}),  # one has died
    ],
)
def test_they_are_not_placed_where_they_do_not_fit_in(use: list[float], loads: dict[int, float]) -> None:
    machine = Machine(plan_of())

    assert not machine.look(use, loads)

    assert machine.cores_of == {}


def test_a_count_that_cannot_be_true_is_no_matter() -> None:
    machine = Machine(plan_of())

    assert not machine.look([0.4, 0.4], {0: 1e17, 1: 0.2, 2: 0.2})


def test_they_are_let_go_once_they_have_more_to_do() -> None:
    machine = Machine(plan_of())
    machine.look([0.4, 0.4], {0: 0.4, 1: 0.2, 2: 0.2})

    assert machine.looks_until_let_go([0.5, 1.0], {0: 0.5, 1: 0.5, 2: 0.5}) == BAD_LOOKS
    assert not machine.look([0.4, 0.4], {0: 0.4, 1: 0.2, 2: 0.2}), "not at once"


def test_threads_of_one_process_share_what_it_takes() -> None:
    machine = Machine(plan_of())
    pids = {WorkerIndex(0): OURSELVES, WorkerIndex(1): OURSELVES, WorkerIndex(2): 2}
    machine.live(LOOK_EVERY_S, [0.7, 0.7], {OURSELVES: 0.8, 2: 0.6})

    assert machine.affinities.look(machine.now_s, pids)

    assert machine.cores_of == {0: 0, 1: 0, 2: 1}


def test_a_reader_that_stays_in_the_program_has_no_core_among_those_that_are_alike() -> None:
    plan = set_apart(plan_of(workers=2), TaskIndex(0))
    machine = Machine(plan)
    assert len(plan.workers) == 3

    machine.begin([0.9, 0.9], {0: 0.6, 1: 0.6, 2: 0.6})

    readers = {worker.index for worker in plan.workers if worker.tasks == (0,)}
    assert set(machine.cores_of) == {0, 1, 2} - readers
    assert set(machine.cores_of.values()) == {0, 1}


def test_nothing_is_decided_in_between_nor_over_a_time_that_says_nothing() -> None:
    machine = Machine(plan_of(workers=2))

    machine.live(0.05, [0.0, 0.0], {})
    assert not machine.affinities.begin(machine.now_s, machine.pids)
    assert not machine.look([0.0, 0.0], {}, LOOK_EVERY_S / 2)
    assert machine.look([0.0, 0.0], {}, LOOK_EVERY_S / 2)


def test_what_was_counted_over_too_short_a_time_counts_with_what_comes_next() -> None:
    machine = Machine(plan_of(workers=2))

    assert not machine.affinities.begin(machine.now_s, dict(machine.pids)), "no time at all"
    machine.live(0.08, [1.0, 1.0], {})
    assert not machine.affinities.begin(machine.now_s, dict(machine.pids))
    assert not machine.begin([0.3, 0.3], {0: 0.3, 1: 0.3}), "others have had all of both cores for 0.08 of 0.38 s"


def test_a_system_that_says_nothing_any_more_changes_nothing() -> None:
    machine = Machine(plan_of(workers=2))
    machine.silent = True
    assert not machine.begin([0.0, 0.0], {})
    machine.silent = False

    assert not machine.look([0.0, 0.0], {}), "there is nothing to compare with"
    assert machine.look([0.0, 0.0], {})


def test_a_system_whose_counts_stand_still_says_nothing() -> None:
    machine = Machine(plan_of(workers=2))

    machine.now_s += LOOK_EVERY_S

    assert not machine.affinities.begin(machine.now_s, machine.pids)


def test_they_are_let_go_when_the_system_says_nothing_any_more() -> None:
    machine = Machine(plan_of(workers=2))
    machine.begin([0.9, 0.9], ALONE)
    machine.silent = True

    assert machine.look([1.0, 1.0], {0: 0.1, 1: 0.1})
    assert machine.cores_of == {}
    assert not machine.look([1.0, 1.0], {0: 0.1, 1: 0.1})


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinities, "cores_allowed", lambda: frozenset([0, 1]))
    monkeypatch.setattr(ProcReadings, "cores", lambda self: {0: (1.0, 1.0), 1: (1.0, 1.0)})


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(
    ("options", "is_one"),
    [
        ({"workers": 2}, True),
        ({}, True),
        ({"workers": 2, "affinity": "off"}, False),
        ({"workers": 1}, False),
    ],
)
def test_it_is_made_where_workers_are_many_beside_the_cores(options: dict[str, Any], is_one: bool) -> None:
    assert (Affinities.of(plan_of(**options), 0.0) is not None) is is_one


@pytest.mark.parametrize("cores", [0, 1, 4, 64])
def test_it_is_not_made_where_there_is_nothing_to_choose_or_enough(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinities, "cores_allowed", lambda: frozenset(range(cores)))
    monkeypatch.setattr(ProcReadings, "cores", lambda self: dict.fromkeys(range(cores), (1.0, 1.0)))

    assert Affinities.of(plan_of(workers=2), 0.0) is None


@pytest.mark.usefixtures("two_cores")
def test_it_is_not_made_where_the_system_does_not_count_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProcReadings, "cores", lambda self: {0: (1.0, 1.0)})

    assert Affinities.of(plan_of(workers=2), 0.0) is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems are not asked")
def test_what_linux_has_counted_grows_with_what_was_done() -> None:
    readings = ProcReadings()
    began, cores = readings.process(os.getpid()), readings.cores()
    assert began is not None
    assert set(cores) >= os.sched_getaffinity(0)

    until_s = time.process_time() + 0.2
    while time.process_time() < until_s:
        pass

    ended, later = readings.process(os.getpid()), readings.cores()
    assert ended is not None
    assert ended >= began + 0.1
    assert sum(map(sum, later.values())) > sum(map(sum, cores.values()))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems are not asked")
def test_a_process_may_have_a_name_that_is_no_text() -> None:
    with subprocess.Popen([sys.executable, "-c", NAMED_ODDLY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"named\n"

        assert ProcReadings().process(child.pid) is not None

        child.communicate(b"")


NAMED_ODDLY = """
import sys
open("/proc/self/comm", "wb").write(b"caf\\xe9) 1 (")
print("named", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems are not asked")
def test_of_a_process_that_is_gone_nothing_is_counted() -> None:
    assert ProcReadings().process(2**22 + 1) is None
