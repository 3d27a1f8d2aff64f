"""What `SqlSink` needs of a database: one file for each kind of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from consecution.sinks.rows import Shape

MARKS = "_consecution_marks"
"""The bookkeeping table: for each sink in each state directory, how many transactions the database has taken in.

    owner   text, primary key    the sink's task and the uuid of its store, as "table.0/4f0c..."
    number  bigint               transactions taken in so far
    redo    blob or bytea        what the store's commit after the last of them does (`durable_store`)

A row whose state directory is gone may be deleted; any other is needed.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """The table that rows go into."""

    table: str
    key: tuple[str, ...]
    create: bool
    sink: str
    """The sink, for messages."""


Insert = Callable[[list[Any]], None]
"""Writes these items as rows of a table; what it raises leaves the transaction to be rolled back."""


class Database(Protocol):
    """One connection. Used by one thread at a time; OutageError where the world is at fault, not a row."""

    where: str
    """Which database, for messages; without its password."""

    def open(self, sync: str) -> None: ...

    def begin(self) -> None:
        """Begin a transaction; connect again first where the connection is lost."""

    def save(self) -> None:
        """Set the savepoint."""

    def back(self) -> None:
        """Undo everything since `save`."""

    def keep(self) -> None:
        """Forget the savepoint, keep what was done."""

    def commit(self) -> None: ...

    def roll_back(self) -> None:
        """Harmless without a transaction or a connection."""

    def make_insert(self, target: Target, shape: Shape, items: list[Any]) -> Insert:
        """Make the table if that is wanted, with types after these items; UsageError where rows do not fit it."""

    def read_mark(self, owner: str) -> tuple[int, bytes]:
        """The mark of ``owner``, which is made if there is none: (0, b""). A transaction of its own."""

    def move_mark(self, owner: str, number: int, redo: bytes) -> bool:
        """Replace the mark ``number - 1``, within the transaction; False if that is not the one that is there."""

    def close(self) -> None: ...


def unfit(target: Target, where: str, error: object) -> str:
    """Why rows cannot go into a table that is there, and what to do."""
    return (
        f"{target.sink}: the rows do not fit the table {target.table!r} of {where}: {error}; change the table, "
        "or choose another one, or other columns=[...] and key=[...]"
    )


def describe(names: Sequence[str], types: Sequence[str]) -> str:
    return ", ".join(f"{name} {kind}".rstrip() for name, kind in zip(names, types, strict=True))
