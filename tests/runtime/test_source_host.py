"""The shell around a source: what is read, and when; and what the source is told of it."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consecution import IterableSource, Map, Pipeline, Producer, TextLines
from consecution.errors import BadRecordError, SourceError, StoppedByItemError, WorldError
from consecution.protocol.dispatch import Dispatch, SingleEdge
from consecution.protocol.origin import BatchBorn, Change, Origin, OriginLimits
from consecution.protocol.values import Ack, Acks, FailedItem, Frame, FrameId, Message, Stage, TaskIndex
from consecution.report import Failure
from consecution.runtime.journal import NotesTaken
from consecution.runtime.origin_host import MOST_TRIAL_S, TRIAL_COMMITS, TRIAL_S, MemoryStore, OriginHost, SourceHost
from consecution.source import Note, Rejected, Source
from consecution.transport.codec import LiveCodec, ReusingCodec
from tests.runtime.shells import Endless, Shell, plan_of

SOURCE, TASK = TaskIndex(0), TaskIndex(1)


class Noting(MemoryStore):
    """Notes what it is asked to keep."""

    def __init__(self) -> None:
        super().__init__(0)
        self.changes: list[Change] = []

    def apply(self, changes: list[Change]) -> None:
        self.changes += changes


class Outbox:
    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def send(self, target: TaskIndex, message: Message) -> None:
        assert isinstance(message, Frame)
        self.frames.append(message)


def test_new_items_do_not_keep_retries_waiting_for_room() -> None:
    """Under load every place that came free was taken by new items, and a retry waited for the stream's end."""
    now_s, outbox, codec = 0.0, Outbox(), LiveCodec(stores_bytes=False)
    ids = iter(map(FrameId, range(1, 10_000)))
    dispatch = Dispatch(SOURCE, (SingleEdge(0, TASK),), codec, ids.__next__, edge_count=1, max_frame_items=10)
    origin = Origin(OriginLimits(batch_size=1, max_pending=2, retries=1, retry_delay_s=1.0))
    host = OriginHost(SOURCE, origin, MemoryStore(0), dispatch, codec, outbox, stored=codec, now=lambda: now_s)
    source = SourceHost(host, Endless())
    source.open()
    origin.replay(now_s)
    source.turn()

    def answer(*failed: FailedItem) -> None:
        frame = outbox.frames.pop(0)
        source.receive(Acks(TASK, [Ack(frame.seq, frame.generation, frame.frame_id, 0, failed)]))
        source.turn()

    answer(FailedItem(TASK, Stage.PROCESS, [7], "ValueError: no", "", True, "7"))
    now_s = 2.0
    answer()

    assert [frame.payload for frame in outbox.frames] == [[0], [7]]


# -- while batches find their size ------------------------------------------------------------------


def full_shell(commit_s: float = 0.0) -> Shell:
    """A source that has more than is asked for has filled four batches, and others of this size would follow."""
    shell = Shell(plan_of(Map(str, name="text"), batch_size=1000))
    commit = shell.store.apply

    def commit_slowly(changes: list[Any]) -> None:
        commit(changes)
        shell.clock.now_s += commit_s

    shell.store.apply = commit_slowly  # type: ignore[method-assign]
    shell.source.read = lambda max_items: [0] * max_items  # type: ignore[method-assign]
    shell.source_host.open()
    shell.origin.replay(shell.clock())
    shell.source_host.turn()
    assert len(shell.frames()) == 4
    return shell


def test_a_source_is_not_read_while_its_first_batches_show_how_large_others_may_be() -> None:
    shell = full_shell()

    shell.source_host.turn()

    assert len(shell.frames()) == 4
    assert not shell.source_host.wants_to_read, "else whoever waits for it would be woken again and again"
    assert shell.source_host.next_wake_s() == pytest.approx(TRIAL_S)


def test_a_source_is_read_again_as_soon_as_one_has_shown_it() -> None:
    shell = full_shell()
    shell.source_host.turn()

    shell.acknowledge()
    assert shell.source_host.wants_to_read
    shell.source_host.turn()

    assert len(shell.items()) > 4 * 16


def test_a_source_does_not_wait_long_for_what_its_batches_show() -> None:
    shell = full_shell()
    shell.source_host.turn()

    shell.clock.now_s += TRIAL_S
    assert shell.source_host.wants_to_read
    shell.source_host.turn()
    shell.source_host.turn()

    assert len(shell.frames()) == 4 + 2 * 8


def test_a_source_waits_longer_where_commits_are_slow() -> None:
    shell = full_shell(commit_s=0.02)
    shell.source_host.turn()
    longest_s = TRIAL_S + TRIAL_COMMITS * 0.02

    shell.clock.now_s += longest_s - 0.03  # the commit has taken its time of it, too
    shell.source_host.turn()
    assert shell.source_host.next_wake_s() == pytest.approx(0.01)
    shell.clock.now_s += 0.01
    shell.source_host.turn()

    assert len(shell.frames()) > 4


def test_no_commit_however_slow_holds_a_source_back_for_long() -> None:
    shell = full_shell(commit_s=60.0)
    shell.source_host.turn()

    shell.clock.now_s += MOST_TRIAL_S
    shell.source_host.turn()

    assert len(shell.frames()) > 4


def test_a_source_is_not_read_while_it_is_ahead_of_the_workers_below() -> None:
    shell = Shell(plan_of(Map(str, name="text"), batch_size=1))
    shell.origin.limits = replace(shell.origin.limits, workers=1)
    shell.source.read = lambda max_items: [0] * max_items  # type: ignore[method-assign]
    shell.source_host.open()
    shell.origin.replay(shell.clock())

    shell.source_host.turn()
    first = len(shell.frames())
    wants_to_read = shell.source_host.wants_to_read
    shell.source_host.turn()
    second = len(shell.frames())
    shell.acknowledge()

    assert (first, wants_to_read, second) == (4, False, 4)
    assert shell.source_host.wants_to_read
    shell.source_host.turn()
    assert shell.frames()


def test_a_source_whose_senders_wait_is_read_however_dear_its_items_are() -> None:
    shell = Shell(plan_of(Map(str, name="text"), batch_size=1, max_pending=6))
    shell.origin.limits = replace(shell.origin.limits, workers=1)
    shell.source.is_awaited = True
    shell.source.read = lambda max_items: [0] * max_items  # type: ignore[method-assign]
    shell.source_host.open()
    shell.origin.replay(shell.clock())

    shell.source_host.turn()

    assert len(shell.frames()) == 6


def test_a_source_that_cuts_its_batches_itself_is_read_as_often_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are never full, so that they never show what size is right."""
    shell = Shell(plan_of(Map(str, name="text"), batch_size=1000), [["x"]] * 20)
    monkeypatch.setattr(shell.source, "cut", True)
    shell.source_host.open()
    shell.origin.replay(shell.clock())

    shell.source_host.turn()

    assert len(shell.frames()) == 8


def test_a_source_does_not_wait_longer_where_the_clock_is_set_back() -> None:
    shell = full_shell()
    shell.source_host.turn()

    shell.clock.now_s -= 3600

    assert shell.source_host.wants_to_read


# -- a range ---------------------------------------------------------------------------------------


def test_a_range_is_journalled_by_its_ends_and_gives_its_numbers_again_when_replayed() -> None:
    now_s, outbox, codec, store = 0.0, Outbox(), ReusingCodec(), Noting()
    ids = iter(map(FrameId, range(1, 100)))
    dispatch = Dispatch(SOURCE, (SingleEdge(0, TASK),), codec, ids.__next__, edge_count=1, max_frame_items=1000)
    host = OriginHost(SOURCE, Origin(OriginLimits()), store, dispatch, codec, outbox, stored=codec, now=lambda: now_s)
    source = SourceHost(host, IterableSource(range(5, 1005)))
    source.open()
    source.origin.replay(now_s)
    source.turn()
    first = outbox.frames.pop(0)

    source.origin.replay(now_s)
    source.turn()
    again = next(frame for frame in outbox.frames if frame.generation > first.generation)

    (record, *_) = [change.record for change in store.changes if isinstance(change, BatchBorn)]
    assert len(record.payload) < 100
    assert pickle.loads(record.payload) == range(5, 5 + record.count)
    assert codec.decode(first.payload) == codec.decode(again.payload) == range(5, 5 + record.count)


# -- what is no item -------------------------------------------------------------------------------


class Mixed(Source):
    """Among whole numbers there is text, which is no item."""

    rejects = True

    def __init__(self, count: int = 9) -> None:
        self.count = count

    def open(self, position: Any) -> None:
        self.at = position or 0

    def read(self, max_items: int) -> list[Any] | None:
        found: list[Any] = list(range(self.count))[self.at : self.at + max_items]
        self.at += len(found)
        return [Rejected(f"<{n}>", BadRecordError(f"{n} is bad")) if n % 3 == 1 else n for n in found] or None

    def position(self) -> Any:
        return self.at


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_what_a_source_rejects_fails_alone_and_is_not_tried_again(mode: str, tmp_path: Path) -> None:
    out = tmp_path / "out"

    report = Pipeline(Producer(Mixed()) | TextLines("out", out)).run(mode=mode, state_dir=tmp_path / "state")

    assert out.read_text().split() == ["0", "2", "3", "5", "6", "8"]
    assert (report.emitted, report.completed, report.failed, report.pending) == (9, 9, 3, 0)
    assert [(f.node, f.item, f.error, f.attempts) for f in report.failures] == [
        ("producer", f"<{n}>", f"BadRecordError: {n} is bad", 1) for n in (1, 4, 7)
    ]


@pytest.mark.parametrize("robustness", ["none", "confirm", "track"])
def test_what_a_source_rejects_is_counted_at_every_level(robustness: str, tmp_path: Path) -> None:
    out = tmp_path / "out"

    report = Pipeline(Producer(Mixed()) | TextLines("out", out)).run(robustness=robustness)

    assert out.read_text().split() == ["0", "2", "3", "5", "6", "8"]
    assert (report.emitted, report.failed) == (9, 3)


def test_what_a_source_rejects_may_go_over_its_failed_edge(tmp_path: Path) -> None:
    out, bad = tmp_path / "out", tmp_path / "bad"
    producer = Producer(Mixed())
    pipeline = Pipeline(producer | TextLines("out", out))
    producer.failed | TextLines("bad", bad, format=lambda failure: failure.item)

    report = pipeline.run(state_dir=tmp_path / "state")

    assert bad.read_text().split() == ["<1>", "<4>", "<7>"]
    assert (report.failed, report.handled) == (0, 3)


def test_a_producer_may_stop_the_run_at_what_its_source_rejects(tmp_path: Path) -> None:
    pipeline = Pipeline(Producer(Mixed()).on_error("stop") | TextLines("out", tmp_path / "out"))

    with pytest.raises(StoppedByItemError, match=r"node 'producer' stopped the run at the item '<1>'.*1 is bad"):
        pipeline.run(state_dir=tmp_path / "state", batch_size=1)


def test_consume_raises_the_error_of_what_a_source_rejects() -> None:
    found: list[int] = []

    with pytest.raises(BadRecordError, match="1 is bad"):
        Pipeline(Producer(Mixed()) | found.append).consume()

    assert found == [0]


# -- what the source is told, and what it keeps ----------------------------------------------------


def telling(script: Sequence[Any], *, cuts: Sequence[bool] = (), linger_s: float = 0.0, **options: Any) -> Shell:
    """A shell whose source writes down all that it is told, and notes the name of each batch."""
    shell = Shell(plan_of(Map(str, name="text"), **options), script, linger_s=linger_s)
    source, diary, left = shell.source, shell.diary, list(cuts)
    read = source.read

    def read_and_cut(max_items: int) -> list[Any] | None:
        source.cut = left.pop(0) if left else False
        return read(max_items)

    def take_note(seq: int) -> Note:
        diary.append(("note", seq))
        return Note(b"of %d" % seq, seq - 1)

    source.read = read_and_cut  # type: ignore[method-assign]
    source.take_note = take_note  # type: ignore[method-assign]
    source.batch_journalled = lambda seq: diary.append(("journalled", seq))  # type: ignore[method-assign]
    source.items_failed = lambda seq, failures: diary.append(  # type: ignore[method-assign]
        ("failed", (seq, list(failures)))
    )
    shell.source_host.open()
    shell.origin.replay(shell.clock())
    shell.host.turn()
    shell.diary.clear()
    return shell


def test_a_batch_is_told_as_journalled_after_the_commit_that_holds_it_and_its_note() -> None:
    shell = telling([["a"], ["b"]], cuts=[True, False])

    shell.source_host.turn()

    assert shell.diary.words() == ["born", "note", "born", "note", "commit", "journalled", "journalled", "send", "send"]
    assert shell.diary.all("journalled") == [0, 1]
    notes = [change for change in shell.diary.all("commit")[0] if isinstance(change, NotesTaken)]
    assert notes == [NotesTaken(((0, b"of 0"), (1, b"of 1")), 0)]


def test_nothing_is_told_as_journalled_where_the_commit_fails() -> None:
    shell = telling([["a"]])
    shell.store.problem = WorldError("the disk is full")

    with pytest.raises(WorldError, match="the disk is full"):
        shell.source_host.turn()

    assert "journalled" not in shell.diary.words()


def test_the_first_items_that_were_given_up_are_told_before_their_batch() -> None:
    shell = telling([list(range(16))], retries=0)
    shell.source_host.turn()
    failures = [
        FailedItem(TASK, Stage.PROCESS, pickle.dumps([at]), f"ValueError: {at}", "Traceback", False, repr(at))
        for at in range(12)
    ]
    shell.acknowledge(*failures)

    shell.source_host.turn()

    assert shell.diary.words()[-2:] == ["failed", "settled"]
    told = [Failure("text", str(at), f"ValueError: {at}", "", 1) for at in range(10)]
    assert shell.diary.all("failed") == [(0, told)]
    assert shell.diary.all("settled") == [(0, 12, True)]


def test_where_a_source_cuts_a_batch_ends_and_more_is_asked_for_at_once() -> None:
    shell = telling([["a", "b"], ["c"], ["d"]], cuts=[True, True, False])

    shell.source_host.turn()

    assert shell.diary.all("born") == [(0, 2), (1, 1), (2, 1)]
    assert shell.diary.words().count("commit") == 1


def test_a_cut_does_not_wait_for_a_batch_to_fill() -> None:
    shell = telling([["a"], [], ["b"], []], cuts=[False, True, True, False], linger_s=60.0)

    shell.source_host.turn()
    shell.source_host.turn()

    assert shell.diary.all("born") == [(0, 1), (1, 1)]


def test_what_was_noted_is_recalled_before_the_source_is_opened(tmp_path: Path) -> None:
    shell = Shell(plan_of(Map(str, name="text")))
    shell.source.recall = lambda notes: shell.diary.append(("recall", list(notes)))  # type: ignore[method-assign]
    host = SourceHost(shell.host, shell.source, notes=[(3, b"of 3")])

    host.open()

    assert shell.diary == [("recall", [(3, b"of 3")]), ("open", None)]


# -- wrong answers -----------------------------------------------------------------------------------


class Wrong(Source):
    """Gives an item, then, in ``method``, whatever ``answer`` is; an exception is raised."""

    def __init__(self, method: str, answer: Any) -> None:
        self.method, self.answer, self.at = method, answer, 0

    def __repr__(self) -> str:
        return "Wrong()"

    def _say(self, method: str, right: Any) -> Any:
        if self.method != method or not self.at:
            return right
        if isinstance(self.answer, Exception):
            raise self.answer
        return {"generator": iter(()), "text": "abc"}.get(self.answer, self.answer)

    def read(self, max_items: int) -> Any:
        if self.method == "fileno" and self.at:
            return []
        found = self._say("read", [self.at] if self.at < 3 else None)
        self.at += 1
        return found

    def position(self) -> Any:
        return self._say("position", self.at)

    def fileno(self) -> Any:
        return self._say("fileno", None)

    def take_note(self, seq: int) -> Note | None:
        return self._say("take_note", None)

    def batch_journalled(self, seq: int) -> None:
        self._say("batch_journalled", None)

    def batch_settled(self, seq: int, failed: int, confirmed: bool) -> None:
        self._say("batch_settled", None)

    def items_failed(self, seq: int, failures: Any) -> None:
        self._say("items_failed", None)


def refuse(item: Any) -> None:
    raise ValueError(item)


OOPS = ValueError("oops")
RAISED = r"\(\) raised ValueError: oops; .* mend {}\(\)"


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
@pytest.mark.parametrize(
    ("method", "answer", "match"),
    [
        ("read", 5, r"\(\) gave 5, a int; expected a list"),
        ("read", "generator", r"\(\) gave .*, a tuple_iterator; expected a list"),
        ("read", "text", r"\(\) gave 'abc', a str; expected a list"),
        ("fileno", -1, r"\(\) gave -1; expected the number of an open descriptor.*keep it open"),
        *((name, OOPS, RAISED.format(name)) for name in ("position", "fileno", "take_note")),
        *((name, OOPS, RAISED.format(name)) for name in ("batch_journalled", "batch_settled", "items_failed")),
    ],
)
def test_a_wrong_answer_of_a_source_ends_the_run_and_names_both(
    method: str, answer: Any, match: str, mode: Any, tmp_path: Path
) -> None:
    source = Wrong(method, answer)
    options: dict[str, Any] = {"mode": mode, "retries": 0, "sync": "process", "batch_size": 1, "max_pending": 1}

    with pytest.raises(SourceError, match=rf"the source Wrong\(\): {method}{match}"):
        Pipeline(Producer(source) | refuse).run(state_dir=tmp_path / "state", **options)


def test_a_source_that_cannot_take_what_became_of_a_batch_is_still_told_of_the_others() -> None:
    shell = telling([["a"], ["b"], ["c"]], cuts=[True, False])

    def journalled(seq: int) -> None:
        shell.diary.append(("journalled", seq))
        raise OOPS

    shell.source.batch_journalled = journalled  # type: ignore[method-assign]
    shell.source_host.turn()

    assert shell.diary.all("journalled") == [0, 1]
    shell.source_host.turn()
    assert shell.diary.all("born") == [(0, 1), (1, 1)]


def test_a_batch_whose_note_is_missing_is_not_committed() -> None:
    shell = telling([["a"]])
    shell.source.take_note = lambda seq: refuse("note")  # type: ignore[method-assign]

    with pytest.raises(SourceError, match="raised ValueError: note"):
        shell.source_host.turn()

    assert "commit" not in shell.diary.words()
