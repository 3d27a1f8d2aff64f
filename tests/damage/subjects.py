"""The stores that are damaged: how each is made, and everything that can be read out of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consecution import TextLines
from consecution.protocol.durable import FramesDropped, FrameStaged, LedgerMoved
from consecution.protocol.origin import (
    BatchBorn,
    BatchDecided,
    BatchForgotten,
    Decision,
    FailureKept,
    FailureTaken,
    Head,
    HeadMoved,
)
from consecution.protocol.values import Frame, FrameId, Stage, TaskIndex
from consecution.runtime.durable_store import CommittedOutside, DurableStore, EndRecorded, TableWrite
from consecution.runtime.journal import Journal, seal
from tests.runtime import records

FRAMES = [
    Frame(TaskIndex(0), seq, 0, (1, 2), FrameId(77 + seq), 0, TaskIndex(3), Stage.PROCESS, False, b"staged")
    for seq in range(8)
]


@dataclass(frozen=True, slots=True)
class Subject:
    """``file`` is the one of its files that is damaged. ``look`` raises one of our errors, or gives all there is."""

    file: str
    make: Callable[[Path], None]
    look: Callable[[Path], Any]


def make_journal(folder: Path) -> None:
    """With commits after one another, as they come: there are old pages, and free ones."""
    journal = Journal(folder, origin="source", epoch="one", sync="process")
    for seq in range(6):
        changes: list[Any] = [BatchBorn(records.batch(seq, b"payload %d" % seq))]
        if seq >= 2:
            changes.append(BatchDecided(seq - 2, Decision(seq - 2, 0, 1, ((TaskIndex(1), 5),), None, 0)))
        if seq >= 4:
            changes.append(BatchForgotten(seq - 4))
        changes += [FailureKept(records.entry(seq)), *([FailureTaken(seq - 2)] if seq >= 2 else [])]
        journal.apply([*changes, HeadMoved(Head(seq + 1, seq + 1, 7, [1, "two"], seq + 1, min(2, seq + 1)))])
    journal.close()


def look_at_journal(folder: Path) -> Any:
    journal = Journal(folder, origin="source", epoch="one", sync="process", create=False)
    try:
        return journal.restore(), journal.failures(10), list(journal.failed_entries()), journal.uuid
    finally:
        journal.close()


def open_durable(folder: Path, *, create: bool) -> DurableStore:
    return DurableStore(folder, origin="total.0", epoch="one", sync="process", create=create)


def make_durable(folder: Path) -> None:
    store = open_durable(folder, create=True)

    def write(number: int) -> Callable[[Any], None]:
        def put(txn: Any) -> None:
            for table, count in (("state", 3), ("log", 1)):
                for copy in range(count):
                    key = (number * count + copy).to_bytes(8, "big")
                    txn.put(key, seal(key, b"%s %d" % (table.encode(), number)), db=store.handle(table))
            if number >= 2:
                txn.delete((number - 2).to_bytes(8, "big"), db=store.handle("log"))

        return put

    for seq in range(6):
        changes: list[Any] = [FrameStaged(FRAMES[seq]), FrameStaged(FRAMES[seq + 1]), LedgerMoved(TaskIndex(0), seq)]
        changes += [FramesDropped((FRAMES[seq],)), TableWrite(write(seq)), CommittedOutside(seq + 1)]
        changes += [BatchBorn(records.batch(seq, b"output %d" % seq)), FailureKept(records.entry(seq))]
        changes += [*([BatchDecided(seq - 2)] if seq >= 2 else []), *([FailureTaken(seq - 2)] if seq >= 2 else [])]
        store.apply([*changes, HeadMoved(Head(seq + 1, seq + 1, 3, seq, seq + 1, min(2, seq + 1)))])
    store.apply([EndRecorded()])
    store.close()


def look_at_durable(folder: Path) -> Any:
    """As a worker does when it starts, and all states one by one."""
    store = open_durable(folder, create=False)
    try:
        found = [store.restore(), store.restore_inbox(), store.has_ended, store.outside_number, store.uuid]
        found += [list(store.failed_entries()), list(store.scan("state")), list(store.scan("log"))]
        return found, [store.read("state", number.to_bytes(8, "big")) for number in range(18)]
    finally:
        store.close()


def make_manifest(folder: Path) -> None:
    state = records.open_state(folder)
    records.open_journal(state).close()
    state.close()


def look_at_manifest(folder: Path) -> Any:
    state = records.open_state(folder)
    try:
        return state.epoch, (folder / "manifest.json").read_bytes()
    finally:
        state.close()


PLAIN = "plain"
"""Has no checksums: shows that other answers are found."""
LINES = [f"line {number}" for number in range(40)]


def make_lines(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    sink = TextLines("out", folder / "out.txt")
    sink.open()
    sink.cut_to(None)
    sink.write(None, LINES)
    (folder / "end").write_text(repr(sink.flush()))
    sink.close()


def look_at_lines(folder: Path) -> Any:
    sink = TextLines("out", folder / "out.txt")
    sink.open()
    try:
        sink.cut_to(eval((folder / "end").read_text()))
    finally:
        sink.close()
    return (folder / "out.txt").read_bytes()


def make_plain(folder: Path) -> None:
    (folder / "plain").write_bytes(b"without a checksum")


def look_at_plain(folder: Path) -> Any:
    return (folder / "plain").read_bytes()


SUBJECTS = {
    "journal": Subject("data.mdb", make_journal, look_at_journal),
    "durable": Subject("data.mdb", make_durable, look_at_durable),
    "manifest": Subject("manifest.json", make_manifest, look_at_manifest),
    "lines": Subject("out.txt", make_lines, look_at_lines),
    PLAIN: Subject("plain", make_plain, look_at_plain),
}


def make_anew(subject: Subject, folder: Path) -> bytes:
    """Make it in an empty folder; the bytes of the file that is to be damaged."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subject.make(folder)
    return (folder / subject.file).read_bytes()
