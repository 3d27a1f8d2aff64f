"""Where the items that a task pushed go: over its outlets, as frames to the tasks behind them.

An outlet is an edge or a route between edges. Each edge groups: to the one task behind it, to the
replica with the fewest unanswered items (shuffle), or to the replica that owns the item's key.
Routing and encoding are settled for all outlets before anything is sent, so that an item which one of
them refuses reaches none of them.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple, Protocol

from consecution.protocol.values import USER_ERRORS, Frame, FrameId, Labelled, Stage, TaskIndex

SPEED_SHARE = 1 / 4
"""So much an answer counts in what is known of the speed of replicas."""


class Partition(Protocol):
    """Splits items over ``ways`` ways, order kept within each; raises if one of them has no way."""

    ways: int

    def split(self, items: Sequence[Any]) -> list[list[Any]]: ...


class Encoder(Protocol):
    def encode(self, items: Sequence[Any]) -> Any: ...


class Sent(NamedTuple):
    """A frame and the task it goes to."""

    target: TaskIndex
    frame: Frame


class Unsent(NamedTuple):
    """An item that could not be routed or encoded, and why."""

    item: Any
    error: BaseException


def _no_time() -> float:
    return 0.0


class Credits:
    """What each replica of one shuffle edge has not answered for; the freest gets the next frame.

    It is counted in items: frames differ in size, and the last ones of a stream all the more. With a ``clock`` (in
    seconds) what a replica will have done of the frame it is at counts as done.
    """

    def __init__(self, targets: tuple[TaskIndex, ...], clock: Callable[[], float] = _no_time) -> None:
        self._clock = clock
        self._open = dict.fromkeys(targets, 0)
        self._frames: dict[TaskIndex, deque[int]] = {target: deque() for target in targets}
        """The items of each unanswered frame, in the order in which they were sent."""
        self._begun_s = dict.fromkeys(targets, 0.0)
        """Since when each is at the oldest of these."""
        self._item_s = 0.0
        """How long a replica is at an item, as its latest answers show."""
        self._turn = 0

    def spend(self, items: int, targets: tuple[TaskIndex, ...]) -> TaskIndex:
        """Which of these replicas gets the next frame, which has so many items; ties go round."""
        self._turn += 1
        at = self._turn % len(targets)
        now_s = self._clock()
        chosen = min(targets[at:] + targets[:at], key=lambda target: self._open[target] - self._done(target, now_s))
        self._open[chosen] += items
        self._frames[chosen].append(items)
        if len(self._frames[chosen]) == 1:
            self._begun_s[chosen] = now_s
        return chosen

    def _done(self, target: TaskIndex, now_s: float) -> float:
        """How many items of the frame it is at the replica has done, if it does them as fast as those before.

        Not all of them, for it has not answered: it may hang at one.
        """
        frames = self._frames[target]
        if not frames or not self._item_s:
            return 0.0
        return min(frames[0] - 1, max(0.0, now_s - self._begun_s[target]) / self._item_s)

    def give_back(self, target: TaskIndex, count: int) -> None:
        """The replica has answered for so many frames, as a rule its oldest."""
        frames = self._frames.get(target) or deque()
        done = sum(frames.popleft() for _ in range(min(count, len(frames))))
        if done:
            now_s = self._clock()
            item_s = max(0.0, now_s - self._begun_s[target]) / done
            self._item_s += (item_s - self._item_s) * (SPEED_SHARE if self._item_s else 1.0)
            self._begun_s[target] = now_s
            self._open[target] -= done

    def take_back(self, target: TaskIndex) -> None:
        """The latest frame for this replica is not sent."""
        self._open[target] -= self._frames[target].pop()

    def reset(self, target: TaskIndex) -> None:
        """A new incarnation owes nothing."""
        if target in self._open:
            self._open[target] = 0
            self._frames[target].clear()


class SingleEdge:
    """An edge to a node with one task."""

    def __init__(self, index: int, target: TaskIndex) -> None:
        self.index = index
        self.target = target

    def plan(self, items: Sequence[Any], parts: list[Part]) -> None:
        parts.append(Part(self.index, items, (self.target,)))


class ShuffleEdge:
    """An edge to a node with several tasks, any of which will do."""

    def __init__(self, index: int, targets: tuple[TaskIndex, ...], clock: Callable[[], float] = _no_time) -> None:
        self.index = index
        self.credits = Credits(targets, clock)
        self._targets = targets

    def plan(self, items: Sequence[Any], parts: list[Part]) -> None:
        parts.append(Part(self.index, items, self._targets, self.credits))


class LocalEdge:
    """An edge to a node of which each worker has replicas: to those next door.

    All ``targets`` share what fewer items than these have become (`Dispatch.send`).
    """

    def __init__(
        self,
        index: int,
        near: tuple[TaskIndex, ...],
        targets: tuple[TaskIndex, ...],
        clock: Callable[[], float] = _no_time,
    ) -> None:
        self.index = index
        self.credits = Credits(targets, clock)
        self._near = near
        self._targets = targets

    def plan(self, items: Sequence[Any], parts: list[Part]) -> None:
        parts.append(Part(self.index, items, self._near, self.credits, all_targets=self._targets))


class KeyedEdge:
    """An edge to a node grouped by key: the same key, the same task."""

    def __init__(self, index: int, targets: tuple[TaskIndex, ...], partition: Partition) -> None:
        self.index = index
        self._targets = targets
        self._partition = partition

    def plan(self, items: Sequence[Any], parts: list[Part]) -> None:
        targets = self._targets
        for way, part in enumerate(self._partition.split(items)):
            if part:
                parts.append(Part(self.index, part, (targets[way],), None, way, len(targets)))


class LabellingEdge:
    """An edge to a node that wants to know by which of its edges an item comes."""

    def __init__(self, edge: Edge, label: str) -> None:
        self.edge = edge
        self._label = label

    def plan(self, items: Sequence[Any], parts: list[Part]) -> None:
        self.edge.plan([Labelled(self._label, item) for item in items], parts)


class RouteOutlet:
    """A choice, item by item, between outlets."""

    def __init__(self, partition: Partition, outlets: tuple[tuple[Outlet, ...], ...]) -> None:
        self._partition = partition
        self._outlets = outlets

    def plan(self, items: Sequence[Any], parts: list[Part]) -> None:
        for part, outlets in zip(self._partition.split(items), self._outlets, strict=True):
            for outlet in outlets if part else ():
                outlet.plan(part, parts)


Edge = SingleEdge | ShuffleEdge | LocalEdge | KeyedEdge
Outlet = Edge | LabellingEdge | RouteOutlet


class Part(NamedTuple):
    """Items bound for one edge: for the one of ``targets``, or of several for whichever has the most credit.

    ``way`` tells the parts of one edge apart: 0 to ``ways`` - 1, the same for the same key. ``all_targets`` share
    what a few items have become, if they are more than ``targets``.
    """

    edge: int
    items: Sequence[Any]
    targets: tuple[TaskIndex, ...]
    credits: Credits | None = None
    way: int = 0
    ways: int = 1
    all_targets: tuple[TaskIndex, ...] = ()

    def targets_for(self, made_of: int | None) -> tuple[TaskIndex, ...]:
        """Who shares it, where so many items have become these."""
        if made_of is not None and made_of < min(len(self.all_targets), len(self.items)):
            return self.all_targets
        return self.targets


class _Piece(NamedTuple):
    """What one frame will carry, to whom, and the last element of its path."""

    target: TaskIndex
    credits: Credits | None
    element: int
    payload: Any


class Dispatch:
    """Turns what one task pushed into frames.

    ``local`` are the tasks in the sender's own worker: what goes to them stays a list of live items.

    ``max_frame_items`` bounds a frame: what a flat-map makes of one item may fill many.
    ``edge_count`` is the plan's, so that a path element names both the edge and the place of a frame
    among those that one frame became on that edge. The place depends on keys and order alone, not on
    which replica was free.
    """

    def __init__(
        self,
        task: TaskIndex,
        outlets: tuple[Outlet, ...],
        codec: Encoder,
        make_id: Callable[[], FrameId],
        *,
        edge_count: int,
        max_frame_items: int,
        local: Container[TaskIndex] = (),
    ) -> None:
        self._local = local
        self._task = task
        self._outlets = outlets
        self._codec = codec
        self.make_id = make_id
        self._edge_count = edge_count
        self._max_frame_items = max_frame_items
        self.credits = tuple(_credits_of(outlets))

    @property
    def has_outlets(self) -> bool:
        return bool(self._outlets)

    def send(
        self, items: Sequence[Any], cause: Frame, after: int = 0, made_of: int | None = None
    ) -> tuple[list[Sent], list[Unsent]]:
        """Frames for ``items``, which descend from ``cause``, and the items that cannot be sent.

        ``after`` is how many were sent before, where a frame is sent on in parts: no two of these have one path.
        ``made_of``: how many items have become these; replicas share what has become more, for it may be all there is.
        """
        if not items or not self._outlets:
            return [], []
        unsent: list[Unsent] = []
        try:
            packed = self._pack(self._plan(items), after, made_of)
        except USER_ERRORS:
            packed = self._pack(self._plan_one_by_one(items, unsent), after)  # next door an item need not be encoded
        return [self._address(piece, cause) for piece in packed], unsent

    def rehearse(self, items: Sequence[Any]) -> None:
        """Route and encode, and send nothing: if that takes the process down, it does so here."""
        with contextlib.suppress(*USER_ERRORS):
            self._give_back(self._pack(self._plan(items)))

    def _plan(self, items: Sequence[Any]) -> list[Part]:
        parts: list[Part] = []
        for outlet in self._outlets:
            outlet.plan(items, parts)
        return parts

    def _plan_one_by_one(self, items: Sequence[Any], unsent: list[Unsent]) -> list[Part]:
        """The parts of the items that every outlet takes and that can be encoded; the others go to ``unsent``.

        Each item is routed here once and for all: a router that is asked again may answer differently.
        """
        parts: dict[tuple[int, int], tuple[Part, list[Any]]] = {}
        for item in items:
            try:
                ways = self._plan([item])
                if any(target not in self._local for way in ways for target in way.targets):
                    self._codec.encode([item])
            except USER_ERRORS as error:
                unsent.append(Unsent(item, error))
                continue
            for way in ways:
                parts.setdefault((way.edge, way.way), (way, []))[1].extend(way.items)
        return [way._replace(items=routed) for way, routed in parts.values()]

    def _pack(self, parts: list[Part], after: int = 0, made_of: int | None = None) -> list[_Piece]:
        """Each part, cut into what frames will carry; all or nothing.

        No two frames that one frame becomes have the same path. A part that is not cut is encoded as the
        very list it is, so that a codec can tell that it has encoded it before.
        """
        packed: list[_Piece] = []
        try:
            for part in parts:
                items, targets = part.items, part.targets_for(made_of)
                credits = part.credits if len(targets) > 1 else None
                size = self._frame_items(len(items), len(targets), made_of)
                for place, start in enumerate(range(0, len(items), size), after):
                    element = part.edge + (part.way + place * part.ways) * self._edge_count
                    piece = items if len(items) <= size else items[start : start + size]
                    target = targets[0] if credits is None else credits.spend(len(piece), targets)
                    packed.append(_Piece(target, credits, element, piece))
            return [
                piece if piece.target in self._local else piece._replace(payload=self._codec.encode(piece.payload))
                for piece in packed
            ]
        except USER_ERRORS:
            self._give_back(packed)
            raise

    def _frame_items(self, count: int, targets: int, made_of: int | None) -> int:
        """How many of so many items go into a frame: a part for each target, where a few items have become many."""
        if made_of is None or targets == 1:
            return self._max_frame_items
        return min(self._max_frame_items, max(made_of, math.ceil(count / targets)))

    def _give_back(self, packed: list[_Piece]) -> None:
        """Nothing of this is sent."""
        for piece in packed:
            if piece.credits is not None:
                piece.credits.take_back(piece.target)

    def _address(self, piece: _Piece, cause: Frame) -> Sent:
        frame = Frame(
            cause.origin,
            cause.seq,
            cause.generation,
            (*cause.path, piece.element),
            self.make_id(),
            cause.low,
            self._task,
            Stage.PROCESS,
            piece.credits is not None,
            piece.payload,
        )
        return Sent(piece.target, frame)


def _credits_of(outlets: tuple[Outlet, ...]) -> list[Credits]:
    found: list[Credits] = []
    for outlet in outlets:
        if isinstance(outlet, LabellingEdge):
            found.extend(_credits_of((outlet.edge,)))
        elif isinstance(outlet, (ShuffleEdge, LocalEdge)):
            found.append(outlet.credits)
        elif isinstance(outlet, RouteOutlet):
            for branch in outlet._outlets:
                found.extend(_credits_of(branch))
    return found
