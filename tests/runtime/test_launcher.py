from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import multiprocess.forkserver
import multiprocess.process
import multiprocess.spawn
import pytest

from consecution import Node, Pipeline, Producer
from consecution.errors import UsageError
from consecution.protocol.poison import FrameKey
from consecution.protocol.values import TaskIndex, WorkerIndex
from consecution.runtime import control, fork_server, launcher
from consecution.runtime.launcher import ProcessWorker, ThreadWorker
from consecution.runtime.logs import LogPump
from consecution.runtime.shipping import Parcel, Shipment, ship
from consecution.runtime.slots import SlotFile, SlotNote, map_slot
from consecution.runtime.worker import EXIT_FAILED, WorkerSpec
from tests.engines.misbehaving import Misbehaving, is_gone, wait_for

WAIT_S = 30.0


class Launchpad:
    """Starts single workers, and sees that none is left."""

    def __init__(self, sockets: Path) -> None:
        self.logs = LogPump()
        self._sockets = sockets
        self._started: list[Any] = []
        self._parcels: list[Parcel] = []

    def process(self, node: Node | None = None, slot: SlotFile | None = None) -> ProcessWorker:
        pipeline = Pipeline(Producer(range(3)) | (node or Misbehaving("node", "kill", None)))
        parcel = Parcel(ship(pipeline.plan(mode="process"), [TaskIndex(1)], pipeline.global_state, {}))
        self._parcels.append(parcel)
        worker = ProcessWorker(self.spec(1), parcel, "node.0", self.logs, slot)
        self._started.append(worker)
        return worker

    def thread(self) -> ThreadWorker:
        pipeline = Pipeline(Producer("manual") | Misbehaving("node", "kill", None))
        plan = pipeline.plan(mode="process", robustness="confirm")
        node: Any = pipeline.top_node
        worker = ThreadWorker(self.spec(0), "producer.0", Shipment(plan, {}, {TaskIndex(0): node.make_source()}, None))
        self._started.append(worker)
        return worker

    def spec(self, task: int) -> WorkerSpec:
        return WorkerSpec(
            WorkerIndex(task), (TaskIndex(task),), 1, "memory", {}, str(self._sockets), "", dict(os.environ)
        )

    def close(self) -> None:
        for worker in self._started:
            worker.signal(signal.SIGKILL)
            assert worker.join(WAIT_S)
            worker.pipe.close()
        for parcel in self._parcels:
            parcel.close()
        self.logs.close()


@pytest.fixture
def pad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launchpad]:
    folder = launcher.fork_server.SocketFolder()
    pad = Launchpad(Path(folder.path))
    try:
        yield pad
    finally:
        pad.close()
        folder.close()


def next_word(worker: Any, kind: type) -> Any:
    """The next word of this kind; beats in between are passed over."""
    while True:
        wait_for(worker.pipe.poll, WAIT_S)
        word = worker.pipe.recv()
        if isinstance(word, kind):
            return word


# -- processes -----------------------------------------------------------------------------------


def test_a_process_says_hello_and_begins(pad: Launchpad) -> None:
    worker = pad.process()

    hello = next_word(worker, control.Hello)

    assert (hello.worker, hello.pid) == (1, worker.pid)
    assert next_word(worker, control.Began).worker == 1


def test_a_process_quits_when_told_and_takes_its_socket_along(pad: Launchpad) -> None:
    worker = pad.process()
    path = next_word(worker, control.Hello).endpoint.removeprefix("ipc://")
    assert os.path.exists(path)

    worker.pipe.send(control.Quit())

    assert next_word(worker, control.Closed).confirmed
    assert worker.join(WAIT_S)
    assert worker.death() == "exit code 0"
    assert not os.path.exists(path)


@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGKILL, "killed by SIGKILL"), (signal.SIGABRT, "killed by SIGABRT")]
)
def test_the_signal_it_died_of_is_named(pad: Launchpad, number: int, how: str) -> None:
    worker = pad.process()
    next_word(worker, control.Began)

    worker.signal(number)

    assert worker.join(WAIT_S)
    assert worker.death() == how
    assert worker.start_error() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_group_are_left_to_the_supervisor(pad: Launchpad, number: int) -> None:
    worker = pad.process()
    next_word(worker, control.Began)

    worker.signal(number)
    worker.pipe.send(control.Quit())

    assert next_word(worker, control.Closed)
    assert worker.join(WAIT_S)
    assert worker.death() == "exit code 0"


def test_a_process_whose_supervisor_is_gone_ends(pad: Launchpad) -> None:
    worker = pad.process()
    next_word(worker, control.Began)

    worker.pipe.close()

    assert worker.join(WAIT_S)
    assert worker.death() == f"exit code {EXIT_FAILED}"


def test_a_signal_after_its_death_goes_nowhere(pad: Launchpad) -> None:
    worker = pad.process()
    worker.signal(signal.SIGKILL)
    assert worker.join(WAIT_S)

    worker.signal(signal.SIGKILL)

    assert worker.death() == "killed by SIGKILL"


def test_the_sentinel_tells_of_the_death(pad: Launchpad) -> None:
    worker = pad.process()
    worker.signal(signal.SIGKILL)

    assert multiprocess.connection.wait([worker.sentinel], WAIT_S) == [worker.sentinel]


def test_where_the_fork_server_died_first_the_worker_is_made_sure_of(pad: Launchpad) -> None:
    worker = pad.process()
    next_word(worker, control.Began)

    os.kill(multiprocess.forkserver._forkserver._forkserver_pid, signal.SIGKILL)

    assert worker.join(WAIT_S)
    wait_for(lambda: is_gone(worker.pid))


def test_a_worker_that_went_with_its_fork_server_is_not_blamed(pad: Launchpad) -> None:
    slot = SlotFile()
    worker = pad.process(slot=slot)
    next_word(worker, control.Began)
    SlotNote(map_slot(slot), TaskIndex(1)).frame(FrameKey(TaskIndex(0), 7, ()))
    server = multiprocess.forkserver._forkserver._forkserver_pid

    os.kill(server, signal.SIGKILL)

    assert worker.join(WAIT_S)
    assert worker.death() == f"the fork server (process {server}) was killed, and its workers with it"
    assert worker.in_hand() is None
    next_word(pad.process(), control.Began)
    assert "fork server" in worker.death(), "it has been reaped since"
    slot.close()


def test_a_new_fork_server_takes_the_place_of_a_dead_one(pad: Launchpad) -> None:
    pad.process()
    os.kill(multiprocess.forkserver._forkserver._forkserver_pid, signal.SIGKILL)

    assert next_word(pad.process(), control.Began)


SHARES = """
import os, sys
from multiprocess import resource_tracker, shared_memory
from consecution import Pipeline, Producer

def share(item):
    made = shared_memory.SharedMemory(create=True, size=8)  # left for the tracker to remove
    made.close()
    print("shared", made.name, flush=True)

if __name__ == "__main__":
    report = Pipeline(Producer([1]) | share).run(mode="process", robustness="none")
    print(resource_tracker._resource_tracker._fd, report.completed)
"""


def test_a_tracker_of_shared_memory_is_started_only_by_those_who_need_it(tmp_path: Path) -> None:
    (tmp_path / "shares.py").write_text(SHARES)
    done = subprocess.run([sys.executable, str(tmp_path / "shares.py")], capture_output=True, text=True, timeout=60)

    assert done.stdout.split() == ["None", "1"], done.stderr
    (name,) = re.findall(r"shared (\S+)", done.stderr)
    wait_for(lambda: not Path("/dev/shm", name).exists())


def test_the_server_imports_while_the_run_is_only_being_prepared() -> None:
    server = multiprocess.forkserver._forkserver

    fork_server.prepare()
    pid = server._forkserver_pid
    fork_server.prepare()

    assert pid is not None
    assert server._forkserver_pid == pid


def test_starting_is_given_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "START_WITHIN_S", 0.05)
    tries: list[int] = []

    def start() -> None:
        tries.append(1)
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        fork_server.insist(start)

    assert len(tries) > 1


# -- threads -------------------------------------------------------------------------------------


def test_a_thread_works_like_a_process_but_cannot_die(pad: Launchpad) -> None:
    worker = pad.thread()
    next_word(worker, control.Began)

    worker.pipe.send(control.Quit())

    assert next_word(worker, control.Closed)
    assert worker.join(WAIT_S)
    assert worker.sentinel is None
    assert worker.start_error() is None


def test_a_thread_ends_with_its_pipe(pad: Launchpad) -> None:
    worker = pad.thread()
    next_word(worker, control.Began)

    worker.signal(signal.SIGKILL)

    assert worker.join(WAIT_S)
    assert worker.death() == "ended"


# -- the main module -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "imported"),
    [
        (lambda module: setattr(module, "__file__", __file__), False),
        (lambda module: (setattr(module, "__file__", __file__), exec("def f(): pass", vars(module))), True),
        (lambda module: exec("def f(): pass", vars(module)), False),
        (lambda module: vars(module).update(__file__=__file__, odd=Raising()), False),
    ],
    ids=["defines nothing", "script", "notebook", "odd values"],
)
def test_workers_import_the_main_module_only_if_they_need_and_can(
    make: Callable[[types.ModuleType], Any], imported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("__main__")
    make(module)
    monkeypatch.setitem(sys.modules, "__main__", module)

    with fork_server.without_tracker(), fork_server.without_main(unless=launcher._main_is_needed()):
        told = multiprocess.spawn.get_preparation_data(fork_server.PROCESS_NAME + "node.0")
        told_others = multiprocess.spawn.get_preparation_data("another")
        assert sys.modules["__main__"] is module

    assert ("init_main_from_path" in told) is imported
    assert ("init_main_from_path" in told_others) is hasattr(module, "__file__")


def test_the_main_module_stays_while_workers_that_need_none_of_it_are_started(
    pad: Launchpad, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    seen: list[Any] = []
    describe = multiprocess.spawn.get_preparation_data

    def look(name: str) -> Any:
        seen.append(sys.modules["__main__"])
        return describe(name)

    monkeypatch.setattr(multiprocess.spawn, "get_preparation_data", look)

    assert next_word(pad.process(), control.Began)
    assert seen
    assert all(module is main for module in seen)
    assert multiprocess.spawn.get_preparation_data is look


class Raising:
    """Like a lazy proxy whose thing is missing: it raises whatever one asks."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("not bound")


def test_a_run_within_the_import_of_a_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    process = multiprocess.process.current_process()
    monkeypatch.setattr(process, "_inheriting", True, raising=False)

    with pytest.raises(UsageError, match="put the call under `if __name__ == '__main__':`"):
        fork_server.refuse_in_worker_start()


def test_anywhere_else_a_run_may_start() -> None:
    fork_server.refuse_in_worker_start()
