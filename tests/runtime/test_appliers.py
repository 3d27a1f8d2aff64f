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
from consecution.runtime.appliers import AppendApplier, AttributeApplier, Group, TransactionApplier, Work
from consecution.runtime.durable_store import CommittedOutside, DurableStore
from consecution.sink import AppendSink, TransactionSink


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


class Task:
    """One incarnation of a durable task around a gathering node."""

    def __init__(self, path: Path) -> None:
        self.store = DurableStore(path, origin="gather", epoch="epoch", sync="process")
        self.node = Gather("gather")
        self.applier = AttributeApplier(self.node, self.store, 1000)
        self.applier.open()

    def apply(self, *items: int) -> list[Any]:
        """Apply one batch and commit; returns the items that failed."""
        source = TaskIndex(0)
        frame = Frame(source, 0, 1, (0,), FrameId(1), 0, source, Stage.PROCESS, False, b"")
        outcome = self.applier.apply(
            Group(iter([Work(Application(source, 0, 1, (frame,)), lambda _: (list(items), []))]))
        )
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


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DurableStore]:
    with closing(DurableStore(tmp_path / "store", origin="sink", epoch="epoch", sync="process")) as store:
        yield store


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
