"""Failed items of keyed nodes that wait for a try where their key is not at home: brought there before a run begins.

A durable task tries its own failed inputs itself. But a key may be another one than when its item was sent: somebody
has edited the item, or mended `key`, or the replicas are others now. Only a run knows `key`, and while it goes on each
store has a writer of its own. So at its start, before there are any, each item that waits moves into the store of the
replica that owns its key:

1. Where what was folded in parts is of several owners, one commit cuts its entry up, into one for each.
2. The entries of one store that belong into one other go there as `takeover` has it. A crash leaves each in one of the
   two; the next start goes on from there, for it looks at all that wait.

An item whose key cannot be told here stays: the task will say what is wrong with it. So does one that has taken a
process down. That none of them is applied where it is not at home, `state_table.Owner` sees to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from consecution.plan import NodePlan, Plan
from consecution.protocol.origin import FailureEntry, FailureKept, FailureTaken, HeadMoved
from consecution.protocol.step import shorten_repr
from consecution.protocol.values import USER_ERRORS, Stage, TaskIndex
from consecution.reduction import PartTable
from consecution.routing import ColumnSplitter, KeyedRouter
from consecution.runtime.journal import FailuresMoved, Journal
from consecution.runtime.relocation import OpenStore
from consecution.runtime.takeover import take_over
from consecution.stateful import KeyedNode
from consecution.transport.codec import PickleCodec

ENTRIES_PER_COMMIT = 1000


def bring_home(plan: Plan, open_store: OpenStore) -> None:
    """Every failed item that waits at a keyed node goes to the replica that owns its key."""
    for node in plan.nodes:
        if node.durable and node.replicas > 1 and isinstance(node.node, KeyedNode):
            _Replicas(plan, node, open_store).bring_home()


class _Replicas:
    """The replicas of one node, and their stores."""

    def __init__(self, plan: Plan, node: NodePlan, open_store: OpenStore) -> None:
        assert node.key_function is not None
        self._tasks = tuple(map(TaskIndex, node.tasks))
        self._names = [plan.task(task).name for task in self._tasks]
        self._router = KeyedRouter(node.key_function, node.replicas)
        self._splitter = ColumnSplitter(node.replicas)
        self._open_store = open_store
        self._codec = PickleCodec()

    def bring_home(self) -> None:
        for replica, name in enumerate(self._names):
            with closing(self._open_store(name)) as store:
                found = self._by_owner(store)
            for owner, entries in found.items():
                if owner != replica:
                    self._move(name, owner, entries)

    def _by_owner(self, store: Journal) -> dict[int, list[FailureEntry]]:
        """The entries that wait for a try, by the replica that owns their key; without those whose key is not known."""
        shared = [(entry, self._shares_of(entry)) for entry in self._waiting(store)]
        found: dict[int, list[FailureEntry]] = {}
        for entry, shares in shared:
            if len(shares) == 1:
                found.setdefault(next(iter(shares)), []).append(entry)
        for owner, entry in _cut_up(store, [(entry, shares) for entry, shares in shared if len(shares) > 1]):
            found.setdefault(owner, []).append(entry)
        return found

    def _waiting(self, store: Journal) -> Iterator[FailureEntry]:
        for entry in store.failed_entries():
            if entry.due_s is not None and entry.failed.task in self._tasks and entry.failed.stage is Stage.PROCESS:
                yield entry

    def _shares_of(self, entry: FailureEntry) -> dict[int, Any]:
        """Replica → what it owns of the item: all of it, or its part of a table. Nothing where that is not known."""
        if not entry.failed.retryable:
            return {}
        try:
            (item,) = self._codec.decode(entry.failed.payload)
            if type(item) is not PartTable:
                return {self._router.replica_of(item): item}
            parts = self._splitter.split(*item.columns)
            return {replica: PartTable(keys, values) for replica, (keys, values) in enumerate(parts) if keys}
        except USER_ERRORS:
            return {}

    def _move(self, name: str, owner: int, entries: list[FailureEntry]) -> None:
        with closing(self._open_store(self._names[owner])) as home, closing(self._open_store(name)) as store:
            head = home.restore().head
            for start in range(0, len(entries), ENTRIES_PER_COMMIT):
                part = entries[start : start + ENTRIES_PER_COMMIT]
                moved = FailuresMoved(name, tuple(entry.key for entry in part))
                kept = [self._at_home(entry, owner, head.next_key + number) for number, entry in enumerate(part)]
                head = replace(head, next_key=head.next_key + len(part))
                take_over(home, store, [*map(FailureKept, kept), HeadMoved(head)], moved)

    def _at_home(self, entry: FailureEntry, owner: int, key: int) -> FailureEntry:
        return replace(entry, key=key, failed=entry.failed._replace(task=self._tasks[owner]))


def _cut_up(store: Journal, shared: list[tuple[FailureEntry, dict[int, PartTable]]]) -> list[tuple[int, FailureEntry]]:
    """In the place of each entry one for each owner; these, with their owners."""
    if not shared:
        return []
    head = store.restore().head
    pieces = [(owner, entry, part) for entry, shares in shared for owner, part in shares.items()]
    made = [(owner, _piece(entry, part, head.next_key + number)) for number, (owner, entry, part) in enumerate(pieces)]
    taken = [FailureTaken(entry.key) for entry, _ in shared]
    kept = [FailureKept(piece) for _, piece in made]
    store.apply([*taken, *kept, HeadMoved(replace(head, next_key=head.next_key + len(made)))])
    return made


def _piece(entry: FailureEntry, part: PartTable, key: int) -> FailureEntry:
    payload = PickleCodec().encode([part])
    return replace(entry, key=key, failed=entry.failed._replace(payload=payload, shown=shorten_repr(part)))
