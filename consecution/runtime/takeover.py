"""Failed items that durable tasks keep become new items of the source: two stores, and still one effect.

1. One commit of the source's journal holds the new batches, and a record of the entries they were: from then on
   these are void, whoever looks.
2. One commit of the other store drops the entries.
3. One commit of the source's journal drops the record.

Whoever opens a state directory to change it first does what a crash has left of that: `finish`. So an item is never
both a failed one and a new one, and never neither. In the same way they become failed items of another replica, which
then stands for the source here (see `strays`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from consecution.protocol.origin import Change
from consecution.runtime import failpoints
from consecution.runtime.journal import FailuresMoved, Journal, MoveFinished


def take_over(source: Journal, store: Journal, born: list[Change], moved: FailuresMoved) -> None:
    """All three commits; ``born`` are the new batches and the head that knows of them."""
    source.apply([*born, moved])
    failpoints.passed("failed.born")
    _drop(source, store, moved)


def finish(source: Journal, open_store: Callable[[str], Journal]) -> None:
    """Do the rest of what was begun."""
    moved = source.moved
    if moved is not None:
        with closing(open_store(moved.origin)) as store:
            _drop(source, store, moved)


def _drop(source: Journal, store: Journal, moved: FailuresMoved) -> None:
    store.drop_failures(moved.keys)
    failpoints.passed("failed.dropped")
    source.apply([MoveFinished()])
    failpoints.passed("failed.moved")
