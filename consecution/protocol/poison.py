"""Poison: which item it is that takes its workers down, again and again, and who must not touch it.

The rules this file keeps:

1. Only what a task had in hand when it died is blamed: being in flight while somebody else dies proves nothing. What a
   node has gathered, and processes when a later item comes, or at the end, is in hand then, and not that item.
2. A frame is known by (origin, seq, path), whatever its generation. One that was in hand at two deaths of a
   node's replicas is *suspect*: from then on it is run item by item.
3. The item of a suspect frame that was in hand at two more deaths is *guilty*: it is not touched again, and fails
   like an item that raises; its neighbours go through. Nor is it looked at: a `LostItem` stands for it, for it may
   have been its ``repr`` or the node's ``on_error`` that it died of. To be known it is encoded, which it survives.
4. A verdict reaches every replica of the node before the replay.

Verdicts live as long as the run: one that goes on with its state directory finds them anew.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from consecution.protocol.values import USER_ERRORS, Items, TaskIndex, listed, unlabelled

DEATHS = 2
"""So many make a frame suspect, and then an item of it guilty."""
DIGEST_BYTES = 16
MOST_PARTS = 200
MOST_BITS = 8000
"""A guilty item of more parts than that, or with a longer one, is shown by its class: it may have been its size."""


class FrameKey(NamedTuple):
    """A frame by what stays the same when its batch runs again."""

    origin: TaskIndex
    seq: int
    path: tuple[int, ...]


class InHand(NamedTuple):
    """What a worker was at when it died: this task of it, at this frame.

    ``item`` names an item of a suspect frame, b"" where it is none.
    """

    task: TaskIndex
    frame: FrameKey
    item: bytes


class Verdict(NamedTuple):
    """The frame is suspect (``item`` is b""), or this item of it is guilty; ``how`` and ``stack`` of the last death."""

    frame: FrameKey
    item: bytes
    how: str
    stack: str


class PoisonError(Exception):
    """The item took its workers down, and is not tried again; ``stack`` is what the last one wrote as it died."""

    def __init__(self, how: str, stack: str) -> None:
        super().__init__(how, stack)
        self.how = how
        self.stack = stack

    def __str__(self) -> str:
        return f"its worker died at it again and again ({self.how})"


class LostItem:
    """Stands for an item that cannot be had: it cannot be decoded, or must not be touched. It cannot be encoded.

    ``payload`` is what its item was encoded as, as one that has failed; None where that could not be, or is not known.
    """

    def __init__(self, shown: str, error: BaseException, payload: Any = None) -> None:
        self.shown = shown
        self.error = error
        self.payload = payload

    def __repr__(self) -> str:
        return self.shown

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise self.error


class PartlyDecodedError(Exception):
    """Some items of a payload cannot be decoded; in ``items`` each of them is a `LostItem`."""

    def __init__(self, items: list[Any]) -> None:
        super().__init__(f"{sum(isinstance(item, LostItem) for item in items)} items cannot be decoded")
        self.items = items


class Condemned(NamedTuple):
    """What stands for a guilty item, and what it fails with."""

    item: LostItem
    error: PoisonError


def show_untouched(item: Any, otherwise: str) -> str:
    """``repr(item)`` where that is short, and no code but Python's own makes it; else ``otherwise``."""
    left, seen = [item], 0
    while left:
        found = left.pop()
        kind, seen = type(found), seen + 1
        if kind in (dict, list, tuple) and len(found) <= MOST_PARTS:
            left += found if kind is not dict else itertools.chain.from_iterable(found.items())
        elif not _is_short(kind, found):
            return otherwise
        if seen + len(left) > MOST_PARTS:
            return otherwise
    return repr(item)


def _is_short(kind: type, found: Any) -> bool:
    if kind in (str, bytes):
        return len(found) * 8 <= MOST_BITS
    return found.bit_length() <= MOST_BITS if kind is int else kind in (float, bool, type(None))


# -- in the supervisor -----------------------------------------------------------------------------


class _Case:
    """The deaths at one frame of one node."""

    def __init__(self) -> None:
        self.deaths = 0
        self.at_items: dict[bytes, int] = {}


class Suspicion:
    """The supervisor's memory of what was in hand at the deaths of each node's replicas."""

    def __init__(self) -> None:
        self._cases: dict[tuple[str, FrameKey], _Case] = {}
        self._verdicts: dict[str, list[Verdict]] = {}

    def died(self, node: str, in_hand: InHand, how: str, stack: Callable[[], str] = str) -> Verdict | None:
        """A replica of ``node`` died at this; the verdict that follows, if one does. ``stack`` is for guilty items."""
        case = self._cases.setdefault((node, in_hand.frame), _Case())
        case.deaths += 1
        if case.deaths < DEATHS:
            return None
        if case.deaths == DEATHS:
            return self._judge(node, Verdict(in_hand.frame, b"", how, ""))
        if not in_hand.item:
            return None
        count = case.at_items[in_hand.item] = case.at_items.get(in_hand.item, 0) + 1
        if count != DEATHS:
            return None
        return self._judge(node, Verdict(in_hand.frame, in_hand.item, how, stack()))

    def _judge(self, node: str, verdict: Verdict) -> Verdict:
        self._verdicts.setdefault(node, []).append(verdict)
        return verdict

    def verdicts(self, node: str) -> tuple[Verdict, ...]:
        """All that a new replica of this node must know."""
        return tuple(self._verdicts.get(node, ()))


# -- in a task -------------------------------------------------------------------------------------


class Note(Protocol):
    """Where a task writes what it has in hand, so that it can be read when the task is dead."""

    def frame(self, key: FrameKey) -> None:
        """This frame is in hand, and no item of it."""

    def item(self, name: bytes) -> None:
        """This item of the frame is."""

    def clear(self) -> None:
        """Nothing is."""


class Meet(Protocol):
    """Called with a name before something is touched that may be poison; raises PoisonError if it is."""

    def __call__(self, name: bytes) -> None: ...


CarefulDecode = Callable[[Any, Meet], list[Any]]
"""Decode a payload, meeting each call into user code; raises PartlyDecodedError."""


class Encoder(Protocol):
    def encode_failed(self, item: Any) -> Any: ...


class Guard:
    """What stands between a task and poison. Called by one thread. Without a ``note`` it does nothing."""

    def __init__(
        self,
        note: Note | None = None,
        verdicts: Iterable[Verdict] = (),
        decode: CarefulDecode | None = None,
    ) -> None:
        self.steps = 0
        """Frames taken, and items of those that are run item by item."""
        self.cursor: Iterator[Any] = iter(())
        """Over the items of a frame that is run as a whole, where its task says so."""
        self.beside: Note | None = None
        """Where the frame is noted that a coroutine of the task runs, in another thread than the task's own."""
        self._note = note
        self._decode = decode
        self._cases: dict[FrameKey, dict[bytes, Verdict]] = {}
        self.judge(verdicts)

    def progress(self) -> tuple[int, int]:
        """Changes whenever the task gets on with what it has in hand; for whoever watches over hanging tasks."""
        return self.steps, operator.length_hint(self.cursor)

    def judge(self, verdicts: Iterable[Verdict]) -> None:
        """Take in what the supervisor has found."""
        for verdict in verdicts:
            guilty = self._cases.setdefault(verdict.frame, {})
            if verdict.item:
                guilty[verdict.item] = verdict

    def take(self, origin: TaskIndex, seq: int, path: tuple[int, ...]) -> Suspect | None:
        """This frame is in hand until `leave`. If it is suspect: what to run it with, item by item."""
        self.steps += 1
        if self._note is None:
            return None
        key = FrameKey(origin, seq, path)
        self._note.frame(key)
        guilty = self._cases.get(key)
        return None if guilty is None else Suspect(key, guilty, self._note, self._decode)

    def one_by_one(
        self, suspect: Suspect | None, items: Sequence[Any], codec: Encoder, condemn: Callable[[Condemned], None]
    ) -> Iterator[Any]:
        """The items of the frame in hand, each noted while its turn lasts; the guilty go to ``condemn`` instead."""
        for index, item in enumerate(items):
            self.steps += 1
            condemned = None if suspect is None else suspect.meet(index, item, codec)
            if condemned is None:
                yield item
            else:
                condemn(condemned)
        if suspect is not None:
            suspect.all_met()

    def leave(self) -> None:
        """The task has got through. Not to be called where it is about to go down."""
        if self._note is not None:
            self._note.clear()


class Suspect:
    """A suspect frame in hand, to be run item by item."""

    def __init__(self, key: FrameKey, guilty: dict[bytes, Verdict], note: Note, decode: CarefulDecode | None) -> None:
        self._key = key
        self._guilty = guilty
        self._note = note
        self._decode = decode

    def decode(self, payload: Any, plainly: Callable[[Any], Items]) -> Items:
        """Its items. Raises PartlyDecodedError where some cannot be, or may not be, decoded."""
        return plainly(payload) if self._decode is None else self._decode(payload, self._meet)

    def meet(self, index: int, item: Any, codec: Encoder) -> Condemned | None:
        """The item is in hand from now on; what to do instead of touching it, if it is guilty.

        It is known by its encoding; where even that takes the worker down, by its place in the frame.
        """
        try:
            self._meet(b"#%d" % index)
        except PoisonError as error:
            return Condemned(LostItem(f"<item {index} of its frame, which cannot even be encoded>", error), error)
        return self._meet_encoded(item, f"item {index} of its frame", codec)

    def meet_gathered(self, gathered: Any, codec: Encoder) -> Condemned | None:
        """What a node has gathered from items that came before is in hand, not the item that it was given."""
        return self._meet_encoded(gathered, "gathered from several", codec)

    def _meet_encoded(self, item: Any, which: str, codec: Encoder) -> Condemned | None:
        try:
            payload = codec.encode_failed(item)
        except USER_ERRORS:
            return None
        try:
            if isinstance(payload, bytes):
                self._meet(hashlib.blake2b(payload, digest_size=DIGEST_BYTES).digest())
        except PoisonError as error:
            given = unlabelled(item)
            shown = show_untouched(given, f"<{type(given).__name__}, {which}>")
            return Condemned(LostItem(shown, error, payload), error)
        return None

    def all_met(self) -> None:
        """No item is in hand; the frame still is."""
        self._note.frame(self._key)

    def _meet(self, name: bytes) -> None:
        self._note.item(name)
        verdict = self._guilty.get(name)
        if verdict is not None:
            raise PoisonError(verdict.how, verdict.stack)


def decode_apart(
    payload: Any,
    decode: Callable[[Any], Items],
    suspect: Suspect | None,
    *,
    alone: bool = False,
    lets_through: tuple[type[BaseException], ...] = (),
) -> tuple[Items, list[LostItem]]:
    """The items of a frame's payload, and those of them that cannot be decoded or must not be touched.

    ``alone``: there is to be one item, and somebody may have edited it. Whatever is wrong then is wrong with that, but
    for the errors that it ``lets_through``.
    """
    try:
        items = decode(payload) if suspect is None else suspect.decode(payload, decode)
        if not alone:
            return items, []
    except PartlyDecodedError as partly:
        items = partly.items
    except USER_ERRORS as error:
        if not alone or isinstance(error, lets_through):
            raise
        items = [LostItem("<an item that cannot be decoded>", error)]
    if alone:
        items = _the_one_of(listed(items), payload)
    lost = [item for item in items if isinstance(item, LostItem)]
    return [item for item in items if not isinstance(item, LostItem)], lost


def _the_one_of(items: Any, payload: Any) -> list[Any]:
    """As it should be: a list with one item. What is lost keeps its bytes."""
    item = items[0] if type(items) is list and len(items) == 1 else _no_item(items)
    if isinstance(item, LostItem):
        item.payload = bytes(payload)
    return [item]


def _no_item(found: Any) -> LostItem:
    what = f"{len(found)} items" if type(found) is list else f"something of type {type(found).__name__}"
    return LostItem(
        f"<{what} in the place of one item>",
        ValueError(
            f"expected the pickle of a list with just the item, found {what}; put it back as such a list, or give the "
            "item as JSON (failed retry --from)"
        ),
    )
