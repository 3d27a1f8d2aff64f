"""Strategies that more than one test draws from: tuple trees, and failed items."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from consecution.protocol.values import FailedItem, FrameId, Stage, TaskIndex


@dataclass
class TreeFrame:
    """A frame of a tuple tree, and the frames it becomes."""

    frame_id: FrameId
    children: list[TreeFrame] = field(default_factory=list)
    fails: int = 0

    @property
    def xor(self) -> int:
        """What its acknowledgement holds."""
        found = int(self.frame_id)
        for child in self.children:
            found ^= child.frame_id
        return found

    def all(self) -> list[TreeFrame]:
        return [self, *(frame for child in self.children for frame in child.all())]


@dataclass
class Tree:
    """Everything that one execution of a batch becomes; no frames if the origin had nothing to send."""

    roots: list[TreeFrame]

    @property
    def xor(self) -> int:
        """What the origin folds in when all roots are sent."""
        found = 0
        for root in self.roots:
            found ^= root.frame_id
        return found

    def all(self) -> list[TreeFrame]:
        return [frame for root in self.roots for frame in root.all()]


@st.composite
def trees(draw: st.DrawFn, most_frames: int = 12) -> Tree:
    """Any shape: each frame hangs below an earlier one, or below the origin.

    No XOR of some ids is that of others: random ids of 64 bits are like that, those of hypothesis are not.
    """
    count = draw(st.integers(0, most_frames))
    first_bit = draw(st.integers(0, 63 - most_frames))
    tree = Tree([])
    frames: list[TreeFrame] = []
    for place in range(count):
        frame = TreeFrame(FrameId(1 << first_bit + place), fails=draw(st.sampled_from((0, 0, 0, 1, 2))))
        parent = draw(st.sampled_from((None, *range(len(frames)))))
        (tree.roots if parent is None else frames[parent].children).append(frame)
        frames.append(frame)
    return tree


def failed_item(number: int = 0, *, task: int = 1, stage: Stage = Stage.PROCESS, retryable: bool = True) -> FailedItem:
    """An item that raised."""
    return FailedItem(TaskIndex(task), stage, (number,), "ValueError: no", "Traceback", retryable, str(number))
