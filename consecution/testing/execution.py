"""What one execution of one batch really did, as an onlooker sees it who is told of every frame."""

from __future__ import annotations

import functools
import operator
from collections.abc import Container, Sequence

from consecution.protocol.values import BatchId, FailedItem, Frame, TaskIndex
from consecution.testing.violation import Violation
from consecution.testing.world import Item


class Execution:
    """The tree of one (seq, generation): frames declared, frames done, failures, writes.

    A frame is known by the object it is, not by its id: a protocol that mixes up ids is found out.
    """

    def __init__(self, seq: int, generation: int) -> None:
        self.seq = seq
        self.generation = generation
        self.failed: list[FailedItem] = []
        self.writes: list[tuple[int, Item]] = []
        self._declared: dict[int, Frame] = {}
        self._done: set[int] = set()
        self._bound: dict[TaskIndex, list[Frame]] = {}
        self._paths: dict[tuple[int, tuple[int, ...]], Frame] = {}

    def declare(self, frame: Frame, target: TaskIndex) -> None:
        """A frame of this execution came into being: somebody will send it."""
        self._declared[id(frame)] = frame
        self._bound.setdefault(target, []).append(frame)

    def bound_for(self, task: TaskIndex) -> list[Frame]:
        """All frames of this execution that were sent to a task and hold something, by path."""
        held = (frame for frame in self._bound.get(task, ()) if not frame.is_fence)
        return sorted(held, key=lambda frame: frame.path)

    def participants(self, durable: Container[TaskIndex]) -> dict[TaskIndex, int]:
        """The durable tasks that frames were sent to, each with the folded ids of these."""
        folded: dict[TaskIndex, int] = {}
        for task, frames in self._bound.items():
            if task in durable:
                folded[task] = functools.reduce(operator.xor, (frame.frame_id for frame in frames))
        return folded

    def finish(self, frame: Frame, failed: Sequence[FailedItem]) -> None:
        """A task has run the frame. Run once more (a repeat nobody counts), it adds nothing."""
        if not self.has_done(frame):
            self._done.add(id(frame))
            self.failed += failed

    def write(self, sink: int, frame: Frame, batch_id: BatchId, items: Sequence[Item]) -> None:
        """A sink has taken items in; (sink, path) must name one frame of the execution."""
        first = self._paths.setdefault((sink, batch_id.path), frame)
        if first is not frame:
            raise Violation(f"{self}: two frames reached sink {sink} as {batch_id}")
        if not self.has_done(frame):
            self.writes += [(sink, item) for item in items]

    def has_done(self, frame: Frame) -> bool:
        """Whether a task has run this frame to its end before."""
        return id(frame) in self._done

    def check_complete(self) -> None:
        """Raise unless every frame of this execution was really run."""
        missing = [frame for key, frame in self._declared.items() if key not in self._done]
        if missing:
            raise Violation(f"{self}: decided, but {len(missing)} frames were never processed, first {missing[0]}")

    def __str__(self) -> str:
        return f"batch {self.seq}, generation {self.generation}"
