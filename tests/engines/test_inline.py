"""The engine without threads and processes: what a debugger sees, and what moves when."""

from __future__ import annotations

import bdb
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest

from consecution import Map, Node, Pipeline, Producer, TextLines
from consecution.errors import NotRunningError, StateDirError, UsageError
from tests.engines import nodes
from tests.engines.nodes import Collect, Flaky, Notes, collected, open_descriptors

INLINE: Any = {"mode": "inline", "sync": "process"}


class Step(Node):
    """Calls a function with every item, then pushes it."""

    def process(self, item: Any) -> None:
        self.function(item)
        self.push(item)


def test_everything_runs_in_the_calling_thread_and_no_other_is_started(tmp_path: Path) -> None:
    seen = set()
    look = Step("look", function=lambda item: seen.add((threading.get_ident(), threading.active_count())))
    before = threading.active_count()

    Pipeline(look | Collect("sink", tmp_path / "out")).run(nodes.fifty, **INLINE, state_dir=tmp_path / "state")

    assert seen == {(threading.get_ident(), before)}
    assert threading.active_count() == before


def test_a_breakpoint_stops_below_the_call_of_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks: list[list[str]] = []
    monkeypatch.setattr(sys, "breakpointhook", lambda: stacks.append([f.name for f in traceback.extract_stack()]))

    Pipeline(Step("stop", function=lambda item: breakpoint())).run([1], **INLINE, robustness="none")

    assert "test_a_breakpoint_stops_below_the_call_of_run" in stacks[0]
    assert "process" in stacks[0]


@pytest.mark.parametrize("robustness", ["none", "robust"])
def test_quitting_the_debugger_ends_the_run(tmp_path: Path, robustness: Any) -> None:
    def quit_at_2(item: int) -> None:
        if item == 2:
            raise bdb.BdbQuit

    pipeline = Pipeline(Step("stop", function=quit_at_2) | Collect("sink", tmp_path / "out"))
    options = {**INLINE, "robustness": robustness, "state_dir": tmp_path / "state" if robustness == "robust" else None}
    with pytest.raises(bdb.BdbQuit):
        pipeline.run([1, 2, 3], **options)

    assert collected(tmp_path / "out") == []
    pipeline["stop"].function = lambda item: None
    report = pipeline.run([1, 2, 3], **options)
    assert (report.completed, report.failed) == (3, 0)
    assert collected(tmp_path / "out") == [1, 2, 3]


def test_a_run_moves_only_while_somebody_waits_or_pushes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = Pipeline(Map(nodes.increase) | Collect("sink", out)).start(nodes.count_up, **INLINE, robustness="none")
    assert running.status().emitted == 0
    assert collected(out) == []

    running.join(0)

    first = running.status().emitted
    assert first > 0
    assert collected(out) == list(range(1, first + 1))
    assert running.status().emitted == first
    running.abort()
    assert running.wait().stopped


def test_a_pushed_item_is_processed_at_once(tmp_path: Path) -> None:
    chain = Producer("manual") | Map(nodes.increase) | Collect("sink", tmp_path / "out")
    with Pipeline(chain).start(**INLINE, robustness="none") as running:
        assert running.push(1).done
        assert collected(tmp_path / "out") == [2]


def test_waiting_for_a_receipt_moves_the_run_and_gives_up_in_time(tmp_path: Path) -> None:
    flaky = Flaky("flaky", Notes(tmp_path / "notes"), tries=2)
    running = Pipeline(Producer("manual") | flaky).start(**INLINE, state_dir=tmp_path / "state", retry_delay_s=0.2)
    receipt = running.push(1)

    assert not receipt.wait(0.01)
    assert receipt.wait(nodes.LONGEST_WAIT_S)
    assert running.stop().failed == 0


def test_waiting_for_a_receipt_of_an_aborted_run_ends_it(tmp_path: Path) -> None:
    running = Pipeline(Producer("manual") | Map(nodes.fail)).start(
        **INLINE, state_dir=tmp_path / "state", retry_delay_s=60
    )
    receipt = running.push("raise")
    running.abort()

    with pytest.raises(NotRunningError, match="before this item was completely processed"):
        receipt.wait()

    assert running.wait().pending == 1


def test_a_node_may_push_into_its_own_run(tmp_path: Path) -> None:
    def count_down(item: int) -> None:
        if item:
            running.push(item - 1)

    down = Step("down", function=count_down)
    running = Pipeline(Producer("manual") | down | Collect("sink", tmp_path / "out")).start(**INLINE, robustness="none")

    running.push(3)
    while running.status().emitted < 4:
        running.join(0)

    assert running.wait().completed == 4
    assert collected(tmp_path / "out") == [3, 2, 1, 0]


def test_an_exception_that_is_no_items_fault_ends_the_run_and_nothing_is_lost(tmp_path: Path) -> None:
    def interrupt(item: int) -> None:
        if item == 2:
            raise KeyboardInterrupt

    pipeline = Pipeline(Step("stop", function=interrupt) | Collect("sink", tmp_path / "out"))
    running = pipeline.start([1, 2, 3], **INLINE, state_dir=tmp_path / "state")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            running.wait()
    assert (running.status().state, running.status().pending) == ("failed", 3)

    pipeline["stop"].function = lambda item: None
    assert pipeline.run([1, 2, 3], **INLINE, state_dir=tmp_path / "state").completed == 3
    assert collected(tmp_path / "out") == [1, 2, 3]


def test_what_is_open_in_a_temporary_directory_is_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(item: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with pytest.raises(KeyboardInterrupt) as told:
        Pipeline(Step("stop", function=interrupt)).run([1], **INLINE)

    (state_dir,) = tmp_path.glob("consecution-state-*")
    assert told.value.__notes__ == [f"what was open is kept: run again with state_dir={str(state_dir)!r}"]


def test_the_first_signal_stops_reading_and_the_second_breaks_off_what_hangs(tmp_path: Path) -> None:
    reached = []

    def hang(item: int) -> None:
        if item == 3:
            signal.raise_signal(signal.SIGTERM)
            reached.append("first")
            signal.raise_signal(signal.SIGINT)
            reached.append("second")

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    pipeline = Pipeline(Step("hang", function=hang) | Collect("sink", tmp_path / "out"))

    report = pipeline.run(range(10), **INLINE, state_dir=tmp_path / "state")

    assert reached == ["first"]
    assert (report.stopped, report.emitted, report.pending, report.exit_code) == (True, 10, 10, 3)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    pipeline["hang"].function = lambda item: None
    assert pipeline.run(range(10), **INLINE, state_dir=tmp_path / "state").completed == 10


def test_the_first_replica_is_the_users_own_node_and_the_others_are_copies(tmp_path: Path) -> None:
    own = Step("own", function=lambda item: seen.append(id(item))) * 3
    seen: list[int] = []
    made = []

    class Me(Node):
        def process(self, item: Any) -> None:
            made.append(self)

    me = Me("me", box=[]) * 3
    Pipeline(own | me).run(range(60), **INLINE, robustness="none", batch_size=5)

    assert me in made
    assert len({id(node) for node in made}) == 3
    assert len({id(node.box) for node in made}) == 3  # type: ignore[attr-defined]


def test_a_pipeline_that_is_running_is_not_run_a_second_time(tmp_path: Path) -> None:
    pipeline = Pipeline(Producer("manual") | Map(nodes.increase))
    running = pipeline.start(**INLINE, robustness="none")

    for mode in ("inline", "thread"):
        with pytest.raises(UsageError, match=r"this pipeline is running already.*wait\(\) for that run or stop\(\)"):
            pipeline.run([1], mode=mode, robustness="none")

    running.stop()
    assert pipeline.run([1], **INLINE, robustness="none").completed == 1


def test_a_run_that_was_dropped_half_way_does_not_count_as_running(tmp_path: Path) -> None:
    pipeline = Pipeline(Producer("manual") | Map(nodes.increase))
    running: Any = pipeline.start(**INLINE, robustness="none")
    running.push(1)
    del running

    assert pipeline.run([1], **INLINE, robustness="none").completed == 1


def test_a_run_leaves_no_descriptor_open_however_it_ends(tmp_path: Path) -> None:
    def pipeline() -> Pipeline:
        return Pipeline(Producer("manual") | Map(nodes.fail) | TextLines("lines", tmp_path / "lines"))

    options = {**INLINE, "state_dir": tmp_path / "state", "retries": 0}
    with pipeline().start(**options) as running:
        running.push(1)
    before = open_descriptors()

    assert pipeline().start(**options).wait().already_finished
    with pipeline().start(**options, fresh=True) as running:
        held = open_descriptors()
        with pytest.raises(StateDirError):
            pipeline().start(**options)
        assert open_descriptors() == held
    aborted = pipeline().start(**options, fresh=True)
    aborted.abort()
    aborted.wait()

    assert open_descriptors() == before
