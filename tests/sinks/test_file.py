"""Files as append sinks: whatever dies, and whenever, each item is in them once."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution import JsonLines, Pipeline, Producer, TextLines
from consecution.errors import DamagedStoreError, UsageError, WorldError
from consecution.sinks import file
from consecution.sinks.file import FileSink
from tests.engines.misbehaving import wait_for

PATHS = ("out.txt", "out.txt.gz", "out-{number:03}.txt", "out-{number}.txt.gz")


def content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if ".gz" in path.suffixes else path.read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Desk:
    """Stands for the task around a sink: commits what flush returned, and gives again what was not committed."""

    def __init__(self, make: Any) -> None:
        self._make = make
        self._end: Any = None
        self._flushed: Any = None
        self._open: list[Any] = []
        self.sink: FileSink = make()
        self._start()

    def _start(self) -> None:
        self.sink = self._make()
        self.sink.open()
        self.sink.cut_to(self._end)
        if self._end is None:
            self._end = self.sink.flush()
            self.sink.committed()

    def write(self, items: list[Any]) -> None:
        self._open += items
        self.sink.write(None, items)

    def flush(self) -> None:
        self._flushed = self.sink.flush()

    def commit(self) -> None:
        self.flush()
        self._end, self._open = self._flushed, []

    def committed(self) -> None:
        self.commit()
        self.sink.committed()

    def crash(self) -> None:
        """What the process held is gone, but its files are as they are."""
        with contextlib.suppress(OSError):
            os.close(self.sink._fd)
        again, self._open = self._open, []
        self._start()
        if again:
            self.write(again)

    def finish(self) -> None:
        self.sink.complete(ended=True)
        self.committed()
        self.sink.close()


STEPS = st.lists(
    st.one_of(
        st.integers(1, 7).map(lambda count: ("write", count)),
        st.sampled_from([("flush", 0), ("commit", 0), ("committed", 0), ("crash", 0), ("torn", 0)]),
    ),
    max_size=30,
)


def play(desk: Desk, steps: list[tuple[str, int]], folder: Path, seen: dict[str, bytes]) -> int:
    """Carry out the steps; returns how many items were written. No finished file changes."""
    number = 0
    for what, count in steps:
        if what == "write":
            desk.write(list(range(number, number + count)))
            number += count
        elif what == "torn":
            tear(desk, folder)
        else:
            getattr(desk, what)()
        for path in folder.glob("out-*"):
            if path.suffix != ".part":
                assert seen.setdefault(path.name, path.read_bytes()) == path.read_bytes()
    return number


def tear(desk: Desk, folder: Path) -> None:
    """A crash in the middle of a write: some bytes of it, or a new part with some bytes."""
    desk.flush()
    for path in folder.glob("out*"):
        if path.suffix == ".part" or "-" not in path.name:
            with path.open("ab") as file:
                file.write(b"torn")
    if desk.sink.names.numbered:
        last = desk.sink._parts[-1]
        desk.sink.names.working(last.number + (last.length > 0)).write_bytes(b"torn")
    desk.crash()


@pytest.mark.parametrize("pattern", PATHS)
@given(steps=STEPS)
@settings(deadline=None, max_examples=60)
def test_whatever_is_cut_short_every_item_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, pattern: str, steps: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("files")
    limit = 5 if "{" in pattern else None
    seen: dict[str, bytes] = {}
    desk = Desk(lambda: TextLines("sink", folder / pattern, rotate_items=limit))

    count = play(desk, steps, folder, seen)
    desk.finish()

    files = [folder / pattern.format(number=n + 1) for n in range(-(-count // 5))] if limit else [folder / pattern]
    assert names(folder) == sorted(file.name for file in files)
    assert b"".join(map(content, files)) == b"".join(b"%d\n" % n for n in range(count))
    assert [content(file).count(b"\n") for file in files[:-1]] == [5] * (len(files) - 1)
    shutil.rmtree(folder)


@pytest.mark.parametrize("limits", [{"rotate_bytes": 40}, {"rotate_items": 7}, {"rotate_bytes": 40, "rotate_items": 7}])
@given(cuts=st.lists(st.integers(1, 30), min_size=1, max_size=12))
@settings(deadline=None, max_examples=40)
def test_where_files_end_does_not_depend_on_frames(
    tmp_path_factory: pytest.TempPathFactory, limits: dict[str, int], cuts: list[int]
) -> None:
    found = []
    for frames in (cuts, [sum(cuts)], [1] * sum(cuts)):
        folder = tmp_path_factory.mktemp("files")
        desk = Desk(lambda folder=folder: TextLines("sink", folder / "out-{number}", **limits))
        play(desk, [("write", count) for count in frames], folder, {})
        desk.finish()
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
        shutil.rmtree(folder)

    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 1 or sum(cuts) < 30


def test_bytes_count_before_compression_and_the_item_that_reaches_the_limit_is_the_last(tmp_path: Path) -> None:
    sink = TextLines("sink", tmp_path / "{number}.gz", rotate_bytes=10)
    sink.open()

    sink.write(None, ["aaaa", "bbbb", "cc", "d"])
    sink.flush()
    sink.committed()

    assert content(tmp_path / "1.gz") == b"aaaa\nbbbb\n"
    assert content(tmp_path / "2.gz.part") == b"cc\nd\n"
    sink.close()


def test_a_file_is_complete_when_its_first_item_is_old_enough(tmp_path: Path) -> None:
    now = [100.0]
    sink = TextLines("sink", tmp_path / "{number}", rotate_s=60)
    sink.now = lambda: now[0]
    sink.open()

    assert sink.flush_due_s() is None
    sink.write(None, ["a"])
    sink.flush()
    now[0] += 59
    assert sink.flush_due_s() == 1.0
    sink.write(None, ["b"])
    now[0] += 1
    sink.flush()
    sink.committed()

    assert content(tmp_path / "1") == b"a\nb\n"
    assert sink.flush_due_s() is None
    sink.close()


def test_numbers_start_above_all_that_are_there(tmp_path: Path) -> None:
    for name in ("out-007.txt", "out-009.txt.part", "out-x.txt", "other-99.txt"):
        (tmp_path / name).write_text("mine\n")
    desk = Desk(lambda: TextLines("sink", tmp_path / "out-{number:03}.txt"))

    desk.write(["a"])
    desk.finish()

    assert (tmp_path / "out-010.txt").read_text() == "a\n"
    assert (tmp_path / "out-009.txt.part").read_text() == "mine\n"


def test_a_complete_file_may_be_taken_away_at_once(tmp_path: Path) -> None:
    desk = Desk(lambda: TextLines("sink", tmp_path / "{number}", rotate_items=2))
    desk.write(["a", "b", "c"])
    desk.committed()

    (tmp_path / "1").unlink()
    desk.crash()
    desk.finish()

    assert names(tmp_path) == ["2"]


def test_a_foreign_file_under_the_final_name_is_not_overwritten(tmp_path: Path) -> None:
    desk = Desk(lambda: TextLines("sink", tmp_path / "{number}", rotate_items=2))
    (tmp_path / "1").write_text("foreign")
    desk.write(["a", "b"])

    with pytest.raises(WorldError, match=r"1\.part is complete, but there is a file .*1 that this sink has not made"):
        desk.committed()
    (tmp_path / "1").unlink()
    desk.crash()

    assert content(tmp_path / "1") == b"a\nb\n"


# -- what others do to the file --------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATHS)
def test_a_file_shorter_than_committed_is_damage_with_both_lengths(tmp_path: Path, pattern: str) -> None:
    desk = Desk(lambda: TextLines("sink", tmp_path / pattern))
    desk.write(["some", "lines"])
    desk.committed()
    (path,) = tmp_path.iterdir()
    length = path.stat().st_size

    os.truncate(path, length - 1)

    with pytest.raises(
        DamagedStoreError, match=rf"sink.*{path.name} holds {length - 1} bytes; {length} were committed"
    ):
        desk.crash()


def test_a_part_that_is_gone_is_damage(tmp_path: Path) -> None:
    desk = Desk(lambda: TextLines("sink", tmp_path / "{number}"))
    desk.write(["a"])
    desk.committed()

    (tmp_path / "1.part").unlink()

    with pytest.raises(DamagedStoreError, match=r"1\.part is missing; 2 bytes of it were committed"):
        desk.crash()


def test_another_file_under_the_name_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    desk = Desk(lambda: TextLines("sink", path))
    desk.write(["some", "lines"])
    desk.committed()

    path.write_text("a quite different file, and a longer one\n")

    with pytest.raises(DamagedStoreError, match="was changed: before byte 11 it does not hold what was committed"):
        desk.crash()
    assert path.read_text() == "a quite different file, and a longer one\n"


def test_what_the_file_held_before_is_kept_whatever_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old\nhalf a line")
    desk = Desk(lambda: TextLines("sink", path))

    desk.write(["new"])
    desk.flush()
    desk.crash()
    desk.finish()

    assert path.read_text() == "old\nhalf a line\nnew\n"


@pytest.mark.parametrize("pattern", PATHS)
def test_another_writer_is_kept_out_where_lengths_are_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.setattr(file, "LOCK_WAIT_S", 0.0)
    one = Desk(lambda: TextLines("sink", tmp_path / pattern))

    two: list[Desk] = []
    with pytest.raises(WorldError, match=r"sink.*out.* is being written by another sink or run; give each its own"):
        share(tmp_path / pattern, one, two)

    desk_lines = [line for path in tmp_path.iterdir() for line in content(path).split()]
    assert b"x" not in desk_lines
    one.sink.close()


def share(path: Path, one: Desk, two: list[Desk]) -> None:
    """Two sinks for one path; both have begun before the first has written anything."""
    two.append(Desk(lambda: TextLines("sink", path)))
    one.write(["a"])
    one.committed()
    two[0].write(["x"])
    two[0].committed()


def test_names_and_content_are_on_the_disk_before_the_commit_that_speaks_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real_fsync, real_rename, real_write = os.fsync, os.rename, os.write

    def named(fd: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name

    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(f"sync {named(fd)}"), real_fsync(fd)))
    monkeypatch.setattr(os, "write", lambda fd, held: (done.append(f"write {named(fd)}"), real_write(fd, held))[1])
    monkeypatch.setattr(os, "rename", lambda old, new: (done.append(f"rename {new.name}"), real_rename(old, new)))
    desk = Desk(lambda: TextLines("sink", tmp_path / "{number}", rotate_items=2))

    desk.write(["a", "b", "c"])
    desk.commit()
    done.append("commit")
    desk.sink.committed()

    folder = f"sync {tmp_path.name}"
    assert done == ["write 1.part", "sync 1.part", "write 2.part", "sync 2.part", folder, "commit", "rename 1", folder]
    desk.finish()


# -- full disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATHS)
def test_after_a_flush_that_failed_the_next_one_goes_on_where_the_last_was(
    tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 3 if "{" in pattern else None
    sink = TextLines("sink", tmp_path / pattern, rotate_items=limit)
    sink.open()
    sink._write_frame(None, ["a", "b"])
    real = os.fsync

    def full(fd: int) -> None:
        if fd == sink._fd and sink._fd_number != 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full if limit else lambda fd: full(-1) if fd != sink._fd else _raise())
        with pytest.raises(WorldError, match="No space left"):
            sink._write_frame(None, ["lost"] * 5)
    sink._write_frame(None, ["c", "d"])
    sink._close_for_good()

    assert b"".join(content(path) for path in sorted(tmp_path.iterdir())) == b"a\nb\nc\nd\n"


def _raise() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=64k tmpfs {disk} 2>/dev/null"):
        pytest.skip("mounting is not allowed here")
    yield disk
    assert not os.system(f"umount {disk}")


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
@pytest.mark.parametrize("pattern", ["out.jsonl", "out-{number:04}.jsonl"])
def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(
    tmp_path: Path, small_disk: Path, mode: str, pattern: str
) -> None:
    def run() -> Any:
        sink = JsonLines("sink", small_disk / pattern, rotate_items=1500 if "{" in pattern else None)
        return Pipeline(Producer(range(20_000)) | sink).run(mode=mode, state_dir=tmp_path / "state", batch_size=500)

    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(40_000))

    with pytest.raises(
        WorldError, match=r"sink.*out.*jsonl cannot be written: No space left on device; mend .*room.*nothing is lost"
    ):
        run()
    assert os.system(f"mount -o remount,size=1m {small_disk}") == 0
    ballast.unlink()
    report = run()

    assert (report.completed, report.failed, report.pending) == (20_000, 0, 0)
    lines = [line for path in sorted(small_disk.iterdir()) for line in path.read_text().splitlines()]
    assert list(map(json.loads, lines)) == list(range(20_000))


# -- what cannot be cut ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_named_pipe_takes_everything_in_robust_too(tmp_path: Path, mode: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "fifo").read_bytes()))
    reader.start()

    report = Pipeline(Producer(range(1000)) | TextLines("sink", tmp_path / "fifo")).run(mode=mode)

    reader.join(timeout=10)
    assert report.completed == 1000
    assert read[0].split() == [b"%d" % n for n in range(1000)]


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/null", "/dev/fd/1", "/proc/self/fd/1"])
def test_what_is_another_file_in_each_process_is_never_cut(path: str) -> None:
    assert not TextLines("sink", path)._can_be_cut()


# -- runs ------------------------------------------------------------------------------------------


def test_a_stop_completes_the_last_file_and_the_next_run_begins_another(tmp_path: Path) -> None:
    for number in (1, 2):
        sink = TextLines("sink", tmp_path / "{number}.txt")
        with Pipeline(Producer("manual") | sink).start(mode="inline", state_dir=tmp_path / "state") as running:
            running.push(f"item {number}")
            running.stop()

    assert [(tmp_path / f"{number}.txt").read_text() for number in (1, 2)] == ["item 1\n", "item 2\n"]
    assert names(tmp_path) == ["1.txt", "2.txt", "state"]


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
@pytest.mark.parametrize("robustness", ["none", "robust"])
def test_in_every_mode_the_files_of_a_whole_stream_have_their_names(tmp_path: Path, mode: str, robustness: str) -> None:
    sink = TextLines("sink", tmp_path / "{number:02}.txt", rotate_items=400)

    Pipeline(Producer(range(1000)) | sink).run(mode=mode, robustness=robustness)

    assert names(tmp_path) == ["01.txt", "02.txt", "03.txt"]
    assert [int(line) for name in names(tmp_path) for line in (tmp_path / name).read_text().split()] == list(
        range(1000)
    )


def test_consume_completes_what_it_wrote_even_where_it_breaks_off(tmp_path: Path) -> None:
    def fail(item: Any) -> Any:
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        Pipeline(Producer([1, 1, 0]) | fail | TextLines("sink", tmp_path / "{number}")).consume([1, 1, 0])

    assert (tmp_path / "1").read_text() == "1\n1\n"


def test_with_fresh_the_files_stay_and_are_appended_to(tmp_path: Path) -> None:
    for fresh in (False, True):
        sink = TextLines("sink", tmp_path / "out.txt")
        Pipeline(Producer(["item"]) | sink).run(mode="inline", state_dir=tmp_path / "state", fresh=fresh)

    assert (tmp_path / "out.txt").read_text() == "item\nitem\n"


def test_a_wrong_item_fails_alone_in_robust_too(tmp_path: Path) -> None:
    sink = JsonLines("sink", tmp_path / "{number}", rotate_items=2)

    report = Pipeline(Producer([1, {2}, 3, {4}, 5]) | sink).run(mode="inline", retry_delay_s=0.0)

    assert sorted(map(repr, (failure.item for failure in report.failures))) == ["{2}", "{4}"]
    assert [(tmp_path / str(number)).read_text() for number in (1, 2)] == ["1\n3\n", "5\n"]


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_file_that_is_old_enough_gets_its_name_while_nothing_comes(tmp_path: Path, mode: str) -> None:
    graph = Producer("manual") | TextLines("sink", tmp_path / "{number}.txt", rotate_s=0.2)

    with Pipeline(graph).start(mode=mode) as running:
        running.push("item")
        wait_for((tmp_path / "1.txt").exists)
        running.push("another").wait(10)
        running.stop()

    assert [(tmp_path / f"{n}.txt").read_text() for n in (1, 2)] == ["item\n", "another\n"]


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_damage_is_told_in_every_mode(tmp_path: Path, mode: str) -> None:
    def start() -> Any:
        graph = Producer("manual") | TextLines("sink", tmp_path / "out.txt")
        return Pipeline(graph).start(mode=mode, state_dir=tmp_path / "state")

    with start() as running:
        running.push("item").wait(10)
        running.stop()
    os.truncate(tmp_path / "out.txt", 2)

    with pytest.raises(DamagedStoreError, match=r"sink.*out\.txt holds 2 bytes; 5 were committed"):
        start().wait(30)


@pytest.mark.parametrize(
    ("path", "options", "match"),
    [
        (
            "out.txt",
            {"rotate_items": 5},
            r"rotation needs a \{number\} in the file's name, as in 'out-\{number:06\}.txt'",
        ),
        ("{number}", {"rotate_items": 0}, "rotate_items=0: expected a number above 0"),
        ("{number}", {"rotate_bytes": 1.5}, "rotate_bytes=1.5: expected a number above 0"),
        ("{number}", {"rotate_s": "x"}, "rotate_s='x': expected a number above 0"),
        ("{number}/out", {}, "belongs into the name of the file"),
        ("{number}-{replica}", {}, r"expected one \{number\}.*found number, replica"),
        ("{number", {}, r"expected one \{number\}"),
        ("{number}{number}", {}, r"expected one \{number\}.*found number, number"),
        ("{number:x}", {}, r"expected one \{number\}.*found the format 'x'"),
        ("{number!r}", {}, r"expected one \{number\}"),
    ],
)
def test_what_cannot_be_rotated_is_refused(path: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=rf"sink.*{match}"):
        TextLines("sink", path, **options)
