"""Batch nodes: all items of a frame at once, and only the items at fault fail."""

from __future__ import annotations

import bdb
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consecution import BatchNode, Map, Pipeline, Producer, StatefulNode
from consecution.errors import GraphError
from tests.engines.nodes import Collect, collected


class Roots(BatchNode):
    """Pushes each item and the size of its list; refuses lists with what is negative."""

    seen: list[list[int]]

    def begin(self) -> None:
        self.seen = []

    def process_batch(self, items: list[int]) -> None:
        self.seen.append(items.copy())
        for item in items:
            self.push(item)
            if item < 0:
                raise ValueError(f"{item} is negative")
        items.clear()  # the list is the node's own


class Seven(BatchNode):
    def process_batch(self, items: list[int]) -> None:
        self.push((len(items), sum(items)))


class Ending(BatchNode):
    def process_batch(self, items: list[int]) -> None: ...

    def end(self) -> None: ...


class Stateful(BatchNode, StatefulNode): ...


class Returning(BatchNode):
    def process_batch(self, items: list[int]) -> list[int]:
        return [item + 1 for item in items]


class Quitting(BatchNode):
    def process_batch(self, items: list[int]) -> None:
        raise bdb.BdbQuit


def run_frames(node: BatchNode, items: list[Any]) -> tuple[list[Any], list[Any]]:
    """What the step of an engine does: what was pushed, and what failed."""
    node.begin()
    cursor, out, failed = iter(items), [], []
    node._push_into(out)
    while len(failed) < len(items) + 1:
        try:
            node._process_frame(cursor, out)
            return out, failed
        except ValueError:
            failed.append(items[len(items) - cursor.__length_hint__() - 1])
    raise AssertionError("the cursor does not move on")


@given(st.lists(st.integers(-2, 20), max_size=30), st.one_of(st.none(), st.integers(1, 8)))
def test_only_what_is_at_fault_fails_and_the_rest_keeps_its_order(items: list[int], most: int | None) -> None:
    node = Roots("roots", max_items=most)
    out, failed = run_frames(node, items)

    assert out == [item for item in items if item >= 0]
    assert failed == [item for item in items if item < 0]
    assert all(0 < len(seen) <= (most or 30) for seen in node.seen)


def test_a_frame_is_offered_at_once_and_halved_only_where_it_fails() -> None:
    node = Roots("roots")
    run_frames(node, [1, 2, 3, 4])
    assert node.seen == [[1, 2, 3, 4]]

    run_frames(node, [1, 2, -3, 4])
    assert node.seen == [[1, 2, -3, 4], [1, 2], [-3, 4], [-3], [4]]


@pytest.mark.parametrize(
    ("mode", "level"), [("inline", "robust"), ("inline", "none"), ("thread", "track"), ("process", "robust")]
)
def test_engines_give_it_the_items_that_came_together(mode: Any, level: Any, tmp_path: Path) -> None:
    chain = Producer(list(range(500))) | [Seven("seven", max_items=7), Roots("roots") | Map(abs, "same")]
    report = Pipeline(chain | Collect("sink", tmp_path / "out")).run(
        mode=mode, robustness=level, sync="process", state_dir=tmp_path / "state" if level == "robust" else None
    )

    found = collected(tmp_path / "out")
    sums = [item for item in found if isinstance(item, tuple)]
    assert sum(total for _, total in sums) == sum(range(500))
    assert max(count for count, _ in sums) == 7
    assert sorted(item for item in found if isinstance(item, int)) == list(range(500))
    assert (report.completed, report.failed) == (500, 0)


def test_consume_gives_it_one_at_a_time() -> None:
    made: list[Any] = []
    Pipeline(Seven("seven") | made.append).consume([3, 4])

    assert made == [(1, 3), (1, 4)]


def test_a_debugger_that_quits_is_nobodys_fault() -> None:
    node = Quitting("quitting")
    with pytest.raises(bdb.BdbQuit):
        node._process_frame(iter([1, 2]), [])


@pytest.mark.parametrize("kind", [Ending, Stateful])
def test_what_keeps_something_is_refused_with_the_remedy(kind: type[BatchNode]) -> None:
    with pytest.raises(GraphError, match=r"it can keep nothing; .* gather with Chunk\(n\) \| StatefulNode"):
        kind("it")


def test_max_items_and_process_batch_are_checked() -> None:
    with pytest.raises(GraphError, match="max_items=0: expected a whole number of 1 or more"):
        Seven("it", max_items=0)
    with pytest.raises(NotImplementedError, match="process_batch"):
        BatchNode("it").process(1)


def test_what_it_takes_in_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    node = Roots("roots")
    node.log("input")
    run_frames(node, [1, 2])

    assert capsys.readouterr().out == "node_log,input,roots,1\nnode_log,input,roots,2\n"


def test_what_is_returned_instead_of_pushed_is_not_lost_without_a_word() -> None:
    report = Pipeline(Returning("one_more") | Map(str, "text")).run([1, 2], mode="inline", robustness="track")

    assert [failure.item for failure in report.failures] == [1, 2]
    assert "process_batch returned [2], which goes nowhere: pass on what it makes with" in str(report)
