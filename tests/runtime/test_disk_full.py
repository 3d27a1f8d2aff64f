"""A state directory on a disk that is full: the run stops and says so, and goes on once there is room."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consecution import KeyedNode, Map, Pipeline
from consecution.errors import StateDirError, WorldError
from consecution.runtime.backup import back_up
from consecution.runtime.checkup import BAD, check_machine
from consecution.runtime.journal_check import check_state_dir
from tests.engines.durable_nodes import OnceFile, lines_of

DISK_MIB = 6
ITEMS = 12_000
KEYS = 8_000
"""Their states alone fill the disk, however many items of a key one commit takes together."""


class Biggest(KeyedNode):
    """Keeps the longest text of each key, so that its store grows."""

    def key(self, item: int) -> int:
        return item % KEYS

    def process(self, item: int) -> None:
        self.state["text"] = str(item) * 200
        self.state["sum"] = self.state.get("sum", 0) + item

    def end(self) -> None:
        for key, state in self.states():
            self.push((key, state["sum"]))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_a_full_disk_stops_the_run_and_nothing_is_lost_when_it_goes_on(disk: Path, tmp_path: Path, mode: str) -> None:
    given: Any = {"mode": mode, "state_dir": disk / "state", "batch_size": 100, "sync": "process"}

    def run() -> Any:
        nodes = Map(int, "in") | Biggest("biggest") | OnceFile("out", tmp_path / "out")
        return Pipeline(nodes).run(range(ITEMS), **given)

    with pytest.raises(WorldError, match=r"cannot grow: .*nothing was lost: make room on the disk and run again"):
        run()
    assert any(origin.emitted for origin in check_state_dir(disk / "state").origins)
    with pytest.raises(WorldError, match="cannot grow"):
        run()
    subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
    report = run()

    assert (report.emitted, report.completed, report.failed, report.open) == (ITEMS, ITEMS, 0, 0)
    expected: dict[int, int] = {}
    for item in range(ITEMS):
        expected[item % KEYS] = expected.get(item % KEYS, 0) + item
    assert sorted(lines_of(tmp_path / "out")) == sorted(expected.items())
    assert check_state_dir(disk / "state").problems == ()


def test_the_doctor_finds_that_a_disk_is_full(disk: Path) -> None:
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass

    found = {finding.what: finding for finding in check_machine(disk / "state", "0")}

    for what in ("fsync", "store"):
        assert (found[what].level, found[what].remedy[:21]) == (BAD, "make room on the disk"), found[what]
    assert [entry.name for entry in disk.iterdir()] == ["filler"]


def test_a_backup_to_a_full_disk_says_so_and_leaves_nothing(disk: Path, tmp_path: Path) -> None:
    nodes = Map(int, "in") | Biggest("biggest") | OnceFile("out", tmp_path / "out")
    Pipeline(nodes).run(range(ITEMS), mode="inline", state_dir=tmp_path / "state", sync="process")

    with pytest.raises(StateDirError, match=r"backup cannot be made: .*No space left on device; nothing is left of it"):
        back_up(tmp_path / "state", disk / "backup")

    assert [*disk.iterdir()] == []
    assert back_up(tmp_path / "state", tmp_path / "backup").finished
