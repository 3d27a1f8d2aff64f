"""Payload codecs: a list of items as bytes (processes) or as itself (threads, inline)."""

from __future__ import annotations

import contextlib
import io
import operator
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from consecution.protocol.poison import PartlyDecodedError
from consecution.protocol.values import LIVE, USER_ERRORS, Items, copied, listed
from consecution.transport.pieces import Pieces, gather, load
from consecution.transport.salvage import salvage

REFUSED_BY_PICKLE = (pickle.PicklingError, AttributeError, TypeError)
"""What pickle raises at things that dill may know better."""
LIVE_ITEM_BYTES = 64
"""What flow control takes a live item for; its true size is not known and not worth measuring."""


MANY_TEXTS = 64
TEXT_BYTES = 4 * 1024 * 1024
"""Texts of so many bytes together are pickled one by one, even if some of them should be the same object."""


class PickleCodec:
    """Pickle protocol 5: lossless (a tuple stays a tuple), and as fast as anything for plain data; a range is its ends.

    What plain pickle refuses (lambdas, classes of a notebook) is tried with dill. Only bytes that our
    own tasks wrote are ever decoded; what comes from outside is not.
    """

    def encode(self, items: Sequence[Any]) -> bytes:
        return bytes(_dumps(items))

    def decode(self, payload: Any) -> list[Any]:
        return listed(_loads(payload))

    def size(self, payload: Any) -> int:
        return len(payload)

    def encode_failed(self, item: Any) -> bytes:
        return bytes(_dumps([item]))


PUT_BACK = b"put back"
"""Behind the pickle of an item that had failed and was put back at its source; what reads a pickle does not see it."""


def mark_put_back(payload: bytes) -> bytes:
    """So that whoever decodes the item knows that it had failed before, and that somebody may have edited it."""
    return payload + PUT_BACK


def without_mark(payload: Any) -> tuple[Any, bool]:
    """The payload as it was, and whether it was marked: no pickle ends so by itself."""
    if isinstance(payload, bytes | memoryview) and bytes(payload[-len(PUT_BACK) :]) == PUT_BACK:
        return payload[: -len(PUT_BACK)], True
    return payload, False


class _LiveOrBytes:
    """What a payload is that may have stayed in its process: still the items. A list decodes to one of its own."""

    def decode(self, payload: Any) -> Items:
        return copied(payload) if isinstance(payload, LIVE) else _loads(payload)

    def size(self, payload: Any) -> int:
        return len(payload) * LIVE_ITEM_BYTES if isinstance(payload, LIVE) else len(payload)


class ReusingCodec(_LiveOrBytes):
    """The codec of what is sent: as `PickleCodec`, but what is large comes in `Pieces`.

    Encodes the list it encoded last only once: the journal's payload is often the frame's, too, and one
    frame's that of the next edge.

    It knows the list by its identity, and keeps it, so that no other one can take its place. Whoever encodes
    a list must not change it afterwards. Any thread may call it: the list and its payload change together.
    """

    def __init__(self) -> None:
        self._latest: tuple[Sequence[Any] | None, bytes | Pieces] = None, b""

    def encode(self, items: Sequence[Any]) -> bytes | Pieces:
        encoded, payload = self._latest
        if items is not encoded:
            payload = _dumps(items)
            self._latest = items, payload
        return payload

    def encode_failed(self, item: Any) -> bytes:
        return bytes(_dumps([item]))


class LiveCodec(_LiveOrBytes):
    """Hands the items over as they are. ``stores_bytes``: failed items are encoded, for a journal."""

    def __init__(self, *, stores_bytes: bool) -> None:
        self._stored = PickleCodec() if stores_bytes else None

    def encode(self, items: Sequence[Any]) -> Sequence[Any]:
        return items

    def encode_failed(self, item: Any) -> Any:
        return [item] if self._stored is None else self._stored.encode([item])


class _Gathering:
    """Stands for a file: pickle hands it large bytes and buffers as they are, and all else in pieces of 64 KiB."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[Any], Any]) -> None:
        self.write = write


def _dumps(items: Sequence[Any]) -> bytes | Pieces:
    """`pickle.dumps`, which copies what is large again and again as its output grows: here at most once."""
    if _are_all_text(items):
        with contextlib.suppress(_TooLargeError):
            return _dumps_text(items)
    parts: list[Any] = []
    try:
        pickle.Pickler(_Gathering(parts.append), 5).dump(items)
    except REFUSED_BY_PICKLE:
        return _dill_dumps(items)
    return parts[0] if len(parts) == 1 else gather(parts)


def _are_all_text(items: Sequence[Any]) -> bool:
    """Whether they are many texts, and nothing but that, or bytes."""
    kind = type(items[0]) if type(items) is list and len(items) >= MANY_TEXTS else None
    return kind in (str, bytes) and operator.countOf(map(type, items), kind) == len(items)


def _dumps_text(items: Sequence[Any]) -> bytes:
    """Pickle without its memo, which would take most of the time: no text holds another object.

    _TooLargeError where that comes to much: perhaps it is one large text again and again, which the memo knows.
    """
    parts: list[Any] = []
    size = 0

    def write(part: Any) -> None:
        nonlocal size
        size += len(part)
        if size > TEXT_BYTES:
            raise _TooLargeError
        parts.append(part)

    pickler = pickle.Pickler(_Gathering(write), 5)
    pickler.fast = True
    pickler.dump(items)
    return b"".join(parts)


class _TooLargeError(Exception):
    """There is more than was reckoned with."""


def _loads(payload: Any) -> Items:
    """The items. PartlyDecodedError if some of them cannot be had; what pickle raises if the bytes are none of ours."""
    try:
        items: Items = load(payload) if type(payload) is Pieces else pickle.loads(payload)
    except USER_ERRORS as error:
        try:
            return salvage(payload)
        except PartlyDecodedError:
            raise
        except (AttributeError, ImportError):
            raise  # what is not there is what stops us, whatever was first
        except USER_ERRORS:
            raise error from None
    return items


def _dill_dumps(items: Sequence[Any]) -> bytes:
    buffer = io.BytesIO()
    dill_pickler(buffer).dump(items)
    return buffer.getvalue()


def dill_pickler(file: Any) -> Any:
    """The pickler for what `REFUSED_BY_PICKLE` was raised at."""
    import dill

    return dill.Pickler(file, 5, byref=False, recurse=True)
