from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import pytest

from consecution import Map, Producer, Sink
from consecution.errors import SourceError, WorldError
from consecution.options import Options
from consecution.plan import Plan, make_plan
from consecution.protocol.origin import (
    BatchBorn,
    BatchDecided,
    BatchRecord,
    FailureEntry,
    FailureKept,
    FailureTaken,
    Head,
    HeadMoved,
    Restored,
)
from consecution.protocol.values import Action, CreditReturn, FailedItem, Frame, Stage, TaskIndex, Treatment
from consecution.runtime.affinity import Affinity
from consecution.runtime.origin_host import MemoryStore, live_codec, origin_limits, process_codec
from consecution.transport.codec import LiveCodec, ReusingCodec
from tests.runtime import records
from tests.runtime.shells import SOURCE, Diary, Shell, plan_of


def one_node(**options: Any) -> Plan:
    return plan_of(Map(str, name="text"), **options)


def two_nodes(**options: Any) -> Plan:
    source = Producer([], name="source")
    return make_plan((source | [Map(str, name="a"), Map(str, name="b")]).top_node, Options.of(**options))


def running(plan: Plan, script: Sequence[Any] = (), **arguments: Any) -> Shell:
    shell = Shell(plan, script, **arguments)
    shell.source_host.open()
    shell.origin.replay(shell.clock())
    shell.host.turn()
    shell.diary.clear()
    return shell


def failure(task: int, item: Any, stage: Stage = Stage.PROCESS, *, retryable: bool = True) -> FailedItem:
    return FailedItem(TaskIndex(task), stage, pickle.dumps([item]), "ValueError: no", "", retryable, repr(item))


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("no bytes for this")


class Undecodable:
    def __reduce__(self) -> Any:
        return int, ("no number",)


class Renamed:
    """Was called so when the journal was written, and is called Unnamed now."""


# -- who decides -----------------------------------------------------------------------------------


class Saved(Sink):
    def write(self, batch_id: Any, items: list[Any]) -> None:
        """Somebody else's."""


def sent(shell: Shell) -> list[tuple[int, bool, bool]]:
    """To which task, whether it is the whole of a batch, and whether it is a fence."""
    return [(target, frame.whole, frame.is_fence) for target, frame in shell.frames()]


def test_a_frame_that_is_all_of_a_batch_says_so() -> None:
    shell = running(plan_of(Saved("saved")), [[1, 2]])

    shell.source_host.turn()

    assert sent(shell) == [(1, True, False)]


def test_a_batch_that_runs_again_asks_who_may_have_decided() -> None:
    shell = running(plan_of(Saved("saved") * 2), [[1, 2]])
    shell.source_host.turn()
    shell.diary.clear()

    shell.origin.replay(shell.clock())
    shell.source_host.turn()

    (frame, *fences) = sent(shell)
    assert frame[1:] == (False, False)
    assert fences == [(1, False, True), (2, False, True)]
    assert len({frame.frame_id for _, frame in shell.frames()}) == 3
    shell.acknowledge()
    shell.source_host.turn()
    assert shell.origin.settled, "their ids are in the checksum"


@pytest.mark.parametrize(
    ("plan", "items"),
    [
        (plan_of(Map(str, name="text")), [1]),
        (two_nodes(), [1]),
        (make_plan(Producer([]) | [Saved("a"), Saved("b")], Options.of(robustness="robust")), [1]),
        (plan_of((Saved("saved") * 2).by(lambda item: 1 // item)), [1, 0]),
        (plan_of(Saved("saved"), robustness="track"), [1]),
    ],
    ids=["nobody may decide", "no sinks", "two frames", "an item that failed", "no journal"],
)
def test_no_other_frame_does(plan: Plan, items: list[Any]) -> None:
    shell = running(plan, [items])

    shell.source_host.turn()

    assert not any(whole for _, whole, _ in sent(shell))
    assert sent(shell)


# -- commit, launch, tell --------------------------------------------------------------------------


class WritingAffinity(Affinity):
    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self._diary = diary

    def bind(self) -> None:
        self._diary.append(("bind", None))

    def free(self) -> None:
        self._diary.append(("free", None))


def test_it_is_bound_for_the_commit_alone() -> None:
    shell = running(one_node(), [[1, 2]])
    shell.host.affinity = WritingAffinity(shell.diary)

    shell.source_host.turn()

    assert [w for w in shell.diary.words() if w != "born"][:4] == ["bind", "commit", "free", "send"]
    assert shell.diary.words().count("bind") == 1


def test_it_is_free_again_if_the_commit_fails() -> None:
    shell = running(one_node(), [[1, 2]])
    shell.host.affinity = WritingAffinity(shell.diary)
    shell.store.problem = WorldError("the disk is full")

    with pytest.raises(WorldError):
        shell.source_host.turn()

    assert shell.diary.words()[-2:] == ["bind", "free"]


def test_a_batch_is_committed_before_any_of_it_is_sent() -> None:
    shell = running(two_nodes(), [["x", "y"]])

    assert shell.source_host.turn()

    assert shell.diary.words() == ["born", "commit", "send", "send"]
    (changes,) = shell.diary.all("commit")
    assert [type(change) for change in changes] == [BatchBorn, HeadMoved]
    assert changes[0].record.payload == pickle.dumps(["x", "y"], 5)
    assert (changes[1].head.position, changes[1].head.next_seq) == (2, 1)
    assert shell.items() == ["x", "y", "x", "y"]


def test_batches_that_are_there_at_once_share_one_commit() -> None:
    shell = running(one_node(batch_size=2), [["a", "b"], ["c", "d"], ["e"], ["f"]])

    shell.source_host.turn()

    assert shell.diary.words() == ["born", "born", "born", "commit", "send", "send", "send"]
    assert shell.items() == list("abcde")


def test_few_batches_share_a_commit_until_they_have_found_their_size() -> None:
    shell = running(one_node(batch_size=32), [["x"] * 16] * 4 + [["x"] * 32] * 40)

    shell.source_host.turn()
    small = shell.diary.words().count("born")
    shell.acknowledge()
    shell.diary.clear()
    shell.source_host.turn()

    assert small == 4
    assert shell.diary.words().count("born") == 32


def test_a_batch_is_told_after_its_decision_is_committed() -> None:
    shell = running(one_node(), [["x"]])
    shell.source_host.turn()
    shell.acknowledge()
    shell.diary.clear()

    assert shell.source_host.turn()
    assert not shell.source_host.turn()

    assert shell.diary.words() == ["commit", "settled"]
    assert shell.diary.all("commit") == [[BatchDecided(0)]]
    assert shell.diary.all("settled") == [(0, 0, True)]


def test_the_run_is_asked_to_stop_before_the_item_that_asks_for_it_is_committed() -> None:
    """After the commit a crash would let the run go on as if nothing had been asked."""
    shell = running(one_node(), [["x"]])
    shell.source_host.turn()
    shell.acknowledge(failure(1, "x")._replace(treatment=Treatment(Action.STOP)))
    shell.diary.clear()

    shell.source_host.turn()

    assert shell.diary.words() == ["stop", "commit", "settled"]
    assert shell.diary.all("stop") == [(0, "'x'")]


def test_nothing_is_sent_nor_told_where_the_commit_fails() -> None:
    shell = running(one_node(), [["x"]])
    shell.store.problem = WorldError("the disk is full")

    with pytest.raises(WorldError, match="the disk is full"):
        shell.source_host.turn()

    assert shell.diary.words() == ["born"]


def test_a_batch_without_frames_is_decided_in_the_same_turn() -> None:
    shell = running(one_node(), [[Unpicklable()]])

    shell.source_host.turn()

    assert shell.diary.words() == ["born", "commit", "commit", "settled"]
    assert shell.diary.all("settled") == [(0, 1, True)]


def test_a_frame_does_not_tell_of_a_decision_that_is_not_committed() -> None:
    """Its receiver drops what lies below: after a crash here the batch runs again, and its frames must be taken."""
    shell = running(one_node(batch_size=1), [[Unpicklable()], ["b"]])

    shell.source_host.turn()

    ((_, frame),) = shell.frames()
    before, after = shell.diary.all("commit")
    assert shell.diary.words() == ["born", "born", "commit", "send", "commit", "settled"]
    assert BatchDecided(0) not in before
    assert BatchDecided(0) in after
    assert (frame.seq, frame.low) == (1, 0)


def test_what_the_journal_held_is_sent_again_with_a_higher_generation() -> None:
    batches = tuple(BatchRecord(seq, 1, pickle.dumps([f"item {seq}"])) for seq in (3, 4))
    restored = Restored(Head(next_seq=5, generation=6, position="there", emitted=5), batches)

    shell = Shell(one_node(), restored=restored)
    shell.source_host.open()
    shell.source_host.turn()
    assert shell.diary == [("open", "there")]
    shell.origin.replay(shell.clock())
    shell.source_host.turn()

    assert shell.diary.words() == ["open", "commit", "send", "send"]
    assert shell.diary.all("commit")[0][0].head.generation == 7
    assert [(frame.seq, frame.generation, frame.low) for _, frame in shell.frames()] == [(3, 7, 3), (4, 7, 3)]
    assert shell.items() == ["item 3", "item 4"]


def shell_with(payload: bytes, count: int) -> Shell:
    """An origin that finds one batch in its journal."""
    shell = Shell(one_node(), restored=Restored(Head(next_seq=8, emitted=count), (BatchRecord(7, count, payload),)))
    shell.origin.replay(shell.clock())
    return shell


def test_a_batch_that_cannot_be_decoded_any_more_is_named() -> None:
    shell = shell_with(pickle.dumps([Renamed()], 5).replace(b"Renamed", b"Unnamed"), 1)

    with pytest.raises(WorldError, match=r"batch 7 .* cannot be decoded \(MissingCodeError: .*code that it was"):
        shell.host.turn()


def test_an_item_of_the_journal_that_cannot_be_decoded_fails_alone() -> None:
    shell = shell_with(pickle.dumps(["x", Undecodable(), "y"], 5), 3)

    shell.host.turn()
    sent = shell.items()
    shell.acknowledge()
    shell.host.turn()

    kept = [c.entry for changes in shell.diary.all("commit") for c in changes if isinstance(c, FailureKept)]
    assert sent == ["x", "y"]
    assert [(entry.failed.retryable, entry.failed.stage) for entry in kept] == [(False, Stage.ROUTE)]


def test_without_a_journal_live_items_are_sent_and_no_payload_is_kept() -> None:
    shell = running(one_node(robustness="track"), [["x"]])

    shell.source_host.turn()

    assert shell.items() == ["x"]
    born = [change for changes in shell.diary.all("commit") for change in changes if isinstance(change, BatchBorn)]
    assert [change.record.payload for change in born] == [None]


def test_a_source_may_give_the_same_list_again() -> None:
    buffer = ["first"]
    shell = running(one_node(), [buffer])
    shell.source_host.turn()
    buffer[:] = ["second"]
    shell.source._script.append(buffer)

    shell.source_host.turn()

    assert shell.items() == ["first", "second"]
    payloads = [changes[0].record.payload for changes in shell.diary.all("commit")]
    assert [pickle.loads(payload) for payload in payloads] == [["first"], ["second"]]


# -- failing items ---------------------------------------------------------------------------------


def test_items_that_cannot_be_encoded_fail_with_their_batch_and_spoil_no_neighbour() -> None:
    shell = running(one_node(), [["a", Unpicklable(), "b", Unpicklable()]])

    shell.source_host.turn()

    (record,) = [change.record for change in shell.diary.all("commit")[0] if isinstance(change, BatchBorn)]
    assert record.count == 4
    assert pickle.loads(record.payload) == ["a", "b"]
    assert [(item.task, item.stage, item.retryable) for item in record.born_failed] == [(0, Stage.ROUTE, False)] * 2
    assert "no bytes for this" in record.born_failed[0].error
    assert shell.items() == ["a", "b"]


def test_an_item_that_no_key_can_be_found_for_fails_at_the_source() -> None:
    shell = running(plan_of((Map(str, name="text") * 2).by(lambda item: item["key"])), [[{"key": 1}, {}]])
    shell.source_host.turn()
    shell.acknowledge()
    shell.diary.clear()

    shell.source_host.turn()

    (changes,) = shell.diary.all("commit")
    kept = [change.entry for change in changes if isinstance(change, FailureKept)]
    assert [(entry.failed.task, entry.failed.stage, entry.failed.shown) for entry in kept] == [(0, Stage.ROUTE, "{}")]
    assert kept[0].due_s == pytest.approx(shell.clock() + 0.05)


def test_a_retry_is_sent_to_where_the_item_failed_when_it_is_due() -> None:
    shell = running(one_node(), [["x", "y"]])
    shell.source_host.turn()
    shell.acknowledge(failure(1, "y", Stage.ROUTE))
    shell.source_host.turn()
    assert shell.source_host.next_wake_s() == pytest.approx(0.05)
    shell.diary.clear()

    shell.source_host.turn()
    assert shell.diary.words() == []
    shell.clock.now_s += 0.06
    shell.source_host.turn()

    assert shell.diary.words() == ["commit", "send"]
    assert [type(change) for change in shell.diary.all("commit")[0]] == [FailureTaken, BatchBorn, HeadMoved]
    ((target, frame),) = shell.frames()
    assert (target, frame.stage, frame.seq) == (TaskIndex(1), Stage.ROUTE, 1)
    assert frame.frame_id
    assert shell.items() == ["y"]
    shell.acknowledge()
    shell.source_host.turn()
    assert shell.diary.all("settled") == [(0, 0, True)]


def test_a_retry_of_an_item_that_failed_at_the_source_goes_over_its_own_edges() -> None:
    waiting = FailureEntry(0, failure(0, "x", Stage.ROUTE), 1, 0, 1, 999.0)
    shell = Shell(two_nodes(), restored=Restored(Head(next_seq=1, next_key=1, emitted=1), (), (waiting,)))
    shell.origin.replay(shell.clock())

    shell.host.turn()

    assert sorted(target for target, _ in shell.frames()) == [1, 2]
    assert shell.items() == ["x", "x"]


# -- credits ---------------------------------------------------------------------------------------


def test_credits_come_back_to_the_edge_they_were_spent_on() -> None:
    shell = running(plan_of(Map(str, name="text") * 3, batch_size=1), [["a"], ["b"], ["c"], []])
    shell.source_host.turn()
    assert sorted(target for target, _ in shell.frames()) == [1, 2, 3]
    assert all(frame.credited for _, frame in shell.frames())
    shell.diary.clear()

    shell.source_host.receive(CreditReturn(TaskIndex(2), 1))
    shell.source._script += [["d"], []]
    shell.source_host.turn()

    assert [target for target, _ in shell.frames()] == [2]


def test_a_new_incarnation_owes_nothing() -> None:
    shell = running(plan_of(Map(str, name="text") * 2, batch_size=1), [["a"], ["b"], ["c"], ["d"], []])
    shell.source_host.turn()
    shell.diary.clear()

    shell.host.replica_restarted(TaskIndex(1))
    shell.source._script += [["e"], ["f"], []]
    shell.source_host.turn()

    assert [target for target, _ in shell.frames()] == [1, 1]


# -- reading ---------------------------------------------------------------------------------------


def test_no_more_is_read_than_the_window_allows() -> None:
    shell = running(one_node(max_pending=2, batch_size=1), [["a"], ["b"], ["c"], []])

    shell.source_host.turn()

    assert shell.items() == ["a", "b"]
    assert not shell.source_host.wants_to_read
    assert shell.source_host.next_wake_s() is None or shell.source_host.next_wake_s() > 1
    shell.acknowledge()
    shell.source_host.turn()
    shell.source_host.turn()
    assert shell.items() == ["c"]


def test_the_end_of_the_stream_is_committed() -> None:
    shell = running(one_node(), [["a"], None])
    shell.source_host.turn()
    shell.source_host.turn()

    heads = [
        change.head for changes in shell.diary.all("commit") for change in changes if isinstance(change, HeadMoved)
    ]
    assert [head.exhausted for head in heads] == [False, True]
    assert not shell.origin.finished
    shell.acknowledge()
    shell.source_host.turn()
    assert shell.origin.finished
    assert not shell.source_host.drained


def test_a_stream_that_had_ended_is_not_opened_again() -> None:
    shell = Shell(one_node(), [["never read"]], restored=Restored(Head(exhausted=True)))

    shell.source_host.open()
    shell.origin.replay(shell.clock())
    shell.source_host.turn()

    assert "open" not in shell.diary.words()
    assert shell.source.asked == []
    assert shell.origin.finished


def test_what_a_source_raises_is_raised_when_all_before_it_is_processed() -> None:
    shell = running(one_node(batch_size=1), [["a"], ["b"], KeyError("gone")])

    shell.source_host.turn()
    assert shell.items() == ["a", "b"]
    shell.source_host.turn()
    shell.acknowledge()

    with pytest.raises(SourceError, match=r"ScriptedSource\(\) raised KeyError: 'gone'; what came before it was taken"):
        shell.source_host.turn()
    assert len(shell.source.asked) == 3


def test_what_a_source_raises_when_it_is_opened_names_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell(one_node(), restored=Restored(Head(position=7)))

    def fail(position: Any) -> None:
        raise KeyError(position)

    monkeypatch.setattr(shell.source, "open", fail)

    with pytest.raises(SourceError, match=r"ScriptedSource\(\) cannot be opened at 7: KeyError: 7"):
        shell.source_host.open()


def test_closing_closes_the_source_and_then_the_store_even_if_the_source_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shell = running(one_node())
    shell.source_host.close()
    assert shell.diary.words() == ["closed source", "closed store"]
    shell.diary.clear()

    def fail() -> None:
        raise OSError("cannot close")

    monkeypatch.setattr(shell.source, "close", fail)

    with pytest.raises(SourceError, match=r"ScriptedSource\(\) cannot be closed: OSError: cannot close"):
        shell.source_host.close()
    assert shell.diary.words() == ["closed store"]


# -- lingering -------------------------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A shell that lingers for 5 s, and whose time stands still unless told."""

    def make(script: list[Any]) -> Shell:
        shell = running(one_node(batch_size=4), script, linger_s=5.0)
        shell.source_host._reader._clock = shell.clock
        return shell

    return make


def test_a_small_batch_waits_for_more_until_it_is_full(slow: Any) -> None:
    shell = slow([["a"], ["b", "c"], ["d"], []])

    shell.source_host.turn()
    shell.source_host.turn()
    assert shell.items() == []
    shell.clock.now_s += 1
    assert shell.source_host.next_wake_s() == pytest.approx(4.0)
    shell.source_host.turn()

    assert shell.items() == ["a", "b", "c", "d"]
    assert shell.diary.all("born") == [(0, 4)]
    assert shell.source.asked[:3] == [4, 3, 1]


def test_a_small_batch_goes_when_its_time_is_over(slow: Any) -> None:
    shell = slow([["a"], [], ["b"], []])
    shell.source_host.turn()
    shell.source_host.turn()

    shell.clock.now_s += 5
    assert shell.source_host.next_wake_s() == 0.0
    shell.source_host.turn()

    assert shell.items() == ["a", "b"]
    assert shell.diary.all("commit")[0][-1].head.position == 2


def test_what_waits_goes_at_the_end_of_the_stream(slow: Any) -> None:
    shell = slow([["a"], None])
    shell.source_host.turn()
    shell.source_host.turn()
    shell.source_host.turn()

    assert shell.items() == ["a"]
    assert shell.origin.exhausted


def test_what_waits_goes_before_an_error(slow: Any) -> None:
    shell = slow([["a"], KeyError("gone")])
    shell.source_host.turn()
    shell.source_host.turn()
    assert shell.items() == ["a"]

    shell.source_host.turn()
    shell.acknowledge()
    with pytest.raises(SourceError, match="KeyError"):
        shell.source_host.turn()


def test_what_waits_is_not_dropped_by_a_stop(slow: Any) -> None:
    shell = slow([["a"], [], []])
    shell.source_host.turn()

    shell.source_host.stop_reading()
    assert not shell.source_host.drained
    shell.source_host.turn()

    assert shell.items() == ["a"]
    assert not shell.source_host.drained
    shell.acknowledge()
    shell.source_host.turn()
    assert shell.source_host.drained
    asked = len(shell.source.asked)
    shell.source_host.turn()
    assert len(shell.source.asked) == asked


def test_stopped_with_nothing_open_it_is_drained_after_a_turn() -> None:
    shell = running(one_node(), [["never taken"]])

    shell.source_host.stop_reading()
    shell.source_host.turn()

    assert shell.source_host.drained
    assert shell.source.asked == []


# -- stores and codecs -----------------------------------------------------------------------------


def test_memory_remembers_the_last_failures() -> None:
    store = MemoryStore(2)
    store.apply([HeadMoved(Head()), *(FailureKept(records.entry(key)) for key in range(3))])

    assert [entry.key for entry in store.failures(10)] == [1, 2]
    assert [entry.key for entry in store.failures(1)] == [2]
    assert store.failures(0) == []
    store.close()


def test_memory_that_keeps_nothing_remembers_nothing() -> None:
    store = MemoryStore(0)
    store.apply([FailureKept(records.entry(0))])

    assert store.failures(10) == []


@pytest.mark.parametrize("robust", [False, True])
def test_codecs_are_bytes_between_processes_and_in_journals(robust: bool) -> None:
    between, stored = process_codec(robust=robust)
    live, live_stored = live_codec(robust=robust)

    assert isinstance(between, ReusingCodec)
    assert stored is (between if robust else None)
    assert isinstance(live, LiveCodec)
    assert isinstance(live_stored, ReusingCodec) == robust


def test_nothing_is_replayed_while_somebody_is_at_work_and_everything_once_nobody_is() -> None:
    shell = running(one_node(timeout_s=3.0), [[1]])
    shell.source_host.turn()
    at_work = True
    shell.host.at_work = lambda: at_work

    for _ in range(5):
        shell.clock.now_s += 11.0
        shell.source_host.turn()
    assert [frame.generation for _, frame in shell.frames()] == [1]

    at_work = False
    shell.clock.now_s += 12.0
    shell.source_host.turn()
    assert [frame.generation for _, frame in shell.frames()] == [1, 2]


@pytest.mark.parametrize("robustness", ["none", "confirm", "track", "robust"])
def test_only_robust_retries_and_replays(robustness: str) -> None:
    limits = origin_limits(one_node(robustness=robustness, retries=2, timeout_s=3.0).options)

    assert (limits.retries, limits.replays) == ((2, True) if robustness == "robust" else (0, False))
    assert limits.tree_timeout_s == 12.0


def test_a_frame_is_nothing_for_a_source() -> None:
    shell = running(one_node())
    frame = Frame(SOURCE, 0, 0, (), 1, 0, SOURCE, Stage.PROCESS, False, b"")  # type: ignore[arg-type]

    shell.source_host.receive(frame)

    assert shell.diary == []
