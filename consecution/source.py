"""The Source contract: what every source implements, and what the origin around it promises."""

from __future__ import annotations

from typing import Any, NamedTuple


class Rejected(NamedTuple):
    """Something that came and is no item: a record that cannot be read, say. Given by `Source.read` in its place.

    It is counted, and fails at the source, alone: ``error`` says what is wrong and what to do, ``item`` is
    what came, as it is to be kept. It is not tried again.
    """

    item: Any
    error: Exception


class Source:
    """Gives a stream of items, and knows how to go on at a place in it.

    An origin calls ``open`` once, then ``read`` and ``position`` in turn, all from one thread, then
    ``close``; the next run of the pipeline may open the same object again. What ``read`` returned is
    journalled together with the position after it, before any of it is processed; after a crash ``open``
    gets the last position that was journalled, and items after it are read again.
    """

    in_parent: bool = False
    """True: it cannot be shipped (an open file, a generator); it is read in the process that started the run."""

    rejects: bool = False
    """True: among what `read` returns there may be `Rejected`; nobody looks for any where this is False."""

    may_block: bool = False
    """Set by the inline engine: `read` may wait for an item, and must not use threads to avoid it."""

    def open(self, position: Any) -> None:
        """Get ready to read after ``position``: None, or what `position` once returned."""

    def read(self, max_items: int) -> list[Any] | None:
        """Up to ``max_items`` items that are there now; [] if there are none just now; None at the end.

        Never blocks (unless ``may_block``). After None it is not called again. The list belongs to the
        caller. May raise: the run then stops, and a later one goes on after the last position.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read(self, max_items)")

    def position(self) -> Any:
        """The place after what `read` returned last: numbers, text, bytes, None, or lists of these."""
        raise NotImplementedError(f"{type(self).__name__} must define position(self)")

    def fileno(self) -> int | None:
        """A file descriptor that is readable when `read` may have something; None: just call `read`."""
        return None

    def close(self) -> None:
        """Release what ``open`` took. Harmless when repeated, and without ``open``."""

    def batch_born(self, seq: int, count: int) -> None:
        """The oldest ``count`` items read that are in no batch yet became batch ``seq``."""

    def batch_settled(self, seq: int, failed: int, confirmed: bool) -> None:
        """Batch ``seq`` is completely processed, retries included; ``failed`` items were given up.

        ``confirmed`` False: a worker died and the batch is lost (never in ``robust``).
        """
