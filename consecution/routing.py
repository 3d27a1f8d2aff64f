"""Where a pushed item goes: keys to replicas, the same in every process and every run; and choices.

A key is hashed from its canonical encoding, never from ``hash()``, which differs from process to process.
The hash picks one of 4096 slots, and each replica owns a contiguous range of slots.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import itertools
import math
import uuid
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from consecution.errors import KeyEncodingError

SLOTS = 4096
CACHED_KEYS = 65_536
TEXT_CRC = zlib.crc32(b"s")
"""How the checksum of an encoded text begins."""
GREATEST_EXPONENT = 10_000
"""Of a Decimal: equal to an int, it would be encoded with all its digits."""
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
SHOWN_LENGTH = 80
ALLOWED = "str, bytes, int, float, bool, None, Enum, Decimal, date, datetime, UUID, and tuples of these"

Key = Any


def encode_key(key: Key) -> bytes:
    """The canonical bytes of a key: equal keys encode equally, in every process and every run.

    Numbers that are equal are one key (``1``, ``1.0``, ``True``, ``Decimal(1)``), as in a dict; every NaN
    is the same. Times with a zone are one key if they are the same moment. A member of an enumeration
    that is also a number or string is that number or string. KeyEncodingError for anything that has no
    stable encoding, such as a list or an object of your own.
    """
    encode = _ENCODERS.get(type(key))
    if encode is not None:
        return encode(key)
    for kind, encode_kind in _BASES:
        if isinstance(key, kind):
            return encode_kind(key)
    raise KeyEncodingError(
        f"a key must be one of {ALLOWED}; found {_show(key)}: let the key function return, say, a tuple of its fields"
    )


def _show(key: Key) -> str:
    try:
        text = repr(key)
    except Exception:
        return type(key).__name__
    return f"{type(key).__name__} {text if len(text) <= SHOWN_LENGTH else text[:SHOWN_LENGTH] + '...'}"


def _encode_int(key: int) -> bytes:
    # Hexadecimal, for Python refuses to write very long numbers as decimals.
    return b"i%x" % int(key)


def _encode_ratio(numerator: int, denominator: int) -> bytes:
    return _encode_int(numerator) if denominator == 1 else b"r%x/%x" % (numerator, denominator)


def _encode_float(key: float) -> bytes:
    if math.isfinite(key):
        return _encode_ratio(*key.as_integer_ratio())
    return b"fnan" if math.isnan(key) else b"finf" if key > 0 else b"f-inf"


def _encode_decimal(key: decimal.Decimal) -> bytes:
    if key.is_nan():
        return _encode_float(math.nan)
    if key.is_infinite():
        return _encode_float(float(key))
    if abs(key.adjusted()) > GREATEST_EXPONENT:
        raise KeyEncodingError(f"a key's exponent must be within {GREATEST_EXPONENT}; found Decimal {key}")
    return _encode_ratio(*key.as_integer_ratio())


def _encode_str(key: str) -> bytes:
    return b"s" + str.encode(key, "utf-8", "surrogatepass")


def _encode_tuple(key: tuple[Any, ...]) -> bytes:
    parts = [encode_key(part) for part in key]
    return b"t%d:" % len(parts) + b"".join(b"%d:" % len(part) + part for part in parts)


def _encode_datetime(key: datetime.datetime) -> bytes:
    if key.utcoffset() is None:
        return b"d" + key.replace(tzinfo=None, fold=0).isoformat().encode()
    since = key - EPOCH
    return b"z%d,%d,%d" % (since.days, since.seconds, since.microseconds)


def _encode_enum(key: enum.Enum) -> bytes:
    kind = type(key)
    return f"e{kind.__module__}.{kind.__qualname__}.{key.name}".encode()


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    str: _encode_str,
    int: _encode_int,
    bool: _encode_int,
    float: _encode_float,
    tuple: _encode_tuple,
    bytes: lambda key: b"b" + bytes(key),
    type(None): lambda key: b"n",
    decimal.Decimal: _encode_decimal,
    datetime.datetime: _encode_datetime,
    datetime.date: lambda key: b"D" + key.isoformat().encode(),
    uuid.UUID: lambda key: b"u" + key.bytes,
}
_BASES: tuple[tuple[type, Callable[[Any], bytes]], ...] = (*_ENCODERS.items(), (enum.Enum, _encode_enum))
"""Looked through for everything that is not exactly one of these: a datetime before a date, which it also is."""


def _reversed_bits() -> list[int]:
    """Each number below `SLOTS` with its bits in reverse order."""
    found = [0]
    while len(found) < SLOTS:
        found = [2 * number for number in found] + [2 * number + 1 for number in found]
    return found


SLOTS_BY_CRC = _reversed_bits()
"""The lowest bits of a CRC, in reverse. In the lowest ones keys differ that follow each other: with these in front, a
handful of account numbers does not meet in one range of slots."""


def slot_of(key: Key) -> int:
    """The slot of a key, 0 to 4095."""
    return slot_of_encoded(encode_key(key))


def slot_of_encoded(encoded: bytes) -> int:
    """The slot of a key whose canonical bytes these are."""
    return SLOTS_BY_CRC[zlib.crc32(encoded) % SLOTS]


def replica_of_slot(slot: int, replicas: int) -> int:
    """The replica that owns a slot: contiguous ranges, as even as can be."""
    return slot * replicas // SLOTS


class KeyedRouter:
    """Finds the replica of an item by its key. Remembers the replicas of the latest keys."""

    def __init__(self, key_function: Callable[[Any], Key], replicas: int) -> None:
        self._key_function = key_function
        self._replicas = replicas
        self._known: dict[Key, int] = {}

    def replica_of(self, item: Any) -> int:
        """The replica of one item. Raises what the key function raises, or KeyEncodingError."""
        return self._replica_of_key(self._key_function(item))

    def partition(self, items: Sequence[Any]) -> list[list[Any]]:
        """Split items over the replicas in one pass, order kept within each."""
        parts: list[list[Any]] = [[] for _ in range(self._replicas)]
        key_function, known = self._key_function, self._known
        for item in items:
            key = key_function(item)
            try:
                replica = known[key]
            except (KeyError, TypeError):
                replica = self._replica_of_key(key)
            parts[replica].append(item)
        return parts

    def _replica_of_key(self, key: Key) -> int:
        replica = replica_of_slot(slot_of(key), self._replicas)
        if len(self._known) >= CACHED_KEYS:
            self._known.clear()
        self._known[key] = replica
        return replica


class ColumnSplitter:
    """Shares out keys of which each comes once: to hash it is quicker than to look among the latest keys."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._by_crc = [replica_of_slot(slot, replicas) for slot in SLOTS_BY_CRC]

    def split(self, keys: list[Key], values: list[Any]) -> list[tuple[list[Key], list[Any]]]:
        """For each replica its keys, and what stands beside them."""
        parts: list[tuple[list[Key], list[Any]]] = [([], []) for _ in range(self._replicas)]
        by_crc, crc32 = self._by_crc, zlib.crc32
        for key, value in zip(keys, values, strict=True):
            if type(key) is str and key.isascii():
                replica = by_crc[crc32(key.encode(), TEXT_CRC) % SLOTS]
            else:
                replica = by_crc[crc32(encode_key(key)) % SLOTS]
            own_keys, own_values = parts[replica]
            own_keys.append(key)
            own_values.append(value)
        return parts


class RouteChooser:
    """Chooses between named ways: by a function, or round robin where there is none.

    The function returns the name of a way, or its index: 0 for the first, so False is the first and True
    the second.
    """

    def __init__(self, name: str, choose: Callable[[Any], str | int] | None, choices: tuple[str, ...]) -> None:
        self._name = name
        self._choices = choices
        self._index: dict[Any, int] = {index: index for index in range(len(choices))}
        self._index.update({choice: index for index, choice in enumerate(choices)})
        turns = itertools.cycle(range(len(choices)))
        self._choose = choose if choose is not None else lambda item: next(turns)

    def index_of(self, item: Any) -> int:
        """The index of the way of one item. ValueError, which lists the ways, for any other answer."""
        chosen = self._choose(item)
        try:
            return self._index[chosen]
        except (KeyError, TypeError):
            raise ValueError(self._refuse(chosen)) from None

    def _refuse(self, chosen: Any) -> str:
        by_index = f", or an index from 0 to {len(self._choices) - 1}" if isinstance(chosen, int) else ""
        return (
            f"\n\nRouter node {self._name} encountered bad route path {chosen!r}.  Valid route paths are "
            f"{list(self._choices)}{by_index}."
        )
