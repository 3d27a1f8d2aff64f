"""The pieces of a simulated durable task: the host that ships, with a simulated store and nodes that can be foretold.

Appliers, state and its table are those that ship, but merge and evict after every few keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from consecution.nodes import Node
from consecution.options import Options
from consecution.protocol.dispatch import Dispatch
from consecution.protocol.durable import Durable
from consecution.protocol.step import Codec, Judge
from consecution.protocol.values import BatchId, TaskIndex
from consecution.runtime.appliers import (
    AppendApplier,
    Applier,
    AttributeApplier,
    Group,
    Outcome,
    SinkApplier,
    StateApplier,
    Work,
    _NodeApplier,
)
from consecution.runtime.durable_host import DurableHost
from consecution.runtime.origin_host import Handlers, OnStop, OriginHost, Outbox
from consecution.runtime.state_table import StateTable
from consecution.runtime.timer import Timer
from consecution.sink import AppendSink, Sink, TransactionSink
from consecution.stateful import KeyedNode
from consecution.testing.durable_oracle import KEYS, DurableOracle
from consecution.testing.outside import Database, File, Log
from consecution.testing.scene import Scene
from consecution.testing.trial_plan import TrialPlan
from consecution.testing.world import Item, ItemError, Keeping, NodeShape, World

Taken = list[tuple[Item, list[Item]]]
MERGE_AT_KEYS = 3
CACHE_BYTES = 1000


class TrialState(KeyedNode):
    """A durable node of the simulated world: its state remembers every item. ``taken`` is for the onlooker."""

    def __init__(self, world: World, shape: NodeShape) -> None:
        super().__init__(f"node {shape.index}")
        self._world = world
        self._shape = shape
        self.taken: Taken = []

    def key(self, item: Item) -> int:
        return item % KEYS

    def process(self, item: Item) -> None:
        """Change the state and push, and then perhaps raise: both must be taken back."""
        outputs = self._world.outputs(self._shape, item)
        self.state.setdefault("items", []).append(item)
        try:
            self._world.check(self._shape, item)
        except ItemError:
            for made in outputs[:1]:
                self.push(made)
            raise
        self.taken.append((item, outputs))
        for made in outputs:
            self.push(made)

    def end(self) -> None:
        for _, state in self.states():
            for item in state.get("items", ()):
                for made in self._world.end_outputs(self._shape, item):
                    self.push(made)

    def on_timer(self) -> None:
        for made in self._world.timer_outputs(self._shape):
            self.push(made)

    def _wants_end(self) -> bool:
        return self._shape.wants_end


class TrialGather(Node):
    """A plain node with an end. All but ``seen`` belongs to the class: every attribute of its own is state."""

    world: World
    shape: NodeShape
    taken: Taken

    def begin(self) -> None:
        self.seen: list[Item] = []
        self.ticks = 0

    def process(self, item: Item) -> None:
        """Like `TrialState`."""
        outputs = self.world.outputs(self.shape, item)
        self.seen.append(item)
        try:
            self.world.check(self.shape, item)
        except ItemError:
            for made in outputs[:1]:
                self.push(made)
            raise
        self.taken.append((item, outputs))
        for made in outputs:
            self.push(made)

    def end(self) -> None:
        for item in self.seen:
            for made in self.world.end_outputs(self.shape, item):
                self.push(made)

    def on_timer(self) -> None:
        self.ticks += 1
        for made in self.world.timer_outputs(self.shape):
            self.push(made)


class TrialSink(Sink):
    """A durable sink of the simulated world."""

    def __init__(self, world: World, shape: NodeShape, log: Log) -> None:
        super().__init__(f"node {shape.index}")
        self._trial = _Trial(world, shape)
        self._log = log
        self.taken = self._trial.taken

    def write(self, batch_id: BatchId | None, items: list[Item]) -> None:
        assert batch_id is not None
        self._log.write(batch_id, list(items))
        self._trial.take(items)


class TrialAppendSink(AppendSink):
    """A sink that writes to a file: before it raises it has written something, which must not stay."""

    def __init__(self, world: World, shape: NodeShape, file: File) -> None:
        super().__init__(f"node {shape.index}")
        self._trial = _Trial(world, shape)
        self._file = file
        self.taken = self._trial.taken

    def write(self, batch_id: BatchId | None, items: list[Item]) -> None:
        self._trial.take(items)
        self._file.content += items

    def flush(self) -> int:
        return self._file.flush()

    def cut_to(self, end: int | None) -> None:
        self._file.cut_to(end)


class TrialTransactionSink(TransactionSink):
    """A sink that writes to a database."""

    def __init__(self, world: World, shape: NodeShape, database: Database, oracle: DurableOracle) -> None:
        super().__init__(f"node {shape.index}")
        self._trial = _Trial(world, shape)
        self._database = database
        self._oracle = oracle
        self.taken = self._trial.taken

    def begin_transaction(self) -> None:
        self._database.begin()

    def write(self, batch_id: BatchId | None, items: list[Item]) -> None:
        self._trial.take(items)
        self._database.write(items)

    def commit(self, owner: str, number: int, redo: Any) -> None:
        self._database.commit(number, redo)
        self._oracle.committed_outside(number)

    def roll_back(self) -> None:
        self._database.roll_back()

    def last_mark(self, owner: str) -> tuple[int, Any]:
        return self._database.mark


class _Trial:
    """What a sink does with the items of one call: takes them all, or raises and takes none."""

    def __init__(self, world: World, shape: NodeShape) -> None:
        self._world = world
        self._shape = shape
        self.taken: Taken = []

    def take(self, items: list[Item]) -> None:
        for item in items:
            self._world.check(self._shape, item)
        self.taken += [(item, []) for item in items]


class _EagerTable(StateTable):
    least_merged_keys = 1

    @property
    def merge_is_due(self) -> bool:
        return len(self._unmerged) >= MERGE_AT_KEYS


class _EagerApplier(_NodeApplier):
    """Merges and evicts all the time, and tells the node to forget what it took when a group is run again."""

    def __init__(self, node: Any, store: Any) -> None:
        super().__init__(node, store, CACHE_BYTES)
        self._table = _EagerTable(store, self._codec.encode, self._codec.decode, CACHE_BYTES)
        self._taken = node.taken

    def _roll_back(self) -> None:
        super()._roll_back()
        self._taken.clear()


class _TrialStateApplier(_EagerApplier, StateApplier):
    pass


class _TrialAttributeApplier(_EagerApplier, AttributeApplier):
    def _apply_whole(self, work: Work, outcome: Outcome) -> bool:
        before = len(self._taken)
        applied = super()._apply_whole(work, outcome)
        if not applied:
            del self._taken[before:]
        return applied


class WatchedApplier:
    """An applier whose every group the oracle hears of."""

    def __init__(self, inner: Applier, taken: Taken, oracle: DurableOracle) -> None:
        self._inner = inner
        self._taken = taken
        self._oracle = oracle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def apply(self, group: Group) -> Outcome:
        self._taken.clear()
        outcome = self._inner.apply(group)
        self._oracle.applied(group.works, list(self._taken), outcome)
        return outcome

    def call(self, method: Callable[[], object]) -> list[Any]:
        pushed = self._inner.call(method)
        self._oracle.ticked(pushed)
        return pushed

    def end(self) -> list[Any]:
        pushed = self._inner.end()
        self._oracle.ran_end(pushed)
        return pushed


class _RestingTimer(Timer):
    """A timer on the simulated clock that does not tick for ever."""

    def __init__(self, every_s: float | None, scene: Scene) -> None:
        super().__init__(every_s, scene.now)
        self._world = scene.world

    def ticks(self) -> bool:
        return self._world.may_tick and super().ticks()

    def left_s(self) -> float | None:
        return super().left_s() if self._world.may_tick else None


class _SimulatedParts:
    """Mixed into a durable host: its store is simulated, and its core and applier are watched."""

    scene: Scene
    dispatch: Dispatch
    codec: Codec
    outbox: Outbox
    handlers: Handlers
    store: Any = None
    task: TaskIndex
    node: Any
    _applier: Applier
    _guard: Any
    _judge: Judge
    _on_stop: OnStop | None

    def _open_store(self) -> Any:
        scene, task = self.scene, self.task
        self.store = scene.parts.store(scene.durable_disks[task], scene.durable_oracles[task], scene.passed)
        return self.store

    def _make_applier(self, store: Any) -> Any:
        oracle = self.scene.durable_oracles[self.task]
        inner = self._inner_applier(store)
        inner.guard = self._guard
        return WatchedApplier(inner, self.node.taken, oracle)

    def _inner_applier(self, store: Any) -> Applier:
        node, parts = self.node, self.scene.parts
        if isinstance(node, TrialTransactionSink):
            return parts.transaction_applier(node, "power", str, store, node.name)
        if isinstance(node, TrialAppendSink):
            return AppendApplier(node, "power", str, store)
        if isinstance(node, TrialSink):
            return SinkApplier(node, "power", str)
        if isinstance(node, TrialGather):
            return _TrialAttributeApplier(node, store)
        return _TrialStateApplier(node, store)

    def _make_timer(self, every_s: float | None) -> Timer:
        return _RestingTimer(every_s, self.scene)

    def _make_durable(self, store: Any) -> Durable:
        return self.scene.parts.durable(*store.restore_inbox(), applies_at_once=self._applier.is_atomic)

    def _make_origin_host(self, store: Any) -> OriginHost:
        scene, parts = self.scene, self.scene.parts
        return parts.host(
            self.task,
            parts.origin(scene.schedule.limits, store.restore(), scene.now_s, self.handlers),
            store,
            self.dispatch,
            self.codec,
            self.outbox,
            stored=self.codec,
            now=scene.now,
            on_stop=self._on_stop,
            judge=self._judge,
            handlers=self.handlers,
            deciders=scene.world.deciders(self.task),
        )


def make_durable_host(
    scene: Scene,
    task: TaskIndex,
    dispatch: Dispatch,
    codec: Codec,
    outbox: Outbox,
    handlers: Handlers,
    on_stop: OnStop,
) -> DurableHost:
    """The shell that ships, in the simulated world."""
    kind: Any = type("SimulatedDurableHost", (_SimulatedParts, scene.parts.durable_host), {})
    kind.scene, kind.dispatch, kind.codec, kind.outbox, kind.handlers = scene, dispatch, codec, outbox, handlers
    options = replace(Options(), batch_size=scene.schedule.limits.batch_size)
    host = kind(
        TrialPlan(options, scene.world.node_of[task]),
        task,
        _make_node(scene, task),
        (codec, codec),
        outbox,
        origin_name=str,
        path=None,
        epoch="",
        now=scene.now,
        on_stop=on_stop,
    )
    return cast(DurableHost, host)


def _make_node(scene: Scene, task: TaskIndex) -> Node:
    world, outside = scene.world, scene.outside[task]
    shape = world.node_of[task]
    if isinstance(outside, Log):
        return TrialSink(world, shape, outside)
    if isinstance(outside, File):
        return TrialAppendSink(world, shape, outside)
    if isinstance(outside, Database):
        return TrialTransactionSink(world, shape, outside, scene.durable_oracles[task])
    if shape.keeping is Keeping.ATTRIBUTES:
        made: Node = type("TrialGather", (TrialGather,), {"world": world, "shape": shape, "taken": []})(
            f"node {shape.index}"
        )
        return made
    return TrialState(world, shape)
