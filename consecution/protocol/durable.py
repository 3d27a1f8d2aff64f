"""The durable task: stages frames in its inbox, applies them when their batch is decided, keeps the ledger.

The rules this file keeps:

1. A frame is acknowledged only after it lies in the inbox (`Turn.changes`, then `Turn.acks`). Nothing of
   it is applied yet, so an execution that is thrown away leaves no trace.
2. A batch is applied only when it is decided, and of its frames exactly those of the decided generation. Its origin
   decides, and says ``go``; but for rule 6.
3. Batches of one origin are applied in ``seq`` order, each once: a ``go`` waits until the ledger has reached
   its ``after``, and what the ledger has is confirmed again. Origins take turns.
4. What the application changes, the ledger, and the emptied inbox are one commit; only then the origin is
   told (`Turn.confirms`).
5. Frames below an origin's ``low`` belong to executions that were thrown away; they are dropped.
6. A frame that is the ``whole`` of its batch's first execution is decided here, by the commit that stages it, if all
   earlier batches of its origin are applied, decided, or known to be over, and no later execution of it was met. From
   then on no other execution of it is staged; whoever sends one is told when the batch is applied. A crash does
   not change that: as the whole nothing else lies in the inbox. What cannot be applied by the next turn is
   acknowledged, too.
7. Where an application that was not committed leaves no trace after a crash, the commit that decides such a frame may
   apply it, too: it never lies in the inbox. What is not applied by then is staged, as rule 6 has it.

The core neither stores nor sends. It collects what has to be done in a `Turn`; the shell around it first
commits ``changes`` together with what the application itself has changed, and only then answers.

Source: staging and decision are two-phase commit, and rule 6 is its case of a single participant, which is asked after
a crash; the ordered ledger is Trident's, the rule that outputs and state are one commit is MillWheel's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from consecution.errors import ProtocolError
from consecution.protocol.values import Ack, Confirm, FailedItem, Frame, Go, TaskIndex


class FrameStaged(NamedTuple):
    """The frame enters the inbox under ``(origin, seq, generation, frame_id)``."""

    frame: Frame


class FramesDropped(NamedTuple):
    """These frames leave the inbox: they were applied, or their execution was thrown away."""

    frames: tuple[Frame, ...]


class LedgerMoved(NamedTuple):
    """The last batch of ``origin`` that was applied here is ``seq``."""

    origin: TaskIndex
    seq: int


DurableChange = FrameStaged | FramesDropped | LedgerMoved


class Application(NamedTuple):
    """A decided batch whose turn has come; ``frames`` are ordered by path."""

    origin: TaskIndex
    seq: int
    generation: int
    frames: tuple[Frame, ...]


@dataclass(slots=True)
class DurableTurn:
    """What one turn has to do, in this order: commit, then answer."""

    changes: list[DurableChange] = field(default_factory=list)
    acks: list[tuple[TaskIndex, Ack]] = field(default_factory=list)
    confirms: list[tuple[TaskIndex, Confirm]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changes or self.acks or self.confirms)


class _Incoming:
    """What one origin has sent: frames by seq, ``go``s by seq, and its books here."""

    __slots__ = ("applied", "decided", "gos", "last", "low", "staged")

    def __init__(self, applied: int) -> None:
        self.applied = self.last = applied
        """``last``: the last batch of which it is known that it is applied here, or will be; so is all before it."""
        self.low = 0
        self.staged: dict[int, dict[int, Frame]] = {}
        """seq → frame id → frame, of all generations."""
        self.gos: dict[int, Go] = {}
        self.decided: dict[int, Frame] = {}
        """Batches that were decided here, and are not applied yet: the frame that is the whole of each."""


class Durable:
    """Inbox and ledger of one durable task. Called by one thread.

    ``ledger`` and ``staged`` are what the store held when it was opened. ``applies_at_once``: rule 7 holds.
    """

    def __init__(
        self,
        ledger: dict[TaskIndex, int] | None = None,
        staged: Iterable[Frame] = (),
        *,
        applies_at_once: bool = False,
    ) -> None:
        self._applies_at_once = applies_at_once
        self._origins = {origin: _Incoming(seq) for origin, seq in (ledger or {}).items()}
        for frame in staged:
            self._incoming(frame.origin).staged.setdefault(frame.seq, {})[frame.frame_id] = frame
        self._only: TaskIndex | None = None
        self._turn = DurableTurn()
        self._deciding: list[tuple[TaskIndex, Go]] = []
        """What the next commit decides,"""
        self._late: list[tuple[TaskIndex, int]] = []
        """and what the last one has, unless it is applied by now."""
        self._unstaged: dict[tuple[TaskIndex, int], Frame] = {}
        """What the next commit decides, and may be applied before: it is staged then if it was not."""
        for incoming in self._origins.values():
            self._decide_again(incoming)

    def _decide_again(self, incoming: _Incoming) -> None:
        """What was decided here before a crash is decided: some of it may have been written already."""
        decided = [frame for by_id in incoming.staged.values() for frame in by_id.values() if frame.whole]
        for frame in decided:
            incoming.gos[frame.seq] = self._decide(incoming, frame)

    def _incoming(self, origin: TaskIndex) -> _Incoming:
        found = self._origins.get(origin)
        if found is None:
            found = self._origins[origin] = _Incoming(-1)
        return found

    @property
    def staged_count(self) -> int:
        """Frames in the inbox. Any thread may ask: of what may grow meanwhile it looks at a copy."""
        return sum(len(by_id) for incoming in list(self._origins.values()) for by_id in list(incoming.staged.values()))

    def applied(self, origin: TaskIndex) -> int:
        """The last batch of this origin in the ledger; -1 if there is none."""
        return self._incoming(origin).applied

    def decided_here(self, origin: TaskIndex, seq: int) -> Frame | None:
        """What is to be applied of a batch that was decided here; None if it was not, or is applied."""
        return self._incoming(origin).decided.get(seq)

    def stage(self, frame: Frame, failed: tuple[FailedItem, ...] = ()) -> bool:
        """Take a frame into the inbox; ``failed`` are items of it that cannot be stored.

        False for a repeat, and for a thrown-away execution: no answer is due.
        """
        if self._only is not None and frame.origin != self._only:
            return False
        incoming = self._incoming(frame.origin)
        self._raise_low(incoming, frame.low)
        if frame.seq < incoming.low and frame.seq not in incoming.gos:
            return False
        if frame.seq <= incoming.applied:
            self._turn.confirms.append((frame.origin, Confirm(frame.seq)))
            return False
        if frame.seq in incoming.decided:
            return False
        by_id = incoming.staged.setdefault(frame.seq, {})
        if frame.frame_id in by_id:
            return False
        by_id[frame.frame_id] = frame
        frame.whole = frame.whole and not failed and self._may_decide(incoming, frame)
        if frame.whole and self._applies_at_once:
            incoming.gos[frame.seq] = self._decide(incoming, frame)
            self._unstaged[frame.origin, frame.seq] = frame
            return True
        self._turn.changes.append(FrameStaged(frame))
        if frame.whole:
            self._deciding.append((frame.origin, self._decide(incoming, frame)))
        else:
            self._turn.acks.append((frame.origin, _ack(frame, failed)))
        return True

    def _may_decide(self, incoming: _Incoming, frame: Frame) -> bool:
        return self._is_next(incoming, frame) and not self._runs_again(incoming, frame)

    @staticmethod
    def _is_next(incoming: _Incoming, frame: Frame) -> bool:
        """Whether all is known that can ever be applied here of the batches before it."""
        return frame.seq not in incoming.gos and frame.seq in (incoming.last + 1, frame.low)

    @staticmethod
    def _runs_again(incoming: _Incoming, frame: Frame) -> bool:
        """Whether a later execution was met here: its origin goes by that one."""
        return any(other.generation > frame.generation for other in incoming.staged[frame.seq].values())

    def _decide(self, incoming: _Incoming, frame: Frame) -> Go:
        incoming.decided[frame.seq] = frame
        incoming.last = max(incoming.last, frame.seq)
        return Go(frame.seq, frame.generation, self._after(frame), frame.low, frame.frame_id)

    @staticmethod
    def _after(frame: Frame) -> int:
        """The last batch before it that is applied here; -1: all are applied everywhere."""
        return -1 if frame.seq == frame.low else frame.seq - 1

    def go(self, origin: TaskIndex, go: Go) -> None:
        """A batch is decided. What the ledger has already is confirmed again."""
        incoming = self._incoming(origin)
        if go.seq <= incoming.applied:
            self._turn.confirms.append((origin, Confirm(go.seq)))
        elif go.seq not in incoming.decided:
            incoming.gos[go.seq] = go
            incoming.last = max(incoming.last, go.seq)
        self._raise_low(incoming, go.low)

    @property
    def has_decided(self) -> bool:
        """Whether the last commit has decided anything that is not applied yet."""
        return bool(self._late)

    def acknowledge_late(self) -> None:
        """What was decided here and could not be applied since has its origin decide it, too, which then goes on."""
        late, self._late = self._late, []
        for origin, seq in late:
            frame = self.decided_here(origin, seq)
            if frame is not None:
                self._turn.acks.append((origin, _ack(frame)))

    def next_application(self, only: TaskIndex | None = None) -> Application | None:
        """The next batch that may be applied now, ``only`` of this origin if one is named; None while there is none.

        Say `apply` once it has been. ProtocolError if frames of a decided execution are not in the inbox: that is
        damage.
        """
        for origin, incoming in self._origins.items():
            if not incoming.gos or only not in (None, origin):
                continue
            go = incoming.gos[min(incoming.gos)]
            if go.after <= incoming.applied:
                return Application(origin, go.seq, go.generation, self._frames_of(origin, incoming, go))
        return None

    def _frames_of(self, origin: TaskIndex, incoming: _Incoming, go: Go) -> tuple[Frame, ...]:
        staged = incoming.staged.get(go.seq, {}).values()
        frames = tuple(sorted((f for f in staged if f.generation == go.generation), key=lambda f: f.path))
        xor = 0
        for frame in frames:
            xor ^= frame.frame_id
        if xor != go.xor or not frames:
            raise ProtocolError(
                f"the inbox lacks frames of batch {go.seq} of origin {origin} that were acknowledged: expected "
                f"generation {go.generation} with checksum {go.xor:016x}, found {len(frames)} frames with {xor:016x}; "
                "the store is damaged: restore the state directory from a backup"
            )
        return tuple(frame for frame in frames if not frame.is_fence)

    def apply(self, application: Application) -> None:
        """The batch is applied: its effects, the ledger and the emptied inbox go into the next commit."""
        # Its next batch comes after those of others.
        incoming = self._origins[application.origin] = self._origins.pop(application.origin)
        incoming.applied = application.seq
        del incoming.gos[application.seq]
        whole = incoming.decided.pop(application.seq, None)
        # Of a batch before it no ``go`` can come any more: what is left there is of executions that were thrown away.
        over = [seq for seq in incoming.staged if seq <= application.seq and seq not in incoming.gos]
        unstaged = self._unstaged.pop((application.origin, application.seq), None)
        dropped = [frame for seq in over for frame in incoming.staged.pop(seq).values() if frame is not unstaged]
        changes = self._turn.changes
        changes.append(FramesDropped(tuple(dropped)))
        changes.append(LedgerMoved(application.origin, application.seq))
        load_s = 0.0 if whole is None else whole.load_s
        self._turn.confirms.append((application.origin, Confirm(application.seq, load_s)))

    def finish(self, only: TaskIndex) -> None:
        """The stream has ended, and everything above is applied; ``only`` one origin, this task's own, goes on.

        What is still staged of the others, or comes in later, is left of executions that were thrown away.
        """
        self._only = only
        for origin, incoming in self._origins.items():
            if origin != only:
                self._drop(incoming, list(incoming.staged))

    def _raise_low(self, incoming: _Incoming, low: int) -> None:
        if low <= incoming.low:
            return
        incoming.low = low
        stale = [seq for seq in incoming.staged if seq < low and seq not in incoming.gos]
        self._drop(incoming, stale)

    def _drop(self, incoming: _Incoming, seqs: list[int]) -> None:
        for seq in seqs:
            self._turn.changes.append(FramesDropped(tuple(incoming.staged.pop(seq).values())))

    @property
    def owes(self) -> bool:
        """Whether `take_turn` would return anything."""
        return bool(self._turn or self._unstaged)

    def take_turn(self) -> DurableTurn:
        """Everything to be done since the last call: commit, then answer."""
        turn, self._turn = self._turn, DurableTurn()
        unstaged, self._unstaged = self._unstaged, {}
        turn.changes.extend(FrameStaged(frame) for frame in unstaged.values())
        self._late.extend(unstaged)
        deciding, self._deciding = self._deciding, []
        for origin, go in deciding:
            self._origins[origin].gos[go.seq] = go
            self._late.append((origin, go.seq))
        return turn


def _ack(frame: Frame, failed: tuple[FailedItem, ...] = ()) -> Ack:
    return Ack(frame.seq, frame.generation, frame.frame_id, 0, failed, staged=True, load_s=frame.load_s)
