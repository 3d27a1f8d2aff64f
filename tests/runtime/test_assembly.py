from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from consecution import Node, Producer
from consecution.errors import DamagedStoreError
from consecution.options import Options
from consecution.plan import Plan, make_plan
from consecution.protocol.origin import BatchBorn, FailureEntry, Head, HeadMoved, OriginCounts
from consecution.protocol.step import Counts
from consecution.protocol.values import FailedItem, Stage, TaskIndex
from consecution.report import Status
from consecution.runtime.assembly import (
    make_report,
    make_source_host,
    make_sources,
    make_status,
    make_store,
    node_counts,
    origin_namer,
    to_failure,
)
from consecution.runtime.books import Books
from consecution.runtime.journal import Journal
from consecution.runtime.origin_host import MemoryStore, process_codec
from consecution.sources.iterable import IterableSource
from consecution.sources.manual import ManualSource
from tests.runtime.records import batch
from tests.runtime.shells import Clock, Diary, ScriptedSource, WritingOutbox


class Pass(Node):
    def process(self, item: Any) -> None:
        self.push(item)


def plan_of(source: Any = None, **options: Any) -> Plan:
    top: Any = Pass("a") * 2
    if source is not None:
        top = (source | top).top_node
    return make_plan(top, Options.of(**options), has_iterable=source is None)


def entry(payload: Any, shown: str = "shown", task: int = 1) -> FailureEntry:
    failed = FailedItem(TaskIndex(task), Stage.PROCESS, payload, "ValueError: no", "Traceback", True, shown)
    return FailureEntry(0, failed, 3, 0, 1, None)


# -- source and store ------------------------------------------------------------------------------


def test_the_iterable_of_a_run_comes_before_the_producer() -> None:
    plan = plan_of(Producer("manual", name="manual"))

    (given,), (own,) = make_sources(plan, [1]).values(), make_sources(plan, None).values()
    assert isinstance(given, IterableSource)
    assert isinstance(own, ManualSource)


@pytest.mark.parametrize(("robustness", "kept"), [("none", 0), ("confirm", 0), ("track", 2)])
def test_without_robust_memory_is_the_store(robustness: str, kept: int) -> None:
    options = Options.of(robustness=robustness, keep_failed=2)

    store, restored = make_store(options, None, origin="source", epoch="one")

    assert isinstance(store, MemoryStore)
    assert store._failures.maxlen == kept
    assert restored.head == Head()


def test_in_robust_the_journal_is_the_store_and_must_be_there(tmp_path: Path) -> None:
    options = Options.of()
    with pytest.raises(DamagedStoreError, match="is missing"):
        make_store(options, tmp_path / "gone", origin="source", epoch="one")
    journal = Journal(tmp_path / "there", origin="source", epoch="one")
    journal.apply([BatchBorn(batch(0)), HeadMoved(Head(next_seq=1, emitted=1))])
    journal.close()

    store, restored = make_store(options, tmp_path / "there", origin="source", epoch="one")

    assert restored.batches == (batch(0),)
    store.close()


def test_a_damaged_journal_is_not_left_open(tmp_path: Path) -> None:
    journal = Journal(tmp_path, origin="source", epoch="one")
    journal.apply([HeadMoved(Head(failed=1))])  # The failure is missing.
    journal.close()

    for _ in range(2):
        with pytest.raises(DamagedStoreError, match="the head counts 1"):
            make_store(Options.of(), tmp_path, origin="source", epoch="one")


def test_a_source_host_stands_where_the_journal_stood(tmp_path: Path) -> None:
    journal = Journal(tmp_path, origin="source", epoch="one")
    journal.apply([HeadMoved(Head(position=17, generation=4))])
    journal.close()
    diary = Diary()

    host = make_source_host(
        plan_of(),
        TaskIndex(0),
        ScriptedSource(diary, []),
        process_codec(robust=True),
        WritingOutbox(diary),
        journal_path=tmp_path,
        epoch="one",
        now=Clock(),
    )
    host.open()

    assert diary == [("open", 17)]
    assert host.origin.generation == 4
    host.close()


def test_origins_of_two_lives_never_share_a_name() -> None:
    plan = plan_of()

    assert origin_namer(plan, "one")(TaskIndex(2)) == "a.1@one"
    assert origin_namer(plan, "two")(TaskIndex(2)) != "a.1@one"


# -- reports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "item"),
    [
        (pickle.dumps([{"a": 1}]), {"a": 1}),
        ([{"a": 1}], {"a": 1}),
        (None, "shown"),
        (b"no pickle", "shown"),
        (pickle.dumps([]), "shown"),
        (b"cno_such_module\nThing\n.", "shown"),
    ],
)
def test_a_failure_shows_the_item_or_at_least_its_repr(payload: Any, item: Any) -> None:
    failure = to_failure(plan_of(), entry(payload))

    assert (failure.node, failure.item, failure.error, failure.attempts) == ("a", item, "ValueError: no", 3)


def counted(items_in: int, items_out: int, failed: int, busy_s: float) -> Counts:
    counts = Counts()
    counts.items_in, counts.items_out, counts.failed, counts.busy_s = items_in, items_out, failed, busy_s
    return counts


def test_counts_are_summed_over_replicas_and_a_dead_one_is_left_out() -> None:
    counts = {TaskIndex(1): counted(3, 6, 1, 0.5), TaskIndex(2): counted(4, 8, 0, 0.25)}

    books = books_of(OriginCounts(7, 7, 0, 0, 0, 0))

    source, node = node_counts(plan_of(), counts, books)
    _, alone = node_counts(plan_of(), {TaskIndex(2): counts[TaskIndex(2)]}, books)

    assert (source.items_in, source.items_out, source.replicas) == (7, 7, 1)
    assert (node.items_in, node.items_out, node.failed, node.busy_s, node.replicas) == (7, 14, 1, 0.75, 2)
    assert alone.items_in == 4


def books_of(source: OriginCounts, below: Sequence[OriginCounts] = ()) -> Books:
    return Books.of({TaskIndex(0): source}, below)


def status(*, failed: int = 0, pending: int = 0) -> Status:
    origin = OriginCounts(10, 10 - pending, failed, pending, 2, 0)
    return make_status(plan_of(), "finished", books_of(origin), {}, seconds=1.5, restarts=1)


def test_a_status_adds_what_durable_nodes_answer_for() -> None:
    below = [OriginCounts(7, 4, 3, 3, 0, 0), OriginCounts(0, 0, 1, 0, 0, 0, own_retries=2)]

    made = make_status(plan_of(), "running", books_of(OriginCounts(5, 3, 1, 2, 0, 0), below), {}, seconds=1.0)

    assert (made.failed, made.emitted, made.completed, made.pending) == (5, 5, 3, 2)
    assert (made.pending_below, made.open) == (5, 7)


def report(
    kept: Sequence[FailureEntry] = (), *, of: Status | None = None, confirmed: bool = True, **options: Any
) -> Any:
    return make_report(
        plan_of(**options), of or status(), list(kept), confirmed=confirmed, stopped=False, state_dir=Path("state")
    )


@pytest.mark.parametrize(("keep", "shown"), [(0, []), (1, [2]), (3, [0, 1, 2]), (9, [0, 1, 2])])
def test_a_report_lists_the_last_failures_only(keep: int, shown: list[int]) -> None:
    made = report([entry([number]) for number in range(3)], keep_failed=keep)

    assert [failure.item for failure in made.failures] == shown


@pytest.mark.parametrize(
    ("robustness", "failed", "pending", "told", "confirmed"),
    [
        ("none", 0, 0, True, None),
        ("confirm", 0, 0, True, True),
        ("confirm", 0, 0, False, False),
        ("track", 1, 0, True, False),
        ("robust", 0, 1, True, False),
    ],
)
def test_confirmed_means_every_item_and_nothing_is_said_at_none(
    robustness: str, failed: int, pending: int, told: bool, confirmed: bool | None
) -> None:
    made = report(of=status(failed=failed, pending=pending), confirmed=told, robustness=robustness)

    assert made.confirmed is confirmed
    assert (made.robustness, made.state_dir, made.restarts) == (robustness, "state", 1)
