"""The life of one frame in one task: the same for every engine.

A frame comes in; the node runs over its items; what it pushed is sent on; one acknowledgement sums it
up. An item that raises takes no neighbour down: what it had pushed is dropped, and the item travels
with the acknowledgement. So do items that cannot be routed or encoded.

Nothing here is done per item that can be done per frame: the node's own loop runs over an iterator,
and after an exception goes on with the same iterator.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from consecution.errors import OutageError, add_note, text_of, traceback_of
from consecution.protocol.dispatch import Dispatch, Sent
from consecution.protocol.poison import Condemned, Guard, LostItem, PoisonError, Suspect, decode_apart
from consecution.protocol.values import (
    QUIET_LOAD_S,
    USER_ERRORS,
    Ack,
    BatchId,
    FailedItem,
    Frame,
    Items,
    Stage,
    TaskIndex,
    Treatment,
    failed_parts,
    listed,
    unlabelled,
)

SHOWN_LENGTH = 200

QUIET_BYTES = 4096
QUIET_S = 1.0
"""What a whole has become is acknowledged even so if it is larger, or was sent so long ago: its origin reckons with the
bytes that are on their way, and takes a tree of which it hears nothing for lost."""
QUIET_SHARE = 1 / 4
"""Nor larger than that: as many as may be open add no more than this part to the bytes that may."""
QUIET_PART = 1 / 30
"""Nor longer ago than this part of ``timeout_s``: silences add up, and no way of 120 steps has a tree time out."""


class Codec(Protocol):
    """How a list of items becomes a payload, and back."""

    def encode(self, items: Sequence[Any]) -> Any:
        """The payload of these items. Raises whatever the items' own pickling raises."""

    def decode(self, payload: Any) -> Items:
        """The items of a payload; never the very list that another task may hold. A range stays one."""

    def size(self, payload: Any) -> int:
        """Bytes of a payload, for flow control; an estimate where payloads are live objects."""

    def encode_failed(self, item: Any) -> Any:
        """The payload of one failed item as it goes into the failure store; raises if it cannot."""


Judge = Callable[[BaseException, Any], Treatment]
"""What is to become of an item that raised; asked while the exception is alive. Never raises.

Of a `PoisonError` it asks no code of the user's.
"""


def always_retry(error: BaseException, item: Any) -> Treatment:
    """The judge where nobody has said anything."""
    return Treatment()


class FrameNode(Protocol):
    """What the step needs of a node."""

    def _push_into(self, out: list[Any]) -> None: ...

    def _process_frame(self, cursor: Iterator[Any], out: list[Any]) -> None: ...

    def _blame(self, item: Any, error: BaseException) -> Any:
        """What has failed where ``error`` was raised at ``item``."""


class Counts:
    """What a task has done so far; items, and seconds in user code. Written by one thread, read by any.

    ``waited_s`` is how long its frames had been on their way or in its queue, all together, when it took them;
    ``since_s`` when it took the one that it has in hand, 0 while it has none; ``commit_s`` what its commits took;
    ``waiting`` how many frames lie in its inbox. ``read_share`` is how much of all a source has read, if it knows.
    """

    __slots__ = (
        "busy_s",
        "commit_s",
        "failed",
        "frames",
        "items_in",
        "items_out",
        "read_share",
        "since_s",
        "waited_s",
        "waiting",
    )

    def __init__(self) -> None:
        self.frames = 0
        self.items_in = 0
        self.items_out = 0
        self.failed = 0
        self.busy_s = 0.0
        self.waited_s = 0.0
        self.since_s = 0.0
        self.commit_s = 0.0
        self.waiting = 0
        self.read_share: float | None = None

    def took(self, sent_s: float, now_s: float) -> None:
        """A frame that was sent then has come; 0: it does not say when. Two processors' clocks may differ a little."""
        if sent_s:
            self.waited_s += max(0.0, now_s - sent_s)


class _Known:
    """The frames a task has seen of one origin's batches, from the lowest that is not decided."""

    __slots__ = ("frames", "low")

    def __init__(self) -> None:
        self.low = 0
        self.frames: dict[int, set[int]] = {}

    def forget_below(self, low: int) -> None:
        self.low = low
        for seq in [seq for seq in self.frames if seq < low]:
            del self.frames[seq]


@dataclass(slots=True)
class Held:
    """A frame between `Step.take` and `Step.put`."""

    frame: Frame
    items: list[Any]
    failed: list[FailedItem]
    out: list[Any] | None
    open_id: int
    """What stands for the frame, or for the rest of it, in the checksum of its tree."""
    since_s: float
    """When it was sent, or taken where it does not say."""
    passed: int = 0
    """So many items of it have been sent."""


class Step:
    """Runs the frames of one task. Called by one thread.

    ``write`` is a sink's ``write(batch_id, items)``; None for every other node. ``lets_through`` are
    errors that are no item's fault (a debugger was quit) and end the run. ``skips_decided``: with a journal
    a frame whose batch is decided is left over from an execution that was thrown away; without one it may
    have been given up while its items are still on their way. ``clock`` gives seconds for the busy time only.
    ``guard`` knows which frames are suspect of taking the task down; these are run item by item.
    """

    def __init__(
        self,
        task: TaskIndex,
        node: FrameNode,
        dispatch: Dispatch,
        codec: Codec,
        *,
        write: Callable[[BatchId, list[Any]], None] | None = None,
        origin_names: Callable[[TaskIndex], str] = str,
        lets_through: tuple[type[BaseException], ...] = (),
        skips_decided: bool = False,
        judge: Judge = always_retry,
        guard: Guard | None = None,
        clock: Callable[[], float] = time.monotonic,
        quiet_bytes: int = QUIET_BYTES,
        quiet_s: float = QUIET_S,
    ) -> None:
        self.task = task
        self.counts = Counts()
        self._node = node
        self._dispatch = dispatch
        self._codec = codec
        self._write = write
        self._origin_names = origin_names
        self._lets_through = lets_through
        self._clock = clock
        self._skips_decided = skips_decided
        self._judge = judge
        self._guard = guard or Guard()
        self._quiet_bytes = quiet_bytes
        self._quiet_s = quiet_s
        self._known: dict[TaskIndex, _Known] = {}
        self._told: set[TaskIndex] = set()
        """The origins that have had an acknowledgement."""
        self._cursor: Iterator[Any] = iter(())
        self._out: list[Any] = []

    def progress(self) -> tuple[int, int, int, int]:
        """Changes whenever the task gets on with its work, inside a frame too. Any thread may ask."""
        return self.counts.frames, self._guard.steps, operator.length_hint(self._cursor), len(self._out)

    def run(self, frame: Frame) -> tuple[list[Sent], Ack | None]:
        """Run one frame: the frames to send, and its acknowledgement; None where the origin has nothing to be told.

        That is so of a frame that is not run: it is a repeat, which acknowledged again would undo the first
        acknowledgement, and a sink would get it twice; or it is late: its batch is decided. And see `_close`.
        """
        if self._is_repeat(frame):
            return [], None
        started_s = self.counts.since_s = self._clock()
        self.counts.took(frame.sent_s, started_s)
        failed: list[FailedItem] = []
        suspect = self._guard.take(frame.origin, frame.seq, frame.path)
        items = self._decode(frame, suspect, failed)
        out = self._run(frame, items, failed) if suspect is None else self._run_suspect(frame, suspect, items, failed)
        since_s = frame.sent_s or started_s
        is_suspect = suspect is not None
        return self._close(
            frame, len(items), out, failed, started_s, since_s, is_suspect=is_suspect, holds_up_others=True
        )

    def take(self, frame: Frame) -> Held | None:
        """The first half of `run`, for a node whose items take long: a frame to be held until `put`; None: not run.

        Any number of frames may be held. ``out`` is there where nothing is to be processed, and where the frame is
        suspect of taking the task down: such a one has been run at once, item by item.
        """
        if self._is_repeat(frame):
            return None
        taken_s = self._clock()
        self.counts.took(frame.sent_s, taken_s)
        failed: list[FailedItem] = []
        suspect = self._guard.take(frame.origin, frame.seq, frame.path)
        items = listed(self._decode(frame, suspect, failed))
        out: list[Any] | None = None
        if suspect is not None:
            out = self._run_suspect(frame, suspect, items, failed)
        elif frame.stage is Stage.ROUTE or not items:
            out = items
        self._guard.leave()
        return Held(frame, items, failed, out, frame.frame_id, frame.sent_s or taken_s)

    def put(
        self, held: Held, out: list[Any], errors: Iterable[tuple[Any, BaseException]], busy_s: float
    ) -> tuple[list[Sent], Ack | None]:
        """The second half: what was pushed, and the items that raised. ``busy_s`` is how long the node was at it.

        It counts as no load: others may be held at the same time.
        """
        started_s = self._clock() - busy_s
        frame = held.frame
        self._guard.take(frame.origin, frame.seq, frame.path)
        for item, error in errors:
            if isinstance(error, self._lets_through) or not isinstance(error, USER_ERRORS):
                raise error
            held.failed.append(self._describe(Stage.PROCESS, item, error))
        ran_at_once = held.out is not None  # it may be suspect
        return self._close(
            frame,
            len(held.items),
            out,
            held.failed,
            started_s,
            held.since_s,
            is_suspect=ran_at_once,
            holds_up_others=False,
        )

    def put_some(self, held: Held, most: int, item_load_s: float) -> tuple[list[Sent], Ack]:
        """`put` for so many items of ``held.out``, and no more; it is for nodes that push what they are given.

        Each of them holds the next one up for ``item_load_s``.

        The rest stays, as a frame of its own that nobody has sent: its id is in the acknowledgement. So each one of a
        frame's acknowledgements is another, and with the last one the frame is done. With no items, it only tells
        the origin that the frame has not been forgotten.
        """
        started_s = self._clock()
        frame, out = held.frame, held.out or []
        items, held.out = out[:most], out[most:]
        self._guard.take(frame.origin, frame.seq, frame.path)
        failed, held.failed = held.failed, []
        sent = self._send(frame, items, failed, held.passed)
        held.passed += len(items)
        xor = held.open_id
        if held.out:
            held.open_id = self._dispatch.make_id()
            xor ^= held.open_id
        self._count(len(items), len(items), len(failed), self._clock() - started_s, frames=not held.out)
        return sent, self._ack_for(frame, xor, sent, failed, len(items) * item_load_s)

    def _close(
        self,
        frame: Frame,
        count: int,
        out: list[Any],
        failed: list[FailedItem],
        started_s: float,
        since_s: float,
        *,
        is_suspect: bool,
        holds_up_others: bool,
    ) -> tuple[list[Sent], Ack | None]:
        """Send what was pushed, and sum up what has become of the frame. A suspect goes the way that was rehearsed.

        The whole of a batch that becomes one frame hands its id on to that, so there is nothing to tell: None.
        """
        sent = self._send(frame, out, failed, made_of=None if is_suspect else count)
        now_s = self._clock()
        self._count(count, len(out), len(failed), now_s - started_s)
        load_s = now_s - started_s if holds_up_others else 0.0
        if frame.whole and len(sent) == 1 and not failed:
            made = sent[0].frame
            made.whole, made.load_s = True, frame.load_s + load_s
            is_quiet = now_s - since_s < self._quiet_s and load_s < QUIET_LOAD_S and frame.origin in self._told
            if is_quiet and self._codec.size(made.payload) <= self._quiet_bytes:
                made.frame_id = frame.frame_id
                return sent, None
        return sent, self._ack_for(frame, frame.frame_id, sent, failed, load_s)

    def _send(
        self, frame: Frame, out: list[Any], failed: list[FailedItem], after: int = 0, made_of: int | None = None
    ) -> list[Sent]:
        """Send what was pushed, and leave the guard; what cannot be sent has failed."""
        sent, unsent = self._dispatch.send(out, frame, after, made_of)
        self._guard.leave()
        failed.extend(self._describe(Stage.ROUTE, u.item, u.error) for u in unsent)
        return sent

    def _ack_for(self, frame: Frame, xor: int, sent: list[Sent], failed: list[FailedItem], load_s: float) -> Ack:
        produced_bytes = 0
        self._told.add(frame.origin)
        for message in sent:
            xor ^= message.frame.frame_id
            produced_bytes += self._codec.size(message.frame.payload)
        return Ack(frame.seq, frame.generation, xor, produced_bytes, tuple(failed), load_s=load_s)

    def _decode(self, frame: Frame, suspect: Suspect | None, failed: list[FailedItem]) -> Items:
        """The items of a frame; those that cannot be decoded fail."""
        items, lost = decode_apart(frame.payload, self._codec.decode, suspect, alone=frame.is_retry)
        failed.extend(self._describe(frame.stage, item, item.error) for item in lost)
        return items

    def _run(self, frame: Frame, items: Items, failed: list[FailedItem]) -> list[Any]:
        return listed(items) if frame.stage is Stage.ROUTE else self._process(frame, items, failed)

    def _run_suspect(self, frame: Frame, suspect: Suspect, items: Items, failed: list[FailedItem]) -> list[Any]:
        """Item by item, up to where its outputs could be sent; the guilty fail without being touched."""
        made: list[Any] = []

        def condemn(guilty: Condemned) -> None:
            failed.append(self._describe(frame.stage, *guilty))

        for item in self._guard.one_by_one(suspect, items, self._codec, condemn):
            out = self._run(frame, [item], failed)
            self._dispatch.rehearse(out)
            made += out
        return made

    def run_apart(self, method: Callable[[], object], failed: list[FailedItem]) -> list[Any]:
        """Call what processes what the node has gathered; returns what it pushed. What it raises has failed."""
        pushed: list[Any] = []
        self._node._push_into(pushed)
        try:
            method()
        except self._lets_through:
            raise
        except USER_ERRORS as error:
            failed.append(self._describe(Stage.PROCESS, self._node._blame(None, error), error))
            self.counts.failed += 1
            return []
        return pushed

    def _is_repeat(self, frame: Frame) -> bool:
        known = self._known.get(frame.origin)
        if known is None:
            known = self._known[frame.origin] = _Known()
        if frame.low > known.low:
            known.forget_below(frame.low)
        if frame.seq < known.low and self._skips_decided:
            return True
        seen = known.frames.get(frame.seq)
        if seen is None:
            seen = known.frames[frame.seq] = set()
        if frame.frame_id in seen:
            return True
        seen.add(frame.frame_id)
        return False

    def _process(self, frame: Frame, items: Items, failed: list[FailedItem]) -> list[Any]:
        if self._write is not None:
            self._write_all(self._write, frame, listed(items), failed)
            return []
        out: list[Any] = []
        self._out = out
        self._node._push_into(out)
        self._cursor = cursor = iter(items)
        left = len(items)
        while True:
            before = left
            try:
                self._node._process_frame(cursor, out)
            except self._lets_through:
                raise
            except USER_ERRORS as error:
                left = operator.length_hint(cursor)
                if left == before:
                    raise  # No item is at fault, and trying again would go on for ever.
                item = self._node._blame(items[len(items) - left - 1], error)
                failed += self._failures_of(item, error)
            else:
                left = operator.length_hint(cursor)
                if left == before and left:
                    raise RuntimeError(f"{self._node}: _process_frame returned without taking an item")
            if not left:
                return out

    def _failures_of(self, item: Any, error: BaseException) -> list[FailedItem]:
        """Of an item that stands for many only those parts fail that raised."""
        parts = failed_parts(item, error)
        for _, raised in parts:
            if isinstance(raised, self._lets_through):
                raise raised
        return [self._describe(Stage.PROCESS, *part) for part in parts]

    def _write_all(
        self,
        write: Callable[[BatchId, list[Any]], None],
        frame: Frame,
        items: list[Any],
        failed: list[FailedItem],
    ) -> None:
        """Offer the whole frame; if that raises, half by half, to find the items at fault."""
        batch_id = BatchId(self._origin_names(frame.origin), frame.seq, frame.generation, frame.path)
        parts = [items]
        while parts:
            part = parts.pop()
            try:
                write(batch_id, part)
            except self._lets_through:
                raise
            except USER_ERRORS as error:
                if len(part) > 1 and not isinstance(error, OutageError):
                    middle = len(part) // 2
                    parts += part[middle:], part[:middle]
                else:
                    failed.extend(self._describe(Stage.PROCESS, item, error) for item in part)
            self._guard.steps += 1

    def _describe(self, stage: Stage, item: Any, error: BaseException) -> FailedItem:
        return describe_failure(self.task, stage, item, error, self._codec, self._judge)

    def _count(self, items_in: int, items_out: int, failed: int, busy_s: float, *, frames: int = 1) -> None:
        counts = self.counts
        counts.frames += frames
        counts.items_in += items_in
        counts.items_out += items_out
        counts.failed += failed
        counts.since_s = 0.0
        counts.busy_s += busy_s


def encode_apart(items: Sequence[Any], codec: Codec) -> tuple[Any, Sequence[Any], list[tuple[Any, BaseException]]]:
    """The payload of the items that can be encoded, these items, and the others, each with what it raises."""
    try:
        return codec.encode(items), items, []
    except USER_ERRORS:
        good: list[Any] = []
        refused: list[tuple[Any, BaseException]] = []
    for item in items:
        try:
            codec.encode([item])
        except USER_ERRORS as error:
            refused.append((item, error))
        else:
            good.append(item)
    return codec.encode(good), good, refused


def is_poison(failed: FailedItem) -> bool:
    """Whether it was given up as guilty."""
    return not failed.retryable and failed.error.startswith(f"{PoisonError.__name__}: ")


def describe_failure(
    task: TaskIndex, stage: Stage, item: Any, error: BaseException, codec: Codec, judge: Judge = always_retry
) -> FailedItem:
    """A failed item as it travels to its origin. Never raises, whatever the item's own methods do."""
    retryable = not isinstance(error, PoisonError)
    treatment = judge(error, unlabelled(item))
    try:
        payload = _encode_failed(item, codec)
    except USER_ERRORS as problem:
        payload, retryable = None, False
        add_note(error, f"the item cannot be kept for another try: {text_of(problem)}")
    shown = shorten_repr(item)
    return FailedItem(task, stage, payload, text_of(error), _traceback_of(error), retryable, shown, treatment)


def _encode_failed(item: Any, codec: Codec) -> Any:
    """What stands for a guilty item brings its payload along."""
    if isinstance(item, LostItem) and item.payload is not None:
        return item.payload
    return codec.encode_failed(item)


def _traceback_of(error: BaseException) -> str:
    """The user's part of the traceback: the step's own frames say nothing. Of a crash, the stack it has left."""
    if isinstance(error, PoisonError):
        return error.stack or f"{error}\nThere is no stack: the process left by itself, or was killed."
    tb = error.__traceback__
    own = tb.tb_frame.f_code.co_filename if tb is not None else ""
    while tb is not None and tb.tb_next is not None and tb.tb_frame.f_code.co_filename == own:
        tb = tb.tb_next
    return traceback_of(error, tb)


def shorten_repr(item: Any) -> str:
    """``repr(item)``, at most 200 characters, even where ``__repr__`` raises."""
    try:
        text = repr(item)
    except USER_ERRORS as error:
        text = f"<{type(item).__name__}, whose repr raises {type(error).__name__}>"
    return text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 3] + "..."
