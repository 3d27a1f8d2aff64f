"""How items become state: what a failing item has done to attributes reaches the store in no way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from consecution.errors import DamagedStoreError
from consecution.nodes import Node
from consecution.protocol.durable import Application
from consecution.protocol.values import Frame, FrameId, Stage, TaskIndex
from consecution.runtime.appliers import (
    AppendApplier,
    AttributeApplier,
    Group,
    StateApplier,
    TransactionApplier,
    Work,
)
from consecution.runtime.durable_store import CommittedOutside, DurableStore
from consecution.runtime.state_table import OBJECT_BYTES
from consecution.sink import AppendSink, TransactionSink
from consecution.stateful import StatefulNode


class Gather(Node):
    """Keeps what it gets; refuses what is below 0 after it has kept it."""

    def begin(self) -> None:
        self.seen: list[int] = []

    def process(self, item: int) -> None:
        self.seen.append(item)
        if item < 0:
            raise ValueError("below 0")

    def end(self) -> None:
        self.push(list(self.seen))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DurableStore]:
    with closing(DurableStore(tmp_path / "store", origin="sink", epoch="epoch", sync="process")) as store:
        yield store


def group_of(items: list[Any]) -> Group:
    source = TaskIndex(0)
    frame = Frame(source, 0, 1, (0,), FrameId(1), 0, source, Stage.PROCESS, False, b"")
    return Group(iter([Work(Application(source, 0, 1, (frame,)), lambda _: (list(items), []))]))


class Task:
    """One incarnation of a durable task around a gathering node."""

    def __init__(self, path: Path, kind: type[Gather] = Gather) -> None:
        self.store = DurableStore(path, origin="gather", epoch="epoch", sync="process")
        self.node = kind("gather")
        self.applier = AttributeApplier(self.node, self.store, 1000)
        self.applier.open()

    def apply(self, *items: int) -> list[Any]:
        """Apply one batch and commit; returns the items that failed."""
        outcome = self.applier.apply(group_of(list(items)))
        self.store.apply(self.applier.take_changes())
        self.applier.committed()
        return [failed.item for failed in outcome.failed]


@pytest.mark.parametrize("first", [(), (4,)], ids=["alone", "behind a good one"])
def test_a_failing_item_leaves_nothing_in_the_attributes_of_a_restarted_node(
    first: tuple[int, ...], tmp_path: Path
) -> None:
    task = Task(tmp_path / "store")
    task.apply(1, 2)
    task.store.close()

    task = Task(tmp_path / "store")
    assert task.apply(*first, -3) == [-3]
    assert task.applier.end() == [[1, 2, *first]]
    task.store.close()

    task = Task(tmp_path / "store")
    assert task.node.seen == [1, 2, *first], "the end merges what was committed, and nothing else"
    task.store.close()


class Weighed:
    """Counts how often it is pickled."""

    times = 0

    def __reduce__(self) -> Any:
        Weighed.times += 1
        return Weighed, ()


class Heavy(Gather):
    def begin(self) -> None:
        super().begin()
        self.weighed = Weighed()


def test_beside_an_item_that_fails_attributes_are_not_pickled_for_each_of_the_others(tmp_path: Path) -> None:
    task = Task(tmp_path / "store", Heavy)
    batches = [[*range(100)], [*range(100, 110), -1, *range(110, 120)], [*range(120, 300)], [-2], [*range(300, 400)]]
    works = [work for batch in batches for work in group_of(batch)]
    Weighed.times = 0

    outcome = task.applier.apply(Group(iter(works)))
    assert task.apply(*range(400, 600)) == []

    assert [failed.item for failed in outcome.failed] == [-1, -2]
    assert task.node.seen == [*range(600)]
    assert Weighed.times < 2 * 21 + 20, "for each item of the batch with one that fails, and a few times for the rest"
    task.store.close()


class Marked(StatefulNode):
    """Marks what is even; only looks for the others."""

    def process(self, item: int) -> None:
        if item not in self.state and item % 2 == 0:
            self.state[item] = True


@pytest.mark.parametrize("step", [1, 2], ids=["some are there", "none is there"])
def test_keys_that_are_looked_for_and_not_found_do_not_fill_the_memory(store: DurableStore, step: int) -> None:
    most = 100
    node = Marked("marked")
    applier = StateApplier(node, store, cache_bytes=most * OBJECT_BYTES)
    applier.open()

    for first in range(1, 2001, 20):
        items = list(range(first, first + 20, step))
        applier.apply(group_of(items))
        store.apply(applier.take_changes())
        applier.committed()
        assert len(node._states.cached) <= most + most + len(items)

    assert dict(node._states.items()) == dict.fromkeys(range(2, 2001, 2) if step == 1 else (), True)


class Opened:
    """What a test's sinks share: they know whether they are open, and complain when they are closed."""

    is_open = False

    def open(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False
        raise RuntimeError("closed in the middle")


class Torn(Opened, AppendSink):
    def cut_to(self, end: Any) -> None:
        raise DamagedStoreError("there is less than was committed", path="", record="")


class Emptied(Opened, TransactionSink):
    def last_mark(self, owner: str) -> tuple[int, bytes]:
        return 0, b""


def test_an_append_sink_that_cannot_go_on_is_closed(store: DurableStore) -> None:
    sink = Torn("torn")

    with pytest.raises(DamagedStoreError, match="less than was committed"):
        AppendApplier(sink, "process", str, store).open()

    assert not sink.is_open


def test_a_transaction_sink_that_cannot_go_on_is_closed(store: DurableStore) -> None:
    sink = Emptied("emptied")
    store.apply([CommittedOutside(3)])

    with pytest.raises(DamagedStoreError, match=r"has taken in 0 transactions of me, the store .* knows of 3"):
        TransactionApplier(sink, "process", str, store, "me").open()

    assert not sink.is_open


class Hasty(Gather):
    """Has a loop of its own, which leaves items behind."""

    def _process_frame(self, cursor: Any, out: list[Any]) -> None:
        self.process(next(cursor))


def test_a_frame_of_which_items_are_left_is_run_again_one_by_one(tmp_path: Path) -> None:
    task = Task(tmp_path / "store", Hasty)

    assert task.apply(1, -2, 3) == [-2]
    assert task.node.seen == [1, 3]
    task.store.close()
