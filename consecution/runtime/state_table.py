"""The states of one durable task in LMDB: a log of changes in front of a table.

::

    state   slot (2 bytes) + encoded key (or its hash)   pickle of (key, state)
    log     number (8 bytes big-endian)                  pickle of [[key...], [state...], [removed key...]]

A commit appends one record with what changed, whatever the number of keys. Once the log has grown to a
bound, each commit also merges the oldest keys into the table, about as many as it appends; keys that a later record
has again are left to that, and a record of which all keys are merged is removed. So a commit's cost grows with what
changed, no commit is much dearer than the one before, and a restart reads at most a bounded log. A crash in the
middle of a record is harmless: what is merged twice is the same. Keys in the log stay in memory until they are
merged; all others may leave it.

Every value is sealed with a checksum of key and body, as in the journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import operator
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from consecution.errors import MisplacedKeyError, MissingCodeError, UndecodableStateError, text_of
from consecution.protocol.step import shorten_repr
from consecution.protocol.values import USER_ERRORS
from consecution.routing import SLOTS, SLOTS_BY_CRC, encode_key, replica_of_slot, slot_of_encoded
from consecution.runtime.journal import seal
from consecution.runtime.main_module import is_of_a_script
from consecution.states import MISSING, Key, States
from consecution.telling import tell

LOG_LIMIT_BYTES = 8 * 1024 * 1024
"""A log of this size takes a fraction of a second to read at a restart."""
LOG_LIMIT_KEYS = 100_000
LOG_LIMIT_RECORDS = 10_000
"""Where each commit has few keys, its record takes several times as much memory as it is long: half a kilobyte."""
LONGEST_KEY_BYTES = 400
"""LMDB takes 511; what is longer is stored under its hash."""
KEPT_FREE = 8
"""One in so many states leaves memory beyond those that have to, so that not every commit has to look for some."""
OBJECT_BYTES = 800
"""What a state takes in memory beside its pickled size: key, dict, slots, part of the log; measured on small dicts."""
SLOW_RESTORE_S = 1.0
"""A restart that reads its log for longer than this says so."""
END = b"\xff\xffend"
"""Where the end of an append sink stands in the state table: behind all slots. A transaction sink was opened here."""
_SLOT = struct.Struct(">H")
_SLOT_BYTES_BY_CRC = list(map(_SLOT.pack, SLOTS_BY_CRC))
_NUMBER = struct.Struct(">Q")


class Tables(Protocol):
    """The environment the tables lie in: reads and seals for them."""

    path: Path

    def read(self, table: str, key: bytes) -> bytes | None: ...

    def scan(self, table: str) -> Iterator[tuple[bytes, bytes]]: ...

    def handle(self, table: str) -> Any: ...

    def count(self, table: str) -> int: ...


def place_of(key: Key) -> bytes:
    """Where a key lies in the table: its slot first, so that a range of slots is a range of the table."""
    return _place_of(encode_key(key))


def _place_of(encoded: bytes) -> bytes:
    slot = _SLOT_BYTES_BY_CRC[zlib.crc32(encoded) % SLOTS]
    if len(encoded) > LONGEST_KEY_BYTES:
        encoded = b"h" + hashlib.blake2b(encoded, digest_size=32).digest()
    return slot + encoded


def by_place(keys: Collection[Key]) -> tuple[list[bytes], list[Key]]:
    """The places of these keys, in the order of the table, and the keys in that order.

    Not in pairs: the collector would go through tens of thousands of new tuples.
    """
    places = _places_of(keys)
    key_at = dict(zip(places, keys, strict=True))
    places.sort()
    return places, list(map(key_at.__getitem__, places))


def _places_of(keys: Collection[Key]) -> list[bytes]:
    """`place_of` for each; short texts, the usual ones, take half the time without calls."""
    if set(map(type, keys)) == {str} and 4 * max(map(len, keys)) < LONGEST_KEY_BYTES:
        with contextlib.suppress(UnicodeEncodeError):
            crc, slots = zlib.crc32, _SLOT_BYTES_BY_CRC
            return [slots[crc(encoded := b"s" + key.encode()) % SLOTS] + encoded for key in keys]
    return list(map(place_of, keys))


def decode_state(body: bytes, loads: Callable[[bytes], list[Any]], path: Path) -> list[Any]:
    """A record of the state of the store at ``path``. No item is at fault where it cannot be decoded:

    UndecodableStateError, which ends the run.
    """
    try:
        return loads(body)
    except USER_ERRORS as failed:
        error = failed.__cause__ if isinstance(failed, MissingCodeError) and failed.__cause__ else failed
        raise UndecodableStateError(
            f"the state in {path} cannot be decoded ({text_of(error)}): {_remedy(error)}; nothing was lost"
        ) from error


class Owner(NamedTuple):
    """The task whose states they are, where several replicas of its node share the keys."""

    node: str
    replica: int
    replicas: int

    def owns(self, slot: int) -> bool:
        """Whether a slot is this replica's; it is if one below and one above are."""
        return replica_of_slot(slot, self.replicas) == self.replica

    def check(self, key: Key, slot: int) -> None:
        """MisplacedKeyError for a key of another replica: applied here, its item would begin a second state of that."""
        if not self.owns(slot):
            owner = replica_of_slot(slot, self.replicas)
            raise MisplacedKeyError(
                f"the key {shorten_repr(key)} belongs to {self.node}.{owner}, and its item has come to "
                f"{self.node}.{self.replica}: since it was sent here, the item or key() has changed; put it back "
                "(`consecution failed retry`), and the next run takes it there"
            )


def _remedy(error: BaseException) -> str:
    if is_of_a_script(error):
        return (
            "it was written by a script that was run as `python FILE`: run that again, or `consecution run FILE`, and "
            "keep its classes under their old names"
        )
    return "run again with the code that it was written with, or keep its classes under their old names"


class _Record(NamedTuple):
    """A record of the log, without the states; ``keys`` are those that are yet to be merged."""

    number: bytes
    keys: list[Key]
    size_bytes: int


class StateTable:
    """The backing of one task's `States`. Called by one thread.

    ``dumps`` and ``loads`` pickle. ``cache_bytes`` bounds what stays in memory after a merge. ``owner``: keys of others
    are refused, when they are looked for.
    """

    least_merged_keys = 1000
    """A commit to a log that is too long merges so many keys, or twice as many as it writes."""

    def __init__(
        self,
        tables: Tables,
        dumps: Callable[[list[Any]], bytes],
        loads: Callable[[bytes], list[Any]],
        cache_bytes: int,
        owner: Owner | None = None,
    ) -> None:
        self._owner = owner
        self._tables = tables
        self._dumps = dumps
        self._loads = loads
        self._cache_bytes = cache_bytes
        self._records: deque[_Record] = deque()
        self._unmerged: dict[Key, bytes] = {}
        """Key → the latest record of the log that has it."""
        self._reread: dict[bytes, dict[Key, Any]] = {}
        self._next_number = 0
        self._log_bytes = 0
        self._all_in_memory = True
        """Nothing is in the table that is not in memory too: what is not found there is new."""
        self._merged_bytes = 0
        self._merged_count = 0
        self._left_cached = 0
        """How many the last look for states to let go of has left in memory."""

    def restore(self, states: States) -> None:
        """Read the log into memory."""
        started_s = time.monotonic()
        self._all_in_memory = not self._tables.count("state")
        for number, body in self._tables.scan("log"):
            found = self._changes_in(body)
            states.cached.update(found)
            self._note(number, list(found), len(body))
        took_s = time.monotonic() - started_s
        if took_s > SLOW_RESTORE_S:
            self._tell(took_s)

    def _tell(self, took_s: float) -> None:
        count, mib = self._tables.count("state"), self._log_bytes / 1024**2
        tell(f"{count:,} states, log of {mib:.0f} MiB read in {took_s:.1f} s")

    def _note(self, number: bytes, keys: list[Key], size_bytes: int) -> None:
        """The log has this record now, and it is the latest of its keys."""
        self._records.append(_Record(number, keys, size_bytes))
        self._unmerged.update(zip(keys, itertools.repeat(number)))
        self._next_number = _NUMBER.unpack(number)[0] + 1
        self._log_bytes += size_bytes

    def _decode(self, body: bytes) -> list[Any]:
        return decode_state(body, self._loads, self._tables.path)

    def _changes_in(self, body: bytes) -> dict[Key, Any]:
        keys, states, removed = self._decode(body)
        return {**dict(zip(keys, states, strict=True)), **dict.fromkeys(removed, MISSING)}

    # -- a backing of States ---------------------------------------------------------------------

    def load(self, key: Key) -> Any:
        number = self._unmerged.get(key)
        if number is not None:
            return self._load_from_log(number, key)
        encoded = encode_key(key)  # Refused now, with its item, and not when it is to be merged.
        if self._owner is not None:
            self._owner.check(key, slot_of_encoded(encoded))
        if self._all_in_memory:
            return MISSING
        body = self._tables.read("state", _place_of(encoded))
        return MISSING if body is None else self._decode(body)[1]

    def knows_none(self, keys: list[Key]) -> bool:
        if self._owner is None or not self._all_in_memory:
            return self._all_in_memory
        places = _places_of(keys)
        return all(self._owner.owns(_SLOT.unpack_from(place)[0]) for place in (min(places), max(places)))

    def _load_from_log(self, number: bytes, key: Key) -> Any:
        """After a roll back: what the latest commit of this key says. Many keys may come from one record."""
        if key not in self._reread.get(number, ()):
            body = self._tables.read("log", number)
            assert body is not None, "a record of the log that was written is there until it is merged"
            self._reread[number] = self._changes_in(body)
        return self._reread[number].pop(key)  # handed out once: whoever gets it may change it

    def items(self, fresh: Collection[Key]) -> Iterator[tuple[Key, Any]]:
        places, keys = by_place(fresh)
        if not self._tables.count("state"):
            return zip(keys, itertools.repeat(MISSING), strict=False)
        return self._merged_and(deque(zip(places, keys, strict=True)))

    def _merged_and(self, waiting: deque[tuple[bytes, Key]]) -> Iterator[tuple[Key, Any]]:
        for place, body in self._tables.scan("state"):
            while waiting and waiting[0][0] < place:
                yield waiting.popleft()[1], MISSING
            if waiting and waiting[0][0] == place:
                waiting.popleft()
            key, state = self._decode(body)
            yield key, state
        for _, key in waiting:
            yield key, MISSING

    def unmerged(self) -> Iterable[Key]:
        return self._unmerged

    def left_memory(self) -> None:
        self._all_in_memory = False

    # -- commits ---------------------------------------------------------------------------------

    def write(self, txn: Any, keys: list[Key], states: list[Any]) -> None:
        """Append one record with the keys that changed and their states, as part of a commit."""
        if not keys:
            return
        kept, removed = keys, []
        if any(map(operator.is_, states, itertools.repeat(MISSING))):
            removed = [key for key, state in zip(keys, states, strict=True) if state is MISSING]
            kept = [key for key, state in zip(keys, states, strict=True) if state is not MISSING]
            states = [state for state in states if state is not MISSING]
        body = self._dumps([kept, states, removed])
        number = _NUMBER.pack(self._next_number)
        txn.put(number, seal(number, body), db=self._tables.handle("log"), append=True)
        self._note(number, keys, len(body))
        self._reread.clear()

    @property
    def merge_is_due(self) -> bool:
        is_long = self._log_bytes >= LOG_LIMIT_BYTES or len(self._records) >= LOG_LIMIT_RECORDS
        return is_long or len(self._unmerged) >= min(LOG_LIMIT_KEYS, self._most_cached)

    def merge_oldest(self, txn: Any, states: States, written: int) -> bool:
        """Make a log that is too long shorter, as part of a commit that has written so many keys. Whether it was."""
        left, merged = max(self.least_merged_keys, 2 * written), False
        while left > 0 and self._records and self.merge_is_due:
            left -= self._merge_some(txn, states, left)
            merged = True
        return merged

    def _merge_some(self, txn: Any, states: States, most: int) -> int:
        """Merge up to so many keys of the oldest record; returns how many it had.

        The states in memory are those that were written: merging comes after the changes were taken.
        """
        number, keys, size_bytes = oldest = self._records[0]
        keys, rest = keys[:most], keys[most:]
        table, unmerged = self._tables.handle("state"), self._unmerged
        puts = []
        for place, key in zip(*by_place([key for key in keys if unmerged.get(key) == number]), strict=True):
            state = states.cached.get(key, self)
            if state is self:
                state = self.load(key)
            del unmerged[key]
            if state is MISSING:
                txn.delete(place, db=table)
            else:
                body = self._dumps([key, state])
                self._merged_bytes += len(body)
                puts.append((place, seal(place, body)))
        txn.cursor(db=table).putmulti(puts)
        self._merged_count += len(puts)
        if rest:
            self._records[0] = oldest._replace(keys=rest)
            return len(keys)
        self._records.popleft()
        txn.delete(number, db=self._tables.handle("log"))
        self._log_bytes -= size_bytes
        self._reread.pop(number, None)
        return len(keys)

    @property
    def _most_cached(self) -> int:
        """How many states may stay in memory, by their mean size so far."""
        mean_bytes = OBJECT_BYTES + self._merged_bytes / max(1, self._merged_count)
        return max(1, int(self._cache_bytes / mean_bytes))

    def too_many(self, states: States) -> bool:
        """Whether it is worth looking for states to let go of, though nothing was merged.

        Keys that were looked for and not found are never written, and so never merged. As many as must stay may be
        among the oldest: there is another look only when there are that many more.
        """
        most = self._most_cached
        return len(states.cached) > max(most, self._left_cached + most // KEPT_FREE)

    def evict(self, states: States) -> None:
        """After a commit: let go of the oldest states where there are too many."""
        most, cached, unmerged = self._most_cached, states.cached, self._unmerged
        if len(cached) > most:
            for key in list(itertools.islice(cached, len(cached) - most + most // KEPT_FREE)):
                if key not in unmerged and key not in states.touched and cached.pop(key) is not MISSING:
                    self._all_in_memory = False
        self._left_cached = len(cached)
