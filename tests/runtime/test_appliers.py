"""How items become state: what a failing item has done to attributes reaches the store in no way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consecution.nodes import Node
from consecution.protocol.durable import Application
from consecution.protocol.values import Frame, FrameId, Stage, TaskIndex
from consecution.runtime.appliers import AttributeApplier, Group, Work
from consecution.runtime.durable_store import DurableStore


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
