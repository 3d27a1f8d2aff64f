"""Brings what a state directory holds into the shape of another plan: by name, and keyed state by key slots.

The rules this file keeps:

1. Nothing is in flight, or it is refused: no frame, decision or retry ever meets another plan's tasks.
2. What would be dropped is named first, and dropped only where that was asked for.
3. Everything is written into a new folder, under a new epoch. The manifest then names that folder, in one
   step; until then the old one is untouched, and afterwards it is only rubbish.

Numbers of tasks change with the plan, so ledgers begin anew, with the origins' new life; failed items find their
node by its name. Of a keyed node each new replica takes the slots it owns from whoever has states there: in a store of
an earlier version that need not be the replica that owned them.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import operator
import struct
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from consecution.errors import DamagedStoreError, StateDirError
from consecution.nodes import Node
from consecution.plan import NodePlan, Plan
from consecution.protocol.origin import FailureEntry, FailureKept, Head, HeadMoved
from consecution.protocol.step import shorten_repr
from consecution.protocol.values import TaskIndex
from consecution.routing import SLOTS
from consecution.runtime.durable_store import DurableStore, TableWrite
from consecution.runtime.journal import Journal, NotesTaken, seal
from consecution.runtime.state_table import decode_state, place_of
from consecution.sink import AppendSink, Sink, TransactionSink
from consecution.stateful import DurableNode, KeyedNode, StatefulNode
from consecution.transport.codec import PickleCodec

RECORDS_PER_COMMIT = 100_000
NAMED_KEYS = 3
"""So many keys are named where several states have no place."""
_SLOT = struct.Struct(">H")

OpenStore = Callable[[str], Journal]
"""Opens the store of an origin, by its name."""


def origins_of(plan: Plan) -> list[str]:
    """The names of all that answer for batches: the sources, and every durable task."""
    durable = [plan.task(task).name for node in plan.nodes if node.durable for task in node.tasks]
    return [*plan.sources, *durable]


def kinds_of(plan: Plan) -> dict[str, str]:
    """What each durable node keeps in its store; only what is of one kind can go on from another's."""
    return {node.name: _kind_of(node.node) for node in plan.nodes if node.durable and node.node is not None}


def _kind_of(node: Node) -> str:
    if isinstance(node, KeyedNode):
        return "keyed"
    if isinstance(node, StatefulNode):
        return "mapping" if type(node).initial_state is DurableNode.initial_state else "value"
    if isinstance(node, Sink):
        return "file" if isinstance(node, AppendSink) else "database" if isinstance(node, TransactionSink) else "sink"
    return "attributes"


@dataclass(frozen=True, slots=True)
class Share:
    """The part of an old store that goes into a new one: a range of places, ``until`` None to the end."""

    origin: str
    since: bytes = b""
    until: bytes | None = None
    with_books: bool = True
    """Its counters and failed items, too."""


@dataclass(slots=True)
class Move:
    """New origin → the shares it is made of; and the old replicas, in order, of each node that gets more or fewer."""

    shares: dict[str, list[Share]] = field(default_factory=dict)
    resharded: list[list[str]] = field(default_factory=list)


def plan_move(manifest: dict[str, Any], plan: Plan) -> Move:
    """Who takes what from whom. Looks only at the manifest."""
    move = Move()
    read_before = origins_of_sources(manifest)
    for node in plan.nodes:
        origins = [plan.sources[task] for task in node.tasks if node.is_source]
        # Other shares of a source hold other items: where one was, says nothing about them.
        same = origins == read_before.get(node.name)
        move.shares.update({name: [Share(name)] if same else [] for name in origins})
    kinds = kinds_of(plan)
    for node in plan.nodes:
        if not node.durable:
            continue
        old = _old_tasks(manifest, node.name) if manifest["nodes"].get(node.name) == kinds[node.name] else []
        names = [plan.task(task).name for task in node.tasks]
        if kinds[node.name] == "keyed" and old and len(old) != len(names):
            move.shares.update(_resharded(old, names))
            move.resharded.append(old)
        else:
            move.shares.update({name: [Share(name)] if name in old else [] for name in names})
    return move


def origins_of_sources(manifest: dict[str, Any]) -> dict[str, list[str]]:
    """The origins of each source that a manifest knows, one for each of its shares, by the source's name."""
    found: dict[str, list[str]] = {}
    for origin, task in zip(manifest["sources"], manifest["tasks"], strict=False):
        found.setdefault(_node_of(task), []).append(origin)
    return found


def _old_tasks(manifest: dict[str, Any], node: str) -> list[str]:
    """The durable tasks that a node had, in the order of their replicas."""
    return [name for name in manifest["tasks"] if name in manifest["origins"] and _node_of(name) == node]


def takers_in(manifest: dict[str, Any]) -> list[str]:
    """The origins that take failed items over from others: the sources, and where a keyed node has replicas, these."""
    keyed = [_old_tasks(manifest, node) for node, kind in manifest["nodes"].items() if kind == "keyed"]
    return [*manifest["sources"], *(name for names in keyed if len(names) > 1 for name in names)]


def _node_of(task: str) -> str:
    return task.rpartition(".")[0]


def _resharded(old: list[str], new: list[str]) -> dict[str, list[Share]]:
    """Every new replica looks through all old ones: any may have states of its slots. The first takes the books."""
    shares = {}
    for replica, name in enumerate(new):
        since, until = _range_of(replica, len(new))
        shares[name] = [Share(origin, since, until, with_books=replica == 0) for origin in old]
    return shares


def _range_of(replica: int, replicas: int) -> tuple[bytes, bytes | None]:
    """The places that a replica owns: from the first to before the second, None to the end."""
    since, until = _first_slot(replica, replicas), _first_slot(replica + 1, replicas)
    return _SLOT.pack(since), None if until == SLOTS else _SLOT.pack(until)


def _first_slot(replica: int, replicas: int) -> int:
    """The first slot that `replica_of_slot` gives to this replica."""
    return -(-replica * SLOTS // replicas)


class Relocation:
    """One move. ``open_old`` opens what is there, ``make_new`` the stores of the new folder."""

    def __init__(self, manifest: dict[str, Any], plan: Plan, open_old: OpenStore, make_new: OpenStore) -> None:
        self._manifest = manifest
        self._plan = plan
        self._open_old = open_old
        self._make_new = make_new
        self._move = plan_move(manifest, plan)
        self._new_index = {task.name: TaskIndex(task.index) for task in plan.tasks}
        self._left_out: dict[str, set[bytes]] = {}
        """Old origin → places of its states that another replica has, too, and brings; `check` finds them."""

    def check(self, path: str) -> list[str]:
        """What is dropped, in words. StateDirError where something has ended for good, or where it may not be."""
        taken = {share.origin for shares in self._move.shares.values() for share in shares}
        dropped: list[str] = []
        for name in self._manifest["origins"]:
            store = self._open_old(name)
            try:
                self._check_not_ended(path, name, store)
                dropped += self._lost_of(name, store, name in taken)
            finally:
                store.close()
        for old in self._move.resharded:
            dropped += self._held_twice(old)
        if dropped and not self._plan.options.drop_state:
            raise StateDirError(
                f"the graph has changed, and has no place any more for what the state directory {path} holds: "
                f"{'; '.join(dropped)}. Give the nodes their old names, kinds and replicas back, and sources their old "
                "shares (Producer(...) * n), or let it be dropped for good: drop_state=True (--drop-state)"
            )
        return dropped

    def foresee(self, path: str) -> list[str]:
        """What the move would do, in words; StateDirError as `check`."""
        dropped = self.check(path)
        told = [words for node in self._plan.nodes if (words := self._foresee_node(node))]
        return told + [f"dropped for good: {lost}" for lost in dropped]

    def _foresee_node(self, node: NodePlan) -> str:
        """How a node with a store would begin; nothing where it just goes on."""
        names = [name for task in node.tasks if (name := self._plan.origin_name(task)) is not None]
        shares = [share for name in names for share in self._move.shares[name]]
        if names and not shares:
            how = "begin with nothing" if node.durable else "be read from its start"
            return f"{node.name} would {how}"
        before = len({share.origin for share in shares})
        return f"{node.name}: its state moves from {before} to {len(names)} replicas" if before != len(names) else ""

    def _check_not_ended(self, path: str, name: str, store: Journal) -> None:
        if isinstance(store, DurableStore) and store.has_ended:
            raise StateDirError(
                f"the graph has changed, and in the state directory {path} {name} has seen the end of the stream "
                "already: run the old pipeline once more, so that it finishes, or use fresh=True to forget it all"
            )

    def _lost_of(self, name: str, store: Journal, taken: bool) -> list[str]:
        """What nobody takes from a store, in words."""
        lost = []
        if not taken and not isinstance(store, DurableStore) and (taken_items := store.restore().head.emitted):
            lost.append(f"how far {self._name_of_source(name)} was read ({taken_items:,} items)")
        if not taken and isinstance(store, DurableStore) and (count := _count_states(store)):
            lost.append(f"the state of {name!r} ({count:,} {'entries' if count > 1 else 'entry'})")
        entries = store.failures(store.restore().head.failed)
        homeless = [entry for entry in entries if not taken or self._index_of(entry) is None]
        nodes = {_node_of(self._manifest["tasks"][entry.failed.task]) for entry in homeless}
        if homeless:
            lost.append(f"{len(homeless)} failed items of {', '.join(map(repr, sorted(nodes)))}")
        return lost

    def _held_twice(self, old: list[str]) -> list[str]:
        """Keys of which several replicas have a state, in words: one state has a place, best that of the key's owner.

        Items of a key only ever went to its owner, but for failed ones that an earlier version gave back to another
        replica. So where there are two states, one lies outside the range of its replica; mostly there are none.
        """
        strays = {name: self._strays_of(name, *_range_of(replica, len(old))) for replica, name in enumerate(old)}
        asked = {place: key for found in strays.values() for place, key in found.items()}
        holders = self._holders_of(asked, old) if asked else {}
        lost = []
        for place, names in holders.items():
            kept = next((name for name in names if place not in strays[name]), names[0])
            for name in names:
                if name != kept:
                    self._left_out.setdefault(name, set()).add(place)
                    key = shorten_repr(asked[place])
                    lost.append(f"the state of {name!r} under {key}, for {kept!r} has one, too")
        if len(lost) > NAMED_KEYS:
            lost[NAMED_KEYS:] = [f"and {len(lost) - NAMED_KEYS} more of such keys"]
        return lost

    def _strays_of(self, name: str, since: bytes, until: bytes | None) -> dict[bytes, Any]:
        """Place → key of each state outside a range."""
        with closing(self._durable(name)) as store:
            changes = _changes_in_log(store)
            found = [*_states_in(store, changes, until=since)]
            if until is not None:
                found += _states_in(store, changes, since=until)
            return {place: decode_state(body, PickleCodec().decode, store.path)[0] for place, body in found}

    def _holders_of(self, places: Iterable[bytes], origins: list[str]) -> dict[bytes, list[str]]:
        """Place → those that have a state there."""
        holders: dict[bytes, list[str]] = {place: [] for place in places}
        for name in origins:
            with closing(self._durable(name)) as store:
                changes = _changes_in_log(store)
                for place, names in holders.items():
                    if (changes[place] if place in changes else store.read("state", place)) is not None:
                        names.append(name)
        return holders

    def _durable(self, name: str) -> DurableStore:
        store = self._open_old(name)
        assert isinstance(store, DurableStore), "only durable nodes are keyed"
        return store

    def _name_of_source(self, origin: str) -> str:
        for source, origins in origins_of_sources(self._manifest).items():
            if origin in origins and len(origins) > 1:
                return f"{origin!r}, one of {len(origins)} shares of the source {source!r},"
        return f"the source {origin!r}"

    def _index_of(self, entry: FailureEntry) -> TaskIndex | None:
        """The task that a failed item belongs to now: of the same name, else the first of its node."""
        name = self._manifest["tasks"][entry.failed.task]
        found = self._new_index.get(name)
        return found if found is not None else self._new_index.get(f"{_node_of(name)}.0")

    def carry_out(self) -> dict[str, str]:
        """Write the new stores; returns their uuids by name."""
        return {name: self._fill(name, shares) for name, shares in self._move.shares.items()}

    def _fill(self, name: str, shares: list[Share]) -> str:
        made = self._make_new(name)
        try:
            head, entries, notes = Head(), list[FailureEntry](), list[tuple[int, bytes]]()
            for share in shares:
                old = self._open_old(share.origin)
                try:
                    if share.with_books:
                        own = self._new_index[name] if isinstance(made, DurableStore) else None
                        head = self._take_books(old, head, entries, own)
                        notes += old.notes()
                    if isinstance(old, DurableStore) and isinstance(made, DurableStore):
                        _copy_states(old, made, share, self._left_out.get(share.origin, frozenset()))
                finally:
                    old.close()
            noted = [NotesTaken(tuple(notes), 0)] if notes else []
            made.apply([*map(FailureKept, entries), *noted, HeadMoved(head)])
            return made.uuid
        finally:
            made.close()

    def _take_books(self, old: Journal, head: Head, entries: list[FailureEntry], own: TaskIndex | None) -> Head:
        """Add the counters of an old origin, and its failed items under new keys; ``own``: of this durable task.

        What has failed at another replica is from now on an item of the one that keeps it, which alone can retry it.
        """
        theirs = old.restore().head
        kept = 0
        for entry in old.failures(theirs.failed):
            index = self._index_of(entry)
            if index is None:
                continue
            if own is not None and self._plan.task(index).node == self._plan.task(own).node:
                index = own
            failed = entry.failed._replace(task=index)
            entries.append(replace(entry, key=len(entries), failed=failed))
            kept += 1
        return replace(
            theirs,
            next_seq=max(head.next_seq, theirs.next_seq),
            next_key=len(entries),
            generation=max(head.generation, theirs.generation),
            emitted=head.emitted + theirs.emitted,
            failed=head.failed + kept,
            handled=head.handled + theirs.handled,
        )


def _changes_in_log(store: DurableStore) -> dict[bytes, list[Any] | None]:
    """What the log says on top of the table: place → key and state, None for what was removed."""
    codec = PickleCodec()
    found: dict[bytes, list[Any] | None] = {}
    for _, body in store.scan("log"):
        keys, states, removed = decode_state(body, codec.decode, store.path)
        found.update((place_of(key), [key, state]) for key, state in zip(keys, states, strict=True))
        found.update(dict.fromkeys(map(place_of, removed)))
    return found


def _states_in(
    store: DurableStore, changes: dict[bytes, list[Any] | None], since: bytes = b"", until: bytes | None = None
) -> Iterator[tuple[bytes, bytes]]:
    """(place, body) of each state in a range, by place: of the table, but for what the log has changed since."""
    codec = PickleCodec()
    unchanged = (record for record in store.scan("state", since, until) if record[0] not in changes)
    places = sorted(place for place in changes if place >= since and (until is None or place < until))
    changed = ((place, codec.encode(state)) for place in places if (state := changes[place]) is not None)
    return heapq.merge(unchanged, changed, key=operator.itemgetter(0))


def _count_states(store: DurableStore) -> int:
    return sum(1 for _ in _states_in(store, _changes_in_log(store)))


def _copy_states(old: DurableStore, new: DurableStore, share: Share, left_out: Set[bytes] = frozenset()) -> None:
    """Copy a range of the states, but for these places."""
    found = _states_in(old, _changes_in_log(old), share.since, share.until)
    wanted = ((place, seal(place, body)) for place, body in found if place not in left_out)
    while records := list(itertools.islice(wanted, RECORDS_PER_COMMIT)):
        new.apply([TableWrite(functools.partial(_add_all, new, records))])


def _add_all(store: DurableStore, records: list[tuple[bytes, bytes]], txn: Any) -> None:
    """Add records, which are in order, to the state table. DamagedStoreError where one is there already.

    Those of one share mostly follow all that came before, and appended they fill the pages. But LMDB leaves out what it
    cannot append, and only the count tells.
    """
    cursor = txn.cursor(db=store.handle("state"))
    follow = not cursor.last() or bytes(cursor.key()) < records[0][0]
    _, added = cursor.putmulti(records, append=follow, overwrite=False)
    if added != len(records):
        raise DamagedStoreError(
            f"{len(records) - added} of {len(records)} states could not be added to {store.path}: their keys are there "
            "already, or out of order; nothing has changed, the old stores are as they were: look at them with "
            "`consecution journal check`",
            path=str(store.path),
            record="state",
        )
