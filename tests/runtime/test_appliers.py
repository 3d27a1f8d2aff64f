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

    def __init__(self, path: Path, kind: type[Any] = Gather) -> None:
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


class Draws(Node):
    """What it has drawn lies under two names; after a 0 it holds what cannot be pickled."""

    def begin(self) -> None:
        self.drawn: list[Any] = []
        self.by_name = {"drawn": self.drawn}

    def process(self, item: int) -> None:
        self.drawn.append(item or (part for part in ()))

    def end(self) -> None:
        pass


def test_attributes_that_share_what_cannot_be_pickled_for_now_come_back_as_they_were(tmp_path: Path) -> None:
    task = Task(tmp_path / "store", Draws)
    task.apply(7)
    task.apply(0)
    task.store.close()

    task = Task(tmp_path / "store", Draws)
    assert task.node.drawn == [7]
    assert task.node.by_name["drawn"] is task.node.drawn
    task.store.close()


class Helper:
    def __init__(self, node: Any) -> None:
        self.node = node
        self.calls = 0

    def add(self, item: int) -> None:
        self.calls += 1
        self.node.total += item
        self.node.push(item)


class Delegates(Node):
    """Counts through a helper that knows the node, and through a table of its methods."""

    def begin(self) -> None:
        self.total = 0
        self.helper = Helper(self)
        self.table = {"twice": self.twice}

    def twice(self, item: int) -> None:
        self.total += item

    def process(self, item: int) -> None:
        self.helper.add(item)
        self.table["twice"](item)
        if item < 0:
            raise ValueError("below 0")

    def end(self) -> None:
        pass


def test_what_refers_to_its_node_refers_to_it_after_a_failing_item_and_after_a_restart(tmp_path: Path) -> None:
    task = Task(tmp_path / "store", Delegates)
    task.apply(1)
    assert task.apply(-3) == [-3]
    outcome = task.applier.apply(group_of([4]))
    task.store.apply(task.applier.take_changes())
    assert (outcome.pushed, task.node.total, task.node.helper.calls) == ([4], 10, 2)
    task.store.close()

    task = Task(tmp_path / "store", Delegates)
    outcome = task.applier.apply(group_of([5]))
    assert (outcome.pushed, task.node.total, task.node.helper.calls) == ([5], 20, 3)
    task.store.close()


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


class Accounts(Node):
    """Books on the account in hand, which is one of all of them."""

    def begin(self) -> None:
        self.accounts: dict[str, dict[str, int]] = {}
        self.current: dict[str, int] | None = None
        self.count = 0

    def process(self, item: Any) -> None:
        self.count += 1
        if isinstance(item, str):
            self.current = self.accounts.setdefault(item, {"total": 0})
        elif callable(item):
            item(self)
        else:
            assert self.current is not None
            self.current["total"] += item
            if item < 0:
                raise ValueError("below 0")

    def end(self) -> None:
        self.push(self.accounts)


def account_of(task: Any) -> Any:
    return task.node.accounts[next(name for name, kept in task.node.accounts.items() if kept is task.node.current)]


def stored_in(task: Task) -> dict[Any, Any]:
    return dict(task.applier._states.items())


def test_what_two_attributes_share_is_one_thing_after_a_failed_item_and_a_restart(tmp_path: Path) -> None:
    task = Task(tmp_path / "store", Accounts)
    task.apply("a", 1, "b", 10)
    assert task.apply(100, -1, 1000) == [-1]
    assert task.node.accounts == {"a": {"total": 1}, "b": {"total": 1110}}
    task.store.close()

    task = Task(tmp_path / "store", Accounts)
    task.apply(20_000)
    assert task.node.accounts == {"a": {"total": 1}, "b": {"total": 21110}}
    assert task.node.current is task.node.accounts["b"]
    assert task.node.count == 7
    task.store.close()


def test_only_those_that_share_something_are_written_together(tmp_path: Path) -> None:
    task = Task(tmp_path / "store", Accounts)
    task.apply(lambda node: None)
    assert stored_in(task) == {"count": 1}

    task.apply("a", 1)
    assert stored_in(task) == {("accounts", "current"): [{"a": {"total": 1}}, {"total": 1}], "count": 3}
    task.store.close()


def test_those_that_share_something_no_more_are_written_apart_again(tmp_path: Path) -> None:
    def let_go(node: Any) -> None:
        node.current = None

    task = Task(tmp_path / "store", Accounts)
    task.apply("a", 1)
    task.apply(let_go)
    assert stored_in(task) == {"accounts": {"a": {"total": 1}}, "current": None, "count": 3}
    task.store.close()

    task = Task(tmp_path / "store", Accounts)
    assert (task.node.accounts, task.node.current, task.node.count) == ({"a": {"total": 1}}, None, 3)
    task.store.close()


def test_what_was_stored_apart_and_is_shared_now_is_not_stored_twice(tmp_path: Path) -> None:
    def link(node: Any) -> None:
        node.current = node.accounts["a"]

    task = Task(tmp_path / "store", Accounts)
    task.apply(lambda node: node.accounts.update(a={"total": 5}))
    task.apply(lambda node: setattr(node, "current", {"total": 6}))
    assert stored_in(task).keys() == {"accounts", "current", "count"}
    task.store.close()

    task = Task(tmp_path / "store", Accounts)
    task.apply(link, 1)
    assert stored_in(task).keys() == {("accounts", "current"), "count"}
    task.store.close()

    task = Task(tmp_path / "store", Accounts)
    assert account_of(task) == {"total": 6}
    task.store.close()


def test_of_those_that_share_something_one_may_go_or_become_what_cannot_be_pickled(tmp_path: Path) -> None:
    def drop(node: Any) -> None:
        del node.current

    def generate(node: Any) -> None:
        node.current = (part for part in ())

    for change in (drop, generate):
        task = Task(tmp_path / change.__name__, Accounts)
        task.apply("a", 1)
        task.apply(change, lambda node: node.accounts.update(b={"total": 2}))
        assert stored_in(task) == {"accounts": {"a": {"total": 1}, "b": {"total": 2}}, "count": 4}
        task.store.close()

        task = Task(tmp_path / change.__name__, Accounts)
        assert task.node.accounts == {"a": {"total": 1}, "b": {"total": 2}}
        assert task.node.current is None, "as begin() made it"
        task.store.close()


def test_what_is_stored_together_and_not_shared_when_it_was_put_back_loses_nothing(tmp_path: Path) -> None:
    task = Task(tmp_path / "store", Accounts)
    task.apply("a", 1)
    states = task.applier._states
    states.put(("accounts", "current"), [{"a": {"total": 7}}, {"total": 8}])  # no longer one
    task.store.apply(task.applier._writes(*states.take_changes()))
    task.store.close()

    task = Task(tmp_path / "store", Accounts)
    task.apply(lambda node: None)
    assert stored_in(task) == {"accounts": {"a": {"total": 7}}, "current": {"total": 8}, "count": 3}
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
