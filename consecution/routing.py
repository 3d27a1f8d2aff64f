"""Where a pushed item goes: keys to replicas, the same in every process and every run; and choices.

A key is hashed from its canonical encoding, never from ``hash()``, which differs from process to process.
The hash picks one of 4096 slots, and each replica owns a contiguous range of slots.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import hashlib
import math
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from consecution.errors import KeyEncodingError

SLOTS = 4096
CACHED_KEYS = 65_536
ALLOWED = "str, bytes, int, float, bool, None, Enum, Decimal, date, datetime, UUID, and tuples of these"

Key = Any


def encode_key(key: Key) -> bytes:
    """The canonical bytes of a key: equal keys encode equally, in every process and every run.

    Numbers that are equal are one key (``1``, ``1.0``, ``True``, ``Decimal(1)``), as in a dict.
    KeyEncodingError for anything that has no stable encoding, such as a list or an object of your own.
    """
    encode = _ENCODERS.get(type(key))
    if encode is not None:
        return encode(key)
    for kind, encode_kind in _BASES:
        if isinstance(key, kind):
            return encode_kind(key)
    raise KeyEncodingError(
        f"a key must be one of {ALLOWED}; found {type(key).__name__}: {str(key)[:80]!r}: "
        "let the key function return, say, a tuple of its fields"
    )


def _encode_int(key: int) -> bytes:
    return b"i%d" % key


def _encode_float(key: float) -> bytes:
    if key.is_integer():
        return _encode_int(int(key))
    if math.isfinite(key):
        numerator, denominator = key.as_integer_ratio()
        return b"r%d/%d" % (numerator, denominator)
    return b"f" + (b"nan" if math.isnan(key) else repr(key).encode())


def _encode_decimal(key: decimal.Decimal) -> bytes:
    if not key.is_finite():
        return _encode_float(float(key)) if not key.is_snan() else b"fnan"
    numerator, denominator = key.as_integer_ratio()
    return _encode_int(numerator) if denominator == 1 else b"r%d/%d" % (numerator, denominator)


def _encode_tuple(key: tuple[Any, ...]) -> bytes:
    parts = [encode_key(part) for part in key]
    return b"t%d:" % len(parts) + b"".join(b"%d:" % len(part) + part for part in parts)


def _encode_enum(key: enum.Enum) -> bytes:
    kind = type(key)
    return f"e{kind.__module__}.{kind.__qualname__}.{key.name}".encode()


def _encode_datetime(key: datetime.datetime) -> bytes:
    if key.tzinfo is not None:
        key = key.astimezone(datetime.UTC)
    return b"d" + key.isoformat().encode()


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    str: lambda key: b"s" + key.encode("utf-8", "surrogatepass"),
    bytes: lambda key: b"b" + key,
    int: _encode_int,
    bool: _encode_int,
    float: _encode_float,
    type(None): lambda key: b"n",
    tuple: _encode_tuple,
    decimal.Decimal: _encode_decimal,
    datetime.datetime: _encode_datetime,
    datetime.date: lambda key: b"D" + key.isoformat().encode(),
    uuid.UUID: lambda key: b"u" + key.bytes,
}
_BASES: tuple[tuple[type, Callable[[Any], bytes]], ...] = (
    (enum.IntEnum, _encode_int),
    (enum.StrEnum, lambda key: _ENCODERS[str](str(key))),
    (enum.Enum, _encode_enum),
    (int, lambda key: _encode_int(int(key))),
    (float, lambda key: _encode_float(float(key))),
    (str, lambda key: _ENCODERS[str](str.__str__(key))),
    (tuple, _encode_tuple),
)


def slot_of(key: Key) -> int:
    """The slot of a key, 0 to 4095."""
    digest = hashlib.blake2b(encode_key(key), digest_size=8).digest()
    return int.from_bytes(digest, "big") % SLOTS


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
        adders = [part.append for part in parts]
        key_function, known = self._key_function, self._known
        for item in items:
            key = key_function(item)
            try:
                replica = known[key]
            except (KeyError, TypeError):
                replica = self._replica_of_key(key)
            adders[replica](item)
        return parts

    def _replica_of_key(self, key: Key) -> int:
        replica = replica_of_slot(slot_of(key), self._replicas)
        if len(self._known) >= CACHED_KEYS:
            self._known.clear()
        self._known[key] = replica
        return replica


class RouteChooser:
    """Chooses between named ways: by a function, or round robin where there is none.

    The function returns the name of a way, or its index.
    """

    def __init__(self, name: str, choose: Callable[[Any], str | int] | None, choices: tuple[str, ...]) -> None:
        self._name = name
        self._choose = choose
        self._choices = choices
        self._index = {choice: index for index, choice in enumerate(choices)}
        self._next = -1

    def index_of(self, item: Any) -> int:
        """The index of the way of one item; ValueError, which lists the ways, for any other answer."""
        if self._choose is None:
            self._next = (self._next + 1) % len(self._choices)
            return self._next
        chosen = self._choose(item)
        try:
            index = self._index.get(chosen)  # type: ignore[arg-type]
        except TypeError:
            index = None
        if index is not None:
            return index
        if type(chosen) is int and 0 <= chosen < len(self._choices):
            return chosen
        raise ValueError(
            f"\n\nRouter node {self._name} encountered bad route path {chosen!r}.  Valid route paths are "
            f"{list(self._choices)}, or an index from 0 to {len(self._choices) - 1}."
        )
