"""What `run` adds to an engine: signals, the grace of a stop, and who looks on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from consecution import Map, Node, Pipeline, Producer, Report, Source, Status
from consecution.engine import Running
from consecution.engines import thread
from consecution.errors import OptionError, SourceError, WorkerError
from consecution.runtime import supervisor
from consecution.runtime.offspring import EXIT_CAME_BACK
from tests.engines import nodes
from tests.engines.nodes import Collect, Gate, collected

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(params=["inline", "thread", "process"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    return {"mode": request.param, "sync": "process", "state_dir": tmp_path / "state", "batch_size": 50}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_first_signal_finishes_what_is_open(tmp_path: Path, options: Any, number: signal.Signals) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    pipeline = Pipeline(Map(nodes.increase) | Collect("sink", tmp_path / "out"))

    report = pipeline.run(nodes.count_up, **options, on_status=lambda status: signal.raise_signal(number))

    assert (report.stopped, report.pending, report.exit_code) == (True, 0, 0)
    assert collected(tmp_path / "out") == list(range(1, report.emitted + 1))
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_second_signal_does_not_wait_for_what_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    monkeypatch.setattr(thread, "QUIT_WAIT_S", 0.05)
    states = []

    def impatient(status: Status) -> None:
        if status.emitted == 5:  # the first may be told before anything is read
            states.append(status.state)
            signal.raise_signal(signal.SIGINT)

    report = run_into_gate(tmp_path, mode, on_status=impatient)

    assert (report.stopped, report.emitted, report.pending, report.exit_code) == (True, 5, 5, 3)
    assert states[1] == "stopping"


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_what_is_open_after_the_grace_of_a_stop_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    monkeypatch.setattr(thread, "QUIT_WAIT_S", 0.05)
    asked = []

    def stop_once(status: Status) -> None:
        if not asked and status.emitted == 5:
            asked.append(status)
            signal.raise_signal(signal.SIGTERM)

    report = run_into_gate(tmp_path, mode, on_status=stop_once, stop_timeout_s=0.1)

    assert (report.stopped, report.emitted, report.pending) == (True, 5, 5)


def run_into_gate(tmp_path: Path, mode: Any, **options: Any) -> Report:
    """Five items that hang; the gate opens afterwards, so that no thread stays behind."""
    gate = tmp_path / "gate"
    pipeline = Pipeline(Gate("gate", gate) | Collect("sink", tmp_path / "out"))
    try:
        return pipeline.run(range(5), mode=mode, sync="process", state_dir=tmp_path / "state", **options)
    finally:
        gate.touch()


class HangingEnd(Pipeline):
    """Its ``end`` sends itself signals, then hangs until the test is over."""

    signals = 0

    def begin(self) -> None:
        self.over = threading.Event()

    def end(self) -> None:
        for _ in range(self.signals):
            signal.raise_signal(signal.SIGTERM)
        self.over.wait(nodes.LONGEST_WAIT_S)


def test_an_end_that_hangs_does_not_hold_up_a_stop_at_once(
    options: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(thread, "QUIT_WAIT_S", 0.05)
    monkeypatch.setattr("consecution.engines.process.HOOK_WAIT_S", 0.05)
    pipeline = HangingEnd(Collect("sink", tmp_path / "out"))
    pipeline.signals = 2 if options["mode"] == "inline" else 0  # in the main thread, where signals are handled

    try:
        with pytest.raises(WorkerError, match=r"the pipeline's end\(\) "):
            pipeline.run([1], **options, on_status=lambda status: signal.raise_signal(signal.SIGTERM))
    finally:
        pipeline.over.set()

    assert collected(tmp_path / "out") == [1]
    monkeypatch.setattr(HangingEnd, "end", lambda self: "ended")
    assert pipeline.run([1], **options).result == "ended"


class Forks(Pipeline):
    """Both, the program and the forked child, come back from ``step``."""

    step = "begin"

    def begin(self) -> None:
        if self.step == "begin":
            self.child = os.fork()

    def end(self) -> str:
        if self.step == "end":
            self.child = os.fork()
        return "the program" if self.child else "the child"


@pytest.mark.parametrize("step", ["begin", "end"])
def test_a_child_forked_in_a_pipelines_step_has_no_part_in_the_run(options: Any, step: str) -> None:
    pipeline = Forks(Map(nodes.increase))
    pipeline.step = step

    report = pipeline.run([1], **options)

    assert (report.completed, report.result) == (1, "the program")
    assert os.waitstatus_to_exitcode(os.waitpid(pipeline.child, 0)[1]) == EXIT_CAME_BACK


def test_after_the_grace_of_a_stop_user_code_in_the_main_thread_is_broken_off(options: Any) -> None:
    pipeline = HangingEnd(Map(nodes.increase))
    pipeline.signals = 1

    with pytest.raises(WorkerError, match=r"the pipeline's end\(\) was broken off"):
        pipeline.run([1], mode="inline", robustness="none", stop_timeout_s=0.05)

    assert not pipeline.over.is_set()


class HangingSource(Source):
    """Read in this process; its ``method`` hangs after the first item, until the test is over."""

    in_parent = True

    def __init__(self, method: str) -> None:
        self.method, self.at = method, 0
        self.hangs, self.over = threading.Event(), threading.Event()

    def open(self, position: Any) -> None:
        self.at = position or 0

    def read(self, max_items: int) -> list[int] | None:
        self._hang_in("read")
        self.at += 1
        return [self.at] if self.at < 3 else None

    def position(self) -> int:
        return self.at

    def batch_settled(self, seq: int, failed: int, confirmed: bool) -> None:
        self._hang_in("batch_settled")

    def _hang_in(self, method: str) -> None:
        if self.at and method == self.method:
            self.hangs.set()
            self.over.wait(nodes.LONGEST_WAIT_S)


@pytest.mark.parametrize("method", ["read", "batch_settled"])
@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_source_that_hangs_does_not_hold_up_a_stop_and_goes_on_later(
    mode: Any, method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(thread, "QUIT_WAIT_S", 0.05)
    monkeypatch.setattr(supervisor, "QUIT_WAIT_S", 0.5)
    source, options = HangingSource(method), {"mode": mode, "sync": "process", "state_dir": tmp_path / "state"}
    running = Pipeline(Producer(source) | Map(nodes.increase)).start(**options)

    try:
        assert source.hangs.wait(nodes.LONGEST_WAIT_S)
        with pytest.raises(SourceError, match=rf"HangingSource.* has not come back from {method}\(\)"):
            running.stop(timeout_s=0.05)
    finally:
        source.over.set()
    for left in [found for found in threading.enumerate() if found.name.startswith("consecution-")]:
        left.join(nodes.LONGEST_WAIT_S)

    assert Pipeline(Producer(source) | Map(nodes.increase)).run(**options).pending == 0


class SignalledBegin(Pipeline):
    signals = 1

    def begin(self) -> None:
        for _ in range(self.signals):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_while_a_run_starts_stops_it_when_it_has_started(tmp_path: Path, options: Any) -> None:
    report = SignalledBegin(Map(nodes.increase)).run(nodes.count_up, **options)

    assert (report.stopped, report.pending) == (True, 0)


def test_two_signals_while_a_run_starts_break_it_off(tmp_path: Path, options: Any) -> None:
    pipeline = SignalledBegin(Map(nodes.increase))
    pipeline.signals = 2

    with pytest.raises(KeyboardInterrupt):
        pipeline.run(nodes.count_up, **options)

    pipeline.signals = 0
    assert pipeline.run([1], **options).completed == 1


class RunsInside(Node):
    """For each item a run of its own, in which a signal comes ``times`` times; pushes how it went."""

    def __init__(self, times: int) -> None:
        super().__init__("runs_inside")
        self.times = times

    def process(self, item: Any) -> None:
        report = Pipeline(Map(self.signalled)).run(lambda: iter(range(1000)), mode="inline", robustness="none")
        self.push((report.completed, report.stopped))

    def signalled(self, number: int) -> None:
        for _ in range(self.times if number == 1 else 0):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("mode", ["inline", "process"])
def test_a_run_inside_a_node_comes_to_its_end_before_a_stop(tmp_path: Path, mode: Any) -> None:
    pipeline = Pipeline(RunsInside(1) | Collect("sink", tmp_path / "out"))

    report = pipeline.run(["item"], mode=mode, robustness="none")

    assert [tuple(found) for found in collected(tmp_path / "out")] == [(1000, False)]
    assert report.stopped == (mode == "inline")  # the signal comes to the process that runs inside


def run_in_processes(item: int) -> int:
    return Pipeline(Map(abs)).run([item], mode="process", robustness="none").completed


def test_a_run_in_processes_inside_a_worker_is_refused_and_told_what_to_do() -> None:
    report = Pipeline(Map(run_in_processes)).run([1], mode="process", robustness="track", retries=0)

    (failure,) = report.failures
    assert "UsageError: a worker, as any daemon of multiprocess, cannot start processes" in failure.traceback


def test_a_second_signal_breaks_off_a_run_inside_a_node_too(tmp_path: Path) -> None:
    pipeline = Pipeline(RunsInside(2) | Collect("sink", tmp_path / "out"))

    report = pipeline.run(["item"], mode="inline", sync="process", state_dir=tmp_path / "state")

    assert (report.stopped, report.pending) == (True, 1)
    assert collected(tmp_path / "out") == []


def test_a_handler_that_user_code_sets_while_a_run_goes_on_stays() -> None:
    def of_user(number: int, frame: Any) -> None: ...

    before = signal.getsignal(signal.SIGTERM)
    try:
        Pipeline(Map(lambda item: signal.signal(signal.SIGTERM, of_user))).run([1], mode="inline", robustness="none")

        assert signal.getsignal(signal.SIGTERM) is of_user
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    told: list[Any] = []
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pipeline = Pipeline(Map(lambda item: told.append(signal.getsignal(signal.SIGINT))))
        pipeline.run([1], mode="inline", robustness="none")
    finally:
        signal.signal(signal.SIGINT, old)

    assert told == [signal.SIG_IGN]


def test_outside_the_main_thread_signals_are_left_alone(tmp_path: Path) -> None:
    told: list[Any] = []
    before = signal.getsignal(signal.SIGINT)
    pipeline = Pipeline(Map(lambda item: told.append(signal.getsignal(signal.SIGINT))))

    worker = threading.Thread(target=lambda: told.append(pipeline.run([1], mode="inline", robustness="none").completed))
    worker.start()
    worker.join(nodes.LONGEST_WAIT_S)

    assert told == [before, 1]


SCRIPT = """
import sys
from consecution import Map, Pipeline
from tests.engines import nodes

if __name__ == "__main__":
    pipeline = Pipeline(Map(nodes.increase) | nodes.Collect("sink", nodes.Path(sys.argv[3])))
    report = pipeline.run(nodes.count_up, mode=sys.argv[1], state_dir=sys.argv[2], sync="process")
    print(report)
    sys.exit(report.exit_code)
"""


def test_a_script_that_gets_ctrl_c_ends_well(tmp_path: Path, options: Any) -> None:
    """The signal goes to the whole group, workers included, as a terminal sends it."""
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, script, options["mode"], options["state_dir"], out],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            deadline_s = time.monotonic() + nodes.LONGEST_WAIT_S
            while not collected(out) and process.poll() is None and time.monotonic() < deadline_s:
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGINT)
            printed, _ = process.communicate(timeout=nodes.LONGEST_WAIT_S)
        finally:
            process.kill()

    assert process.returncode == 0, printed
    assert "Traceback" not in printed
    assert "pending 0" in printed


class Scripted(Running):
    """A run whose `join` does what a test says."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[str] = []

    def push(self, item: Any, timeout_s: float | None = None) -> Any:
        raise NotImplementedError

    def status(self) -> Any:
        return "so far"

    def request_stop(self) -> None:
        self.calls.append("stop")

    def abort(self) -> None:
        self.calls.append("abort")

    def pause(self) -> None:
        raise NotImplementedError

    def resume(self) -> None:
        raise NotImplementedError

    def finish_input(self) -> None:
        self.calls.append("finish input")

    def join(self, timeout_s: float | None) -> Any:
        self.calls.append(f"join {timeout_s}")
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


def test_stop_aborts_after_its_timeout() -> None:
    running = Scripted(None, "report")

    assert running.stop(timeout_s=2) == "report"
    assert running.calls == ["stop", "join 2", "abort", "join None"]


def test_wait_ends_the_input_and_does_not_stop() -> None:
    running = Scripted(None)

    with pytest.raises(TimeoutError, match="the run has not ended within 3 s: so far"):
        running.wait(3)
    assert running.calls == ["finish input", "join 3"]


def test_ctrl_c_while_leaving_stops_and_a_second_one_aborts() -> None:
    patient = Scripted(KeyboardInterrupt(), "report")
    with pytest.raises(KeyboardInterrupt), patient:
        pass
    hasty = Scripted(KeyboardInterrupt("first"), KeyboardInterrupt("second"))
    with pytest.raises(KeyboardInterrupt, match="second"), hasty:
        pass

    assert patient.calls == ["finish input", "join None", "stop", "join 30.0"]
    assert hasty.calls == ["finish input", "join None", "stop", "join 30.0", "abort"]


def test_the_error_of_the_body_is_not_replaced_by_the_runs() -> None:
    running = Scripted(OSError("disk full"))

    with pytest.raises(LookupError) as told, running:
        raise LookupError

    assert told.value.__notes__ == ["and the run ended with OSError: disk full"]
    assert running.calls == ["stop", "join 30.0"]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"state_dir": "state", "robustness": "track"},
            "state_dir='state' goes with robustness='robust'; this run has",
        ),
        ({"workers": 2, "mode": "inline"}, "workers=2 goes with mode='process'; this run has mode='inline': leave one"),
        ({"workers": "auto", "mode": "thread"}, "workers='auto' goes with mode='process'; this run has mode='thread'"),
        ({"metrics_port": 0, "mode": "thread"}, "metrics_port=0 goes with mode='process'; this run has mode='thread'"),
    ],
)
def test_what_a_run_would_ignore_is_refused(given: dict[str, Any], problem: str) -> None:
    pipeline = Pipeline(Producer([1]) | str)
    for start in (pipeline.run, pipeline.start, pipeline.plan):
        with pytest.raises(OptionError) as caught:
            start(**given)
        assert str(caught.value).startswith(problem)
