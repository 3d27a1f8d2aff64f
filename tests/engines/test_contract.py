"""The engine contract: the same pipelines over every engine, and the same answers.

A run in processes costs a third of a second, so a test asserts all that one run can show. What
an engine cannot do is said where it is skipped.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consecution import (
    Broadcast,
    Chunk,
    Filter,
    GlobalState,
    Map,
    Merge,
    Node,
    Pipeline,
    Producer,
    RateLimit,
    Report,
    Route,
    Running,
    Status,
)
from consecution.errors import (
    BackPressureError,
    ConsecutionError,
    NotRunningError,
    SourceError,
    StateDirError,
    UsageError,
    WorkerError,
)
from consecution.routing import replica_of_slot, slot_of
from tests.engines import nodes
from tests.engines.nodes import (
    Collect,
    Dear,
    DearTogether,
    Diary,
    Fail,
    Flaky,
    FlakyTens,
    Gate,
    Notes,
    Tag,
    Tens,
    Total,
    collected,
)

MODES = ("inline", "thread", "process")
WORKERS = {"one worker": 1, "two workers": 2}
"""Further engines: processes that share the tasks. Only tests that could tell the difference ask them."""
LEVELS = ("none", "confirm", "track", "robust")
DEADLINE_S = 30.0


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Any:
    return request.param


every_engine = pytest.mark.parametrize("mode", [*MODES, *WORKERS], indirect=True)
every_engine_that_keeps_the_order = pytest.mark.parametrize("mode", [*MODES, "one worker"], indirect=True)
"""Two workers have two replicas of what keeps nothing, and frames that go different ways may overtake each other.
Only what waits for the decision takes their batches in order."""


@pytest.fixture(params=["thread", "process"])
def concurrent_mode(request: pytest.FixtureRequest) -> Any:
    """An engine in which something goes on while the caller does something else."""
    return request.param


class Run:
    """Runs pipelines in one mode, with a sink at the end and folders of their own."""

    def __init__(self, mode: Any, folder: Path) -> None:
        self.mode = "process" if mode in WORKERS else mode
        self.workers = WORKERS.get(mode, "per-task")
        self.folder = folder
        self.out = folder / "out"
        self.state_dir = folder / "state"

    @property
    def sink(self) -> Collect:
        return Collect("sink", self.out)

    @property
    def items(self) -> list[Any]:
        return collected(self.out)

    def notes(self, name: str = "notes") -> Notes:
        return Notes(self.folder / name)

    def __call__(self, chain: Node, iterable: Any = None, **options: Any) -> Report:
        return Pipeline(chain).run(iterable, **self.options(options))

    def start(self, chain: Node, iterable: Any = None, **options: Any) -> Running:
        return Pipeline(chain).start(iterable, **self.options(options))

    def options(self, given: dict[str, Any]) -> Any:
        options = {"mode": self.mode, "workers": self.workers, "sync": "process", "retry_delay_s": 0.01, **given}
        if options.get("robustness", "robust") == "robust":
            options.setdefault("state_dir", self.state_dir)
        return options


@pytest.fixture
def run(mode: Any, tmp_path: Path) -> Run:
    return Run(mode, tmp_path)


@pytest.fixture
def concurrent(concurrent_mode: Any, tmp_path: Path) -> Run:
    return Run(concurrent_mode, tmp_path)


def wait_for(running: Running, until: Callable[[], bool]) -> None:
    """Wait until something is so; an inline run moves meanwhile."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not until():
        assert time.monotonic() < deadline_s, f"it never came about: {running.status()}"
        running.join(0.005)


def by_node(report: Report) -> dict[str, tuple[int, int, int]]:
    return {node.node: (node.items_in, node.items_out, node.failed) for node in report.nodes}


def assert_all_done(report: Report, items: int) -> None:
    assert (report.emitted, report.completed, report.failed, report.pending) == (items, items, 0, 0)
    assert (report.replayed, report.restarts, report.failures) == (0, 0, ())
    assert (report.exit_code, report.stopped, report.already_finished) == (0, False, False)
    assert report.confirmed is (None if report.robustness == "none" else True)


# -- composition ---------------------------------------------------------------------------------


@every_engine
@pytest.mark.parametrize("level", LEVELS)
def test_a_rich_graph_gives_the_same_items_at_every_level(run: Run, level: str) -> None:
    chain = (
        Map(nodes.increase, "first") * 2
        | nodes.double
        | Filter(nodes.is_even)
        | [
            Map(nodes.square, "square") * 2,
            Map(nodes.negate, "negate").by(nodes.last_digit) * 3,
            Map(nodes.increase, "a") | [Map(nodes.increase, "b"), [Map(nodes.increase, "c"), Map(nodes.increase, "d")]],
        ]
        | run.sink
    )

    report = run(chain, range(300), robustness=level)

    evens = [made for item in range(300) for made in nodes.double(item + 1) if made % 2 == 0]
    expected = Counter(answer for e in evens for answer in (e * e, -e, e + 2, e + 2, e + 2))
    assert Counter(run.items) == expected
    assert_all_done(report, 300)
    assert (report.mode, report.robustness) == (run.mode, level)
    assert by_node(report)["first"] == (300, 300, 0)
    assert by_node(report)["double"] == (300, 600, 0)
    assert by_node(report)["is_even"] == (600, len(evens), 0)
    assert by_node(report)["negate"] == (len(evens), len(evens), 0)
    assert by_node(report)["sink"] == (len(evens) * 5, 0, 0)
    assert {node.node: node.replicas for node in report.nodes}["negate"] == 3


@every_engine
def test_on_a_single_path_items_keep_the_order_of_the_source(run: Run) -> None:
    report = run(Map(nodes.increase, "a") | Map(nodes.negate, "b") | run.sink, range(5000))

    assert run.items == [-item - 1 for item in range(5000)]
    assert_all_done(report, 5000)
    assert report.state_dir == str(run.state_dir)


@every_engine_that_keeps_the_order
def test_routes_go_by_name_by_index_and_round_robin(run: Run) -> None:
    sinks = {name: run.folder / name for name in ("even", "by_index", "left", "right", "both_1", "both_2")}
    even, by_index, left, right, both_1, both_2 = (Collect(name, path) for name, path in sinks.items())
    odd = Map(nodes.identity, "odd") | Route(
        [Route([left, right]), by_index, Broadcast([both_1, both_2])], by=nodes.last_digit_by_twos
    )
    chain = Map(nodes.identity, "top") | [even, odd, nodes.parity_name]

    report = run(chain, range(100), robustness="confirm")

    assert_all_done(report, 100)
    assert collected(sinks["even"]) == list(range(0, 100, 2))
    assert collected(sinks["by_index"]) == [item for item in range(100) if item % 10 in (3, 5)]
    assert collected(sinks["both_1"]) == collected(sinks["both_2"]) == [i for i in range(100) if i % 10 in (7, 9)]
    ones = [item for item in range(100) if item % 10 == 1]
    assert sorted(collected(sinks["left"]) + collected(sinks["right"])) == ones
    assert len(collected(sinks["left"])) == len(collected(sinks["right"])) == 5


def test_explicit_groups_merge_and_broadcast_like_lists(run: Run) -> None:
    chain = Map(nodes.identity, "top") | Broadcast([Map(nodes.increase, "a"), Map(nodes.negate, "b")])
    run(chain | Merge([Map(nodes.square, "c"), Map(nodes.identity, "d")]) | run.sink, [2], robustness="none")

    assert sorted(run.items) == [-2, 3, 4, 9]


@every_engine_that_keeps_the_order
def test_chunks_and_groups_end_with_what_is_left(run: Run) -> None:
    chain = Map(nodes.identity, "top") | [Chunk(4), Chunk(nodes.last_third, "thirds"), Tens("tens")] | run.sink

    report = run(chain, range(25), robustness="track")

    fours = [list(range(25))[at : at + 4] for at in range(0, 25, 4)]
    thirds = [list(range(25))[at : at + 3] for at in range(0, 25, 3)]
    assert [item for item in run.items if isinstance(item, tuple)] == [(0, 10), (1, 10), (2, 5)]
    assert sorted(item for item in run.items if isinstance(item, list)) == sorted(fours + thirds)
    assert_all_done(report, 25)


@pytest.mark.parametrize("level", ["none", "robust"])
def test_a_chunk_does_not_wait_longer_than_its_time(run: Run, level: str) -> None:
    running = run.start(Producer("manual") | Chunk(1000, timeout_s=0.2) | run.sink, robustness=level)
    with running:
        running.push(1)
        wait_for(running, lambda: run.items == [[1]])
        running.push(2)
        running.push(3)
        wait_for(running, lambda: sum(map(len, run.items)) == 3)
        running.push(4)

    assert [item for chunk in run.items for item in chunk] == [1, 2, 3, 4]
    assert_all_done(running.wait(), 4)


@pytest.mark.parametrize("more", [0, 3])
def test_what_a_chunk_has_gathered_is_cut_where_the_next_run_wants_shorter_ones(run: Run, more: int) -> None:
    with run.start(Producer("manual") | Chunk(9) | run.sink) as running:
        for item in range(8):
            running.push(item).wait(DEADLINE_S)
        running.stop()
    assert run.items == []

    with run.start(Producer("manual") | Chunk(4) | run.sink) as running:
        for item in range(8, 8 + more):
            running.push(item)

    assert_all_done(running.wait(DEADLINE_S), 8 + more)
    assert run.items == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]][: 3 if more else 2]


@every_engine_that_keeps_the_order
def test_a_limit_lets_items_through_in_order_and_no_sooner_than_they_may(run: Run) -> None:
    """They wait for two seconds, in a worker that may hang for less."""
    started_s = time.monotonic()
    report = run(Producer(list(range(41))) | RateLimit(20, burst=1) | run.sink, timeout_s=1.0)

    assert run.items == list(range(41))
    assert time.monotonic() - started_s >= 1.9
    assert_all_done(report, 41)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("thread", Dear), ("process", Dear), ("inline", DearTogether), ("process", DearTogether)],
    indirect=["mode"],
)
def test_a_batch_of_dear_items_runs_once_however_long_it_takes(run: Run, kind: Callable[[str, float], Node]) -> None:
    """Longer than a batch may go unheard of, four times the timeout, which no item takes. In processes that hang is
    punished."""
    timeout_s = 1.0 if run.mode == "process" else 0.25
    report = run(Producer(list(range(16))) | kind("dear", 0.3 * timeout_s) | run.sink, timeout_s=timeout_s)

    assert_all_done(report, 16)
    assert sorted(run.items) == list(range(16))


@every_engine
@pytest.mark.parametrize("level", ["none", "confirm"])
def test_nodes_that_end_end_once_after_all_their_parents(run: Run, level: str) -> None:
    notes = run.notes()
    chain = Diary("a", notes) | [Diary("b", notes), Diary("c", notes)] | Diary("d", notes) | run.sink

    report = run(chain, ["x"], robustness=level)

    assert Counter(notes.lines()) == Counter(f"{what} {name}" for what in ("begin", "end") for name in "abcd")
    ends = [line for line in notes.lines() if line.startswith("end")]
    assert (ends[0], ends[-1]) == ("end a", "end d")
    assert Counter(run.items) == Counter({"x": 2, "a ended": 2, "b ended": 1, "c ended": 1, "d ended": 1})
    assert run.items[-1] == "d ended"
    assert_all_done(report, 1)


@every_engine
def test_every_replica_ends(run: Run) -> None:
    run((Total("total") * 3) | run.sink, range(1000), robustness="none")

    assert len(run.items) == 3
    assert sum(run.items) == sum(range(1000))


@every_engine
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Chunk(2, "it"), [[0, 1], [2, 3], [4]]),
        (lambda: Tens("it"), [(0, 5)]),
        (lambda: Total("it"), [10]),
    ],
    ids=["Chunk", "GroupByNode", "overrides end"],
)
def test_what_collects_until_the_end_is_durable_in_robust(
    run: Run, make: Callable[[], Node], expected: list[Any]
) -> None:
    report = run(make() | run.sink, range(5))

    assert run.items == expected
    assert_all_done(report, 5)


@every_engine
def test_a_key_always_meets_the_same_replica_in_this_run_and_the_next(run: Run) -> None:
    words = [f"word {number % 40}" for number in range(2000)]
    shares = []
    for _ in range(2):
        run((Tag("tag").by(nodes.identity) * 4) | run.sink, words, robustness="none")
        keys_of = defaultdict(set)
        for word, who in run.items:
            keys_of[who].add(word)
        run.out.unlink()
        shares.append({frozenset(keys) for keys in keys_of.values()})

    planned = defaultdict(set)
    for word in set(words):
        planned[replica_of_slot(slot_of(word), 4)].add(word)
    assert shares == [{frozenset(keys) for keys in planned.values()}] * 2


@every_engine
def test_shuffled_replicas_share_the_work(run: Run) -> None:
    run((Tag("tag") * 3) | run.sink, range(3000), robustness="none", batch_size=50)

    assert sorted(item for item, _ in run.items) == list(range(3000))
    assert len({who for _, who in run.items}) == 3


def test_logged_nodes_print_each_item(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = Pipeline(Map(nodes.increase, "logged") | Total("loud") | run.sink)
    pipeline["logged"].log("input")
    pipeline["loud"].log("output")
    pipeline["sink"].log("input")

    pipeline.run([1, 2], **run.options({"robustness": "none"}))

    printed = "".join(capfd.readouterr())
    assert printed.count("node_log,what,node_name,item") == 1
    assert [printed.count(f"node_log,input,logged,{item}") for item in (1, 2)] == [1, 1]
    assert printed.count("node_log,output,loud,5") == 1
    assert printed.count("node_log,input,sink,5") == 1


# -- global state, and the pipeline's own hooks ---------------------------------------------------


class Hooked(Pipeline):
    def begin(self) -> None:
        self.global_state.factor = 10

    def end(self) -> str:
        return f"factor {self.global_state.factor}"


@every_engine
def test_the_pipelines_begin_prepares_what_nodes_see_and_its_end_gives_the_result(run: Run) -> None:
    pipeline = Hooked(nodes.ReadsState("reads") | run.sink)

    report = pipeline.run(range(5), **run.options({}))

    assert run.items == [0, 10, 20, 30, 40]
    assert report.result == "factor 10"
    assert_all_done(report, 5)


def test_global_state_is_shared_or_says_what_to_do_instead(run: Run) -> None:
    pipeline = Pipeline(nodes.WritesState("writes") | run.sink, GlobalState(seen=None))

    report = pipeline.run([7], **run.options({"robustness": "track"}))

    if run.mode == "process":
        assert pipeline.global_state.seen is None
        assert report.failures[0].error.startswith("ReadOnlyError: global_state 'seen': in process mode every worker")
        assert "push the value to a node that gathers it" in report.failures[0].error
    else:
        assert pipeline.global_state.seen == 7
        assert_all_done(report, 1)


class NeverEnds(Hooked):
    def end(self) -> str:
        raise AssertionError("end of a stream that did not end")


def test_the_pipelines_end_does_not_run_when_the_stream_was_stopped(run: Run) -> None:
    running = NeverEnds(nodes.ReadsState("reads") | run.sink).start(nodes.count_up, **run.options({"batch_size": 10}))

    wait_for(running, lambda: len(run.items) > 20)
    report = running.stop()

    assert (report.stopped, report.result) == (True, None)


class BadHooks(Pipeline):
    fails_in = ""

    def begin(self) -> None:
        self.fail("begin")

    def end(self) -> str:
        self.fail("end")
        return "well ended"

    def fail(self, where: str) -> None:
        if where == self.fails_in:
            raise LookupError(f"bad {where}")


@pytest.mark.parametrize("where", ["begin", "end"])
def test_what_the_pipelines_own_hooks_raise_comes_out_and_the_next_run_is_right(run: Run, where: str) -> None:
    pipeline = BadHooks(Map(nodes.increase) | run.sink)
    pipeline.fails_in = where
    with pytest.raises(LookupError, match=f"bad {where}"):
        pipeline.run([1, 2], **run.options({}))
    pipeline.fails_in = ""

    report = pipeline.run([1, 2], **run.options({}))

    assert run.items == [2, 3]
    assert report.result == "well ended"


# -- failing items -------------------------------------------------------------------------------


@every_engine
def test_failing_items_are_retried_kept_and_reported_and_their_neighbours_go_through(run: Run) -> None:
    words = ["raise", "exit", "stop iteration", "generator exit", "unspeakable"]
    items = list(itertools.chain.from_iterable((word, f"neighbour of {word}") for word in words))

    report = run(Fail("fail") | run.sink, items, retries=2)

    assert run.items == [f"neighbour of {word}" for word in words]
    assert (report.emitted, report.completed, report.failed, report.pending) == (10, 10, 5, 0)
    assert (report.confirmed, report.exit_code) == (False, 1)
    found = {failure.item: failure for failure in report.failures}
    assert set(found) == set(words)
    assert {(failure.node, failure.attempts) for failure in report.failures} == {("fail", 3)}
    assert found["raise"].error == "ValueError: this one"
    assert 'raise ValueError("this one")' in found["raise"].traceback
    assert found["exit"].error == "SystemExit: 3"
    assert found["unspeakable"].error == "ReprRaises"
    assert by_node(report)["fail"] == (10 + 2 * 5, 5, 3 * 5)
    assert "Finished, with failed items" in str(report)
    assert "at fail after 3 tries: raise" in str(report)


@every_engine
def test_function_nodes_take_no_neighbour_down_either(run: Run) -> None:
    words = ["raise", "exit", "stop iteration", "generator exit", "unspeakable"]
    chain = Map(nodes.fail, "map") | nodes.fail_late | Filter(nodes.fail_unless_true, "filter") | run.sink

    report = run(chain, [1, *words, 3, 13, 0, 5], robustness="track")

    assert sorted(run.items, key=abs) == [1, -1, 5, -5]  # two workers may have a part each
    assert Counter(failure.node for failure in report.failures) == {"map": 5, "fail_late": 2, "filter": 2}
    assert [failure.item for failure in report.failures if failure.node == "fail_late"] == [3, 13]
    assert {failure.attempts for failure in report.failures} == {1}
    assert (report.failed, report.completed) == (9, 10)


@every_engine
def test_a_router_or_key_function_that_fails_fails_the_item_at_the_node_before(run: Run) -> None:
    here = Collect("here", run.folder / "here")
    router = Map(nodes.identity, "before") | [here, Map(nodes.identity, "there"), nodes.bad_route]
    keyed = Map(nodes.identity, "keyed").by(nodes.bad_key) * 2

    routed = run(router, ["a", "lost", "raise", "exit", "b"], retries=1)
    grouped = run(Map(nodes.identity, "before") | keyed | run.sink, ["a", "list", "exit", "b"], retries=1, fresh=True)

    assert collected(run.folder / "here") == ["a", "b"]
    assert {(failure.node, failure.item) for failure in routed.failures} == {
        *(("before", "lost"), ("before", "raise"), ("before", "exit")),
    }
    assert "encountered bad route path 'nowhere'" in next(f.error for f in routed.failures if f.item == "lost")
    assert {failure.attempts for failure in routed.failures} == {2}
    assert sorted(run.items) == ["a", "b"]
    assert {(failure.node, failure.item) for failure in grouped.failures} == {("before", "list"), ("before", "exit")}
    assert "a key must be one of" in next(f.error for f in grouped.failures if f.item == "list")


def test_a_router_that_answers_differently_each_time_fails_items_but_not_the_run(run: Run) -> None:
    chain = Map(nodes.identity, "before") | Route([Map(nodes.identity, "a"), Map(nodes.negate, "b")], nodes.Fickle())

    report = run(chain | run.sink, range(1, 101), retries=0)

    assert 0 < report.failed < 100
    assert (report.completed, len(report.failures)) == (100, report.failed)
    assert sorted([*map(abs, run.items), *(failure.item for failure in report.failures)]) == list(range(1, 101))


@every_engine
def test_a_router_that_fails_at_the_source_fails_the_item_there(run: Run) -> None:
    here = Collect("here", run.folder / "here")
    chain = Producer(["a", "lost", "b"]) | [here, Map(nodes.identity, "there"), nodes.bad_route]

    report = run(chain, retries=1)

    assert collected(run.folder / "here") == ["a", "b"]
    assert [(f.node, f.item, f.attempts) for f in report.failures] == [("producer", "lost", 2)]
    assert (report.emitted, report.completed, report.failed) == (3, 3, 1)


@every_engine
@pytest.mark.parametrize(("level", "counted"), [("track", 4), ("robust", 2)])
def test_a_batch_of_a_group_fails_alone_the_last_one_too(run: Run, level: str, counted: int) -> None:
    tens = FlakyTens("tens", run.notes(), {1, 3}, tries=9)

    report = run(tens | run.sink, [1, 2, 11, 12, 21, 22, 31], robustness=level)

    assert run.items == ["half done", 0, "half done", 2, f"{counted} gone"]
    assert sorted((failure.node, failure.item) for failure in report.failures) == [("tens", [11, 12]), ("tens", [31])]
    assert "ValueError: no such batch" in report.failures[0].error
    assert (report.emitted, report.completed, report.failed, report.pending) == (7, 7, 2, 0)
    assert (report.confirmed, report.exit_code) == (False, 1)


@every_engine
def test_a_batch_of_a_group_is_tried_again_as_it_was_and_before_the_end(run: Run) -> None:
    tens = FlakyTens("tens", run.notes(), {1, 3}, tries=3)

    report = run(tens | run.sink, [1, 2, 11, 12, 21, 22, 31], retries=2)

    assert sorted(run.items[:-1], key=str) == [0, 1, 2, 3, *["half done"] * 4]
    assert run.items[-1] == "4 gone"
    assert_all_done(report, 7)


@every_engine
def test_an_item_that_fails_at_first_is_tried_again_and_what_it_had_pushed_is_dropped(run: Run) -> None:
    notes = run.notes()

    report = run(Flaky("flaky", notes, tries=3) | run.sink, range(5), retries=4)

    assert sorted(run.items, key=str) == sorted([*range(5), *(f"{item} half done" for item in range(5))], key=str)
    assert Counter(notes.lines()) == {str(item): 3 for item in range(5)}
    assert_all_done(report, 5)
    assert by_node(report)["flaky"] == (15, 10, 10)


@every_engine
def test_retries_of_one_item_at_several_nodes_are_counted_at_each(run: Run) -> None:
    chain = Flaky("first", run.notes("1"), tries=2) | Flaky("second", run.notes("2"), tries=3) | run.sink
    chain = Filter(nodes.is_number) | chain

    report = run(chain, [1], retries=1)

    assert [(f.node, f.attempts) for f in report.failures] == [("second", 2), ("second", 2)]
    assert len(run.notes("1").lines()) == 2


def test_without_retries_an_item_is_tried_once_and_the_level_says_what_is_known(run: Run) -> None:
    reports = {
        level: run(
            Map(nodes.fail, "fail") | run.sink, ["raise", 1, "raise", "raise", 2], robustness=level, keep_failed=2
        )
        for level in ("none", "confirm", "track")
    }

    assert run.items == [1, 2] * 3
    assert {(report.failed, report.completed, report.exit_code) for report in reports.values()} == {(3, 5, 1)}
    assert [reports[level].confirmed for level in ("none", "confirm", "track")] == [None, False, False]
    assert [len(reports[level].failures) for level in ("none", "confirm", "track")] == [0, 0, 2]


@every_engine
def test_what_a_node_pushes_at_its_end_may_fail_too(run: Run) -> None:
    chain = Map(nodes.identity, "top") | Total("total") | Map(nodes.fail_on_numbers, "fail") | run.sink

    report = run(chain, [1, 2], robustness="track")

    assert [(f.node, f.item, f.attempts) for f in report.failures] == [("fail", 3, 1)]
    assert (report.failed, report.completed, report.confirmed, report.exit_code) == (1, 2, False, 1)


def test_an_item_that_cannot_be_encoded_fails_where_it_was_made(run: Run) -> None:
    chain = Map(nodes.make_generator, "make") | Map(nodes.type_name, "type_name") | run.sink

    report = run(chain, range(10), retries=2)

    if run.mode == "process":
        assert run.items == ["int"] * 9
        assert [(f.node, f.attempts) for f in report.failures] == [("make", 1)]
        assert "generator" in report.failures[0].error
    else:
        assert Counter(run.items) == {"int": 9, "generator": 1}
        assert_all_done(report, 10)


@every_engine
def test_source_items_that_cannot_be_journalled_fail_at_the_source(run: Run) -> None:
    report = run(Map(nodes.type_name, "type_name") | run.sink, nodes.numbers_and_generators, retries=2)

    assert Counter(run.items) == {"int": 18}
    assert Counter((f.node, f.attempts) for f in report.failures) == {("source", 1): 2}
    assert (report.emitted, report.completed, report.failed) == (20, 20, 2)


def test_items_whose_repr_raises_fail_like_all_others(run: Run) -> None:
    report = run(Map(nodes.fail_on_unseen, "fail") | run.sink, [1, nodes.Unseen(), 2], retries=0)

    assert run.items == [1, 2]
    assert isinstance(report.failures[0].item, nodes.Unseen)
    assert "Unseen, whose repr raises RuntimeError" in str(report)


# -- nodes that cannot begin or end --------------------------------------------------------------


@every_engine
def test_a_begin_that_raises_is_named_and_nothing_is_processed(run: Run) -> None:
    with pytest.raises(WorkerError, match=r"bad\.[01]: begin\(\) raised LookupError: nothing to begin with") as told:
        run((nodes.BadBegin("bad") * 2) | run.sink, [1])

    assert told.value.task in ("bad.0", "bad.1")
    assert run.items == []
    assert_all_done(run(Map(nodes.increase, "bad") * 2 | run.sink, [1]), 1)


@every_engine
def test_an_end_that_raises_is_named_and_ends_the_run(run: Run) -> None:
    with pytest.raises(WorkerError, match=r"bad\.0: end\(\) raised LookupError: no end in sight") as told:
        run(nodes.BadEnd("bad") | run.sink, [1], robustness="track")

    assert told.value.task == "bad.0"


class MuteEnd(Pipeline):
    def end(self) -> None:
        raise nodes.ReprRaises


@pytest.mark.parametrize("step", ["begin", "on_timer", "end", "the pipeline's end"])
def test_an_error_that_cannot_say_what_it_is_ends_the_run_and_lets_go_of_its_state(run: Run, step: str) -> None:
    made = MuteEnd if step == "the pipeline's end" else Pipeline
    pipeline = made(Producer("manual") | nodes.Mute("mute", step) | run.sink)

    def run_to_the_end() -> None:
        running = pipeline.start(**run.options({"max_restarts": 0}))
        end = running.join if step == "on_timer" else running.wait
        end(DEADLINE_S)

    with pytest.raises((WorkerError, nodes.ReprRaises)) as told:
        run_to_the_end()

    if isinstance(told.value, WorkerError):
        assert f"{step}() raised ReprRaises" in str(told.value)
    assert_all_done(run(nodes.Mute("mute", "") | run.sink, [1], fresh=True), 1)


# -- sources -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [lambda: list(range(50)), lambda: range(50), lambda: iter(range(50)), lambda: nodes.fifty, lambda: nodes.fifty()],
    ids=["list", "range", "iterator", "generator function", "generator"],
)
def test_any_iterable_is_a_source(run: Run, make: Callable[[], Any]) -> None:
    assert_all_done(run(Map(nodes.increase) | run.sink, make()), 50)
    assert run.items == list(range(1, 51))


def test_an_open_file_is_read_line_by_line(run: Run) -> None:
    path = run.folder / "lines"
    path.write_text("one\ntwo\n\nfour")

    with path.open() as file:
        report = run(Map(nodes.identity) | run.sink, file)

    assert run.items == ["one\n", "two\n", "\n", "four"]
    assert_all_done(report, 4)


def test_a_producer_holds_the_stream_or_gives_way_to_another(run: Run) -> None:
    pipeline = Pipeline(Producer([1, 2]) | Map(nodes.increase) | run.sink)

    first = pipeline.run(**run.options({"robustness": "none"}))
    second = pipeline.run([10], **run.options({"robustness": "none"}))

    assert (first.emitted, second.emitted) == (2, 1)
    assert run.items == [2, 3, 11]


def test_empty_falsy_and_huge_items_are_items(run: Run) -> None:
    huge = "x" * 5_000_000
    items = [None, 0, "", [], {}, False, huge, b"", (), None]

    report = run(Map(nodes.identity) | run.sink, items)

    assert run.items == items
    assert_all_done(report, len(items))


def test_an_empty_source_completes_nothing(run: Run) -> None:
    report = run(Map(nodes.increase) | run.sink, [])

    assert_all_done(report, 0)
    assert "All items completely processed" in str(report)


def test_a_source_that_raises_gives_what_it_had_and_goes_on_after_that(run: Run) -> None:
    path = run.folder / "broken"
    chain = Map(nodes.increase) | run.sink
    with pytest.raises(SourceError, match="OSError: the line went dead") as told:
        run(chain, nodes.breaks_after(1234), batch_size=100)
    assert not path.exists()
    assert isinstance(told.value.__cause__, OSError) or run.mode == "process"
    assert run.items == list(range(1, 1235))

    report = run(Map(nodes.increase) | run.sink, range(2000), batch_size=100)

    assert run.items == list(range(1, 2001))
    assert (report.emitted, report.completed, report.exit_code) == (2000, 2000, 0)


def test_without_a_journal_too_what_a_source_gave_before_it_raised_is_processed(run: Run) -> None:
    with pytest.raises(SourceError, match="the line went dead"):
        run(Map(nodes.increase) * 2 | run.sink, nodes.breaks_after(1234), robustness="none", linger_ms=20)

    assert sorted(run.items) == list(range(1, 1235))


def test_a_source_that_is_too_short_to_go_on_is_refused(run: Run) -> None:
    with pytest.raises(SourceError):
        run(Map(nodes.increase) | run.sink, nodes.breaks_after(50))

    with pytest.raises(SourceError, match=r"10 items, but 50 of it were taken before.*fresh=True"):
        run(Map(nodes.increase) | run.sink, range(10))


def test_a_source_of_ones_own_is_opened_read_and_closed_by_one_thread(run: Run) -> None:
    source = nodes.OneThread(25)

    report = run(Map(nodes.increase) | run.sink, source)

    assert run.items == list(range(1, 26))
    assert_all_done(report, 25)


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("open", OSError("no line"), r"cannot be opened at None: OSError: no line"),
        ("read", SystemExit("no line"), r"raised SystemExit: no line; what came before it was taken"),
        ("close", OSError("no line"), r"cannot be closed: OSError: no line"),
    ],
)
def test_a_source_that_misbehaves_is_named(run: Run, where: str, error: BaseException, message: str) -> None:
    with pytest.raises(SourceError, match=rf"the source .*BadSource.* {message}"):
        run(Map(nodes.increase) | run.sink, nodes.BadSource(where, error))

    assert run.items == ([] if where == "open" else [2, 3, 4])


# -- pushing -------------------------------------------------------------------------------------


@every_engine
def test_pushed_items_are_granted_one_by_one(run: Run) -> None:
    with run.start(Producer("manual") | Map(nodes.fail, "fail") | run.sink, retries=0) as running:
        good = running.push(1)
        assert good.wait(DEADLINE_S)
        assert (good.done, good.failed) == (True, False)
        assert run.items == [1]
        bad = running.push("raise")
        assert bad.wait(DEADLINE_S)
        assert (bad.done, bad.failed) == (True, True)
        report = running.wait(DEADLINE_S)

    assert (report.emitted, report.completed, report.failed) == (2, 2, 1)
    with pytest.raises(NotRunningError, match="has ended"):
        running.push(2)


def test_a_receipt_waits_for_the_retries_of_its_item(run: Run) -> None:
    notes = run.notes()
    with run.start(Producer("manual") | Flaky("flaky", notes, tries=3) | run.sink, retry_delay_s=0.05) as running:
        receipt = running.push(7)
        assert receipt.wait(DEADLINE_S)

    assert (receipt.done, receipt.failed) == (True, False)
    assert 7 in run.items


def test_receipts_of_a_run_that_was_aborted_say_so(run: Run) -> None:
    running = run.start(Producer("manual") | Map(nodes.fail, "fail") | run.sink, retry_delay_s=60)
    receipt = running.push("raise")
    wait_for(running, lambda: running.status().emitted == 1)

    running.abort()
    report = running.wait(DEADLINE_S)

    assert (report.emitted, report.pending, report.exit_code) == (1, 1, 3)
    assert not receipt.done
    with pytest.raises(NotRunningError, match="the run ended before this item was completely processed"):
        receipt.wait(DEADLINE_S)


def test_many_threads_may_push(run: Run) -> None:
    def push_all(start: int) -> None:
        for item in range(start, start + 50):
            receipts.append(running.push(item))

    receipts: list[Any] = []
    with run.start(Producer("manual") | Map(nodes.increase) | run.sink, robustness="confirm") as running:
        threads = [threading.Thread(target=push_all, args=(start,)) for start in (0, 50, 100, 150)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert all(receipt.wait(DEADLINE_S) for receipt in receipts)

    assert sorted(run.items) == list(range(1, 201))


def test_push_blocks_while_the_pipeline_is_full_and_gives_up_after_its_timeout(concurrent: Run) -> None:
    gate = concurrent.folder / "gate"
    chain = Producer("manual", max_waiting=2) | Gate("gate", gate) | concurrent.sink
    with concurrent.start(chain, max_pending=1, batch_size=1) as running:
        receipts = []
        with pytest.raises(BackPressureError, match=r"no room for another item within 0\.05 s"):  # noqa: PT012
            for item in range(10):
                receipts.append(running.push(item, timeout_s=0.05))
        assert 2 <= len(receipts) <= 4

        gate.touch()
        receipts.append(running.push(99, timeout_s=DEADLINE_S))
        assert all(receipt.wait(DEADLINE_S) for receipt in receipts)

    assert concurrent.items == [*range(len(receipts) - 1), 99]


def test_push_goes_with_a_manual_producer_only_and_run_without_one(run: Run) -> None:
    with (
        run.start(Map(nodes.increase) | run.sink, [1], robustness="none") as running,
        pytest.raises(UsageError, match=r"push\(\) goes with Producer\('manual'\); this run reads"),
    ):
        running.push(2)
    with pytest.raises(UsageError, match=r"run\(\) has nobody who could push"):
        run(Producer("manual") | Map(nodes.increase))

    assert run.items == [2]


def test_a_stopped_run_takes_nothing_more(run: Run) -> None:
    running = run.start(Producer("manual") | Map(nodes.increase) | run.sink)
    running.push(1).wait(DEADLINE_S)
    running.request_stop()

    with pytest.raises(NotRunningError):
        running.push(2)

    report = running.wait(DEADLINE_S)
    assert (report.emitted, report.pending, report.stopped) == (1, 0, True)
    assert report.confirmed is (None if report.robustness == "none" else False)  # the stream has not ended


# -- stopping, going on, starting again ----------------------------------------------------------


@every_engine
def test_a_stopped_run_goes_on_where_it_was_and_loses_nothing(run: Run) -> None:
    chain = (Map(nodes.increase) * 2) | run.sink
    running = run.start(chain, nodes.count_up, batch_size=20, max_pending=4)
    wait_for(running, lambda: len(run.items) > 100)
    stopped = running.stop()
    assert (stopped.stopped, stopped.pending, stopped.exit_code) == (True, 0, 0)
    assert sorted(run.items) == list(range(1, stopped.emitted + 1))
    assert running.stop() == running.wait() == stopped
    assert "stopped" in str(running.status())

    total = stopped.emitted + 300
    report = run((Map(nodes.increase) * 2) | run.sink, range(total))

    assert sorted(run.items) == list(range(1, total + 1))
    assert (report.emitted, report.completed, report.stopped) == (total, total, False)


@every_engine
def test_a_rate_is_of_what_this_run_completes(run: Run) -> None:
    before = run.start(Producer("manual") | Map(nodes.increase) | run.sink)
    for number in range(5):
        before.push(number).wait(DEADLINE_S)
    assert before.stop().completed_before == 0

    running = run.start(Producer("manual") | Map(nodes.increase) | run.sink)
    wait_for(running, lambda: running.status().completed == 5)
    assert (running.status().completed_before, running.status().items_per_s) == (5, 0.0)
    running.push(5).wait(DEADLINE_S)
    report = running.stop()

    assert (report.completed, report.completed_before) == (6, 5)
    assert f"({1 / report.seconds:,.0f} items/s" in str(report)


def test_a_stop_while_nodes_end_lets_them_end(concurrent: Run) -> None:
    notes, gate = concurrent.notes(), concurrent.folder / "gate"
    chain = nodes.SlowEnd("slow", notes, gate) | Total("last") | concurrent.sink
    running = concurrent.start(chain, [1, 2], robustness="none")
    wait_for(running, lambda: bool(notes.lines()))
    running.request_stop()
    gate.touch()

    report = running.wait(DEADLINE_S)

    assert concurrent.items == [3]
    assert_all_done(report, 2)


@every_engine
def test_an_aborted_run_loses_nothing_either(run: Run) -> None:
    running = run.start(Map(nodes.increase) | run.sink, nodes.count_up, batch_size=20)
    wait_for(running, lambda: len(run.items) > 100)
    running.abort()
    aborted = running.wait(DEADLINE_S)
    assert aborted.stopped
    assert aborted.emitted == aborted.completed + aborted.pending

    total = aborted.emitted + 300
    report = run(Map(nodes.increase) | run.sink, range(total))

    assert set(run.items) == set(range(1, total + 1))
    assert (report.emitted, report.completed, report.pending) == (total, total, 0)


@every_engine
def test_retries_that_wait_outlive_an_abort(run: Run) -> None:
    notes = run.notes()
    running = run.start(Flaky("flaky", notes, tries=2) | run.sink, [1, 2, 3], retry_delay_s=60)
    wait_for(running, lambda: len(notes.lines()) == 3 and running.status().emitted == 3)
    running.abort()
    assert running.wait(DEADLINE_S).pending == 3

    # What was due in a minute is due in a minute still: mend the node, and nothing fails any more.
    resumed = run.start(Flaky("flaky", notes, tries=2) | run.sink, [1, 2, 3])
    wait_for(resumed, lambda: resumed.status().pending == 3)
    resumed.abort()

    report = resumed.wait(DEADLINE_S)
    assert (report.emitted, report.completed, report.pending) == (3, 0, 3)
    assert report.failures == ()


def test_a_finished_state_directory_says_so_and_starts_again_when_told(run: Run) -> None:
    first = run(Map(nodes.increase) | run.sink, range(20))

    again = run(Map(nodes.increase) | run.sink, range(20))

    assert (again.already_finished, again.emitted, again.exit_code) == (True, first.emitted, 0)
    assert str(again).startswith("This run was finished before; nothing was done now.")
    assert "fresh=True" in str(again)
    assert run.items == list(range(1, 21))

    fresh = run(Map(nodes.increase) | run.sink, range(5), fresh=True)

    assert_all_done(fresh, 5)
    assert run.items == [*range(1, 21), *range(1, 6)]


class CountsBegins(Pipeline):
    begins = 0

    def begin(self) -> None:
        self.begins += 1


def test_a_run_that_was_finished_before_begins_nothing(run: Run) -> None:
    pipeline = CountsBegins(Map(nodes.increase) | run.sink)
    pipeline.run([1], **run.options({}))

    running = pipeline.start([1], **run.options({}))

    assert running.wait(DEADLINE_S).already_finished
    assert pipeline.begins == 1
    with pytest.raises(NotRunningError):
        running.push(1)
    assert running.status().emitted == 1


def test_a_locked_state_directory_is_refused(run: Run) -> None:
    code = "import sys; from tests.engines.test_contract import run_in; run_in(*sys.argv[1:])"
    with run.start(Producer("manual") | Map(nodes.increase) | run.sink) as running:
        running.push(1).wait(DEADLINE_S)

        with pytest.raises(StateDirError, match=r"is in use by another run \(process \d+\): wait for it, stop it"):
            run(Map(nodes.increase) | run.sink, [1])
        told = subprocess.run(
            [sys.executable, "-c", code, run.mode, run.folder], timeout=DEADLINE_S, capture_output=True, text=True
        )

        assert running.push(2).wait(DEADLINE_S)
    assert "StateDirError: the state directory" in told.stderr
    assert run.items == [2, 3]


def run_in(mode: str, folder: str) -> None:
    """What another process does to the same state directory."""
    run = Run(mode, Path(folder))
    run(Producer([1]) | Map(nodes.increase) | run.sink)


@every_engine
def test_another_graph_over_work_in_flight_is_refused(run: Run) -> None:
    running = run.start(Map(nodes.fail, "fail") | run.sink, ["raise"], retry_delay_s=60)
    wait_for(running, lambda: running.status().nodes[1].failed == 1 and running.status().emitted == 1)
    running.abort()
    assert running.wait(DEADLINE_S).pending == 1
    other = Map(nodes.identity, "other") | run.sink

    with pytest.raises(StateDirError, match=r"the graph has changed.*1 batches in flight.*fresh=True"):
        run(other, ["raise"])

    assert_all_done(run(Map(nodes.identity, "other") | run.sink, ["raise"], fresh=True), 1)


@every_engine_that_keeps_the_order
def test_another_graph_goes_on_where_a_drained_one_has_stopped(run: Run) -> None:
    running = run.start(Map(nodes.increase, "old") | run.sink, nodes.count_up, batch_size=5)
    wait_for(running, lambda: len(run.items) > 10)
    stopped = running.stop()

    run((Map(nodes.negate, "new") * 2) | run.sink, range(stopped.emitted + 1))

    assert run.items == [*range(1, stopped.emitted + 1), -stopped.emitted]


def test_without_a_state_directory_a_temporary_one_comes_and_goes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(run.folder))

    report = run(Map(nodes.increase) | run.sink, [1], state_dir=None)

    assert_all_done(report, 1)
    assert report.state_dir is None
    assert list(run.folder.glob("consecution-state-*")) == []


# -- waiting, looking, leaving -------------------------------------------------------------------


def test_wait_gives_up_after_its_timeout_and_the_run_goes_on(run: Run) -> None:
    running = run.start(Flaky("flaky", run.notes(), tries=2) | run.sink, [1], retry_delay_s=0.3)

    with pytest.raises(TimeoutError, match=r"has not ended within 0\.01 s: .*; wait again, or stop\(\) it"):
        running.wait(0.01)

    assert_all_done(running.wait(DEADLINE_S), 1)


def test_leaving_waits_for_the_end(run: Run) -> None:
    with run.start(Map(nodes.increase) | run.sink, range(100)) as running:
        pass

    assert running.wait().completed == 100
    assert run.items == list(range(1, 101))


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_leaving_after_an_exception_stops(run: Run, error: type[BaseException]) -> None:
    with pytest.raises(error), run.start(Map(nodes.increase) | run.sink, nodes.count_up) as running:
        raise error

    report = running.wait(DEADLINE_S)
    assert report.stopped
    assert set(run.items) >= set(range(1, report.completed + 1))


def test_what_the_body_raised_stays_when_the_run_fails_too(run: Run) -> None:
    running = run.start(nodes.BadEnd("bad") | run.sink, [], robustness="none")
    with pytest.raises(WorkerError):
        running.wait(DEADLINE_S)

    with pytest.raises(LookupError, match="the body's") as told, running:
        raise LookupError("the body's")

    assert any("and the run ended with WorkerError" in note for note in told.value.__notes__)


def test_a_failed_run_raises_the_same_error_however_often_it_is_asked(run: Run) -> None:
    running = run.start(Map(nodes.increase) | run.sink, nodes.breaks_after(3))

    told = []
    for ask in (running.wait, running.stop, running.wait):
        with pytest.raises(SourceError) as caught:
            ask(DEADLINE_S)
        told.append(caught.value)

    assert told[0] is told[1] is told[2]
    assert running.status().completed == 3


def test_a_run_tells_how_far_it_is(run: Run) -> None:
    seen: list[Status] = []
    pipeline = Pipeline(Map(nodes.fail, "fail") | run.sink)

    report = pipeline.run(["raise", 1], **run.options({"retry_delay_s": 1.5, "retries": 1}), on_status=seen.append)

    assert report.failed == 1
    assert all(status.emitted == status.completed + status.pending for status in seen)
    waiting = [status for status in seen if (status.emitted, status.pending) == (2, 1)]
    assert waiting, "one was told while the item waited for its other try"
    assert "2" in str(waiting[-1]) or "1 done" in str(waiting[-1])
    assert (seen[-1].emitted, seen[-1].pending) in ((2, 1), (2, 0))


def test_an_observer_that_raises_ends_the_run(run: Run) -> None:
    def look(status: Status) -> None:
        raise LookupError("seen enough")

    with pytest.raises(LookupError, match="seen enough"):
        Pipeline(Map(nodes.increase) | run.sink).run(nodes.count_up, **run.options({}), on_status=look)

    running = run.start(Map(nodes.increase) | run.sink, nodes.count_up)
    assert running.stop().stopped


def test_one_pipeline_runs_again_and_in_another_mode(run: Run) -> None:
    pipeline = Pipeline(Total("total") | run.sink)

    for mode in (run.mode, run.mode, "inline", "thread"):
        pipeline.run(range(10), mode=mode, robustness="none")
    pipeline.consume(range(10))

    assert run.items == [45] * 5


def test_what_a_stopped_run_had_gathered_is_forgotten(run: Run) -> None:
    pipeline = Pipeline(Map(nodes.identity) | [Tens("tens"), Chunk(1000)] | run.sink)
    running = pipeline.start(nodes.count_up, **run.options({"robustness": "none", "batch_size": 7}))
    wait_for(running, lambda: running.status().completed > 14)
    running.stop()
    run.out.unlink(missing_ok=True)

    pipeline.run([1000], **run.options({"robustness": "none"}))

    assert sorted(run.items, key=str) == [(100, 1), [1000]]


# -- sinks ---------------------------------------------------------------------------------------


@every_engine
def test_a_sink_gets_numbered_batches_in_order(run: Run) -> None:
    sink = Collect("sink", run.out, with_batch=True)

    run(Map(nodes.increase) | sink, range(100), batch_size=10)

    ids = [batch_id for batch_id, _ in run.items]
    assert [item for _, items in run.items for item in items] == list(range(1, 101))
    assert [batch_id.seq for batch_id in ids] == list(range(len(ids)))
    assert len({(batch_id.origin, batch_id.generation, batch_id.path) for batch_id in ids}) == 1
    assert ids[0].origin.startswith("source.0@")
    assert len(ids) >= 10


@every_engine
def test_a_sink_that_refuses_items_is_offered_them_one_by_one(run: Run) -> None:
    items = [1, -2, 3, 4, -5, 6]

    report = run(Map(nodes.identity) | nodes.Picky("sink", run.out), items, retries=1)

    assert run.items == [1, 3, 4, 6]
    assert {(f.node, f.item, f.error, f.attempts) for f in report.failures} == {
        ("sink", -2, "ValueError: a negative number among 1", 2),
        ("sink", -5, "ValueError: a negative number among 1", 2),
    }


@every_engine
def test_a_sink_that_cannot_be_opened_is_named(run: Run) -> None:
    with pytest.raises(WorkerError, match=r"sink\.0: open\(\) raised PermissionError: no way in"):
        run(Map(nodes.increase) | nodes.Unopenable("sink", run.out), [1])

    assert_all_done(run(Map(nodes.increase) | run.sink, [1]), 1)


@every_engine
def test_a_sink_that_cannot_be_closed_is_named_and_the_run_is_not_finished(run: Run) -> None:
    with pytest.raises(WorkerError, match=r"sink\.0: close\(\) raised OSError: the last page is missing"):
        run(Map(nodes.increase) | nodes.Unclosable("sink", run.out), [1])

    report = run(Map(nodes.increase) | run.sink, [1])

    assert not report.already_finished
    assert (report.emitted, report.completed) == (1, 1)


def test_sinks_are_closed_also_after_a_stop(run: Run) -> None:
    running = run.start(Map(nodes.increase) | nodes.NotedClose("sink", run.out), nodes.count_up)
    wait_for(running, lambda: len(run.items) > 10)

    running.stop()

    assert run.out.with_suffix(".closed").exists()


def test_errors_of_the_package_come_from_one_root() -> None:
    assert issubclass(SourceError, ConsecutionError)
    assert issubclass(BackPressureError, TimeoutError)
