"""The Source contract: what every source implements, and what the origin around it promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from consecution.report import Failure


class Rejected(NamedTuple):
    """Something that came and is no item: a record that cannot be read, say. Given by `Source.read` in its place.

    It is counted, and fails at the source, alone: ``error`` says what is wrong and what to do, ``item`` is
    what came, as it is to be kept. It is not tried again.
    """

    item: Any
    error: Exception


class Note(NamedTuple):
    """What a source keeps beside its position, for longer than the batch it came with.

    ``body`` is kept with the batch; the notes of batches before ``needed_since`` may be forgotten from then on.
    """

    body: bytes
    needed_since: int = 0


class Source:
    """Gives a stream of items, and knows how to go on at a place in it.

    An origin calls ``open`` once, then ``read`` and ``position`` in turn, all from one thread, then
    ``close``; the next run of the pipeline may open the same object again. What ``read`` returned is
    journalled together with the position after it, before any of it is processed; after a crash ``open``
    gets the last position that was journalled, and items after it are read again.

    What becomes of a batch is told in this order, by the same thread: `batch_born`; then the commit, which holds
    the items, the position and what `take_note` gives; `batch_journalled`; `items_failed`, if any did; `batch_settled`.
    """

    in_parent: bool = False
    """True: it cannot be shipped (an open file, a generator); it is read in the process that started the run."""

    rejects: bool = False
    """True: among what `read` returns there may be `Rejected`; nobody looks for any where this is False."""

    may_block: bool = False
    """Set by the inline engine: `read` may wait for an item, and must not use threads to avoid it."""

    worth_splitting: bool = False
    """True: reading is work, so workers share it unasked (`split`) where nothing behind minds the order."""

    expected: int | None = None
    """How many items it gives in all, from the very first on, where that is known: for those who watch, and for the
    size of the last batches, where replicas share them."""

    read_share: float | None = None
    """After `read`: how much of all there is has been read, from 0 to 1, where that is known; for the same."""

    address: Any = None
    """Of one that listens: where, as a text or (host, port), from `open` to `close`.

    In process mode the program's own object is told what the one in the worker has, a moment later.
    """

    is_awaited: bool = False
    """True: whoever sends waits until what came is in the journal, and may give up. So it is read as far as
    ``max_pending`` lets it, however long the nodes are at an item."""

    cut: bool = False
    """True after `read`: a batch ends with what was given so far, and there may be more at once."""

    def recall(self, notes: Sequence[tuple[int, bytes]]) -> None:
        """Before `open`, where there are any: what was noted in earlier lives, with its batch, oldest first."""

    def open(self, position: Any) -> None:
        """Get ready to read after ``position``: None, or what `position` once returned."""

    def read(self, max_items: int) -> list[Any] | range | None:
        """Up to ``max_items`` items that are there now; [] if there are none just now; None at the end.

        Never blocks (unless ``may_block``). After None it is not called again. The list belongs to the
        caller; a range is kept and sent as its two ends. May raise: the run then stops, and a later one goes
        on after the last position.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read(self, max_items)")

    def position(self) -> Any:
        """The place after what `read` returned last: numbers, text, bytes, None, or lists of these."""
        raise NotImplementedError(f"{type(self).__name__} must define position(self)")

    def fileno(self) -> int | None:
        """A file descriptor that is readable when `read` may have something; None: just call `read`."""
        return None

    def split(self, shares: int) -> list[Source] | None:
        """So many sources that give each item once between them; None: it is read in one place only.

        Called before ``open``, which this object then never hears of. Each share has a position of its own, and
        the same number makes the same shares in every run, also where the stream has grown meanwhile. What one
        share gives keeps its order; the order between shares is lost.
        """
        return None

    def splits_evenly(self, shares: int) -> bool:
        """Whether so many shares would have about as much to read each, as it looks now; asked before ``open``.

        Workers that would share it unasked (``worth_splitting``) leave it in one place where they would not.
        """
        return True

    def close(self) -> None:
        """Release what ``open`` took. Harmless when repeated, and without ``open``."""

    def batch_born(self, seq: int, count: int) -> None:
        """The oldest ``count`` items read that are in no batch yet became batch ``seq``."""

    def take_note(self, seq: int) -> Note | None:
        """What is to be kept in the commit that batch ``seq`` is part of, for `recall`; asked once for each batch."""

    def batch_journalled(self, seq: int) -> None:
        """The commit with batch ``seq`` is done: it will be processed whatever dies.

        Without a journal (below ``robust``) it is only on its way.
        """

    def items_failed(self, seq: int, failures: Sequence[Failure]) -> None:
        """Before `batch_settled`: the first few of the items of batch ``seq`` that were given up, each as its ``repr``.

        Those that a run before this one has given up are not among them.
        """

    def batch_settled(self, seq: int, failed: int, confirmed: bool) -> None:
        """Batch ``seq`` is completely processed, retries included; ``failed`` items were given up.

        A crash just afterwards may have it told once more, to the next life of the source.
        ``confirmed`` False: a worker died and the batch is lost (never in ``robust``).
        """
