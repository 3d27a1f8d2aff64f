"""The states of one durable task in LMDB: a log of changes in front of a table.

::

    state   slot (2 bytes) + encoded key (or its hash)   pickle of (key, state)
    log     number (8 bytes big-endian)                  pickle of ([(key, state)...], [removed key...])

A commit appends one record with what changed, whatever the number of keys. When the log has grown to a
bound, the keys it names are merged into the table, in one commit, and the log begins anew: so a commit's cost
grows with what changed, and a restart reads at most a bounded log. Keys in the log stay in memory until they are
merged; all others may leave it.

Every value is sealed with a checksum of key and body, as in the journal.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from consecution.routing import encode_key, slot_of_encoded
from consecution.runtime.journal import seal
from consecution.states import MISSING, Key, States

LOG_LIMIT_BYTES = 8 * 1024 * 1024
"""A log of this size takes a fraction of a second to read at a restart."""
LOG_LIMIT_KEYS = 100_000
LONGEST_KEY_BYTES = 400
"""LMDB takes 511; what is longer is stored under its hash."""
OBJECT_BYTES = 400
"""What a state takes in memory beside its pickled size: its key, its dict, their slots."""
_SLOT = struct.Struct(">H")
_NUMBER = struct.Struct(">Q")


class Tables(Protocol):
    """The environment the tables lie in: reads and seals for them."""

    def read(self, table: str, key: bytes) -> bytes | None: ...

    def scan(self, table: str) -> Iterator[tuple[bytes, bytes]]: ...

    def handle(self, table: str) -> Any: ...


def place_of(key: Key) -> bytes:
    """Where a key lies in the table: its slot first, so that a range of slots is a range of the table."""
    encoded = encode_key(key)
    slot = _SLOT.pack(slot_of_encoded(encoded))
    if len(encoded) > LONGEST_KEY_BYTES:
        encoded = b"h" + hashlib.blake2b(encoded, digest_size=32).digest()
    return slot + encoded


class StateTable:
    """The backing of one task's `States`. Called by one thread.

    ``dumps`` and ``loads`` pickle. ``cache_bytes`` bounds what stays in memory after a merge.
    """

    def __init__(
        self,
        tables: Tables,
        dumps: Callable[[list[Any]], bytes],
        loads: Callable[[bytes], list[Any]],
        cache_bytes: int,
    ) -> None:
        self._tables = tables
        self._dumps = dumps
        self._loads = loads
        self._cache_bytes = cache_bytes
        self._unmerged: dict[Key, bytes] = {}
        """Key → the latest record of the log that has it."""
        self._reread: dict[bytes, dict[Key, Any]] = {}
        self._next_number = 0
        self._log_bytes = 0
        self._all_in_memory = True
        """Nothing is in the table that is not in memory too: what is not found there is new."""
        self._merged_bytes = 0
        self._merged_count = 0

    def restore(self, states: States) -> None:
        """Read the log into memory."""
        self._all_in_memory = next(self._tables.scan("state"), None) is None
        for number, body in self._tables.scan("log"):
            found = self._changes_in(body)
            states.cached.update(found)
            self._unmerged.update(dict.fromkeys(found, number))
            self._next_number = _NUMBER.unpack(number)[0] + 1
            self._log_bytes += len(body)

    def _changes_in(self, body: bytes) -> dict[Key, Any]:
        changed, removed = self._loads(body)
        return {**dict(changed), **dict.fromkeys(removed, MISSING)}

    # -- a backing of States ---------------------------------------------------------------------

    def load(self, key: Key) -> Any:
        number = self._unmerged.get(key)
        if number is not None:
            return self._load_from_log(number, key)
        if self._all_in_memory:
            return MISSING
        body = self._tables.read("state", place_of(key))
        return MISSING if body is None else self._loads(body)[1]

    def _load_from_log(self, number: bytes, key: Key) -> Any:
        """After a roll back: what the latest commit of this key says. Many keys may come from one record."""
        if number not in self._reread:
            body = self._tables.read("log", number)
            assert body is not None, "a record of the log that was written is there until it is merged"
            self._reread[number] = self._changes_in(body)
        return self._reread[number].pop(key)

    def items(self) -> Iterator[tuple[Key, Any]]:
        for _, body in self._tables.scan("state"):
            key, state = self._loads(body)
            yield key, state

    def unmerged(self) -> Iterable[Key]:
        return self._unmerged

    def left_memory(self) -> None:
        self._all_in_memory = False

    # -- commits ---------------------------------------------------------------------------------

    def write(self, txn: Any, changes: list[tuple[Key, Any]]) -> None:
        """Append one record of changes, as part of a commit."""
        if not changes:
            return
        changed = [(key, state) for key, state in changes if state is not MISSING]
        removed = [key for key, state in changes if state is MISSING]
        body = self._dumps([changed, removed])
        number = _NUMBER.pack(self._next_number)
        txn.put(number, seal(number, body), db=self._tables.handle("log"), append=True)
        self._next_number += 1
        self._log_bytes += len(body)
        self._unmerged.update(dict.fromkeys([key for key, _ in changes], number))
        self._reread.clear()

    @property
    def merge_is_due(self) -> bool:
        return self._log_bytes >= LOG_LIMIT_BYTES or len(self._unmerged) >= LOG_LIMIT_KEYS

    def merge(self, txn: Any, states: States) -> None:
        """Bring what the log holds into the table, as part of a commit whose changes were written before."""
        table, log = self._tables.handle("state"), self._tables.handle("log")
        for key in self._unmerged:
            place = place_of(key)
            state = states.cached.get(key, self)
            if state is self:
                state = self.load(key)
            if state is MISSING:
                txn.delete(place, db=table)
                continue
            body = self._dumps([key, state])
            self._merged_bytes += len(body)
            self._merged_count += 1
            txn.put(place, seal(place, body), db=table)
        txn.drop(log, delete=False)
        self._unmerged.clear()
        self._reread.clear()
        self._log_bytes = 0

    def evict(self, states: States) -> None:
        """After a merge was committed: let go of the oldest states where there are too many."""
        mean_bytes = OBJECT_BYTES + self._merged_bytes / max(1, self._merged_count)
        most = max(1, int(self._cache_bytes / mean_bytes))
        if len(states.cached) <= most:
            return
        self.left_memory()
        for key in list(itertools.islice(states.cached, len(states.cached) - most // 2)):
            if key not in self._unmerged and key not in states.touched:
                del states.cached[key]
