"""What a node says becomes of failing items: the same in every engine, for plain and for durable nodes."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consecution import KeyedNode, Map, Node, Pipeline
from consecution.errors import NotRunningError, StoppedByItemError
from consecution.producer import Producer
from consecution.runtime.journal_check import check_state_dir
from tests.engines.nodes import Collect, collected

MODES = ("inline", "thread", "process")
BAD = 7


class Plain(Node):
    def process(self, item: Any) -> None:
        _refuse(item)
        self.push(item)


class Durable(KeyedNode):
    def key(self, item: Any) -> str:
        return "all"

    def process(self, item: Any) -> None:
        self.state["seen"] = self.state.get("seen", 0) + 1
        _refuse(item)
        self.push(item)


def _refuse(item: Any) -> None:
    if item == BAD:
        raise ValueError("a bad item")
    if item == BAD + 1:
        raise LookupError("not there yet")


def decide(error: BaseException, item: Any) -> str:
    return "park" if isinstance(error, ValueError) and item == BAD else "retry"


def count_up() -> Iterator[int]:
    return itertools.count()


@pytest.fixture(params=MODES)
def options(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    return {"mode": request.param, "sync": "process", "retry_delay_s": 0.001, "state_dir": tmp_path / "state"}


@pytest.fixture(params=[Plain, Durable])
def node(request: pytest.FixtureRequest) -> Node:
    made: Node = request.param("picky")
    return made


def test_a_node_may_park_retry_or_ask_a_function_of_the_live_exception(
    node: Node, options: dict[str, Any], tmp_path: Path
) -> None:
    chain = node.on_error(decide, retries=1, delay_s=0.002) | Collect("sink", tmp_path / "out")

    report = Pipeline(chain).run(range(12), **options, retries=5)

    tries = {failure.item: failure.attempts for failure in report.failures}
    assert tries == {BAD: 1, BAD + 1: 2}
    assert sorted(collected(tmp_path / "out")) == [n for n in range(12) if n not in tries]
    assert (report.completed, report.failed, report.open, report.exit_code) == (12, 2, 0, 1)


def test_the_option_says_what_nodes_do_not(node: Node, options: dict[str, Any], tmp_path: Path) -> None:
    report = Pipeline(node | Collect("sink", tmp_path / "out")).run(range(12), **options, on_error="park")

    assert [failure.attempts for failure in report.failures] == [1, 1]


def test_an_item_may_stop_the_run_which_finishes_what_is_open(
    node: Node, options: dict[str, Any], tmp_path: Path
) -> None:
    chain = Producer(count_up, name="numbers") | node.on_error("stop") | Collect("sink", tmp_path / "out")

    with pytest.raises(StoppedByItemError, match=r"node 'picky' stopped the run at the item 7: ValueError: a bad item"):
        Pipeline(chain).run(**options)

    found = check_state_dir(tmp_path / "state")
    assert found.problems == ()
    assert not found.finished
    assert sum(origin.open_batches + origin.decided + origin.staged for origin in found.origins) == 0
    assert sum(origin.given_up for origin in found.origins) == 2
    (emitted,) = (origin.emitted for origin in found.origins if origin.name == "numbers")
    assert sorted(collected(tmp_path / "out")) == [n for n in range(emitted) if n not in (BAD, BAD + 1)]


def test_the_error_carries_the_report_and_names_the_entry(node: Node, options: dict[str, Any], tmp_path: Path) -> None:
    running = Pipeline(Producer("manual", name="hand") | node.on_error("stop")).start(**options)
    running.push(BAD)

    with pytest.raises(StoppedByItemError, match=r"failed show .*state --id ") as caught:
        running.wait()

    assert (caught.value.node, caught.value.shown) == ("picky", "7")
    assert (caught.value.report.failed, caught.value.report.open, caught.value.report.exit_code) == (1, 0, 1)
    with pytest.raises(NotRunningError):
        running.push(1)


def test_a_temporary_folder_is_kept_where_an_item_has_stopped_the_run(options: dict[str, Any]) -> None:
    del options["state_dir"]

    with pytest.raises(StoppedByItemError, match="another run with this state_dir goes on without it") as caught:
        Pipeline(Plain("picky").on_error("stop")).run([BAD], **options)

    found = check_state_dir(Path(caught.value.report.state_dir))
    shutil.rmtree(caught.value.report.state_dir)
    assert [origin.given_up for origin in found.origins] == [1]


@pytest.mark.parametrize("robustness", ["none", "confirm", "track"])
def test_without_a_journal_stop_works_too_and_retry_means_park(
    node: Node, options: dict[str, Any], tmp_path: Path, robustness: str
) -> None:
    if options["mode"] == "process" and robustness == "confirm":
        pytest.skip("the same code as in none")
    del options["state_dir"]

    parked = Pipeline(node.on_error("retry", retries=5) | Collect("sink", tmp_path / "out")).run(
        range(12), **options, robustness=robustness
    )
    stopping = Pipeline(Producer(count_up) | type(node)("picky").on_error("stop"))
    with pytest.raises(StoppedByItemError, match="mend the node or the item, and run again"):
        stopping.run(**options, robustness=robustness)

    assert (parked.failed, parked.completed) == (2, 12)
    assert {failure.attempts for failure in parked.failures} <= {1}


def test_an_item_that_cannot_be_routed_is_treated_as_the_node_before_says(
    options: dict[str, Any], tmp_path: Path
) -> None:
    sink = Collect("sink", tmp_path / "out")
    chain = Map(str, name="text").on_error("park") | [sink, Map(str, name="other"), _route]

    report = Pipeline(chain).run(["a", "b", "lost"], **options)

    assert [(f.node, f.item, f.attempts) for f in report.failures] == [("text", "lost", 1)]


def _route(item: str) -> str:
    return "nowhere" if item == "lost" else "sink"
