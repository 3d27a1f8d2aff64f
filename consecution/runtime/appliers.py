"""How the items of decided batches change what is durable: a node's state, its attributes, or what a sink holds.

An applier works on a group of applications that become one commit. It first runs the whole group quickly; if an
item raises, everything of the group is taken back and run again item by item, so that the state goes back
to what it was before the failing item, and what that had pushed is dropped. For a while it then stays careful.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import msgpack

from consecution.errors import DamagedStoreError, OutageError, UndecodableStateError, WorldError
from consecution.nodes import Node
from consecution.plan import Plan
from consecution.protocol.durable import Application
from consecution.protocol.poison import Condemned, FrameKey, Guard, LostItem, Suspect
from consecution.protocol.values import USER_ERRORS, BatchId, Frame, PartlyFailedError, TaskIndex, failed_parts
from consecution.runtime import failpoints
from consecution.runtime.attribute_pickles import Names, NodeCodec, attributes_of, key_of, pickle_attributes, record_of
from consecution.runtime.durable_store import CommittedOutside, DurableStore, TableWrite
from consecution.runtime.journal import seal
from consecution.runtime.state_table import END, Owner, StateTable
from consecution.sink import AppendSink, Sink, TransactionSink
from consecution.stateful import DurableNode, KeyedNode
from consecution.states import States
from consecution.telling import warn
from consecution.transport.codec import PickleCodec

CAREFUL_ITEMS = 200_000
"""After a failing item, so many are run one by one from the start: the next may not be far."""


LAST = FrameKey(TaskIndex(-1), -1, ())
"""In the place of a frame, where no item comes any more and what was gathered is processed."""


class FailedInput(NamedTuple):
    """An item that raised while it was applied, or could not be decoded, or must not be touched.

    ``place``: which item of its frame a sink has refused; two of one frame have two places.
    """

    application: Application
    item: Any
    error: BaseException
    place: tuple[tuple[int, ...], int] | None = None


Decode = Callable[[Frame], tuple[list[Any], list[LostItem]]]
"""The items of a frame, and those of them that cannot be decoded or must not be touched."""


class Work:
    """One application. Each frame is decoded when its turn comes, and anew where it is run again."""

    def __init__(self, application: Application, decode: Decode) -> None:
        self.application = application
        self.count = 0
        """Items that were decoded when the frames were gone through last,"""
        self.lost: list[FailedInput] = []
        """and those that could not be."""
        self._decode = decode

    def parts(self) -> Iterator[tuple[Frame, list[Any]]]:
        """Each frame with its items, in order."""
        self.count, self.lost = 0, []
        for frame in self.application.frames:
            yield frame, self._items_of(frame)

    def _items_of(self, frame: Frame) -> list[Any]:
        items, lost = self._decode(frame)
        self.count += len(items)
        self.lost += [FailedInput(self.application, item, item.error) for item in lost]
        return items


class Group:
    """Applications that become one commit, as many as ``ready`` gives. Gone through again it begins with the same."""

    def __init__(self, ready: Iterator[Work]) -> None:
        self.works: list[Work] = []
        self._ready = ready

    def __iter__(self) -> Iterator[Work]:
        yield from self.works
        for work in self._ready:
            self.works.append(work)
            yield work

    @property
    def count(self) -> int:
        """Items of all of them, once they were gone through."""
        return sum(work.count for work in self.works)


class Outcome(NamedTuple):
    """What a group has come to: items pushed, in order, and items that raised."""

    pushed: list[Any]
    failed: list[FailedInput]


def _condemn_into(failed: list[FailedInput], application: Application) -> Callable[[Condemned], None]:
    return lambda guilty: failed.append(FailedInput(application, *guilty))


class Applier(Protocol):
    """Applies groups for one task. Called by one thread. The frames it runs pass its ``guard``."""

    guard: Guard
    is_atomic: bool
    """Whether what it applies is there after a crash only if the commit is."""

    def open(self) -> None:
        """Restore what the store has, and run the node's ``begin``. What a crash has left undone is done here.

        What it has taken hold of before it raises it lets go of: `close` is for what is open.
        """

    def apply(self, group: Group) -> Outcome: ...

    def prepare(self, changes: list[Any]) -> None:
        """The commit of these changes, the latest group's among them, comes next; it may add its own."""

    def hand_over_last(self) -> tuple[list[Any], list[tuple[Any, BaseException]]]:
        """Before `end`: process what the node has gathered. Returns what it pushed, and what failed."""

    def end(self) -> list[Any]:
        """Run the node's ``end``; returns what it pushed."""

    def call(self, method: Callable[[], object]) -> list[Any]:
        """Run another method of the node that may push, such as ``on_timer``; returns what it pushed."""

    def take_changes(self) -> list[TableWrite]:
        """What the commit of the latest group has to hold."""

    def committed(self) -> None:
        """That commit is done."""

    def commit_due_s(self) -> float | None:
        """Seconds until a commit is wanted even if nothing is applied; None: it is not."""

    def complete(self, *, ended: bool) -> bool:
        """Nothing more comes in this run; ``ended``: nor in any other. Returns whether that is worth a commit."""

    def close(self) -> None: ...


class _NodeApplier:
    """What appliers of nodes share: first quickly, then carefully."""

    careful_items = CAREFUL_ITEMS
    is_atomic = True

    def __init__(self, node: Node, store: DurableStore, cache_bytes: int, owner: Owner | None = None) -> None:
        self.node = node
        self.guard = Guard()
        self._codec = self._make_codec()
        self._table = StateTable(store, self._codec.encode, self._codec.decode, cache_bytes, owner)
        self._store = store
        self._careful_items = 0
        self._merging = False
        self._condemned: Condemned | None = None
        self._raised: Work | None = None
        self._states: States

    def _make_codec(self) -> PickleCodec:
        return PickleCodec()

    def apply(self, group: Group) -> Outcome:
        outcome = None if self._careful_items else self._apply_quickly(group)
        if outcome is None:
            outcome = self._apply_carefully(group)
            self._careful_items = max(0, self._careful_items - group.count)
        self.guard.leave()
        return outcome

    def _apply_quickly(self, group: Group) -> Outcome | None:
        """None, and all is as it was before: an item raises, or a frame is suspect of taking the task down."""
        pushed: list[Any] = []
        for work in group:
            try:
                if not self._run_whole(work, pushed):
                    self._roll_back()
                    return None
            except UndecodableStateError:
                raise
            except USER_ERRORS:
                self._roll_back()
                self._careful_items = self.careful_items
                self._raised = work
                return None
        return Outcome(pushed, [])

    def _run_whole(self, work: Work, pushed: list[Any]) -> bool:
        """False: a frame is suspect, and was not run."""
        for frame, items in work.parts():
            if self.guard.take(frame.origin, frame.seq, frame.path) is not None:
                return False
            self._run(iter(items), pushed)
        return True

    def _apply_carefully(self, group: Group) -> Outcome:
        outcome = Outcome([], [])
        for work in group:
            self._apply_one_by_one(work, outcome)
        self._raised = None
        return outcome

    def _apply_one_by_one(self, work: Work, outcome: Outcome) -> None:
        condemn = _condemn_into(outcome.failed, work.application)
        for frame, items in work.parts():
            suspect = self.guard.take(frame.origin, frame.seq, frame.path)
            with self._meeting(suspect):
                for item in self.guard.one_by_one(suspect, items, self._codec, condemn):
                    self._apply_item(work.application, item, outcome)

    @contextlib.contextmanager
    def _meeting(self, suspect: Suspect | None) -> Iterator[None]:
        """Meanwhile the node is not to process what it has gathered if that is guilty."""
        if suspect is None:
            yield
            return

        def meet(gathered: Any) -> None:
            self._condemned = suspect.meet_gathered(gathered, self._codec)
            if self._condemned is not None:
                raise self._condemned.error

        self.node._meet_gathered = meet
        try:
            yield
        finally:
            del self.node._meet_gathered

    def _blame(self, item: Any, error: BaseException) -> Any:
        """What has failed; of what is guilty that which stands for it."""
        blamed, condemned = self.node._blame(item, error), self._condemned
        return blamed if condemned is None or condemned.error is not error else condemned.item

    def _apply_item(self, application: Application, item: Any, outcome: Outcome) -> None:
        mark = len(outcome.pushed)
        self._begin_item()
        try:
            self._run(iter((item,)), outcome.pushed)
        except UndecodableStateError:
            raise
        except USER_ERRORS as error:
            if isinstance(error, PartlyFailedError):
                self._keep_item()  # what has raised of it the node has undone
            else:
                del outcome.pushed[mark:]
                self._undo_item()
            blamed = failed_parts(self._blame(item, error), error)
            outcome.failed.extend(FailedInput(application, *part) for part in blamed)
        else:
            self._keep_item()

    def _run(self, cursor: Iterator[Any], out: list[Any]) -> None:
        self.guard.cursor = cursor
        self.node._push_into(out)
        self.node._process_frame(cursor, out)
        if operator.length_hint(cursor):
            raise RuntimeError(f"{self.node}: _process_frame returned before it had taken all items")

    def hand_over_last(self) -> tuple[list[Any], list[tuple[Any, BaseException]]]:
        if type(self.node)._before_end is Node._before_end:
            return [], []
        suspect = self.guard.take(*LAST)
        self._begin_item()
        try:
            with self._meeting(suspect):
                pushed = self.call(self.node._before_end)
        except UndecodableStateError:
            raise
        except USER_ERRORS as error:
            self._undo_item()
            self.guard.leave()
            return [], [(self._blame(None, error), error)]
        self._keep_item()
        self.guard.leave()
        return pushed, []

    def end(self) -> list[Any]:
        return self.call(self.node.end)

    def call(self, method: Callable[[], object]) -> list[Any]:
        pushed: list[Any] = []
        self.node._push_into(pushed)
        method()
        return pushed

    def _writes(self, keys: list[Any], states: list[Any]) -> list[TableWrite]:
        return [TableWrite(lambda txn: self._write(txn, keys, states))] if keys or self._table.merge_is_due else []

    def _write(self, txn: Any, keys: list[Any], states: list[Any]) -> None:
        """What has changed, and so much of the log into the table that nothing is left to do while nothing changes."""
        self._table.write(txn, keys, states)
        self._merging = self._table.merge_oldest(txn, self._states, len(keys)) or self._merging

    def prepare(self, changes: list[Any]) -> None:
        pass

    def committed(self) -> None:
        if self._merging or self._table.too_many(self._states):
            self._merging = False
            self._table.evict(self._states)

    def commit_due_s(self) -> float | None:
        return None

    def complete(self, *, ended: bool) -> bool:
        return False

    def close(self) -> None:
        pass

    def _begin_item(self) -> None:
        self._states.begin_item()

    def _keep_item(self) -> None:
        self._states.keep_item()

    def _undo_item(self) -> None:
        self._states.undo_item()

    def _roll_back(self) -> None:
        self._states.roll_back()


class StateApplier(_NodeApplier):
    """For `StatefulNode` and `KeyedNode`: their states, written as they change."""

    node: DurableNode

    def open(self) -> None:
        self._states = self.node._open_states(self._table)
        self._table.restore(self._states)
        self.node.begin()

    def take_changes(self) -> list[TableWrite]:
        return self._writes(*self._states.take_changes())


NOT_STATE = {
    *vars(Node("any")),
    "pipeline",
    "push",
    "global_state",
    "_process",
    "replicas",
    "replicas_given",
    "key_function",
    "error_policy",
    "_batch_failure_",
}
"""Attributes of a node that the graph or the runtime gives it."""


class AttributeApplier(_NodeApplier):
    """For a plain node with an ``end``: its attributes are its state, as far as they can be pickled.

    ``begin`` runs at every start, before what was committed is put back. After each group every attribute is
    pickled, and those that have changed are written: convenient for small things, dear for long lists.

    The key of an attribute in the store is its name; of several that share something, all their names, and the state
    is the list of their values (`attribute_pickles`).
    """

    careful_items = 0
    """To be careful is to pickle all of them for every item: only where one of the same batch is known to raise."""

    def _make_codec(self) -> PickleCodec:
        return NodeCodec(self.node)

    def _apply_one_by_one(self, work: Work, outcome: Outcome) -> None:
        if work is self._raised or not self._apply_whole(work, outcome):
            super()._apply_one_by_one(work, outcome)

    def _apply_whole(self, work: Work, outcome: Outcome) -> bool:
        """False, and all is as it was before: an item raises, or a frame is suspect."""
        mark = len(outcome.pushed)
        self._begin_item()
        try:
            if self._run_whole(work, outcome.pushed):
                return True
        except UndecodableStateError:
            raise
        except USER_ERRORS:
            pass
        del outcome.pushed[mark:]
        self._undo_item()
        return False

    def open(self) -> None:
        self._states = States(backing=self._table)
        self._table.restore(self._states)
        self.node.begin()
        self._stored: set[Names] = set()
        for key, state in self._states.items():
            names, values = attributes_of(key, state)
            # A copy: what the node does to it must not reach the store before its group is kept.
            self._set(names, self._codec.encode(values))
            self._stored.add(names)
        # What is as the constructor and begin() left it is no state: the next run may be made with another value.
        self._saved = self._before_group = self._pickled()

    def _set(self, names: Names, blob: bytes) -> None:
        for name, value in zip(names, self._codec.decode(blob), strict=True):
            setattr(self.node, name, value)

    def _pickled(self) -> dict[Names, bytes]:
        state = {
            name: value
            for name, value in vars(self.node).items()
            if not (name in NOT_STATE or callable(value) or isinstance(value, io.IOBase))
        }
        return pickle_attributes(state, self.node)

    def take_changes(self) -> list[TableWrite]:
        now = self._pickled()
        void = self._find_void(now)
        left = {*itertools.chain(*void)}
        for names in void:
            self._states.remove(key_of(names))
        for names, blob in now.items():
            if self._saved.get(names) != blob or not left.isdisjoint(names):
                self._states.put(*record_of(names, self._codec.decode(blob)))
                self._stored.add(names)
        self._stored -= void
        self._saved = self._before_group = now
        return self._writes(*self._states.take_changes())

    def _find_void(self, now: dict[Names, bytes]) -> set[Names]:
        """What is stored under names of which there is nothing now, and must not be put back any more.

        An attribute that cannot be pickled just now may be put back as it was, and so may several that are one group.
        """
        unwritten = vars(self.node).keys() - itertools.chain(*now)
        return {names for names in self._stored - now.keys() if not unwritten.issuperset(names)}

    def _put_back(self, saved: dict[Names, bytes]) -> None:
        for name in {*itertools.chain(*self._pickled())}.difference(*saved):
            delattr(self.node, name)
        for names, blob in saved.items():
            self._set(names, blob)

    def _roll_back(self) -> None:
        self._put_back(self._before_group)

    def _begin_item(self) -> None:
        self._before_item = self._pickled()

    def _keep_item(self) -> None:
        pass

    def _undo_item(self) -> None:
        self._put_back(self._before_item)


class SinkApplier:
    """For a sink without a transaction of its own: it is given each frame after the decision.

    At least once, and always the same items under the same (origin, seq, path).
    """

    is_atomic = False

    def __init__(self, sink: Sink, sync: str, origin_names: Callable[[TaskIndex], str]) -> None:
        self._sink = sink
        self._sync = sync
        self._origin_names = origin_names
        self._codec = PickleCodec()
        self.guard = Guard()

    def open(self) -> None:
        self._sink.sync = self._sync
        self._sink.open()

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        """A process that goes on (mode thread) would keep the sink's file locked, or its connection."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong first is what has to be mended
                self._sink.close()
            raise

    def apply(self, group: Group) -> Outcome:
        failed: list[FailedInput] = []
        for work in group:
            app = work.application
            for frame, items in work.parts():
                batch_id = BatchId(self._origin_names(app.origin), app.seq, app.generation, frame.path)
                suspect = self.guard.take(frame.origin, frame.seq, frame.path)
                if suspect is None:
                    self._write(app, batch_id, items, 0, failed)
                else:
                    self._write_one_by_one(app, batch_id, items, suspect, failed)
        self.guard.leave()
        return Outcome([], failed)

    def _write_one_by_one(
        self, app: Application, batch_id: BatchId, items: list[Any], suspect: Suspect, failed: list[FailedInput]
    ) -> None:
        """For a frame that is suspect of taking the task down; the guilty are not offered."""
        good = self.guard.one_by_one(suspect, items, self._codec, _condemn_into(failed, app))
        for place, item in enumerate(good):
            self._write(app, batch_id, [item], place, failed)

    def _write(
        self, app: Application, batch_id: BatchId, items: list[Any], start: int, failed: list[FailedInput]
    ) -> None:
        """Offer these items, a frame's from ``start`` on; if that raises, half by half, to find the ones at fault."""
        try:
            self._offer(batch_id, items)
        except OutageError:
            raise
        except USER_ERRORS as error:
            if len(items) == 1:
                failed.append(FailedInput(app, items[0], error, (batch_id.path, start)))
                return
            middle = len(items) // 2
            self._write(app, batch_id, items[:middle], start, failed)
            self._write(app, batch_id, items[middle:], start + middle, failed)

    def _offer(self, batch_id: BatchId, items: list[Any]) -> None:
        """While the store cannot take anything, the pipeline is held back here."""
        self._sink._ride_out(lambda: self._sink._take_frame(batch_id, items))
        self.guard.steps += 1

    def hand_over_last(self) -> tuple[list[Any], list[tuple[Any, BaseException]]]:
        return [], []

    def end(self) -> list[Any]:
        return []

    def call(self, method: Callable[[], object]) -> list[Any]:
        method()
        return []

    def take_changes(self) -> list[TableWrite]:
        return []

    def prepare(self, changes: list[Any]) -> None:
        pass

    def committed(self) -> None:
        pass

    def commit_due_s(self) -> float | None:
        return None

    def complete(self, *, ended: bool) -> bool:
        return False

    def close(self) -> None:
        self._sink.close()


class AppendApplier(SinkApplier):
    """For a sink whose store is cut back to what was committed: where it ends is part of the commit."""

    is_atomic = True
    _sink: AppendSink

    def __init__(self, sink: Sink, sync: str, origin_names: Callable[[TaskIndex], str], store: DurableStore) -> None:
        super().__init__(sink, sync, origin_names)
        self._store = store

    def open(self) -> None:
        with self._closed_on_error():
            super().open()
            self._go_on()

    def _go_on(self) -> None:
        body = self._store.read("state", END)
        self._sink.cut_to(None if body is None else msgpack.unpackb(body, strict_map_key=False))
        if body is None:
            # What was there before this state stays, whatever comes: else nobody could tell it from a torn tail.
            self._store.apply(self.take_changes())
            self._sink.committed()

    def take_changes(self) -> list[TableWrite]:
        value = seal(END, msgpack.packb(self._sink.flush()))
        return [TableWrite(lambda txn: txn.put(END, value, db=self._store.handle("state")))]

    def committed(self) -> None:
        self._sink.committed()

    def commit_due_s(self) -> float | None:
        return self._sink.flush_due_s()

    def complete(self, *, ended: bool) -> bool:
        self._sink.complete(ended=ended)
        return True


class TransactionApplier(SinkApplier):
    """For a sink with transactions: it commits first, with the redo of the commit that follows here."""

    is_atomic = True
    _sink: TransactionSink

    def __init__(
        self, sink: Sink, sync: str, origin_names: Callable[[TaskIndex], str], store: DurableStore, owner: str
    ) -> None:
        super().__init__(sink, sync, origin_names)
        self._store = store
        self._owner = owner
        self._group: Group | None = None
        self._refused: list[Any] = []

    def open(self) -> None:
        """At the very first start a database that is not there is an error; later it is waited for."""
        with self._closed_on_error():
            self._open_and_compare()

    def _open_and_compare(self) -> None:
        is_first = self._store.read("state", END) is None
        number, redo = self._open_sink() if is_first else self._sink._ride_out(self._open_sink)
        known = self._store.outside_number
        if number == known + 1:
            self._store.carry_out(redo)
        elif number != known:
            raise DamagedStoreError(
                f"{self._sink}: its database has taken in {number} transactions of {self._owner}, the store "
                f"{self._store.path} knows of {known}: one of the two was restored or emptied without the other; "
                "restore both from one moment, or begin anew with fresh=True and an empty table",
                path=str(self._store.path),
                record="meta/outside",
            )
        if is_first:
            self._store.apply([TableWrite(lambda txn: txn.put(END, seal(END, b""), db=self._store.handle("state")))])

    def _open_sink(self) -> tuple[int, bytes]:
        try:
            super().open()
            return self._sink.last_mark(self._owner)
        except BaseException:
            self._sink.close()
            raise

    def apply(self, group: Group) -> Outcome:
        self._group = group
        outcome = self._sink._ride_out(self._transact)
        self._refused = self._places_refused(outcome)
        return outcome

    def _places_refused(self, outcome: Outcome) -> list[Any]:
        """Which items were not written, whatever objects they were: all that was decoded is decoded anew each time."""
        assert self._group is not None
        places: list[Any] = [(*failure.application[:2], failure.place) for failure in outcome.failed]
        return [*places, *(len(work.lost) for work in self._group.works)]

    def _transact(self) -> Outcome:
        """Everything but the commit; after an outage all of it again."""
        assert self._group is not None
        self._sink.begin_transaction()
        try:
            return super().apply(self._group)
        except BaseException:
            self._sink.roll_back()
            raise

    def _offer(self, batch_id: BatchId, items: list[Any]) -> None:
        self._sink._take_frame(batch_id, items)
        self.guard.steps += 1

    def prepare(self, changes: list[Any]) -> None:
        if self._group is None:
            return  # a timer has ticked: nothing was written
        number = self._store.outside_number + 1
        changes.append(CommittedOutside(number))
        redo = self._store.redo_of(changes)
        failpoints.passed("outside.before_commit")
        try:
            self._sink.commit(self._owner, number, redo)
        except OutageError as error:
            warn("%s: %s; looking whether the commit has happened", self._sink, error)
            self._sink._ride_out(lambda: self._commit_again(number, redo))
        failpoints.passed("outside.committed")
        self._group = None

    def _commit_again(self, number: int, redo: bytes) -> None:
        """It has happened, or the whole transaction is repeated; what has failed in it is in ``redo`` already."""
        if self._sink.last_mark(self._owner) == (number, redo):
            return
        if self._places_refused(self._transact()) != self._refused:
            self._sink.roll_back()
            raise WorldError(
                f"{self._sink}: after a lost connection other items fail than before: somebody else has written to "
                "the database meanwhile; nothing is lost, a new start tries again"
            )
        self._sink.commit(self._owner, number, redo)


def make_applier(
    plan: Plan, task: TaskIndex, node: Node, store: DurableStore, origin_names: Callable[[TaskIndex], str]
) -> Applier:
    """The applier for a durable node."""
    options = plan.options
    if isinstance(node, TransactionSink):
        # The store's uuid, for two pipelines may write to one database.
        return TransactionApplier(node, options.sync, origin_names, store, f"{plan.task(task).name}/{store.uuid}")
    if isinstance(node, AppendSink):
        return AppendApplier(node, options.sync, origin_names, store)
    if isinstance(node, Sink):
        return SinkApplier(node, options.sync, origin_names)
    if isinstance(node, DurableNode):
        return StateApplier(node, store, options.cache_bytes, _owner_of(plan, task, node))
    return AttributeApplier(node, store, options.cache_bytes)


def _owner_of(plan: Plan, task: TaskIndex, node: Node) -> Owner | None:
    """Where replicas share the keys: which one this is."""
    planned = plan.task(task)
    replicas = plan.node(planned.node).replicas
    return Owner(planned.node, planned.replica, replicas) if isinstance(node, KeyedNode) and replicas > 1 else None
