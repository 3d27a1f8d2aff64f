"""The log in the state directory: written, renamed when it has grown, read and followed."""

from __future__ import annotations

import itertools
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from consecution.runtime import log_file
from consecution.runtime.log_file import KEPT, LogFile, LogLine, follow_log, read_log


def line(number: int, task: str = "node.0") -> LogLine:
    return LogLine.now(task, 17, f"line {number}")


def write(state_dir: Path, *lines: LogLine) -> None:
    """What one run writes."""
    with closing(LogFile(state_dir)) as log:
        log.write(lines)


def texts(state_dir: Path) -> list[str]:
    return [found.text for found in read_log(state_dir)]


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = [LogLine.now("näme.0", 17, 'a "b"\t\x00'), LogLine.now("supervisor", None, "")]
    write(tmp_path, *written)

    assert list(read_log(tmp_path)) == written


def test_a_second_run_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path, line(number))

    assert texts(tmp_path) == ["line 0", "line 1", "line 2"]


def test_a_file_that_has_grown_is_renamed_and_the_oldest_goes(tmp_path: Path) -> None:
    with closing(LogFile(tmp_path, largest_bytes=1000)) as log:
        for number in range(200):
            log.write([line(number)])

    files = sorted(path.name for path in (tmp_path / "log").iterdir())
    assert files == ["run.jsonl", *(f"run.jsonl.{number}" for number in range(1, KEPT + 1))]
    assert all(path.stat().st_size <= 1000 for path in (tmp_path / "log").iterdir())
    kept = texts(tmp_path)
    assert kept == [f"line {number}" for number in range(200 - len(kept), 200)]


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    write(tmp_path, line(1))

    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "log", tmp_path / "log" / "run.jsonl")]
    assert modes == [0o700, 0o600]


def test_what_a_crash_has_left_of_a_line_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, line(1))
    with open(tmp_path / "log" / "run.jsonl", "ab") as file:
        file.write(b'[1]\n{"time": 1}\n\xff\n{"time": "2026')

    write(tmp_path, line(2))

    assert texts(tmp_path) == ["line 1", "line 2"]


def test_where_nothing_can_be_written_lines_are_lost_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("in the way")

    write(tmp_path, line(1))


def test_without_a_log_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert texts(tmp_path) == []


def test_who_follows_misses_no_line_while_files_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "LOOK_EVERY_S", 0.001)
    log = LogFile(tmp_path, largest_bytes=20_000)
    log.write([line(0)])
    found: list[str] = []
    go_on = threading.Semaphore(0)

    def follow() -> None:
        for told in follow_log(tmp_path):
            if told is not None:
                found.append(told.text)
            else:
                go_on.release()
            if len(found) == 1000:
                return

    follower = threading.Thread(target=follow)
    follower.start()
    for start in range(1, 1000, 50):
        go_on.acquire()  # the follower is not further behind than the files that are kept
        for number in range(start, min(start + 50, 1000)):
            log.write([line(number)])
    follower.join(60)
    log.close()

    assert found == [f"line {number}" for number in range(1000)]


@pytest.mark.parametrize("read", [read_log, follow_log])
def test_who_reads_misses_no_line_though_files_are_renamed_meanwhile(
    tmp_path: Path, read: Callable[[Path], Iterator[LogLine | None]]
) -> None:
    with closing(LogFile(tmp_path, largest_bytes=1000)) as log:
        for number in range(20):
            log.write([line(number)])
        lines = (told for told in read(tmp_path) if told is not None)

        found = [next(lines)]
        for number in range(20, 30):  # more than one file holds
            log.write([line(number)])
        found += itertools.islice(lines, 19)

    assert [told.text for told in found] == [f"line {number}" for number in range(20)]


def test_a_file_that_is_renamed_while_all_are_opened_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LogFile(tmp_path, largest_bytes=1000)
    for number in range(20):
        log.write([line(number)])

    def rename_then(path: Path, number: int) -> Path:
        if number == 1 and path.stat().st_size:
            monkeypatch.setattr(log_file, "_older", real)
            log._rotate()
        return real(path, number)

    real = log_file._older
    monkeypatch.setattr(log_file, "_older", rename_then)

    assert texts(tmp_path) == [f"line {number}" for number in range(20)]
    log.close()


@pytest.mark.parametrize(
    ("task", "names", "wanted"),
    [
        ("balance.0", ["balance"], True),
        ("balance.0", ["balance.0"], True),
        ("balance.0", ["balance.1", "other"], False),
        ("count.parts.1", ["count.parts"], True),
        ("count.parts.1", ["count"], False),
        ("supervisor", ["supervisor"], True),
        ("a.b", ["a"], False),
    ],
)
def test_a_line_is_of_its_task_and_of_its_node(task: str, names: list[str], wanted: bool) -> None:
    assert line(1, task).is_of(names) is wanted


def test_who_follows_slowly_misses_no_line_that_is_kept(tmp_path: Path) -> None:
    with closing(LogFile(tmp_path, largest_bytes=1)) as log:  # each line in a file of its own
        log.write([line(0)])
        following = follow_log(tmp_path)
        found = [next(following)]
        for number in range(1, KEPT + 1):
            log.write([line(number)])
        for _ in range(2):  # it has looked at the first file to its end, and then at what came behind that
            found += itertools.takewhile(lambda told: told is not None, following)

    assert [told.text for told in found if told is not None] == [f"line {number}" for number in range(KEPT + 1)]
