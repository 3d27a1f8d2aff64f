from __future__ import annotations

import gzip
import os
import random
from pathlib import Path
from typing import Any

import msgpack
import pytest

from consecution import FollowedFilesSource, Producer
from consecution.errors import SourceError, UsageError
from consecution.source import Rejected
from consecution.sources import trail
from consecution.testing.sources import check_source
from tests.sources.test_conformance import ITEMS, ROWS, large_lines

POLL_S = 1e-9
"""Look at every read."""


def opened(paths: Any, position: Any = None, **options: Any) -> FollowedFilesSource:
    source = FollowedFilesSource(paths, poll_s=POLL_S, **options)
    source.may_block = True
    source.open(msgpack.unpackb(msgpack.packb(position)))
    return source


def take(source: FollowedFilesSource) -> list[Any]:
    """What is there now."""
    found: list[Any] = []
    while some := source.read(1000):
        found += some
    return found


def again(source: FollowedFilesSource, paths: Any, **options: Any) -> FollowedFilesSource:
    position = source.position()
    source.close()
    return opened(paths, position, **options)


def append(path: Path, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)


# -- the contract ----------------------------------------------------------------------------------


def test_files_that_are_followed_keep_the_contract(tmp_path: Path) -> None:
    def make(folder: Path) -> FollowedFilesSource:
        (folder / "app.log").write_text("".join(f"{item}\n" for item in ITEMS))
        return FollowedFilesSource(folder / "*.log", poll_s=0.01)

    def make_large(folder: Path) -> FollowedFilesSource:
        return FollowedFilesSource(large_lines(folder))

    check_source(make, ITEMS, folder=tmp_path, ends=False, make_large=make_large)


def test_what_is_written_while_it_is_open_keeps_the_contract(tmp_path: Path) -> None:
    def make(folder: Path) -> FollowedFilesSource:
        return FollowedFilesSource(folder / "app.csv", "csv", columns=["n", "text"], header=False, poll_s=0.01)

    def send(source: FollowedFilesSource, folder: Path, items: Any) -> None:
        for row in items:
            append(folder / "app.csv", f'{row["n"]},"{row["text"]}"\n')

    def send_bad(source: FollowedFilesSource, folder: Path) -> None:
        append(folder / "app.csv", "1,2,3\n")
        send(source, folder, ROWS)

    check_source(make, ROWS, folder=tmp_path, ends=False, send=send, make_bad=make, send_bad=send_bad)


# -- a log that is written to, rotated, and read, by chance ----------------------------------------


class Log:
    """Writes numbered lines to a path, and rotates it. Files have the times in which they were written to."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.path = path
        self.rng = rng
        self.lines: list[str] = []
        self.begun = ""
        self.written = 0
        self.now_ns = 10**18

    def name(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def touch(self, path: Path) -> None:
        self.now_ns += 1
        os.utime(path, ns=(self.now_ns, self.now_ns))

    def write(self) -> None:
        """Some lines, the last one perhaps not whole."""
        text = ""
        for _ in range(self.rng.randint(1, 8)):
            line = self.begun or f"{self.path.name} {len(self.lines)} {'x' * self.rng.randint(0, 30)}"
            text += line[self.written :] + "\n"
            self.begun, self.written = "", 0
            self.lines.append(line)
        if self.rng.random() < 0.3:
            self.begun = f"{self.path.name} {len(self.lines)} begun"
            self.written = self.rng.randint(1, 6)
            text += self.begun[: self.written]
        append(self.path, text)
        self.touch(self.path)

    def finish_line(self) -> None:
        if self.begun:
            append(self.path, self.begun[self.written :] + "\n")
            self.lines.append(self.begun)
            self.begun, self.written = "", 0
            self.touch(self.path)

    def move_up(self) -> None:
        for number in reversed(range(1, 100)):
            for path in (self.name(number), Path(f"{self.name(number)}.gz")):
                if path.exists():
                    path.rename(str(path).replace(f".{number}", f".{number + 1}"))

    def rotate(self) -> None:
        self.finish_line()
        self.move_up()
        self.path.rename(self.name(1))
        if self.rng.random() < 0.5:
            self.path.touch()
            self.touch(self.path)

    def copy_and_truncate(self) -> None:
        self.finish_line()
        self.move_up()
        self.name(1).write_bytes(self.path.read_bytes())
        self.touch(self.name(1))
        os.truncate(self.path, 0)
        self.touch(self.path)

    def compress(self) -> None:
        """As logrotate does: some of what was rotated, with its time kept."""
        plain = [self.name(number) for number in range(1, 100) if self.name(number).exists()]
        for path in plain[self.rng.randint(0, 1) :]:
            packed = Path(f"{path}.gz")
            packed.write_bytes(gzip.compress(path.read_bytes()))
            os.utime(packed, ns=(path.stat().st_mtime_ns, path.stat().st_mtime_ns))
            path.unlink()

    def do_something(self, *, copies: bool) -> None:
        if not self.path.exists() or self.rng.random() < 0.6:
            self.write()
        elif copies:
            self.copy_and_truncate()
        elif self.rng.random() < 0.3:
            self.compress()
        else:
            self.rotate()


@pytest.mark.parametrize("copies", [False, True], ids=["renamed", "copied"])
def test_every_line_comes_once_and_in_order_however_logs_are_rotated(
    copies: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(60):
        monkeypatch.setattr(trail, "QUIET_S", random.Random(seed).choice([0.0, 60.0]))
        check_history(tmp_path / f"{copies}{seed}", random.Random(seed), copies=copies)


def check_history(folder: Path, rng: random.Random, *, copies: bool) -> None:
    folder.mkdir()
    logs = [Log(folder / "a.log", rng), Log(folder / "b.log", rng)]
    named, pattern = [folder / "a.log", folder / "b.log"], [folder / "*.log"]
    paths = rng.choice([named, pattern])
    waits = rng.random() < 0.5
    for log in logs if not waits else ():
        log.write()
    source = opened(paths)
    found = take(source)
    for _ in range(rng.randint(5, 30)):
        for _ in range(rng.randint(1, 4)):
            rng.choice(logs).do_something(copies=copies)
            if copies or rng.random() < 0.5:
                found += source.read(rng.choice([1, 3, 1000])) or []
        if rng.random() < 0.4 and not (waits and paths is pattern):  # Which has no place to go on from, until a line.
            position = source.position()
            source.close()
            for _ in range(rng.randint(0, 6)):
                rng.choice(logs).do_something(copies=copies)
            source = opened(paths, position)
    for log in logs:
        log.write()
        log.finish_line()
    found += take(source)
    source.close()
    for log in logs:
        mine = [line for line in found if str(line).startswith(log.path.name)]
        assert mine == log.lines, f"{folder.name}: {log.path.name}"
    assert len(found) == sum(len(log.lines) for log in logs), [line for line in found if type(line) is Rejected]


# -- what may happen to a file ---------------------------------------------------------------------


def test_a_line_comes_once_its_newline_is_there(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    source = opened(log)
    assert take(source) == []

    append(log, "one\ntw")
    first = take(source)
    source = again(source, log)
    second = take(source)
    append(log, "o\n")

    assert (first, second, take(source)) == (["one"], [], ["two"])
    source.close()


def test_who_writes_to_a_file_that_was_rotated_away_is_heard(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, "one\n")
    source = opened(log)
    found = take(source)
    with open(log, "a") as late:
        log.rename(tmp_path / "app.log.1")
        append(log, "three\n")
        found += take(source)
        late.write("two\n")
    found += take(source)
    source = again(source, log)
    append(tmp_path / "app.log.1", "four\n")

    assert found + take(source) == ["one", "three", "two", "four"]
    source.close()


def test_the_last_line_of_a_file_that_is_quiet_and_gone_needs_no_newline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail, "QUIET_S", 0.0)
    log = tmp_path / "app.log"
    append(log, "one\ntwo")
    source = opened(log)

    found = [take(source) for _ in range(3)]
    log.unlink()
    found += [take(source) for _ in range(3)]

    assert found == [["one"], [], [], [], ["two"], []] or found == [["one"], [], [], ["two"], [], []]
    assert source.position()[0][2] == []
    source.close()


@pytest.mark.parametrize("down", [False, True], ids=["while it is read", "while nobody reads"])
@pytest.mark.parametrize("late", ["", "a2\n"], ids=["touched", "written to"])
def test_a_file_that_was_let_go_is_never_read_again_from_its_beginning(
    late: str, down: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail, "QUIET_S", 0.0)
    log = Log(tmp_path / "app.log", random.Random(0))
    source = opened(log.path)
    found = []
    for line in ("a1\n", "b1\n", "c1\n"):
        append(log.path, line)
        log.touch(log.path)
        found += [item for _ in range(3) for item in take(source)]
        log.rotate()
    followed, *let_go = source.position()[0][2:]

    append(log.name(3), late)
    log.touch(log.name(3))
    if down:
        source = again(source, log.path)
    append(log.path, "d1\n")
    found += take(source)

    assert sorted(found) == sorted(["a1", "b1", "c1", "d1", *late.split()])
    assert (len(followed), [len(known) for known in let_go]) == (2, [1])
    source.close()


@pytest.mark.parametrize("down", [False, True], ids=["while it is read", "while nobody reads"])
def test_what_is_written_to_a_file_that_was_let_go_comes_though_newer_lines_were_read(
    down: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail, "QUIET_S", 0.0)
    log = Log(tmp_path / "app.log", random.Random(0))
    source = opened(log.path)
    found = []
    for line in ("a1\n", "b1\n", "c1\n", "d1\n"):
        if log.path.exists():
            log.rotate()
        log.path.unlink(missing_ok=True)
        append(log.path, line)
        log.touch(log.path)
        found += [item for _ in range(3) for item in take(source)]

    append(log.name(3), "a2\n")
    log.touch(log.name(3))
    append(log.path, "d2\n")
    log.touch(log.path)
    found += take(source)
    if down:
        source = again(source, log.path)
    log.rotate()
    append(log.path, "e1\n")

    assert found + take(source) == ["a1", "b1", "c1", "d1", "d2", "a2", "e1"]
    source.close()


def test_a_position_from_before_files_that_were_let_go_were_remembered_is_understood(tmp_path: Path) -> None:
    append(tmp_path / "app.log", "one\ntwo\n")
    source = opened(tmp_path / "app.log")
    source.read(1)
    ((path, newest_ns, files),) = source.position()
    source.close()

    source = opened(tmp_path / "app.log", [[path, newest_ns, files]])

    assert take(source) == ["two"]
    source.close()


def test_a_line_that_has_begun_waits_for_its_end_as_long_as_its_file_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail, "QUIET_S", 0.0)
    log = Log(tmp_path / "app.log", random.Random(0))
    append(log.path, "a1\nhalf a ")
    source = opened(log.path)
    found = take(source)
    log.rotate()
    append(log.path, "b1\n")
    found += [item for _ in range(3) for item in take(source)]

    append(log.name(1), "line\n")

    assert found + take(source) == ["a1", "b1", "half a line"]
    source.close()


def test_a_truncated_file_is_read_from_its_beginning_even_if_it_has_grown_beyond(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, "one\n")
    source = opened(log)
    found = take(source)

    log.write_text("two and more than there was\n")
    found += take(source)
    source = again(source, log)

    assert found + take(source) == ["one", "two and more than there was"]
    source.close()


@pytest.mark.parametrize("down", [False, True], ids=["while it is read", "while nobody reads"])
def test_each_file_at_a_path_may_begin_with_a_byte_order_mark(down: bool, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, "\ufeff")
    source = opened(log)
    found = take(source)
    for line in ("a1\n", "a2\n"):
        append(log, line)
        found += take(source)
        source = again(source, log) if down else source

    log.rename(tmp_path / "app.log.1")
    append(log, "\ufeffb1\n")
    found += take(source)
    source = again(source, log) if down else source
    log.write_text("\ufeffc1, which is longer than what was there\n")

    assert found + take(source) == ["a1", "a2", "b1", "c1, which is longer than what was there"]
    source.close()


@pytest.mark.parametrize("down", [False, True], ids=["while it is read", "while nobody reads"])
def test_what_is_written_late_to_an_old_file_hides_none_that_came_after_it(down: bool, tmp_path: Path) -> None:
    log = Log(tmp_path / "app.log", random.Random(0))
    append(log.path, "a1\n")
    log.touch(log.path)
    source = opened(log.path)
    found = take(source)
    position = source.position()
    if down:
        source.close()
    for line in ("b1\nb2\n", "c1\n"):
        log.rotate()
        append(log.path, line)
        log.touch(log.path)
    append(log.name(2), "a2\n")
    log.touch(log.name(2))
    if down:
        source = opened(log.path, position)

    assert found + take(source) == ["a1", "a2", "b1", "b2", "c1"]
    source.close()


def test_a_file_that_was_written_to_late_and_compressed_comes_once(tmp_path: Path) -> None:
    log = Log(tmp_path / "app.log", random.Random(0))
    append(log.path, "a1\n")
    log.touch(log.path)
    source = opened(log.path)
    found = take(source)
    log.rotate()
    append(log.path, "b1\n")
    log.touch(log.path)
    found += take(source)
    append(log.name(1), "a2\n")
    log.touch(log.name(1))

    log.compress()
    found += take(source)
    log.rotate()
    append(log.path, "c1\n")

    assert found + take(source) == ["a1", "b1", "a2", "c1"]
    source.close()


@pytest.mark.parametrize("poll_s", [POLL_S, 3600], ids=["at a look", "between a look and a read"])
def test_a_file_that_is_copied_and_truncated_before_any_of_it_was_read_is_read_in_the_copy(
    poll_s: float, tmp_path: Path
) -> None:
    log = Log(tmp_path / "app.log", random.Random(0))
    append(log.path, "a1\n")
    log.touch(log.path)
    source = FollowedFilesSource(log.path, poll_s=poll_s)
    source.may_block = True
    source.open(None)
    found = source.read(1) or []

    append(log.path, "a2\na3\n")
    log.copy_and_truncate()
    append(log.path, "b1\nb2\n")
    found += source.read(1) or []  # From the copy; of what is there now nothing was read.
    log.copy_and_truncate()
    append(log.path, "c1\n")

    assert found + take(source) == ["a1", "a2", "a3", "b1", "b2", "c1"]
    source.close()


def test_an_empty_file_that_is_filled_and_truncated_between_two_looks_is_read_in_the_copy(tmp_path: Path) -> None:
    log = Log(tmp_path / "app.log", random.Random(0))
    append(log.path, "a1\n")
    log.touch(log.path)
    source = opened(log.path)
    found = take(source)
    log.copy_and_truncate()
    found += take(source)

    append(log.path, "b1\n")
    log.copy_and_truncate()

    assert found + take(source) == ["a1", "b1"]
    source.close()


def test_a_new_run_leaves_alone_what_was_rotated_before_though_somebody_still_writes_to_it(tmp_path: Path) -> None:
    log = Log(tmp_path / "app.log", random.Random(0))
    append(log.path, "old\n")
    log.rotate()
    log.path.touch()
    source = opened(log.path)
    found = take(source)

    append(log.name(1), "late\n")
    append(log.path, "new\n")

    assert found + take(source) == ["new"]
    source.close()


@pytest.mark.parametrize("pattern", ["app.log7", "*.log7", "**/*.log7"])
@pytest.mark.parametrize("old", [False, True], ids=["first", "others were before"])
def test_files_that_come_and_are_rotated_away_between_two_looks_are_read(
    pattern: str, old: bool, tmp_path: Path
) -> None:
    log = Log(tmp_path / "app.log7", random.Random(0))
    if old:
        for _ in range(2):
            append(log.path, "old\n")
            log.touch(log.path)
            log.rotate()
        log.path.unlink(missing_ok=True)
    source = opened(tmp_path / pattern)
    found = take(source)

    if old:
        append(log.name(1), "late\n")
        log.touch(log.name(1))
    for line in ("one", "two"):
        log.move_up()
        append(log.path, f"{line}\n")
        log.touch(log.path)
        log.path.rename(log.name(1))
    found += take(source)
    source = again(source, tmp_path / pattern)
    append(log.path, "three\n")

    assert found + take(source) == ["one", "two", "three"]
    source.close()


@pytest.mark.parametrize("waiting", ["b.log", "*b.log"])
def test_a_path_where_nothing_lay_yet_is_waited_for_while_a_run_is_down_too(waiting: str, tmp_path: Path) -> None:
    """As soon as another path has put a position into the journal."""
    log = Log(tmp_path / "b.log", random.Random(0))
    append(log.name(1), "old\n")
    log.touch(log.name(1))
    append(tmp_path / "a.log", "a1\n")
    paths = [tmp_path / "a.log", tmp_path / waiting]
    source = opened(paths)
    found = take(source)
    append(log.name(1), "late\n")
    found += take(source)
    position = source.position()
    source.close()

    log.move_up()
    append(log.path, "b1\n")
    log.path.rename(log.name(1))
    source = opened(paths, position)
    found += take(source)
    append(log.path, "b2\n")

    assert found + take(source) == (["a1", "b2"] if "*" in waiting else ["a1", "b1", "b2"])
    source.close()


def test_what_only_looks_like_a_rotated_file_of_a_pattern_is_left_alone(tmp_path: Path) -> None:
    """Compressed files, those of a hidden name or another folder, and what somebody moves there from before."""
    (tmp_path / "deep").mkdir()
    for old in (".c.log.1", "part-1.gz", "app.log.1"):
        append(tmp_path / old, "old\n")
    source = opened([tmp_path / "*", tmp_path / ".*.log", tmp_path / "deep" / "*.txt", tmp_path / "[ab]pp.log"])
    found = take(source)
    (tmp_path / "part-2.gz").write_bytes(gzip.compress(b"packed\n"))
    append(tmp_path / "deep" / "x.log.1", "deep\n")
    append(tmp_path / "deep" / ".x.txt.1", "hidden\n")
    append(tmp_path / ".c.log", "c1\n")
    found += take(source)

    assert found == ["old", "c1"]
    source.close()


@pytest.mark.parametrize("down", [False, True], ids=["while it is read", "while nobody reads"])
def test_what_is_lost_is_told_once_in_its_place(down: bool, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, "one\ntwo\nthr")
    source = opened(log)
    found = source.read(1) or []
    position = source.position()
    if down:
        source.close()
    log.write_text("new\n")
    if down:
        source = opened(log, position)

    found += source.read(1) or []
    source = again(source, log)
    found += take(source)

    # What had been read of the file is given all the same.
    assert [item for item in found if type(item) is not Rejected] == (["one", "new"] if down else ["one", "two", "new"])
    (told,) = (item for item in found if type(item) is Rejected)
    assert f"app.log, of which {4 if down else 8} bytes were taken, was rotated away or truncated, and" in str(
        told.error
    )
    source.close()


@pytest.mark.parametrize("whole", [True, False], ids=["to its end", "not to its end"])
def test_an_old_file_that_is_deleted_while_nobody_looks_is_lost_only_if_it_was_not_read(
    whole: bool, tmp_path: Path
) -> None:
    """Who keeps one old file deletes, with each rotation, one that is still watched."""
    log = tmp_path / "app.log"
    append(log, "one\n")
    source = opened(log)
    found = take(source)
    log.rename(tmp_path / "app.log.1")
    append(log, "two\n")
    if not whole:
        append(tmp_path / "app.log.1", "ha")
    found += take(source)
    position = source.position()
    source.close()

    log.replace(tmp_path / "app.log.1")
    append(log, "three\n")
    source = opened(log, position)
    found += take(source)
    source = again(source, log)
    append(tmp_path / "app.log.1", "late\n")
    append(log, "four\n")
    found += take(source)
    source.close()

    assert [line for line in found if type(line) is not Rejected] == ["one", "two", "three", "late", "four"]
    lost = [str(line.error) for line in found if type(line) is Rejected]
    assert ["app.log, of which 4 bytes were taken" in problem for problem in lost] == ([] if whole else [True])


def test_new_files_of_a_pattern_are_followed_and_compressed_ones_are_not(tmp_path: Path) -> None:
    append(tmp_path / "a.log", "a1\n")
    source = opened(tmp_path / "**" / "*log*")
    found = take(source)
    (tmp_path / "deep").mkdir()
    append(tmp_path / "deep" / "b.log", "b1\n")
    (tmp_path / "a.log").rename(tmp_path / "a.log.1")
    (tmp_path / "z.log.gz").write_bytes(gzip.compress(b"z\n"))
    found += take(source)
    source = again(source, tmp_path / "**" / "*log*")
    append(tmp_path / "a.log.1", "a2\n")
    append(tmp_path / "deep" / "b.log", "b2\n")

    assert found + sorted(take(source)) == ["a1", "b1", "a2", "b2"]
    source.close()


def test_a_name_with_letters_as_patterns_have_stays_a_name(tmp_path: Path) -> None:
    append(tmp_path / "app1.log", "of another\n")
    append(tmp_path / "app[1].log", "one\n")
    source = opened(tmp_path / "app[1].log")
    found = take(source)
    (tmp_path / "app[1].log").rename(tmp_path / "app[1].log.1")
    found += take(source)
    source = again(source, tmp_path / "app[1].log")
    found += take(source)
    append(tmp_path / "app[1].log", "two\n")

    assert found + take(source) == ["one", "two"]
    source.close()


def test_a_pattern_is_followed_in_whatever_folder_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in[1]").mkdir()
    monkeypatch.chdir(tmp_path / "in[1]")
    append(Path("app.log"), "one\n")
    source = opened("*.log")
    found = take(source)
    source = again(source, "*.log")
    append(Path("app.log"), "two\n")

    assert found + take(source) == ["one", "two"]
    source.close()


def test_a_file_that_is_just_being_compressed_comes_once(tmp_path: Path) -> None:
    log = Log(tmp_path / "app.log", random.Random(0))
    append(log.path, "a1\na2\n")
    log.touch(log.path)
    source = opened(log.path)
    found = source.read(1) or []
    log.rotate()
    packed = tmp_path / "app.log.1.gz"
    packed.write_bytes(gzip.compress(b"a1\na2\n")[:-9])
    append(log.path, "b1\n")
    found += take(source)
    source = again(source, log.path)

    packed.unlink()
    log.compress()
    log.rotate()
    append(log.path, "c1\n")

    assert found + take(source) == ["a1", "a2", "b1", "c1"]
    source.close()


def test_a_log_of_somebody_else_with_a_number_in_its_name_is_left_alone(tmp_path: Path) -> None:
    append(tmp_path / "app.log", "one\n")
    source = opened(tmp_path / "app.log")
    found = take(source)
    (tmp_path / "app.log").rename(tmp_path / "app-20260101.log")
    append(tmp_path / "app-2.log", "of another\n")
    append(tmp_path / "app.log", "two\n")

    assert found + take(source) == ["one", "two"]
    source.close()


@pytest.mark.parametrize("end", ["", "\nshort\n"])
def test_a_line_that_is_too_long_is_an_error_after_what_came_before(end: str, tmp_path: Path) -> None:
    append(tmp_path / "in", f"short\n{'x' * 50}{end}")
    source = opened(tmp_path / "in", max_line_bytes=20)

    assert source.read(9) == ["short"]
    with pytest.raises(SourceError, match="in has a line of more than 20 bytes, after byte 6"):
        source.read(9)
    source = again(source, tmp_path / "in", max_line_bytes=20)
    with pytest.raises(SourceError, match="in has a line of more than 20 bytes, after byte 6"):
        source.read(9)
    source = again(source, tmp_path / "in", max_line_bytes=60)
    append(tmp_path / "in", "\n")
    assert take(source)[0] == "x" * 50
    source.close()


@pytest.mark.parametrize(
    ("arguments", "options", "problem"),
    [
        (("x.gz",), {"follow": True}, r"x\.gz is compressed, and cannot grow: leave follow out"),
        (("x", "parquet"), {"follow": True}, "a Parquet file cannot grow; expected format"),
        (("x",), {"follow": True, "poll_s": 0}, "poll_s=0: expected a number of seconds above 0"),
        (("x",), {"poll_s": 1}, "poll_s=1 goes with follow=True"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: Any, options: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        Producer("files", *arguments, **options).make_source()


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is a folder: give a pattern for the files in it"):
        opened(tmp_path)
