"""The items of a state directory that are taken and not done, as a person sees them.

- ``open``: their batch is not decided. The next run executes it (again), from where it enters.
- ``decided``: the batch is decided; the items lie at a durable node, in the form they have there, and are applied.
- ``retry``: the item has failed, and waits for another try at its node.
"""

from __future__ import annotations

import pickle
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from consecution.errors import UsageError, text_of
from consecution.protocol.durable import Durable
from consecution.protocol.step import shorten_repr
from consecution.protocol.values import USER_ERRORS, TaskIndex
from consecution.runtime.durable_store import read_frame, read_origin
from consecution.runtime.failures import is_plain
from consecution.runtime.main_module import where_to_load
from consecution.runtime.snapshot import Snapshot, StoreView, unpack
from consecution.transport.frames import decode_failed

OPEN, DECIDED, RETRY = "open", "decided", "retry"


@dataclass(frozen=True, slots=True)
class PendingBatch:
    """Items that belong together. ``node`` is where they enter next; ``payload`` is the pickle of their list, or range.

    ``behind``: they have come out of ``node``, a source or a durable one, and enter at what follows it.
    ``count`` is that of the payload's items where it is known without loading it.
    """

    origin: str
    seq: int
    state: str
    node: str
    payload: bytes
    count: int | None = None
    behind: bool = False

    def items(self) -> list[Any]:
        """The items. UsageError where what they are made of is not there."""
        return list(load(self.payload, f"{self.origin}: batch {self.seq}"))

    def to_dicts(self) -> Iterator[dict[str, Any]]:
        """Each item for JSON: as ``item`` if it can hold that, else ``pickle`` (of a list with it) and ``shown``."""
        for item in self.items():
            yield {
                "origin": self.origin,
                "batch": self.seq,
                "state": self.state,
                "node": self.node,
                "behind": self.behind,
                **told("item", item),
            }


def load(payload: bytes, what: str) -> Any:
    """What our own tasks have pickled."""
    try:
        return pickle.loads(payload)
    except USER_ERRORS as error:
        raise UsageError(f"{what} cannot be loaded here ({text_of(error)}); {where_to_load(error)}") from error


def told(name: str, value: Any) -> dict[str, Any]:
    """A value for JSON."""
    if is_plain(value):
        return {name: value}
    return {"pickle": b64encode(pickle.dumps([value], 5)).decode(), "shown": shorten_repr(value)}


def pending_in(snapshot: Snapshot) -> Iterator[PendingBatch]:
    """All of them, origin by origin, in the order of their numbers."""
    void = _void_entries(snapshot)
    below = {name: _durable_core(store) for name, store in snapshot.stores.items()}
    for name, store in snapshot.stores.items():
        yield from _decided(snapshot, name, store)
        yield from _open(snapshot, name, store, below)
        yield from _waiting(snapshot, name, store, void.get(name, set()))


def check_node(snapshot: Snapshot, node: str) -> None:
    """UsageError where no node has this name: a misspelt one must not look like one at which nothing is pending."""
    nodes = nodes_of(snapshot.state.tasks)
    if node not in nodes:
        raise UsageError(f"{snapshot.state.path}: there is no node {node!r}; there are {', '.join(nodes)}")


def _durable_core(store: StoreView) -> Durable:
    """The durable task of a store, as it would go on; of a source's, which has neither, it has nothing."""
    ledger = {read_origin(key): unpack(body)[0] for key, body in store.records("ledger")}
    return Durable(ledger, (read_frame(key, unpack(body)) for key, body in store.records("inbox")))


def _open(snapshot: Snapshot, name: str, store: StoreView, below: dict[str, Durable]) -> Iterator[PendingBatch]:
    """Those that no durable task has decided: of these nobody has told the origin yet."""
    number = TaskIndex(_number_of(snapshot, name))
    for key, body in store.records("batches"):
        seq = int.from_bytes(key, "big")
        if any(durable.applied(number) >= seq for durable in below.values()):
            continue
        decided = [(task, frame) for task, durable in below.items() if (frame := durable.decided_here(number, seq))]
        if decided:
            yield from (PendingBatch(name, seq, DECIDED, node_of(task), frame.payload) for task, frame in decided)
            continue
        count, payload, retry, _ = unpack(body)
        node = _node_at(snapshot, number if retry is None else retry[3])
        yield PendingBatch(name, seq, OPEN, node, payload, count, retry is None)


def _decided(snapshot: Snapshot, name: str, store: StoreView) -> Iterator[PendingBatch]:
    """The frames of exactly the execution that was decided, at those that have not applied it yet."""
    number = _number_of(snapshot, name)
    for key, body in store.records("decided"):
        seq, (generation, _, participants, *_) = int.from_bytes(key, "big"), unpack(body)
        for task, _ in participants:
            there = snapshot.stores.get(_name_at(snapshot, task))
            prefix = number.to_bytes(4, "big") + key + generation.to_bytes(8, "big")
            for place, frame in there.records("inbox", prefix) if there is not None else ():
                if not place.startswith(prefix):
                    break
                yield PendingBatch(name, seq, DECIDED, _node_at(snapshot, task), unpack(frame)[4])


def _waiting(snapshot: Snapshot, name: str, store: StoreView, void: set[int]) -> Iterator[PendingBatch]:
    for key, body in store.records("failures"):
        fields, _, root, _, due_s, *_ = unpack(body)
        failed = decode_failed(fields)
        if due_s is not None and failed.payload is not None and int.from_bytes(key, "big") not in void:
            yield PendingBatch(name, max(root, 0), RETRY, _node_at(snapshot, failed.task), failed.payload, 1)


def _void_entries(snapshot: Snapshot) -> dict[str, set[int]]:
    """Entries that a source has taken over as batches, and that may still be there."""
    void: dict[str, set[int]] = {}
    for store in snapshot.stores.values():
        moved = store.fields("meta", b"moved")
        if moved is not None:
            void.setdefault(moved[0], set()).update(moved[1])
    return void


def nodes_of(tasks: Iterable[str]) -> list[str]:
    """The names of the nodes of these tasks, in order."""
    return sorted(set(map(node_of, tasks)))


def node_of(task: str) -> str:
    """The node of a task, by its name."""
    return task.rpartition(".")[0] or task


def _name_at(snapshot: Snapshot, task: int) -> str:
    tasks = snapshot.state.tasks
    return tasks[task] if task < len(tasks) else f"task {task}"


def _node_at(snapshot: Snapshot, task: int) -> str:
    return node_of(_name_at(snapshot, task))


def _number_of(snapshot: Snapshot, origin: str) -> int:
    """The number of an origin's task: a durable one has the task's name, a source its node's."""
    sources = snapshot.state.sources
    return sources.index(origin) if origin in sources else snapshot.state.tasks.index(origin)
