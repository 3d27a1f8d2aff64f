"""The process engine with real processes: whatever dies, hangs or shouts."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import multiprocess.forkserver
import pytest

import consecution
from consecution import GlobalState, Node, Pipeline, Producer, Report, Running, TextLines
from consecution.errors import ShippingError, StateDirError, WorkerError
from consecution.runtime import supervisor
from consecution.runtime.journal_check import check_state_dir
from tests.engines.misbehaving import (
    Chatty,
    ClosesBadly,
    ClosesWithError,
    Copy,
    Deaf,
    DiesInBegin,
    DiesInClose,
    DurableParent,
    Environment,
    FailsIn,
    FailsInBegin,
    Forks,
    ForksAndCounts,
    Gate,
    Misbehaving,
    NotesPid,
    Parent,
    Pools,
    Rude,
    StateReader,
    Unlookable,
    Waiting,
    is_gone,
    pids_in,
    wait_for,
)

ROOT = Path(consecution.__file__).parents[1]
COUNT = 600
OPTIONS: dict[str, Any] = {"mode": "process", "batch_size": 50, "sync": "process"}
MARK = "CONSECUTION_TEST_RUN"


def numbers(count: int = COUNT) -> Callable[[], Iterator[int]]:
    """A source that is read in the parent."""
    return lambda: iter(range(count))


SOURCES: dict[str, Any] = {"in a worker": range(COUNT), "in the parent": numbers()}


def lines(path: Path) -> set[str]:
    return set(path.read_text().split())


def everything(count: int = COUNT) -> set[str]:
    return set(map(str, range(count)))


def identity(item: Any) -> Any:
    return item


def assert_all_arrived(report: Report, path: Path, count: int = COUNT) -> None:
    assert (report.emitted, report.completed, report.pending, report.failed) == (count, count, 0, 0)
    assert report.confirmed
    assert lines(path) == everything(count)


def wait_until_restarted(running: Running, count: int = 1) -> None:
    wait_for(lambda: running.status().restarts >= count)


def kill(running: Any, *tasks: str) -> None:
    pids = running.pids()
    for task in tasks:
        os.kill(pids[task], signal.SIGKILL)


# -- deaths --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "victims"),
    [
        ("in a worker", ["producer.0"]),
        ("in a worker", ["copy.0"]),
        ("in a worker", ["out.0"]),
        ("in the parent", ["copy.1"]),
        ("in the parent", ["gate.0"]),
        ("in the parent", ["out.0"]),
        ("in a worker", ["producer.0", "copy.0", "copy.1", "gate.0", "out.0"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_whoever_is_killed_all_items_arrive(tmp_path: Path, source: str, victims: list[str]) -> None:
    gate = Gate("gate", COUNT // 2, tmp_path)
    pipeline = Pipeline(Producer(SOURCES[source]) | Copy("copy") * 2 | gate | TextLines("out", tmp_path / "out"))

    with pipeline.start(**OPTIONS) as running:
        wait_for(gate.reached.exists)
        kill(running, *victims)
        wait_until_restarted(running, len(victims))
        gate.opened.touch()
        report = running.wait(60)

    assert_all_arrived(report, tmp_path / "out")
    assert report.restarts == len(victims)


@pytest.mark.parametrize(
    ("way", "how"),
    [
        ("kill", "killed by SIGKILL"),
        ("exit", "exit code 3"),
        ("exit 255", "exit code 255"),
        ("segfault", "killed by SIGSEGV"),
        ("hang", r"killed by SIGABRT for hanging, no progress in (process|its loop) for 0\.7 s"),
        ("hang with the interpreter", r"killed by SIGABRT for hanging, no progress in (process|its loop) for 0\.7 s"),
    ],
)
def test_a_node_that_comes_to_grief_once_is_replaced(
    tmp_path: Path, way: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.touch()
    bad = Misbehaving("bad", way, 333, token)

    report = Pipeline(Producer(range(COUNT)) | bad | TextLines("out", tmp_path / "out")).run(timeout_s=0.7, **OPTIONS)

    assert_all_arrived(report, tmp_path / "out")
    assert report.restarts == 1
    said = capsys.readouterr().err
    assert re.search(rf"\[supervisor\] bad\.0 died: {how}; starting it again", said)
    if "hang" in way:
        assert re.search(r"\[supervisor\] bad\.0 \(pid \d+\) has made no progress in (\w+|its loop) for 0\.7 s", said)
    if "hang" in way or way == "segfault":
        stack = re.findall(r"\[bad\.0 \d+\]   File .*misbehaving\.py.* in (\w+)", said)
        assert "process" in stack


def test_a_node_that_always_crashes_ends_the_run_and_keeps_its_state(tmp_path: Path) -> None:
    def pipeline(*, dies: bool) -> Pipeline:
        return Pipeline(Producer(range(COUNT)) | DiesInBegin("bad", dies=dies) | TextLines("out", tmp_path / "out"))

    with pytest.raises(WorkerError, match=r"bad\.0: died 3 times without progress between \(killed by SIGKILL\)"):
        pipeline(dies=True).run(state_dir=tmp_path / "state", max_restarts=2, **OPTIONS)
    report = pipeline(dies=False).run(state_dir=tmp_path / "state", **OPTIONS)

    assert_all_arrived(report, tmp_path / "out")


def test_a_temporary_state_is_kept_after_an_error_and_named(tmp_path: Path) -> None:
    pipeline = Pipeline(Producer(range(9)) | Misbehaving("bad", "kill", 3))

    with pytest.raises(WorkerError) as caught:
        pipeline.run(max_restarts=0, **OPTIONS)

    kept = Path(re.findall(r"state_dir='(.*)'", "\n".join(caught.value.__notes__))[0])
    assert (kept / "manifest.json").exists()
    shutil.rmtree(kept)


def test_the_fork_server_may_die_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gate = Gate("gate", COUNT // 2, tmp_path)
    pipeline = Pipeline(Producer(range(COUNT)) | gate | TextLines("out", tmp_path / "out"))

    with pipeline.start(**OPTIONS) as running:
        wait_for(gate.reached.exists)
        os.kill(multiprocess.forkserver._forkserver._forkserver_pid, signal.SIGKILL)
        gate.opened.touch()
        report = running.wait(60)

    assert_all_arrived(report, tmp_path / "out")
    told = [line for line in capfd.readouterr().err.splitlines() if " died: " in line]
    assert told
    assert all("died: the fork server (process " in line for line in told), told


def test_a_death_while_the_run_ends_is_made_up_for(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch()

    report = Pipeline(Producer(range(9)) | DiesInClose("out", token)).run(**OPTIONS)

    assert (report.completed, report.restarts, report.confirmed) == (9, 1, True)
    assert not token.exists()


@pytest.mark.parametrize(
    ("make", "robustness", "match"),
    [
        (lambda: FailsInBegin("bad"), "robust", r"bad\.0: begin\(\) raised ValueError: no begin today"),
        (lambda: FailsIn("bad", "end"), "confirm", r"bad\.0: end\(\) raised ValueError: no end today"),
        (lambda: ClosesBadly("bad"), "robust", r"bad\.0: close\(\) raised ValueError: no close today"),
    ],
    ids=["begin", "end", "close"],
)
def test_a_step_that_raises_ends_the_run_and_names_the_node(
    make: Callable[[], Node], robustness: str, match: str
) -> None:
    with pytest.raises(WorkerError, match=match) as caught:
        Pipeline(Producer(range(9)) | make()).run(robustness=robustness, **OPTIONS)

    assert caught.value.task == "bad.0"
    assert "misbehaving.py" in caught.value.cause_text


def test_a_source_that_cannot_be_closed_does_not_hang_the_run(tmp_path: Path) -> None:
    pipeline = Pipeline(Producer(ClosesWithError()) | identity)

    with pytest.raises(Exception, match="cannot close"):
        pipeline.start(state_dir=tmp_path / "state", **OPTIONS).wait(30)


def test_a_source_that_waits_is_not_taken_for_hanging(tmp_path: Path) -> None:
    pipeline = Pipeline(Producer(Waiting(tmp_path / "there")) | identity)

    with pipeline.start(timeout_s=0.3, **OPTIONS) as running:
        wait_for(lambda: running.status().state == "running" and running.status().seconds > 1.2)
        (tmp_path / "there").touch()
        report = running.wait(30)

    assert (report.completed, report.restarts) == (1, 0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks how far a run is waits for the answers as long as it takes."""
    monkeypatch.setattr(supervisor, "FRESH_WAIT_S", 60.0)
    monkeypatch.setattr(supervisor, "FRESH_S", 0.0)


def test_the_status_is_that_of_the_moment(patient: None) -> None:
    """Workers tell by themselves once a second; each of these items is through in a hundredth of that."""
    running = Pipeline(Producer("manual") | Copy("copy")).start(mode="process", sync="process")
    told = []
    for item in range(20):
        running.push(item).wait(60.0)
        told.append(running.status().completed)
    running.stop()

    assert told == list(range(1, 21))


def test_the_report_of_a_run_that_is_broken_off_counts_what_was_done_until_then(patient: None) -> None:
    running = Pipeline(Producer("manual") | Copy("copy")).start(mode="process", robustness="track")
    for item in range(20):
        running.push(item).wait(60.0)

    running.abort()
    report = running.wait(60.0)

    assert (report.emitted, report.completed) == (20, 20)


def test_without_a_journal_a_death_is_reported_as_not_confirmed(tmp_path: Path) -> None:
    gate = Gate("gate", COUNT // 2, tmp_path)
    pipeline = Pipeline(Producer(range(COUNT)) | Copy("copy") | gate | TextLines("out", tmp_path / "out"))

    with pipeline.start(robustness="confirm", **OPTIONS) as running:
        wait_for(gate.reached.exists)
        kill(running, "copy.0")
        wait_until_restarted(running)
        gate.opened.touch()
        report = running.wait(60)

    assert report.confirmed is False


# -- stop ----------------------------------------------------------------------------------------


def test_a_stop_drains_even_if_the_source_dies_meanwhile(tmp_path: Path) -> None:
    gate = Gate("gate", 100, tmp_path)
    pipeline = Pipeline(Producer(range(10**9)) | gate | TextLines("out", tmp_path / "out"))

    with pipeline.start(state_dir=tmp_path / "state", **OPTIONS) as running:
        wait_for(gate.reached.exists)
        running.request_stop()
        kill(running, "producer.0")
        wait_until_restarted(running)
        gate.opened.touch()
        report = running.join(60)

    assert report is not None
    assert (report.stopped, report.pending) == (True, 0)
    assert report.completed == report.emitted < 10**6


def test_an_abort_returns_at_once_and_the_next_run_goes_on(tmp_path: Path) -> None:
    gate = Gate("gate", 300, tmp_path)
    pipeline = Pipeline(Producer(range(COUNT)) | gate | TextLines("out", tmp_path / "out"))

    running = pipeline.start(state_dir=tmp_path / "state", **OPTIONS)
    wait_for(gate.reached.exists)
    running.abort()
    first = running.join(30)
    gate.opened.touch()
    second = pipeline.run(state_dir=tmp_path / "state", **OPTIONS)

    assert first is not None
    assert first.pending > 0
    assert_all_arrived(second, tmp_path / "out")


def test_a_finished_run_says_so_and_starts_nothing(tmp_path: Path) -> None:
    begun: list[str] = []

    class Noting(Pipeline):
        def begin(self) -> None:
            begun.append("begun")

    pipeline = Noting(Producer(range(9)) | identity)
    pipeline.run(state_dir=tmp_path / "state", **OPTIONS)

    again = pipeline.run(state_dir=tmp_path / "state", **OPTIONS)

    assert again.already_finished
    assert begun == ["begun"]


# -- large items -----------------------------------------------------------------------------------


MEBIBYTE = 1 << 20


class Weigh(Node):
    """Passes on how large each item was, and how much memory its process has taken at most, in bytes."""

    def begin(self) -> None:
        self.at_first = self.peak()

    def process(self, item: bytes) -> None:
        self.push(f"{len(item)}:{self.peak() - self.at_first}")

    def peak(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_large_items_go_through_and_memory_stays_flat(tmp_path: Path) -> None:
    def large() -> Iterator[bytes]:
        return (bytes([n % 256]) * MEBIBYTE for n in range(150))

    graph = Producer(large) | Weigh("weigh") | TextLines("out", tmp_path / "out")

    report = Pipeline(graph).run(max_pending_bytes=8 * MEBIBYTE, **{**OPTIONS, "batch_size": 1000})

    assert (report.completed, report.failed) == (150, 0)
    weighed = [line.split(":") for line in (tmp_path / "out").read_text().split()]
    assert [int(size) for size, _ in weighed] == [MEBIBYTE] * 150
    # The first batch, of 16, is cut before anybody knows how large the items are: coded, and as items.
    assert max(int(taken) for _, taken in weighed) < 80 * MEBIBYTE


# -- output --------------------------------------------------------------------------------------


def test_everything_workers_write_comes_out_marked(capsys: pytest.CaptureFixture[str]) -> None:
    Pipeline(Producer([7]) | Chatty("talk") * 2).run(robustness="none", **OPTIONS)

    said = capsys.readouterr().err
    marks = set(re.findall(r"^\[(talk\.\d) \d+\] ", said, re.MULTILINE))
    texts = [re.sub(r"^\[talk\.\d \d+\] ", "", line) for line in said.splitlines()]
    assert len(marks) == 1
    assert {"printed 7", "to stderr 7", "native", "half a line"} <= set(texts)
    assert any(text.endswith("logged 7") for text in texts)


def test_rude_nodes_do_not_disturb(tmp_path: Path) -> None:
    path = tmp_path / "out"

    report = Pipeline(Producer(range(COUNT)) | Rude("rude") | TextLines("out", path)).run(**OPTIONS)

    assert_all_arrived(report, path)
    assert report.restarts == 0


@pytest.mark.parametrize(
    "make",
    [lambda: Deaf("rude", "closed"), lambda: Deaf("rude", "bytes"), lambda: Unlookable("rude")],
    ids=["closed", "replaced", "attribute"],
)
def test_no_worker_dies_of_our_own_warnings(tmp_path: Path, make: Callable[[], Node]) -> None:
    path = tmp_path / "out"

    report = Pipeline(Producer(range(COUNT)) | make() | TextLines("out", path)).run(**{**OPTIONS, "batch_size": 10})

    assert_all_arrived(report, path)
    assert report.restarts == 0


@pytest.mark.parametrize("parent", [Parent, DurableParent])
def test_children_of_a_killed_worker_do_not_hold_up_the_run(tmp_path: Path, parent: type[Parent]) -> None:
    gate = Gate("gate", COUNT // 2, tmp_path)
    node = parent("parent", tmp_path / "child")
    pipeline = Pipeline(Producer(range(COUNT)) | node | gate | TextLines("out", tmp_path / "out"))

    with pipeline.start(**OPTIONS) as running:
        wait_for(gate.reached.exists)
        first = int(node.note.read_text())
        kill(running, "parent.0")
        wait_until_restarted(running)
        gate.opened.touch()
        report = running.wait(60)

    for child in (first, int(node.note.read_text())):
        os.kill(child, signal.SIGKILL)
    assert_all_arrived(report, tmp_path / "out")


@pytest.mark.parametrize("forks", [Forks, ForksAndCounts])
@pytest.mark.parametrize("step", ["begin", "process"])
def test_a_forked_child_that_comes_back_from_user_code_ends(
    forks: type[Forks], step: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = tmp_path / "children"
    pipeline = Pipeline(Producer(range(COUNT)) | forks("forks", step, note) | TextLines("out", tmp_path / "out"))

    report = pipeline.run(**OPTIONS)

    for child in pids_in(note):
        wait_for(lambda child=child: is_gone(child))
    assert_all_arrived(report, tmp_path / "out")
    assert report.restarts == 0
    assert "let the child leave by os._exit(0)" in capsys.readouterr().err


def test_what_multiprocessing_has_started_in_a_worker_ends_with_it(tmp_path: Path) -> None:
    note = tmp_path / "children"

    report = Pipeline(Producer(range(COUNT)) | Pools("pools", note) | TextLines("out", tmp_path / "out")).run(**OPTIONS)

    assert_all_arrived(report, tmp_path / "out")
    assert len(pids_in(note)) == 4
    for child in pids_in(note):
        wait_for(lambda child=child: is_gone(child))


@pytest.mark.skipif(sys.platform != "linux", reason="no other system ends children with their parent")
def test_what_multiprocessing_has_forked_in_a_worker_ends_also_where_that_is_killed(tmp_path: Path) -> None:
    note, gate = tmp_path / "children", Gate("gate", COUNT // 2, tmp_path)
    pipeline = Pipeline(Producer(range(COUNT)) | Pools("pools", note) | gate | TextLines("out", tmp_path / "out"))

    with pipeline.start(**OPTIONS) as running:
        wait_for(gate.reached.exists)
        first = pids_in(note)
        kill(running, "pools.0")
        for child in first:
            wait_for(lambda child=child: is_gone(child))
        wait_until_restarted(running)
        gate.opened.touch()
        report = running.wait(60)

    assert_all_arrived(report, tmp_path / "out")


def test_workers_see_the_environment_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(Producer(["SET_LATE"]) | Environment("env") | TextLines("out", tmp_path / "out"))
    pipeline.run(**OPTIONS)

    monkeypatch.setenv("SET_LATE", "seen")
    pipeline.run(**OPTIONS)

    assert (tmp_path / "out").read_text() == "None\nseen\n"


def test_a_large_global_state_reaches_every_worker(tmp_path: Path) -> None:
    state = GlobalState(table=list(range(300_000)))
    graph = Producer(range(8)) | StateReader("read") * 2 | TextLines("out", tmp_path / "out")

    Pipeline(graph, global_state=state).run(**OPTIONS)

    assert (tmp_path / "out").read_text() == "300000\n" * 8


# -- refusals ------------------------------------------------------------------------------------

UNSHIPPABLE: dict[str, Callable[[], Any]] = {
    "lock": threading.Lock,
    "socket": socket.socket,
    "generator": lambda: (i for i in range(3)),
    "thread": threading.Thread,
}


@pytest.mark.parametrize("what", [*UNSHIPPABLE, "file"])
def test_what_cannot_be_shipped_is_refused_before_anything_starts(what: str, tmp_path: Path) -> None:
    with (
        open(tmp_path / "some.txt", "w") as file,
        contextlib.closing(_Held(UNSHIPPABLE.get(what, lambda: file)())) as held,
    ):
        node = Copy("holder")
        node.held = held.value  # type: ignore[attr-defined]
        threads = threading.active_count()

        with pytest.raises(ShippingError, match=r"N\(holder\): its attribute 'held'.*make it in begin\(\)") as caught:
            Pipeline(Producer(range(3)) | node).start(state_dir=tmp_path / "state", **OPTIONS)

        assert (caught.value.node, caught.value.attribute) == ("holder", "held")
        assert threading.active_count() == threads
    Pipeline(Producer(range(3)) | identity).run(state_dir=tmp_path / "other", **OPTIONS)


class _Held:
    def __init__(self, value: Any) -> None:
        self.value = value

    def close(self) -> None:
        if hasattr(self.value, "close"):
            self.value.close()


def test_after_a_refusal_the_state_directory_is_free(tmp_path: Path) -> None:
    node = Copy("holder")
    node.held = threading.Lock()  # type: ignore[attr-defined]
    pipeline = Pipeline(Producer(range(3)) | node)
    with pytest.raises(ShippingError):
        pipeline.run(state_dir=tmp_path / "state", **OPTIONS)

    del node.held  # type: ignore[attr-defined]

    assert pipeline.run(state_dir=tmp_path / "state", **OPTIONS).completed == 3


def test_a_global_state_that_cannot_be_shipped_is_named(tmp_path: Path) -> None:
    graph = Producer(range(3)) | identity

    with pytest.raises(ShippingError, match=r"global_state 'lock' cannot be sent") as caught:
        Pipeline(graph, global_state=GlobalState(lock=threading.Lock())).run(**OPTIONS)

    assert caught.value.attribute == "lock"


def test_lambdas_closures_and_nested_classes_travel(tmp_path: Path) -> None:
    offset = 5

    class Nested(Node):
        def process(self, item: Any) -> None:
            self.push(item + offset)

    path = tmp_path / "out"
    Pipeline(Producer(range(3)) | (lambda i: i * 10) | Nested("nested") | TextLines("out", path)).run(**OPTIONS)

    assert lines(path) == {"5", "15", "25"}


# -- leaks ---------------------------------------------------------------------------------------


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/dev/fd"))


@pytest.mark.parametrize("source", SOURCES)
def test_many_runs_leave_no_descriptor_and_no_thread(source: str) -> None:
    pipeline = Pipeline(Producer(SOURCES[source]) | identity)
    pipeline.run(robustness="robust", **OPTIONS)
    before = descriptors(), threading.active_count()

    for _ in range(12):
        pipeline.run(robustness="robust", **OPTIONS)

    wait_for(lambda: (descriptors(), threading.active_count()) == before)
    assert not multiprocess.active_children()


def test_an_interrupt_just_as_the_supervisor_begins_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note, start_thread = tmp_path / "pid", threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start_thread(thread)
        if thread.name == "consecution-supervisor":
            wait_for(lambda: note.exists() and note.read_text())
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    pipeline = Pipeline(Producer("manual") | NotesPid("node", note))
    with pytest.raises(KeyboardInterrupt):
        pipeline.start(state_dir=tmp_path / "state", **OPTIONS)
    monkeypatch.undo()

    assert is_gone(int(note.read_text()))
    assert "consecution-supervisor" not in [thread.name for thread in threading.enumerate()]
    with pipeline.start(state_dir=tmp_path / "state", **OPTIONS) as running:
        running.push("item")
    assert running.wait().completed == 1


# -- other processes -----------------------------------------------------------------------------


class House:
    """A folder for one script: its sockets, its state, what it says; every process it starts is known by a mark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sockets = Path(tempfile.mkdtemp(prefix="pe-", dir="/tmp"))
        self.state = folder / "state"
        self.out = folder / "out"
        self.mark = self.sockets.name
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        environment = {**os.environ, "TMPDIR": str(self.sockets), "PYTHONPATH": str(ROOT), MARK: self.mark}
        environment.pop("XDG_RUNTIME_DIR", None)
        process = subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            cwd=self.folder,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self._started.append(process)
        return process

    def script(self, text: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        (self.folder / "script.py").write_text(text)
        return self.start("script.py", *arguments, **options)

    def processes(self) -> list[int]:
        """All that the scripts of this house have started and that still live."""
        wanted = f"{MARK}={self.mark}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def close(self) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        wait_for(lambda: not self.processes())
        shutil.rmtree(self.sockets)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    try:
        yield house
    finally:
        house.close()


ENDLESS = """
import json, sys, time
from pathlib import Path
from consecution import Pipeline, Producer, TextLines
from tests.engines.misbehaving import Copy, Gate, Misbehaving

folder, count = Path(sys.argv[1]), int(sys.argv[2])
{extra}
nodes = Producer({source}) | Copy("copy") * 2 | Gate("gate", 150, folder) {more} | TextLines("out", folder / "out")

if __name__ == "__main__":
    report = Pipeline(nodes).run(state_dir=folder / "state", batch_size=50, sync="process", stop_timeout_s=60)
    print(json.dumps(report.to_dict()))
    sys.exit(report.exit_code)
"""


def endless(house: House, *, source: str = "range(count)", count: int = 10**9, more: str = "", extra: str = "") -> Any:
    text = ENDLESS.format(source=source, more=more, extra=extra)
    return house.script(text, str(house.folder), str(count))


def finish(house: House, count: int) -> Report:
    """Run the same graph again over what was left behind, in this process."""
    gate = Gate("gate", 150, house.folder)
    gate.opened.touch()
    graph = Producer(range(count)) | Copy("copy") * 2 | gate | TextLines("out", house.out)
    return Pipeline(graph).run(state_dir=house.state, **OPTIONS)


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux_only
@pytest.mark.parametrize("victims", ["supervisor", "supervisor and workers", "supervisor, slowly"])
@pytest.mark.parametrize("source", ["range(count)", "lambda: iter(range(count))"], ids=SOURCES)
def test_a_killed_supervisor_leaves_no_process_and_no_socket(house: House, source: str, victims: str) -> None:
    supervisor = endless(house, source=source, count=COUNT)
    wait_for((house.folder / "reached").exists)
    workers = [pid for pid in house.processes() if pid != supervisor.pid and is_worker(pid)]

    os.kill(supervisor.pid, signal.SIGSTOP if victims.endswith("slowly") else signal.SIGKILL)
    for worker in workers if victims.endswith("workers") else []:
        with contextlib.suppress(ProcessLookupError):  # it may have seen already that its supervisor is gone
            os.kill(worker, signal.SIGKILL)
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.communicate()

    wait_for(lambda: not house.processes(), 10)
    assert os.listdir(house.sockets) == []
    assert_all_arrived(finish(house, COUNT), house.out)


def is_worker(pid: int) -> bool:
    """Workers have no command line of their own, but they have the sockets' threads."""
    return len(os.listdir(f"/proc/{pid}/task")) > 2


@linux_only
def test_a_killed_supervisor_takes_along_even_who_holds_the_interpreter(house: House) -> None:
    more = '| Misbehaving("bad", "hang with the interpreter", 120)'
    supervisor = endless(house, more=more)
    wait_for((house.folder / "reached").exists)
    (house.folder / "opened").touch()
    wait_for(lambda: any(blocked_in_sleep(pid) for pid in house.processes() if pid != supervisor.pid))

    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.communicate()

    wait_for(lambda: not house.processes(), 10)
    assert os.listdir(house.sockets) == []


@linux_only
def test_a_killed_supervisor_takes_along_even_who_was_stopped(house: House) -> None:
    """A stopped process does nothing by itself, but it can be killed."""
    supervisor = endless(house, count=COUNT)
    wait_for((house.folder / "reached").exists)
    workers = [pid for pid in house.processes() if pid != supervisor.pid and is_worker(pid)]

    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.communicate()

    assert workers
    wait_for(lambda: not house.processes(), 30)
    assert_all_arrived(finish(house, COUNT), house.out)


SIGNALS_THE_SERVER = """
import os, signal
from consecution import Pipeline, Producer
from consecution.runtime import fork_server

def look(item):
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return item

if __name__ == "__main__":
    fork_server.prepare()
    server = fork_server.server_pid()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(server, number)
    report = Pipeline(Producer(range(3)) | look).run(mode="process", robustness="none")
    assert (report.completed, report.failed, fork_server.server_pid()) == (3, 0, server)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
"""


def test_a_fork_server_outlives_the_signals_of_its_group_from_its_first_moment_on(house: House) -> None:
    program = house.script(SIGNALS_THE_SERVER)

    _, said = program.communicate(timeout=60)

    assert (program.returncode, said) == (0, "")


RUNS_TWICE = """
import os, signal
from consecution import Pipeline, Producer
from consecution.runtime import fork_server

def run():
    assert Pipeline(Producer(range(3)) | str).run(mode="process", robustness="none").restarts == 0

def run_in_child():
    child = os.fork()
    if not child:
        try:
            run()
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

def reap_dead_server():
    os.kill(fork_server.server_pid(), signal.SIGKILL)
    os.waitpid(-1, 0)

if __name__ == "__main__":
    run()
    {between}()
    run()
"""


@linux_only
@pytest.mark.parametrize("between", ["run_in_child", "reap_dead_server"])
def test_a_run_needs_no_fork_server_of_before(house: House, between: str) -> None:
    program = house.script(RUNS_TWICE.format(between=between))

    _, said = program.communicate(timeout=60)

    assert program.returncode == 0, said
    assert "starting it again" not in said
    wait_for(lambda: not house.processes())


LEAVES_A_CHILD = """
import os

def source():
    for number in range(count):
        if number == 100 and os.fork() == 0:
            os.closerange(0, 3)
            time.sleep(60)
            os._exit(0)
        yield number
"""


@linux_only
def test_a_child_of_a_killed_program_keeps_no_worker_alive_and_no_run_out(house: House) -> None:
    supervisor = endless(house, source="source", count=COUNT, extra=LEAVES_A_CHILD)
    wait_for((house.folder / "reached").exists)
    workers = [pid for pid in house.processes() if pid != supervisor.pid and is_worker(pid)]

    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.communicate()

    assert workers
    wait_for(lambda: all(map(is_gone, workers)))
    assert_all_arrived(finish(house, COUNT), house.out)
    assert house.processes()


def blocked_in_sleep(pid: int) -> bool:
    """The main thread sleeps in native code."""
    with contextlib.suppress(OSError):
        return "hrtimer_nanosleep" in Path(f"/proc/{pid}/wchan").read_text() or "nanosleep" in syscall(pid)
    return False


def syscall(pid: int) -> str:
    """clock_nanosleep and nanosleep, on x86-64 and on ARM."""
    number = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    return "nanosleep" if number in {"230", "35", "115", "101"} else ""


@linux_only
def test_what_a_whole_killed_group_leaves_is_swept_by_the_next_run(house: House) -> None:
    supervisor = endless(house, count=COUNT)
    wait_for((house.folder / "reached").exists)

    os.killpg(supervisor.pid, signal.SIGKILL)
    supervisor.communicate()
    wait_for(lambda: not house.processes(), 10)
    (house.folder / "opened").touch()
    again = house.start("script.py", str(house.folder), str(COUNT))
    text, _ = again.communicate(timeout=60)

    assert json.loads(text)["completed"] == COUNT
    assert lines(house.out) == everything()
    wait_for(lambda: os.listdir(house.sockets) == [])


@pytest.mark.parametrize("source", ["range(count)", "lambda: iter(range(count))"], ids=SOURCES)
@pytest.mark.parametrize("whom", ["supervisor", "group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_first_signal_drains(house: House, number: int, whom: str, source: str) -> None:
    process = endless(house, source=source)
    wait_for((house.folder / "reached").exists)

    (os.kill if whom == "supervisor" else os.killpg)(process.pid, number)
    (house.folder / "opened").touch()
    text, said = process.communicate(timeout=60)

    assert process.returncode == 0, said
    report = json.loads(text)
    assert (report["stopped"], report["pending"], report["restarts"]) == (True, 0, 0)
    assert len(lines(house.out)) == report["completed"] == report["emitted"] > 0


@pytest.mark.parametrize("whom", ["supervisor", "group"])
def test_a_second_signal_aborts(house: House, whom: str) -> None:
    process = endless(house)
    wait_for((house.folder / "reached").exists)
    send = os.kill if whom == "supervisor" else os.killpg

    send(process.pid, signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    send(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=60)

    report = json.loads(text)
    assert process.returncode == 3
    assert report["stopped"]
    assert report["pending"] > 0


def test_a_state_directory_in_use_is_refused_with_the_pid_of_its_owner(house: House) -> None:
    process = endless(house)
    wait_for((house.folder / "reached").exists)

    with pytest.raises(StateDirError, match=rf"in use by another run \(process {process.pid}\)"):
        finish(house, COUNT)


# -- how scripts are started ---------------------------------------------------------------------

SCRIPT = """
import functools, json
from collections import namedtuple
from dataclasses import dataclass
from enum import Enum
from consecution import Node, Pipeline, Producer, TextLines

class Color(Enum):
    RED = 1

    def shout(self):
        return self.name + "!"

Pair = namedtuple("Pair", "left right")

@dataclass(frozen=True)
class Item:
    number: int
    color: Color = Color.RED

def helper(number):
    return number * number

@functools.cache
def square(number):
    return helper(number)

class Square(Node):
    def process(self, item):
        assert type(item) is Item and item.color is Color.RED and item.color.shout() == "RED!"
        if item.number == 3:
            raise ValueError("three")
        self.push(Item(square(item.number)))

def pair(item):
    assert isinstance(item, Item)
    return Pair(item, helper(2))

class Check(Node):
    def process(self, item):
        assert isinstance(item, Pair) and item.left.color is Color.RED
        self.push(item)

def items():
    for number in range(6):
        yield Item(number)

def show(item):
    return f"{item.left.number},{item.right}"

if __name__ == "__main__":
    graph = Producer(SOURCE) | Square("square") * 2 | pair | (lambda item: item) | Check("check")
    graph |= TextLines("out", "out", format=show)
    report = Pipeline(graph).run(retries=1, sync="process", max_restarts=1)
    failed = [failure.item for failure in report.failures]
    print(json.dumps([report.completed, report.restarts, failed == [Item(3)], type(failed[0]) is Item]))
"""

STARTS: dict[str, Callable[[str], list[str]]] = {
    "python script.py": lambda text: ["script.py"],
    "python -m package.module": lambda text: ["-m", "package.module"],
    "python -c": lambda text: ["-c", text],
    "python < script.py": lambda text: [],
}


@pytest.mark.parametrize("source", ["items", "items()", "[Item(n) for n in range(6)]"])
@pytest.mark.parametrize("start", STARTS)
def test_a_program_may_be_started_in_any_way(house: House, start: str, source: str) -> None:
    text = SCRIPT.replace("SOURCE", source)
    for path in ("script.py", "package/__init__.py", "package/module.py"):
        (house.folder / path).parent.mkdir(exist_ok=True)
        (house.folder / path).write_text(text)

    process = house.start(*STARTS[start](text), stdin=subprocess.PIPE)
    said, problems = process.communicate(text if "<" in start else "", timeout=60)

    assert said, problems
    assert json.loads(said) == [6, 0, True, True]
    assert lines(house.out) == {"0,4", "1,4", "4,4", "16,4", "25,4"}


def test_a_script_without_a_guard_is_refused_at_once(house: House) -> None:
    text = SCRIPT.replace("SOURCE", "items").replace('if __name__ == "__main__":', "if True:")

    said, problems = house.script(text).communicate(timeout=60)

    assert said == ""
    assert "put the call under `if __name__ == '__main__':`" in problems
    assert problems.count("Traceback") == 1


UNDER_THE_GUARD = """
from consecution import Map, Pipeline, Producer, TextLines

if __name__ == "__main__":
    class Item:
        pass

    def passed(item):
        return item

    def items():
        yield from (Item(), Item())

    chain = Producer(items) | Map(NODE, "node") | TextLines("out", "out")
    try:
        Pipeline(chain).run(retries=0, state_dir="state")
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ("passed", "ShippingError a worker imports your script, and finds no 'passed' in it: "),
        ("str", "MissingCodeError an item needs __main__.Item, which is not there ("),
    ],
)
def test_what_stands_under_a_scripts_guard_is_told_to_stand_above_it(house: House, node: str, said: str) -> None:
    printed, _ = house.script(UNDER_THE_GUARD.replace("NODE", node)).communicate(timeout=60)

    assert printed.startswith(said)
    assert "above `if __name__ == '__main__':`" in printed
    assert {origin.given_up for origin in check_state_dir(house.folder / "state").origins} == {0}


def test_standard_error_may_be_gone() -> None:
    """A broken log must not hold up those who write into it."""

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with contextlib.redirect_stderr(Broken()):
        report = Pipeline(Producer(range(20)) | Chatty("talk")).run(**OPTIONS)

    assert report.completed == 20
