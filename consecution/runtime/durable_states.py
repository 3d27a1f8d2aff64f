"""The states of durable nodes, as a person sees them: read from a snapshot, one by one."""

from __future__ import annotations

import contextlib
import json
import pickle
from base64 import b64encode
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consecution.errors import KeyEncodingError, UsageError, text_of
from consecution.protocol.poison import PartlyDecodedError
from consecution.protocol.step import shorten_repr
from consecution.runtime.attribute_pickles import attributes_of
from consecution.runtime.failures import is_plain
from consecution.runtime.pending import PendingBatch, load, node_of, pending_in
from consecution.runtime.snapshot import Snapshot, StoreView, take_snapshot
from consecution.runtime.state_table import END, decode_state, place_of
from consecution.transport.codec import PickleCodec

KINDS = {
    "keyed": "a state for each key",
    "mapping": "a mapping",
    "value": "a value",
    "attributes": "attributes of the node",
    "file": "where its files end",
    "database": "which transaction its database has taken in",
    "sink": "nothing of its own",
}
"""What a durable node keeps, in words."""
WITHOUT_KEYS = {
    "value": "leave the key out to see it",
    "file": "leave the key out to see it",
    "database": "look into its table",
    "sink": "what it wrote is where it wrote it",
}
"""Those that have nothing under keys, and what to do instead."""
WITHOUT_STATES = ("file", "database", "sink")


@dataclass(frozen=True, slots=True)
class NodeStates:
    """A durable node: what it keeps, in how many replicas, and how many states (keys, attributes) there are."""

    node: str
    kind: str
    replicas: int
    states: int


@dataclass(frozen=True, slots=True)
class OneState:
    """A state under its key; None where there is only one, or a sink says where its files end."""

    node: str
    key: Any
    state: Any

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``key`` and ``state`` if it can hold both, else ``pickle`` (of a list of the two) and ``shown``."""
        if is_plain(self.key) and is_plain(self.state):
            return {"node": self.node, "key": self.key, "state": self.state}
        packed = b64encode(pickle.dumps([self.key, self.state], 5)).decode()
        return {"node": self.node, "shown": [shorten_repr(self.key), shorten_repr(self.state)], "pickle": packed}


def nodes_in(snapshot: Snapshot) -> list[NodeStates]:
    """All durable nodes, by name."""
    found = []
    for node, kind in sorted(snapshot.state.kinds.items()):
        stores = _stores_of(snapshot, node)
        count = sum(_count(store, kind) for store in stores) if kind not in WITHOUT_STATES else 0
        found.append(NodeStates(node, kind, len(stores), count))
    return found


def states_in(snapshot: Snapshot, node: str) -> Iterator[OneState]:
    """All states of a node, replica by replica; UsageError where there is no such node."""
    kind = _kind_of(snapshot, node)
    for store in _stores_of(snapshot, node):
        if kind == "file":
            yield OneState(node, None, store.fields("state", END))
        elif kind not in WITHOUT_STATES:
            yield from (OneState(node, None if kind == "value" else key, state) for key, state in _states(store, kind))


def state_of(snapshot: Snapshot, node: str, text: str) -> OneState:
    """The state under the key that a person has written: in JSON, as plain text, or as Python shows it.

    UsageError where there is none.
    """
    kind = _kind_of(snapshot, node)
    stores = _stores_of(snapshot, node)
    for key in _meant(text):
        for store in stores:
            found = _find(store, key)
            if found:
                return OneState(node, key, found[0])
    for store in stores:
        for key, state in _states(store, kind):
            if text in (key, repr(key)):
                return OneState(node, key, state)
    if kind in WITHOUT_KEYS:
        raise UsageError(
            f"{node} has no keys, and so no state under {text}: it keeps {KINDS[kind]}; {WITHOUT_KEYS[kind]}"
        )
    raise UsageError(
        f"{node} has no state under {text}; `consecution state export --node {node}` shows all keys. A number is one, "
        "and '\"7\"' is the text"
    )


def check_it_loads(path: Path, nodes: Collection[str]) -> None:
    """Load the states of these nodes, and all pending items, as a run over this state directory would.

    Raises what would end that run: UndecodableStateError, or UsageError for items whose classes are not there. What
    only an item is to blame for does not end it.
    """
    codec = PickleCodec()
    with take_snapshot(path) as snapshot:
        for node in nodes:
            if snapshot.state.kinds.get(node) not in (None, *WITHOUT_STATES):
                _check_states(_stores_of(snapshot, node), codec)
        for batch in pending_in(snapshot):
            with contextlib.suppress(PartlyDecodedError):
                _check_items(batch, codec)


def _check_states(stores: list[StoreView], codec: PickleCodec) -> None:
    for store in stores:
        for table in ("log", "state"):
            for place, body in store.records(table):
                if place != END:
                    decode_state(body, codec.decode, store.folder)


def _check_items(batch: PendingBatch, codec: PickleCodec) -> None:
    try:
        codec.decode(batch.payload)
    except (AttributeError, ImportError) as error:
        raise UsageError(
            f"{batch.origin}: batch {batch.seq}, which is pending at {batch.node}, cannot be decoded "
            f"({text_of(error)}): run the pipeline with the code that it was written with until nothing "
            "is pending (consecution drain), or keep its classes under their old names"
        ) from error


def _meant(text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return [text]
    return [_hashable(value), text]


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _kind_of(snapshot: Snapshot, node: str) -> str:
    kinds = snapshot.state.kinds
    if node not in kinds:
        raise UsageError(f"there is no durable node {node!r}; there are {', '.join(sorted(kinds)) or 'none'}")
    return kinds[node]


def _stores_of(snapshot: Snapshot, node: str) -> list[StoreView]:
    sources = snapshot.state.sources
    return [store for name, store in snapshot.stores.items() if name not in sources and node_of(name) == node]


# -- one store -----------------------------------------------------------------------------------


class _Gone:
    """Stands for a state that was removed."""


def _logged(store: StoreView) -> dict[Any, Any]:
    """What the log says of the keys it has; it is bounded, the table is not."""
    found: dict[Any, Any] = {}
    for number, body in store.records("log"):
        keys, states, removed = load(body, f"{store.name}: record {int.from_bytes(number, 'big')} of its log")
        found.update(zip(keys, states, strict=True))
        found.update(dict.fromkeys(removed, _Gone))
    return found


def _table(store: StoreView) -> Iterator[tuple[Any, Any]]:
    for place, body in store.records("state"):
        if place != END:
            key, state = load(body, f"{store.name}: a state")
            yield key, state


def _states(store: StoreView, kind: str) -> Iterator[tuple[Any, Any]]:
    for key, state in _records(store):
        if kind == "attributes":
            yield from zip(*attributes_of(key, state), strict=True)
        else:
            yield key, state


def _records(store: StoreView) -> Iterator[tuple[Any, Any]]:
    logged = _logged(store)
    for key, state in _table(store):
        newer = logged.pop(key, state)
        if newer is not _Gone:
            yield key, newer
    yield from ((key, state) for key, state in logged.items() if state is not _Gone)


def _find(store: StoreView, key: Any) -> list[Any]:
    """The state, in a list; nothing where there is none."""
    try:
        place = place_of(key)
    except (KeyEncodingError, TypeError):
        return []
    logged = _logged(store)
    if key in logged:
        return [] if logged[key] is _Gone else [logged[key]]
    body = store.get("state", place)
    return [] if body is None else [load(body, f"{store.name}: a state")[1]]


def _count(store: StoreView, kind: str) -> int:
    return sum(1 for _ in _states(store, kind))
