from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy
import pytest

from consecution import JsonLines, Pipeline, TextLines
from consecution.errors import GraphError, WorldError
from consecution.options import Options
from consecution.plan import make_plan


def opened(path: Path, **options: Any) -> TextLines:
    sink = TextLines("sink", path, **options)
    sink.open()
    return sink


def put(sink: TextLines, items: list[Any]) -> None:
    """Write the items and make them safe, as engines do."""
    sink.write(None, items)
    sink.flush()
    sink.committed()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.txt"


class Disk:
    """Stands for ``os.write``: takes so many bytes, then says that the disk is full."""

    def __init__(self, room: int, real: Any = os.write) -> None:
        self.room = room
        self._real = real

    def __call__(self, fd: int, content: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self._real(fd, content[: self.room])
        self.room -= taken
        return int(taken)


def test_items_become_lines_as_text_or_as_told(path: Path) -> None:
    plain = opened(path)
    put(plain, [1, "two", None, "\udce9"])
    plain.close()
    told = opened(path, format=lambda item: f"<{item}>")
    put(told, [1])
    told.close()

    assert path.read_bytes() == b"1\ntwo\nNone\n\xe9\n<1>\n"


@pytest.mark.parametrize("room", [0, 1, 5, 12])
def test_a_full_disk_leaves_no_part_of_the_frame(path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    sink = opened(path)
    put(sink, ["before"])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", Disk(room))
        with pytest.raises(WorldError, match=r"sink.*out\.txt cannot be written: .*No space left.*make room"):
            put(sink, ["first", "second", "third"])

    assert path.read_text() == "before\n"
    put(sink, ["after"])
    sink.close()
    assert path.read_text() == "before\nafter\n"


def test_a_system_that_takes_a_part_at_a_time_gets_the_rest(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    sink = opened(path)
    monkeypatch.setattr(os, "write", lambda fd, content: real(fd, content[:3]))

    put(sink, ["first", "second"])

    sink.close()
    assert path.read_text() == "first\nsecond\n"


def test_an_fsync_that_fails_takes_the_frame_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    sink = opened(path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(WorldError, match="broken disk"):
            put(sink, ["lost"])

    sink.close()
    assert path.read_text() == ""


@pytest.mark.parametrize(("sync", "times"), [("power", 3), ("process", 0)])
def test_only_power_asks_for_an_fsync_after_every_write(
    path: Path, monkeypatch: pytest.MonkeyPatch, sync: str, times: int
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    sink = TextLines("sink", path)
    sink.sync = sync

    sink.open()
    put(sink, ["a"])
    put(sink, ["b"])
    sink.close()

    assert len(synced) == times  # With power: the folder, and each write.


@pytest.mark.parametrize("left", ["half a li", "whole\nhalf", "\n\nx"])
def test_half_a_line_that_a_crash_has_left_is_ended(path: Path, left: str) -> None:
    path.write_text(left)

    sink = opened(path)
    put(sink, ["next"])
    sink.close()

    assert path.read_text() == left + "\nnext\n"


@pytest.mark.parametrize("left", ["", "whole\n"])
def test_whole_lines_are_gone_on_with(path: Path, left: str) -> None:
    path.write_text(left)

    sink = opened(path)
    put(sink, ["next"])
    sink.close()

    assert path.read_text() == left + "next\n"


def test_a_named_pipe_is_written_to_like_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "fifo").read_bytes()))
    reader.start()

    sink = opened(tmp_path / "fifo")
    put(sink, ["through", "a pipe"])
    sink.close()

    reader.join(timeout=10)
    assert read == [b"through\na pipe\n"]


def test_dev_null_takes_everything() -> None:
    sink = opened(Path(os.devnull))

    put(sink, ["gone"])

    sink.close()


def test_it_has_one_replica_only(path: Path) -> None:
    with pytest.raises(GraphError, match="TextLines can have 1 replica only"):
        make_plan(TextLines("sink", path) * 2, Options.of(), has_iterable=True)


class Endless(dict[str, Any]):
    """What JSON asks for its entries, and gets StopIteration."""

    def items(self) -> Any:
        raise StopIteration


@pytest.mark.parametrize("make", [TextLines, JsonLines])
def test_an_item_at_which_the_format_raises_stop_iteration_fails_alone(make: Any, path: Path) -> None:
    def ends(item: Any) -> str:
        return next(iter([item] if item else [])) + "!"

    sink = make("sink", path) if make is JsonLines else make("sink", path, format=ends)
    bad = Endless(a=1) if make is JsonLines else ""
    report = Pipeline(sink).run(["a", bad, "b", bad, "c"], mode="inline", robustness="track")

    assert (report.completed, report.failed) == (5, 2)
    assert [line.strip('"!') for line in path.read_text().splitlines()] == ["a", "b", "c"]


def test_a_text_that_cannot_be_written_fails_alone(path: Path) -> None:
    report = Pipeline(TextLines("sink", path)).run(["a", "\ud800", "b"], mode="inline", robustness="track")

    assert [failure.item for failure in report.failures] == ["\ud800"]
    assert path.read_text() == "a\nb\n"


@pytest.mark.parametrize("item", [{"a": [1, None, True]}, [1.5], "line\nbreak", "é ☃", 7, None, {"1": {"2": []}}])
def test_json_comes_back_from_one_line_each(path: Path, item: Any) -> None:
    sink = JsonLines("sink", path)
    sink.open()

    put(sink, [item, item])

    sink.close()
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [item, item]


@pytest.mark.parametrize(
    ("item", "found"),
    [
        (
            {"a": numpy.int64(7)},
            r"7\)?, of type int64: convert it in a node before, with its tolist\(\) \(expected texts",
        ),
        ({1, 2}, r"JSON cannot hold \{1, 2\}, of type set: convert it in a node before, say to a text \(expected"),
    ],
)
def test_what_json_cannot_hold_is_named_with_a_way_out(path: Path, item: Any, found: str) -> None:
    sink = JsonLines("sink", path)
    sink.open()

    with pytest.raises(TypeError, match=found):
        put(sink, [item])

    sink.close()


@pytest.mark.parametrize("item", [float("nan"), float("inf"), object(), {1, 2}, b"bytes", {(1, 2): 3}])
def test_what_json_cannot_hold_fails_at_this_node(path: Path, item: Any) -> None:
    sink = JsonLines("sink", path)
    sink.open()

    with pytest.raises((ValueError, TypeError)):
        put(sink, [1, item])

    sink.close()
    assert path.read_text() == ""
