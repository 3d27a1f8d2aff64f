"""The simulated disk of one origin: what is committed survives every crash, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from consecution.protocol.origin import (
    BatchBorn,
    BatchDecided,
    BatchForgotten,
    BatchRecord,
    Decision,
    FailureEntry,
    FailureKept,
    FailureTaken,
    Head,
    HeadMoved,
    Restored,
)
from consecution.testing.schedule import IN_COMMIT, Crash


class Witness(Protocol):
    """Sees every commit: ``committing`` just before it takes effect, ``committed`` just after."""

    def committing(self, changes: Sequence[Any]) -> None: ...

    def committed(self) -> None: ...


class Disk:
    """Holds an origin's journal in memory. One call of `commit` is one transaction."""

    def __init__(self) -> None:
        self.head = Head()
        self.batches: dict[int, BatchRecord] = {}
        self.decided: dict[int, Decision] = {}
        self.failures: dict[int, FailureEntry] = {}

    def commit(self, changes: Sequence[Any]) -> None:
        for change in changes:
            self._commit_one(change)

    def _commit_one(self, change: Any) -> None:
        if isinstance(change, HeadMoved):
            self.head = change.head
        elif isinstance(change, BatchBorn):
            self.batches[change.record.seq] = change.record
        elif isinstance(change, BatchDecided):
            self.batches.pop(change.seq, None)
            if change.decision is not None:
                self.decided[change.seq] = change.decision
        elif isinstance(change, BatchForgotten):
            self.decided.pop(change.seq, None)
        elif isinstance(change, FailureKept):
            self.failures[change.entry.key] = change.entry
        elif isinstance(change, FailureTaken):
            self.failures.pop(change.key, None)

    @property
    def waiting(self) -> list[FailureEntry]:
        return [entry for entry in self.failures.values() if entry.due_s is not None]

    @property
    def given_up(self) -> list[FailureEntry]:
        return [entry for entry in self.failures.values() if entry.due_s is None]

    def restore(self) -> Restored:
        records = tuple(self.batches[seq] for seq in sorted(self.batches))
        given_up = tuple(entry.root for entry in self.given_up)
        return Restored(self.head, records, tuple(self.waiting), tuple(self.decided.values()), given_up)


class Writer:
    """The store that one incarnation of an origin writes through; ``passed`` may kill it on the way.

    A commit returns when it is safe. A process that dies in it leaves it done, for the system has it all;
    a power cut leaves it undone.
    """

    def __init__(self, disk: Disk, witness: Witness, passed: Callable[[str], None]) -> None:
        self._disk = disk
        self._witness = witness
        self._passed = passed

    def apply(self, changes: list[Any]) -> None:
        self._commit(changes)

    def _commit(self, changes: Sequence[Any]) -> None:
        try:
            self._passed(IN_COMMIT)
        except Crash as crash:
            if not crash.kill.power_cut:
                self._take_effect(changes)
            raise
        self._take_effect(changes)

    def _take_effect(self, changes: Sequence[Any]) -> None:
        self._witness.committing(changes)
        self._disk.commit(changes)
        self._witness.committed()

    def failures(self, limit: int) -> list[FailureEntry]:
        return self._disk.given_up[-limit:] if limit else []

    def close(self) -> None:
        pass
