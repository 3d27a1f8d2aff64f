"""Suspicion and verdicts: who is blamed for a death, and how a task keeps away from it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution.error_policy import ErrorPolicy
from consecution.nodes import FlatMap, Map
from consecution.protocol.dispatch import Dispatch, LocalEdge, SingleEdge
from consecution.protocol.poison import (
    DIGEST_BYTES,
    Condemned,
    FrameKey,
    Guard,
    InHand,
    LostItem,
    PartlyDecodedError,
    PoisonError,
    Suspicion,
    Verdict,
)
from consecution.protocol.step import Step, describe_failure
from consecution.protocol.values import Action, Frame, FrameId, Labelled, Stage, TaskIndex

SOURCE, TASK, NEXT = TaskIndex(0), TaskIndex(1), TaskIndex(2)
KEY = FrameKey(SOURCE, 7, (5,))
OTHER = FrameKey(SOURCE, 8, (5,))
ELSEWHERE = FrameKey(SOURCE, 7, (6,))


class TextCodec:
    """Payloads are texts of items between commas; "?" cannot be decoded, "!" not encoded."""

    def encode(self, items: Sequence[Any]) -> bytes:
        if "!" in items:
            raise TypeError("! cannot be encoded")
        return ",".join(items).encode()

    def decode(self, payload: Any) -> list[Any]:
        items: list[Any] = payload.decode().split(",")
        if "?" in items:
            raise PartlyDecodedError([LostItem("<?>", ValueError("?")) if item == "?" else item for item in items])
        return items

    def size(self, payload: Any) -> int:
        return len(payload)

    def encode_failed(self, item: Any) -> Any:
        return self.encode([item])


class Slot:
    """What would be left if the task died now."""

    def __init__(self) -> None:
        self.left: InHand | None = None

    def frame(self, key: FrameKey) -> None:
        self.left = InHand(TASK, key, b"")

    def item(self, name: bytes) -> None:
        assert self.left is not None
        self.left = InHand(TASK, self.left.frame, name)

    def clear(self) -> None:
        self.left = None


class DiedError(BaseException):
    """Stands for the end of a process: nothing in a task may catch it."""


class Cluster:
    """Replicas of one node that die at certain items, and a supervisor that starts them again."""

    def __init__(self, deadly: set[str], *, at: str = "process") -> None:
        self.suspicion = Suspicion()
        self.slot = Slot()
        self.deadly = deadly
        self.touched: list[str] = []
        self._at = at
        self.deaths = 0

    def run(self, *items: str, most_deaths: int = 50, stage: Stage = Stage.PROCESS) -> tuple[list[str], dict[str, str]]:
        """Until the frame gets through: what came out, and what failed, with its error."""
        for generation in range(most_deaths):
            try:
                return self._try(generation, items, stage)
            except DiedError:
                self.deaths += 1
                assert self.slot.left is not None
                self.suspicion.died("node", self.slot.left, "killed by SIGSEGV", lambda: "the stack")
        raise AssertionError(f"it dies for ever: {self.suspicion.verdicts('node')}")

    def _try(self, generation: int, items: tuple[str, ...], stage: Stage) -> tuple[list[str], dict[str, str]]:
        codec = TextCodec()
        ids = iter(range(100, 10000))
        guard = Guard(self.slot, self.suspicion.verdicts("node"))
        edge = SingleEdge(0, NEXT)
        if self._at == "route":
            edge = Deadly(self)
        dispatch = Dispatch(TASK, (edge,), codec, lambda: FrameId(next(ids)), edge_count=1, max_frame_items=100)
        step = Step(TASK, Map(self.process), dispatch, codec, guard=guard)
        payload = ",".join(items).encode()
        frame = Frame(KEY.origin, KEY.seq, generation, KEY.path, FrameId(1), 0, SOURCE, stage, False, payload)
        sent, ack = step.run(frame)
        assert ack is not None
        assert self.slot.left is None, "nothing is in hand when a frame is done"
        failed = {failed.shown.strip("'"): failed.error for failed in ack.failed}
        assert all(not f.retryable and f.traceback == "the stack" for f in ack.failed if "PoisonError" in f.error)
        return [item for message in sent for item in codec.decode(message.frame.payload)], failed

    def process(self, item: str) -> str:
        self.touched.append(item)
        if self._at == "process":
            self.die_at(item)
        if item == "raises":
            raise ValueError("no")
        return item

    def die_at(self, item: str) -> None:
        if item in self.deadly:
            raise DiedError


class Deadly(SingleEdge):
    """Choosing the way of an item takes the process down."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(0, NEXT)
        self._cluster = cluster

    def plan(self, items: list[Any], parts: list[Any]) -> None:
        for item in items:
            self._cluster.die_at(item)
        super().plan(items, parts)


# -- suspicion -----------------------------------------------------------------------------------


def test_one_death_proves_nothing_two_make_a_frame_suspect() -> None:
    suspicion = Suspicion()

    first = suspicion.died("node", InHand(TASK, KEY, b""), "killed by SIGSEGV")
    second = suspicion.died("node", InHand(TASK, KEY, b""), "exit code 3")

    assert first is None
    assert second == Verdict(KEY, b"", "exit code 3", "")


def test_frames_and_nodes_are_told_apart() -> None:
    suspicion = Suspicion()

    verdicts = [
        suspicion.died(node, InHand(TASK, key, b""), "") for node in ("a", "b") for key in (KEY, OTHER, ELSEWHERE)
    ]

    assert verdicts == [None] * 6


def test_two_deaths_at_the_same_item_of_a_suspect_frame_prove_it_guilty() -> None:
    suspicion = Suspicion()
    for _ in range(2):
        suspicion.died("node", InHand(TASK, KEY, b""), "")

    found = [
        suspicion.died("node", InHand(TASK, KEY, item), "how", lambda: "stack")
        for item in (b"a", b"b", b"", b"a", b"a")
    ]

    assert found == [None, None, None, Verdict(KEY, b"a", "how", "stack"), None]
    assert [verdict.item for verdict in suspicion.verdicts("node")] == [b"", b"a"]
    assert suspicion.verdicts("another") == ()


# -- a task and its guard ------------------------------------------------------------------------


def test_without_a_slot_a_guard_does_nothing() -> None:
    guard = Guard(None, [Verdict(KEY, b"", "", "")])

    assert guard.take(*KEY) is None
    guard.leave()


def test_a_frame_is_known_whatever_its_generation_and_others_are_run_as_ever() -> None:
    guard = Guard(Slot(), [Verdict(KEY, b"", "", "")])

    assert guard.take(*KEY) is not None
    assert guard.take(*OTHER) is None


def test_the_slot_names_the_item_in_hand_of_a_suspect_frame_alone() -> None:
    slot = Slot()
    guard = Guard(slot)
    guard.take(*KEY)
    of_an_innocent = slot.left
    guard.judge([Verdict(KEY, b"", "", "")])

    suspect = guard.take(*KEY)
    assert suspect is not None
    condemned = suspect.meet(0, "a", TextCodec())

    assert condemned is None
    assert of_an_innocent == InHand(TASK, KEY, b"")
    assert slot.left is not None
    assert slot.left.item


def test_an_item_that_cannot_be_encoded_is_known_by_its_place() -> None:
    slot = Slot()
    suspect = Guard(slot, [Verdict(KEY, b"", "", "")]).take(*KEY)
    assert suspect is not None

    suspect.meet(3, "!", TextCodec())

    assert slot.left == InHand(TASK, KEY, b"#3")


def test_an_item_guilty_by_its_place_is_not_even_encoded() -> None:
    suspect = Guard(Slot(), [Verdict(KEY, b"#3", "exit code 3", "")]).take(*KEY)
    assert suspect is not None

    found = suspect.meet(3, "a", TextCodec())

    assert isinstance(found, Condemned)
    assert isinstance(found.item, LostItem)
    assert "exit code 3" in str(found.error)


class Unseen:
    """Nobody may look at it."""

    def __repr__(self) -> str:
        raise DiedError

    __reduce__ = __repr__  # type: ignore[assignment]


class AnyCodec(TextCodec):
    def encode(self, items: Sequence[Any]) -> bytes:
        return b"encoded"


def condemned_of(item: Any) -> Condemned:
    name = hashlib.blake2b(b"encoded", digest_size=DIGEST_BYTES).digest()
    suspect = Guard(Slot(), [Verdict(KEY, name, "exit code 3", "the stack")]).take(*KEY)
    assert suspect is not None
    found = suspect.meet(3, item, AnyCodec())
    assert found is not None
    return found


def test_a_guilty_item_is_described_without_being_looked_at() -> None:
    def forbidden(error: BaseException, item: Any) -> str:
        raise DiedError

    judge = ErrorPolicy.of("node", forbidden, None, None).judge
    failed = describe_failure(TASK, Stage.PROCESS, *condemned_of(Unseen()), TextCodec(), judge)

    assert failed.shown == "<Unseen, item 3 of its frame>"
    assert (failed.payload, failed.retryable, failed.treatment.action) == (b"encoded", False, Action.PARK)


@pytest.mark.parametrize(
    ("item", "shown"),
    [
        (("a", [1, {2.5: None}], True), "('a', [1, {2.5: None}], True)"),
        (["a", Unseen()], "<list, item 3 of its frame>"),
        ({1: {Unseen(): 2}}, "<dict, item 3 of its frame>"),
        ("x" * 100_000, "<str, item 3 of its frame>"),
        (10**100_000, "<int, item 3 of its frame>"),
        ([0] * 100_000, "<list, item 3 of its frame>"),
        (Labelled("late", Unseen()), "<Unseen, item 3 of its frame>"),
    ],
    ids=["plain", "in a list", "in a key", "long text", "long number", "long list", "labelled"],
)
def test_a_guilty_item_is_shown_where_no_code_but_pythons_own_does_it(item: Any, shown: str) -> None:
    assert repr(condemned_of(item).item) == shown


# -- the life of a frame -------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(["a", "b", "c", "d", "raises", "?"]), min_size=1, max_size=8),
    st.sets(st.sampled_from(["a", "b", "c"]), max_size=3),
    st.sampled_from(["process", "route"]),
)
def test_the_guilty_fail_and_all_others_go_through(items: list[str], deadly: set[str], at: str) -> None:
    cluster = Cluster(deadly, at=at)

    out, failed = cluster.run(*items)

    guilty = deadly & set(items)
    assert out == [item for item in items if item not in deadly | {"raises", "?"}]
    assert {shown for shown, error in failed.items() if "PoisonError" in error} == guilty
    assert set(failed) - guilty == {"<?>" if item == "?" else item for item in set(items) & {"raises", "?"}}
    assert cluster.deaths == (2 + 2 * len(guilty) if guilty else 0)


def test_a_guilty_item_is_not_touched_again() -> None:
    cluster = Cluster({"b"})
    cluster.run("a", "b", "c")
    cluster.touched.clear()

    out, _ = cluster.run("a", "b", "c")

    assert (out, cluster.touched) == (["a", "c"], ["a", "c"])


def test_a_frame_that_enters_behind_the_node_is_tried_item_by_item_too() -> None:
    cluster = Cluster({"b"}, at="route")

    out, failed = cluster.run("a", "b", stage=Stage.ROUTE)

    assert (out, list(failed), cluster.touched) == (["a"], ["b"], [])


def test_whoever_died_once_by_chance_is_not_blamed() -> None:
    cluster = Cluster({"b"})
    cluster.suspicion.died("node", InHand(TASK, KEY, b""), "killed by SIGKILL")
    cluster.deadly = set()

    out, failed = cluster.run("a", "b")

    assert (out, failed) == (["a", "b"], {})
    assert cluster.suspicion.verdicts("node") == ()


def test_a_task_that_goes_down_with_an_error_leaves_its_frame_in_hand() -> None:
    slot = Slot()

    def fatal(item: Any) -> None:
        raise DiedError

    codec = TextCodec()
    dispatch = Dispatch(TASK, (), codec, lambda: FrameId(1), edge_count=1, max_frame_items=100)
    step = Step(TASK, Map(fatal), dispatch, codec, guard=Guard(slot))

    with pytest.raises(DiedError):
        step.run(Frame(*KEY[:2], 0, KEY.path, FrameId(1), 0, SOURCE, Stage.PROCESS, False, b"a"))

    assert slot.left == InHand(TASK, KEY, b"")


def test_what_happens_when_all_items_are_through_is_no_items_fault() -> None:
    slot = Slot()
    codec = TextCodec()

    def die() -> FrameId:
        raise DiedError

    dispatch = Dispatch(TASK, (SingleEdge(0, NEXT),), codec, die, edge_count=1, max_frame_items=100)
    step = Step(TASK, Map(str), dispatch, codec, guard=Guard(slot, [Verdict(KEY, b"", "", "")]))

    with pytest.raises(DiedError):
        step.run(Frame(*KEY[:2], 0, KEY.path, FrameId(1), 0, SOURCE, Stage.PROCESS, False, b"a,b"))

    assert slot.left == InHand(TASK, KEY, b"")


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("is_suspect", [False, True])
def test_what_a_suspect_frame_has_become_goes_the_way_that_was_rehearsed(is_suspect: bool, halves: bool) -> None:
    codec, ids = TextCodec(), map(FrameId, itertools.count(2)).__next__
    near, far = NEXT, TaskIndex(NEXT + 1)
    edge = LocalEdge(0, (near,), (near, far))
    dispatch = Dispatch(TASK, (edge,), codec, ids, edge_count=1, max_frame_items=100, local=(near,))
    guard = Guard(Slot(), [Verdict(KEY, b"", "", "")] if is_suspect else [])
    step = Step(TASK, FlatMap(lambda item: [f"{item}{n}" for n in range(4)]), dispatch, codec, guard=guard)
    frame = Frame(*KEY[:2], 0, KEY.path, FrameId(1), 0, SOURCE, Stage.PROCESS, False, b"a")

    if halves:
        held = step.take(frame)
        assert held is not None
        sent, _ = step.put(held, held.out or ["a0", "a1", "a2", "a3"], [], 0.0)
    else:
        sent, _ = step.run(frame)

    assert {target for target, _ in sent} == ({near} if is_suspect else {near, far})


def test_progress_inside_a_suspect_frame_is_seen() -> None:
    seen: list[Any] = []
    codec = TextCodec()
    dispatch = Dispatch(TASK, (), codec, lambda: FrameId(1), edge_count=1, max_frame_items=100)
    guard = Guard(Slot(), [Verdict(KEY, b"", "", "")])
    step = Step(TASK, Map(lambda item: seen.append(step.progress())), dispatch, codec, guard=guard)

    step.run(Frame(*KEY[:2], 0, KEY.path, FrameId(1), 0, SOURCE, Stage.PROCESS, False, b"a,b,c"))

    assert len(set(seen)) == 3


def test_a_poison_error_is_never_retried_and_its_traceback_is_the_native_stack() -> None:
    with_stack = describe_failure(TASK, Stage.PROCESS, "a", PoisonError("killed by SIGSEGV", "the stack"), TextCodec())
    without = describe_failure(TASK, Stage.PROCESS, "a", PoisonError("exit code 3", ""), TextCodec())

    assert (with_stack.retryable, with_stack.payload, with_stack.traceback) == (False, b"a", "the stack")
    assert "killed by SIGSEGV" in with_stack.error
    assert "no stack" in without.traceback
