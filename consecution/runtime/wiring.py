"""From the plan of a node to the dispatch its tasks use: edges, groupings and routes made ready."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from consecution.errors import GraphError
from consecution.plan import EdgePlan, Grouping, Outlet, Plan
from consecution.protocol.dispatch import (
    Dispatch,
    Edge,
    Encoder,
    KeyedEdge,
    LabellingEdge,
    LocalEdge,
    RouteOutlet,
    ShuffleEdge,
    SingleEdge,
)
from consecution.protocol.dispatch import Outlet as DispatchOutlet
from consecution.protocol.values import USER_ERRORS, FrameId, Labelled, TaskIndex
from consecution.reduction import PartTable
from consecution.routing import ColumnSplitter, KeyedRouter, RouteChooser

FRAME_STRETCH = 16
"""A frame may hold this many times the batch size before a flat-map's output is cut into more."""


def make_frame_ids() -> Callable[[], FrameId]:
    """A source of 64-bit random ids, never 0, from the system's generator, drawn in blocks."""
    pool: list[int] = []

    def draw() -> FrameId:
        while True:
            if not pool:
                block = os.urandom(8 * 512)
                pool.extend(int.from_bytes(block[i : i + 8], "little") for i in range(0, len(block), 8))
            drawn = pool.pop()
            if drawn:
                return FrameId(drawn)

    return draw


def make_dispatch(
    plan: Plan,
    task: TaskIndex,
    codec: Encoder,
    make_id: Callable[[], FrameId] | None = None,
    outlets: tuple[DispatchOutlet, ...] | None = None,
) -> Dispatch:
    """The dispatch of one task, for what it pushes unless ``outlets`` are given.

    Every call has its own credits and its own round robin.
    """
    if outlets is None:
        outlets = make_outlets(plan, task, plan.node(plan.task(task).node).outlets)
    return Dispatch(
        task,
        outlets,
        codec,
        make_id or make_frame_ids(),
        edge_count=max(1, len(plan.edges)),
        max_frame_items=plan.options.batch_size * FRAME_STRETCH,
        local=_hands_over(plan, task),
    )


def _mates(plan: Plan, task: TaskIndex) -> frozenset[TaskIndex]:
    """The tasks of the same worker, this one included."""
    return frozenset(TaskIndex(index) for index in plan.worker_of(task).tasks)


def _hands_over(plan: Plan, task: TaskIndex) -> frozenset[TaskIndex]:
    """The mates that get live items.

    What a durable task pushes may be its state, and what one stages nobody may change: both are made bytes anyway, for
    the journal and the inbox.
    """
    if plan.node(plan.task(task).node).durable:
        return frozenset()
    return frozenset(mate for mate in _mates(plan, task) if not plan.node(plan.task(mate).node).durable)


def make_outlets(plan: Plan, task: TaskIndex, outlets: tuple[Outlet, ...]) -> tuple[DispatchOutlet, ...]:
    """Ways out of a node, made ready for this task; every call has its own credits and its own round robin."""
    mates = _mates(plan, task)
    return tuple(_make_outlet(plan, outlet, mates) for outlet in outlets)


def _make_outlet(plan: Plan, outlet: Outlet, mates: frozenset[TaskIndex]) -> DispatchOutlet:
    if isinstance(outlet, EdgePlan):
        edge = _make_edge(plan, outlet, mates)
        return LabellingEdge(edge, outlet.branch) if outlet.branch else edge
    branches = tuple(tuple(_make_outlet(plan, o, mates) for o in branch) for branch in outlet.outlets)
    if outlet.by_output:
        return RouteOutlet(_OutputPartition(outlet.choices), branches)
    chooser = RouteChooser(outlet.name, outlet.choose, outlet.choices)
    return RouteOutlet(_ChoicePartition(chooser, len(outlet.choices)), branches)


def _make_edge(plan: Plan, edge: EdgePlan, local: frozenset[TaskIndex]) -> Edge:
    node = plan.node(edge.target)
    targets = tuple(TaskIndex(index) for index in node.tasks)
    if edge.grouping is Grouping.LOCAL:
        # None is: a source that was to be read in every worker, and can only be read elsewhere.
        near = tuple(target for target in targets if target in local) or targets
        return LocalEdge(edge.index, near, targets, time.monotonic) if node.replicas_given else _any_edge(edge, near)
    if len(targets) == 1 or edge.grouping is Grouping.SHUFFLE:
        return _any_edge(edge, targets)
    if edge.grouping is Grouping.PARTS:
        return KeyedEdge(edge.index, targets, _PartsPartition(len(targets)))
    assert edge.key_function is not None
    router = KeyedRouter(edge.key_function, len(targets))
    partition = _TargetAsksPartition if edge.target_asks else _KeyPartition
    return KeyedEdge(edge.index, targets, partition(router, len(targets)))


def _any_edge(edge: EdgePlan, targets: tuple[TaskIndex, ...]) -> SingleEdge | ShuffleEdge:
    return SingleEdge(edge.index, targets[0]) if len(targets) == 1 else ShuffleEdge(edge.index, targets, time.monotonic)


class _KeyPartition:
    def __init__(self, router: KeyedRouter, ways: int) -> None:
        self.ways = ways
        self.split = router.partition


class _TargetAsksPartition:
    """What has no key goes to the first replica, where it fails as it would if that were the only one."""

    def __init__(self, router: KeyedRouter, ways: int) -> None:
        self.ways = ways
        self._router = router

    def split(self, items: Sequence[Any]) -> list[list[Any]]:
        try:
            return self._router.partition(items)
        except USER_ERRORS:
            return self._split_one_by_one(items)

    def _split_one_by_one(self, items: Sequence[Any]) -> list[list[Any]]:
        parts: list[list[Any]] = [[] for _ in range(self.ways)]
        for item in items:
            try:
                way = self._router.replica_of(item)
            except USER_ERRORS:
                way = 0
            parts[way].append(item)
        return parts


class _PartsPartition:
    """Each table is cut into one for each replica that owns some of its keys."""

    def __init__(self, ways: int) -> None:
        self.ways = ways
        self._splitter = ColumnSplitter(ways)

    def split(self, tables: Sequence[PartTable]) -> list[list[PartTable]]:
        parts: list[list[PartTable]] = [[] for _ in range(self.ways)]
        for table in tables:
            for part, (keys, values) in zip(parts, self._splitter.split(*table.columns), strict=True):
                if keys:
                    part.append(PartTable(keys, values))
        return parts


class _OutputPartition:
    """The node has chosen: its label leaves the item here."""

    def __init__(self, outputs: tuple[str, ...]) -> None:
        self.ways = len(outputs)
        self._way_of = {output: way for way, output in enumerate(outputs)}

    def split(self, items: Sequence[Any]) -> list[list[Any]]:
        parts: list[list[Any]] = [[] for _ in range(self.ways)]
        unnamed, way_of = parts[0], self._way_of
        for item in items:
            if type(item) is not Labelled:
                unnamed.append(item)
            elif item.label in way_of:
                parts[way_of[item.label]].append(item.item)
            else:
                raise GraphError(
                    f"the output {item.label!r} leads nowhere any more; connect a handler, or drop the item"
                )
        return parts


class _ChoicePartition:
    def __init__(self, chooser: RouteChooser, ways: int) -> None:
        self.ways = ways
        self._chooser = chooser

    def split(self, items: Sequence[Any]) -> list[list[Any]]:
        parts: list[list[Any]] = [[] for _ in range(self.ways)]
        index_of = self._chooser.index_of
        for item in items:
            parts[index_of(item)].append(item)
        return parts
