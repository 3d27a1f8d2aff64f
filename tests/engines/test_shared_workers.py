"""Real workers that host several tasks: what lives together dies together, and nothing else changes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import consecution
from consecution import FlatMap, KeyedNode, Map, Node, Pipeline, Producer, Running, StatefulNode, TextLines
from consecution.errors import StateDirError, StoppedByItemError
from consecution.kernel import cores_allowed
from consecution.runtime import affinities
from consecution.runtime.journal_check import check_state_dir
from tests.engines.durable_nodes import Balance, OnceFile, lines_of, payments, totals
from tests.engines.misbehaving import Copy, Gate, Misbehaving, wait_for
from tests.engines.poisonous import Hungry, Poisoned, Totals

ROOT = Path(consecution.__file__).parents[1]
COUNT = 600
DEADLINE_S = 60.0
OPTIONS: dict[str, Any] = {"mode": "process", "batch_size": 50, "sync": "process", "retry_delay_s": 0.01}


def numbers(path: Path) -> list[int]:
    return sorted(map(int, path.read_text().split()))


def last_totals(path: Path) -> dict[str, int]:
    """The last total that was pushed of each account."""
    return dict(lines_of(path))


def kill_worker_of(running: Any, *tasks: str) -> int:
    """Kill the workers that host these tasks; how many that were."""
    pids = running.pids()
    victims = {pids[task] for task in tasks}
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    return len(victims)


# -- who gets what -------------------------------------------------------------------------------


class Together(Node):
    """Gets on with its item when as many processes have one in hand."""

    def __init__(self, name: str, folder: Path, processes: int) -> None:
        super().__init__(name)
        self.folder, self.processes = folder, processes

    def process(self, item: Any) -> None:
        (self.folder / f"in.{os.getpid()}").touch()
        wait_for(lambda: len(list(self.folder.glob("in.*"))) == self.processes, DEADLINE_S)
        self.push(item)


@pytest.mark.parametrize("before", [lambda: Producer([0, 1]), lambda: Producer([2]) | FlatMap(range, "numbers")])
def test_a_few_items_are_enough_for_all_workers(before: Callable[[], Node], tmp_path: Path) -> None:
    chain = before() | Together("together", tmp_path, 2) * 2 | TextLines("lines", path=tmp_path / "out")

    report = Pipeline(chain).run(**OPTIONS, workers=2, state_dir=tmp_path / "state")

    assert (report.completed, report.failed) == (report.emitted, 0)
    assert numbers(tmp_path / "out") == [0, 1]


class Waits(Node):
    """Pushes how many cores it may use, once this test lets it."""

    def __init__(self, name: str, may_go: Path) -> None:
        super().__init__(name)
        self.may_go = may_go

    def process(self, item: Any) -> None:
        wait_for(self.may_go.exists, DEADLINE_S)
        self.push(len(cores_allowed()))


@pytest.mark.skipif(len(cores_allowed()) < 2, reason="needs a choice of cores, which Linux gives")
def test_workers_wait_on_a_core_of_their_own_and_nodes_run_on_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = sorted(cores_allowed())[:2]
    monkeypatch.setattr(affinities, "cores_allowed", lambda: frozenset(two))
    monkeypatch.setattr(affinities, "ALONE", 1000.0)  # whatever else this machine is at
    monkeypatch.setattr(affinities, "FULL", 1000.0)
    items, may_go = tmp_path / "items", tmp_path / "go"
    chain = Producer(lambda: grows(items)) | Waits("waits", may_go) * 2 | TextLines("lines", path=tmp_path / "out")

    with Pipeline(chain).start(**OPTIONS, workers=2, state_dir=tmp_path / "state") as running:
        wait_for(lambda: {"waits.0", "waits.1"} <= set(running.pids()), DEADLINE_S)
        pids = [running.pids()[name] for name in ("waits.0", "waits.1")]
        wait_for(lambda: [os.sched_getaffinity(pid) for pid in pids] == [{core} for core in two], DEADLINE_S)
        items.touch()
        wait_for(lambda: any(len(os.sched_getaffinity(pid)) > 1 for pid in pids), DEADLINE_S)
        may_go.touch()
        report = running.join(DEADLINE_S)

    assert report is not None
    assert report.completed == 4
    assert set(numbers(tmp_path / "out")) == {len(cores_allowed())}


def grows(items: Path) -> Iterator[int]:
    wait_for(items.exists, DEADLINE_S)
    yield from range(4)


class KillsWhoSendsIt:
    def __reduce__(self) -> Any:
        os._exit(7)


def six_of(item: int) -> list[Any]:
    return [KillsWhoSendsIt() if item == 1 and number in (0, 5) else (item, number) for number in range(6)]


def test_a_frame_that_cannot_be_shared_without_dying_of_it_stays_next_door(tmp_path: Path) -> None:
    chain = Producer(range(3)) | FlatMap(six_of, "six") | Map(type, "kind") * 2 | Map(str, "name")
    last = TextLines("lines", path=tmp_path / "out")

    report = Pipeline(chain | last).run(**OPTIONS, workers=2, state_dir=tmp_path / "state")

    assert (report.emitted, report.completed, report.failed) == (3, 3, 0)
    assert report.restarts > 0
    assert Counter((tmp_path / "out").read_text().splitlines()) == {str(tuple): 16, str(KillsWhoSendsIt): 2}


# -- deaths --------------------------------------------------------------------------------------


class Total(KeyedNode):
    """The sum of each key; the end is what the stream has left."""

    def key(self, item: int) -> int:
        return item % 7

    def process(self, item: int) -> None:
        self.state["total"] = self.state.get("total", 0) + item
        self.push(item)

    def end(self) -> None:
        for key, state in self.states():
            self.push((key, state["total"]))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "victims",
    [["producer.0"], ["out.0"], ["total.0"], ["producer.0", "out.0", "total.0"]],
    ids="+".join,
)
def test_whichever_worker_is_killed_everything_arrives_once(tmp_path: Path, workers: int, victims: list[str]) -> None:
    gate = Gate("gate", COUNT // 2, tmp_path)
    out = OnceFile("out", tmp_path / "out")
    pipeline = Pipeline(Producer(range(COUNT)) | Copy("copy") | gate | Total("total") | out)

    with pipeline.start(workers=workers, state_dir=tmp_path / "state", **OPTIONS) as running:
        wait_for(gate.reached.exists)
        killed = kill_worker_of(running, *victims)
        wait_for(lambda: running.status().restarts >= killed)
        gate.opened.touch()
        report = running.wait(DEADLINE_S)

    found = lines_of(tmp_path / "out")
    assert sorted(item for item in found if isinstance(item, int)) == list(range(COUNT))
    assert dict(item for item in found if isinstance(item, tuple)) == {
        key: sum(n for n in range(COUNT) if n % 7 == key) for key in range(7)
    }
    assert (report.restarts, report.emitted, report.completed, report.open) == (killed, COUNT, COUNT, 0)
    assert report.confirmed
    assert check_state_dir(tmp_path / "state").problems == ()


VICTIM = """
import sys, time
from pathlib import Path
from consecution import Map, Pipeline
from tests.engines.durable_nodes import Balance, OnceFile, payments, slowly
from tests.engines.test_shared_workers import OPTIONS, same

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    items = payments(1000)
    chain = Map(same, "in") | Balance("balance") | OnceFile("out", folder / "out")
    report = Pipeline(chain).run(
        items if sys.argv[2] == "in a worker" else lambda: slowly(items, folder / "gate", 500),
        workers=2,
        state_dir=folder / "state",
        **OPTIONS,
    )
    sys.exit(report.exit_code)
"""


def same(item: Any) -> Any:
    return item


@pytest.mark.parametrize("source", ["in a worker", "in the parent"])
def test_a_killed_supervisor_takes_shared_workers_along_and_the_next_run_goes_on(tmp_path: Path, source: str) -> None:
    out = tmp_path / "out"
    (tmp_path / "victim.py").write_text(VICTIM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, str(tmp_path / "victim.py"), str(tmp_path), source], env=environment)

    first = start()
    wait_for(lambda: out.exists() and out.stat().st_size > 0, DEADLINE_S)
    first.kill()
    first.wait(DEADLINE_S)
    (tmp_path / "gate").touch()
    second = start()

    assert second.wait(DEADLINE_S) == 0
    found = lines_of(out)
    assert len(found) == 1000 + 7
    at_the_end = {name.removesuffix(" at the end"): total for name, total in found if name.endswith(" at the end")}
    assert at_the_end == totals(payments(1000))


def test_without_a_journal_the_loss_of_a_shared_worker_is_told_and_its_tasks_go_on(tmp_path: Path) -> None:
    gate = Gate("gate", COUNT // 2, tmp_path)
    pipeline = Pipeline(Producer(numbers_of(COUNT)) | Copy("copy") | gate | TextLines("out", tmp_path / "out"))

    with pipeline.start(robustness="confirm", workers=2, **OPTIONS) as running:
        wait_for(gate.reached.exists)
        kill_worker_of(running, "out.0")
        wait_for(lambda: running.status().restarts >= 1)
        gate.opened.touch()
        report = running.wait(DEADLINE_S)

    assert (report.confirmed, report.restarts) == (False, 1)


def numbers_of(count: int) -> Callable[[], Iterator[int]]:
    """A source that is read in the parent."""
    return lambda: iter(range(count))


# -- another number of workers -------------------------------------------------------------------


def push_all(running: Running, items: list[Any]) -> None:
    for receipt in [running.push(item) for item in items]:
        assert receipt.wait(DEADLINE_S)


def test_state_follows_its_keys_to_another_number_of_workers(tmp_path: Path) -> None:
    items = payments(300)
    for workers, part in (("per-task", items[:60]), (2, items[60:140]), (3, items[140:200]), (1, items[200:260])):
        chain = Producer("manual") | Copy("copy") | Balance("balance") | OnceFile("out", tmp_path / "out")
        running = Pipeline(chain).start(workers=workers, state_dir=tmp_path / "state", **OPTIONS)  # type: ignore[arg-type]
        push_all(running, part)
        assert running.stop().open == 0
        assert check_state_dir(tmp_path / "state").problems == ()

    # However many workers there were, each total came from the one before it.
    assert last_totals(tmp_path / "out") == totals(items[:260])
    steps = Counter(name for name, _ in lines_of(tmp_path / "out"))
    assert steps == Counter(name for name, _ in items[:260])


def test_another_number_of_workers_is_refused_while_work_is_in_flight(tmp_path: Path) -> None:
    def chain() -> Pipeline:
        return Pipeline(Map(fail, "fail") | Balance("balance") | OnceFile("out", tmp_path / "out"))

    options = {**OPTIONS, "state_dir": tmp_path / "state", "retry_delay_s": 60}
    running = chain().start(["raise"], workers=2, **options)
    wait_for(lambda: running.status().pending == 1 and sum(node.failed for node in running.status().nodes) == 1)
    running.abort()
    assert running.wait(DEADLINE_S).pending == 1

    with pytest.raises(
        StateDirError, match=r"the graph has changed.*1 batches in flight.*run the old pipeline once more"
    ):
        chain().run(["raise"], workers=3, **options)


def fail(item: Any) -> Any:
    if item == "raise":
        raise ValueError("this one")
    return item


# -- what comes to grief -------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("way", ["segfault", "exit"])
def test_poison_in_a_shared_worker_is_left_out_and_its_neighbours_go_on(tmp_path: Path, workers: int, way: str) -> None:
    chain = Producer(range(60)) | Copy("copy") | Poisoned("bad", {33: way}) | Copy("behind")

    report = Pipeline(chain | TextLines("out", tmp_path / "out")).run(
        workers=workers, **OPTIONS | {"batch_size": 20, "retries": 1}
    )

    assert {(f.node, f.item, f.error.partition(":")[0]) for f in report.failures} == {("bad", 33, "PoisonError")}
    assert numbers(tmp_path / "out") == [n for n in range(60) if n != 33]
    assert (report.completed, report.failed, report.pending, report.restarts) == (60, 1, 0, 4)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_state_of_a_keyed_node_in_a_shared_worker_holds_all_but_the_poison(tmp_path: Path, workers: int) -> None:
    chain = Producer(range(60)) | Copy("copy") | Totals("totals", 33) | TextLines("out", tmp_path / "out")

    report = Pipeline(chain).run(workers=workers, **OPTIONS | {"batch_size": 20, "retries": 1})

    assert [(f.node, f.item) for f in report.failures] == [("totals", 33)]
    expected = {key: sum(n for n in range(60) if n % 7 == key and n != 33) for key in range(7)}
    assert dict(map(eval, (tmp_path / "out").read_text().splitlines())) == expected


def test_a_node_that_hangs_in_a_shared_worker_takes_only_that_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.touch()
    chain = Producer(range(COUNT)) | Copy("copy") | Misbehaving("bad", "hang", 333, token)

    report = Pipeline(chain | TextLines("out", tmp_path / "out")).run(workers=2, timeout_s=2.0, **OPTIONS)

    assert numbers(tmp_path / "out") == list(range(COUNT))
    assert (report.restarts, report.failed, report.completed) == (1, 0, COUNT)
    said = capsys.readouterr().err
    assert re.search(r"\[supervisor\] worker\.\d \(pid \d+\) has made no progress in process for 2 s: killing it", said)
    assert "process" in re.findall(r"\[worker\.\d \d+\]   File .*misbehaving\.py.* in (\w+)", said)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can limit what a process takes")
def test_the_limit_of_memory_is_one_of_workers(tmp_path: Path) -> None:
    chain = Producer([1, 2, 2000, 3]) | Hungry("hungry") | TextLines("out", tmp_path / "out")

    report = Pipeline(chain).run(workers=2, memory_limit_bytes=700 * 1024 * 1024, retries=1, **OPTIONS)

    assert [(f.node, f.item, f.error.partition(":")[0]) for f in report.failures] == [("hungry", 2000, "MemoryError")]
    assert numbers(tmp_path / "out") == [1, 2, 3]
    assert report.restarts == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_an_item_may_stop_a_run_of_shared_workers(tmp_path: Path, workers: int) -> None:
    chain = Map(fail, "fail").on_error("stop") | OnceFile("out", tmp_path / "out")
    items = [*range(100), "raise", *range(100, 20_000)]

    with pytest.raises(StoppedByItemError) as told:
        Pipeline(chain).run(items, workers=workers, state_dir=tmp_path / "state", **OPTIONS)

    assert "fail" in str(told.value)
    again = Pipeline(Map(same, "fail") | OnceFile("out", tmp_path / "out"))
    report = again.run(items, workers=workers, state_dir=tmp_path / "state", **OPTIONS)
    assert report.emitted == len(items)
    assert sorted(n for n in lines_of(tmp_path / "out") if n != "raise") == list(range(20_000))


# -- order ---------------------------------------------------------------------------------------


class Overtaken(Node):
    """Holds the first item back until another replica has a later one in hand."""

    def __init__(self, name: str, token: Path) -> None:
        super().__init__(name)
        self.token = token

    def process(self, item: int) -> None:
        if item == 0:
            wait_for(self.token.exists)
        else:
            self.token.touch()
        self.push(item)


def test_batches_that_overtake_each_other_are_applied_in_the_order_of_the_source(tmp_path: Path) -> None:
    chain = Overtaken("overtaken", tmp_path / "token") | Copy("copy") | OnceFile("out", tmp_path / "out")

    report = Pipeline(chain).run(numbers_of(COUNT), workers=2, **OPTIONS)

    assert lines_of(tmp_path / "out") == list(range(COUNT))
    assert (report.completed, report.failed) == (COUNT, 0)


# -- calls instead of sockets --------------------------------------------------------------------


class Locks(Node):
    """Makes of a number something that cannot leave its process."""

    def process(self, item: int) -> None:
        self.push((item, (number + 1 for number in [item])))


class Unlocks(Node):
    def process(self, item: Any) -> None:
        number, successors = item
        self.push((number, next(successors)))


@pytest.mark.parametrize("robustness", ["track", "robust"])
@pytest.mark.parametrize("workers", [1, 2])
def test_between_neighbours_without_state_live_things_travel(tmp_path: Path, workers: int, robustness: str) -> None:
    chain = Producer(range(100)) | Locks("locks") | Unlocks("unlocks") | OnceFile("out", tmp_path / "out")

    report = Pipeline(chain).run(workers=workers, robustness=robustness, **OPTIONS)  # type: ignore[arg-type]

    assert sorted(lines_of(tmp_path / "out")) == [(n, n + 1) for n in range(100)]
    assert (report.failed, report.completed) == (0, 100)


GOOD = [n for n in range(100) if n % 10]


def test_what_cannot_leave_its_process_fails_where_it_would_have_to(tmp_path: Path) -> None:
    chain = Producer(range(100)) | Some("some") | Copy("near") | Watch("far") | OnceFile("out", tmp_path / "out")

    report = Pipeline(chain).run(workers=2, retries=1, **OPTIONS)

    assert {(failure.node, failure.attempts) for failure in report.failures} == {("near", 1)}
    assert (report.completed, report.open, report.failed) == (100, 0, 10)
    assert sorted(lines_of(tmp_path / "out")) == GOOD


class Some(Node):
    """Only every tenth cannot be encoded."""

    def process(self, item: int) -> None:
        successors = [item + 1]
        self.push((item, (n for n in successors) if item % 10 == 0 else iter(successors)))


class Watch(StatefulNode):
    def process(self, item: Any) -> None:
        self.push(item[0])


class Tampers(Node):
    """Changes the item in its hands, which its neighbour has too."""

    def process(self, item: dict[str, int]) -> None:
        item["value"] = -1
        self.push(item["number"])


class Keeps(StatefulNode):
    """Takes items in; what it pushes at the end is what it was given."""

    def process(self, item: dict[str, int]) -> None:
        self.state.setdefault("seen", []).append(item["value"])

    def end(self) -> None:
        for value in sorted(self.state["seen"]):
            self.push(value)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kept_first", [True, False])
def test_what_one_branch_does_to_an_item_does_not_reach_what_another_has_staged(
    tmp_path: Path, workers: int, kept_first: bool
) -> None:
    keeps = Keeps("keeps") | OnceFile("kept", tmp_path / "kept")
    tampers = Tampers("tampers") | OnceFile("rest", tmp_path / "rest")
    items = [{"number": n, "value": n} for n in range(100)]

    report = Pipeline(Producer(items) | Copy("copy") | ([keeps, tampers] if kept_first else [tampers, keeps])).run(
        workers=workers, **OPTIONS
    )

    assert report.exit_code == 0
    assert lines_of(tmp_path / "kept") == list(range(100))
    assert sorted(lines_of(tmp_path / "rest")) == list(range(100))


class Tallies(KeyedNode):
    """Pushes its state itself, after each item and at the end."""

    def key(self, item: int) -> int:
        return item % 3

    def process(self, item: int) -> None:
        self.state["sum"] = self.state.get("sum", 0) + item
        self.push(self.state)

    def end(self) -> None:
        for key, state in self.states():
            self.push({"key": key, **state})


class Spoils(Node):
    """Changes what it gets; passes on only what was pushed at the end."""

    def process(self, item: dict[str, int]) -> None:
        if "key" in item:
            self.push(f"{item['key']}: {item['sum']}")
        item["sum"] = -1_000_000


@pytest.mark.parametrize("workers", [1, 2])
def test_a_state_that_was_pushed_is_not_changed_by_the_neighbour_that_gets_it(tmp_path: Path, workers: int) -> None:
    nodes = Producer(range(300)) | Tallies("tallies") | Spoils("spoils") | TextLines("out", path=tmp_path / "out")

    report = Pipeline(nodes).run(workers=workers, batch_size=10, state_dir=tmp_path / "state")

    assert (report.completed, report.failed) == (300, 0)
    expected = [f"{key}: {sum(range(key, 300, 3))}" for key in range(3)]
    assert sorted((tmp_path / "out").read_text().splitlines()) == expected
