"""What a power cut leaves of a store: the writes of a process are recorded, and replayed up to any moment.

What was waited for (fsync, or a descriptor opened with O_DSYNC) is on the disk. Of what was only written
anything may be there or not, each page by itself; so every cut is replayed with none of it, all of it, and seeded
parts of it. What was acknowledged before the cut must be there, and nothing may be there by half.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consecution.errors import DamagedStoreError

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("record_writes.c")
COMMITS = 12
PAGE_BYTES = 4096

COMMIT = """
import ctypes, sys
from pathlib import Path
from tests.runtime.test_power_loss import COMMITS, commit, open_store

mark = ctypes.CDLL(None).mark
store = open_store(Path(sys.argv[1]), sync=sys.argv[2])
for number in range(COMMITS):
    commit(store, number)
    mark(ctypes.c_uint64(number + 1))
store.close()
"""

LOOK = """
import json, sys
from pathlib import Path
from tests.runtime.test_power_loss import look

print(json.dumps([look(Path(folder)) for folder in sys.stdin.read().split()]))
"""


def open_store(path: Path, *, sync: str = "process", create: bool = True) -> Any:
    from consecution.runtime.durable_store import DurableStore

    return DurableStore(path, origin="total.0", epoch="e", sync=sync, create=create)


def commit(store: Any, number: int) -> None:
    """A commit as a durable task makes it: births, staged frames, ledger and state, together."""
    from consecution.protocol.durable import LedgerMoved
    from consecution.protocol.origin import BatchBorn, Head, HeadMoved
    from consecution.protocol.values import TaskIndex
    from consecution.runtime.durable_store import TableWrite
    from consecution.runtime.journal import seal
    from tests.runtime.records import batch

    key = number.to_bytes(8, "big")
    state = TableWrite(lambda txn: txn.put(key, seal(key, b"state" * 300), db=store.handle("state")))
    head = HeadMoved(Head(next_seq=number + 1, emitted=number + 1))
    store.apply([BatchBorn(batch(number, b"x" * 3000)), LedgerMoved(TaskIndex(0), number), state, head])


def look(folder: Path) -> int | str:
    """How many commits a store holds; text where it holds something else."""
    try:
        store = open_store(folder, create=False)
    except DamagedStoreError as error:
        return str(error)
    try:
        restored, (ledger, _) = store.restore(), store.restore_inbox()
        counts = {
            restored.head.next_seq,
            len(restored.batches),
            ledger.get(0, -1) + 1,
            len(list(store.scan("state"))),
        }
        return counts.pop() if len(counts) == 1 else f"half a commit: {counts}"
    except DamagedStoreError as error:
        return str(error)
    finally:
        store.close()


@dataclass(frozen=True)
class Event:
    kind: str
    offset: int
    content: bytes


def read_log(path: Path) -> list[Event]:
    log, at, events = path.read_bytes(), 0, []
    while at < len(log):
        kind, offset = chr(log[at]), int.from_bytes(log[at + 1 : at + 9], "little")
        length = int.from_bytes(log[at + 9 : at + 17], "little")
        events.append(Event(kind, offset, log[at + 17 : at + 17 + length]))
        at += 17 + length
    return events


def write_into(image: bytearray, event: Event, start: int = 0, end: int | None = None) -> None:
    part = event.content[start:end]
    at = event.offset + start
    image.extend(bytes(max(0, at + len(part) - len(image))))
    image[at : at + len(part)] = part


class Disk:
    """What is certain to be on the disk, and the pages that may be."""

    def __init__(self) -> None:
        self.certain = bytearray()
        self.uncertain: list[tuple[Event, int]] = []
        self.acknowledged = 0

    def take(self, event: Event) -> None:
        if event.kind == "w":
            self.uncertain += [(event, start) for start in range(0, len(event.content), PAGE_BYTES)]
        elif event.kind == "d":
            write_into(self.certain, event)
        elif event.kind == "s":
            for page in self.uncertain:
                self._write(self.certain, page)
            self.uncertain.clear()
        else:
            self.acknowledged = event.offset

    @staticmethod
    def _write(image: bytearray, page: tuple[Event, int]) -> None:
        event, start = page
        write_into(image, event, start, start + PAGE_BYTES)

    def images(self, chance: random.Random) -> list[bytes]:
        """What may be found after a power cut now."""
        found = []
        for share in (0.0, 1.0, 0.5, 0.2):
            image = bytearray(self.certain)
            for page in self.uncertain:
                if chance.random() < share:
                    self._write(image, page)
            found.append(bytes(image))
        return found


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    made = tmp_path_factory.mktemp("recorder") / "record_writes.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(made), str(SOURCE), "-ldl"], check=True)
    return made


def record(recorder: Path, folder: Path, sync: str) -> list[Event]:
    environment = {**os.environ, "LD_PRELOAD": str(recorder), "WRITE_LOG": str(folder / "log")}
    subprocess.run(
        [sys.executable, "-c", COMMIT, str(folder / "store"), sync], env=environment, check=True, timeout=60, cwd=ROOT
    )
    events = read_log(folder / "log")
    marks = [event.offset for event in events if event.kind == "m"]
    assert marks == list(range(1, COMMITS + 1))
    return events


def cut(events: list[Event], folder: Path, seed: int) -> list[tuple[int, int | str]]:
    """(Commits acknowledged, commits found) for every cut after the first acknowledgement, in several forms."""
    chance, disk, acknowledged = random.Random(seed), Disk(), []
    for number, event in enumerate(events):
        disk.take(event)
        if not disk.acknowledged:
            continue
        for form, image in enumerate(disk.images(chance)):
            made = folder / f"{number}-{form}"
            made.mkdir(parents=True)
            (made / "data.mdb").write_bytes(image)
            acknowledged.append((disk.acknowledged, made))
    looker = subprocess.run(
        [sys.executable, "-c", LOOK],
        input="\n".join(str(made) for _, made in acknowledged),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=100,
        cwd=ROOT,
    )
    return list(zip([count for count, _ in acknowledged], json.loads(looker.stdout), strict=True))


def test_power_keeps_whatever_was_acknowledged_before_the_cut(recorder: Path, tmp_path: Path) -> None:
    seed = int(os.environ.get("POWER_SEED", "1"))
    print(f"POWER_SEED={seed}")
    events = record(recorder, tmp_path, "power")

    found = cut(events, tmp_path / "cuts", seed)

    assert {event.kind for event in events} == {"w", "d", "s", "m"}
    assert len(found) > 8 * COMMITS
    # The commit in hand may be there or not.
    assert [pair for pair in found if pair[1] not in (pair[0], pair[0] + 1)] == []


def test_process_promises_nothing_after_a_power_cut(recorder: Path, tmp_path: Path) -> None:
    """Not a wish, but what the documentation says: this shows that the test above can fail."""
    events = record(recorder, tmp_path, "process")

    found = cut(events, tmp_path / "cuts", 1)

    assert any(pair[1] != pair[0] for pair in found)
