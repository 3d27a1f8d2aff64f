from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution.errors import SourceError
from consecution.sources import pipe
from consecution.sources.pipe import PipeSource
from tests.sources.test_contract import read_all, read_exactly, read_some

TEXT = "ä€\n\nplain\r\n𝄞 more\x00\x0b\x1c\u2028x\n".encode() + b"\xff\xfe\n\xe4 half\xf0\x9f\nend"
LINES = [line.decode("utf-8", "surrogateescape") for line in TEXT.split(b"\n")]


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe, the second one for the test to close."""
    readable, writable = os.pipe()
    yield readable, writable
    os.close(readable)


def opened(fd: int, position: Any = None, **options: Any) -> PipeSource:
    source = PipeSource(fd, **options)
    source.open(position)
    return source


def read_file(content: bytes, folder: Path, position: Any = None) -> tuple[list[Any], int]:
    path = folder / "lines"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        source = opened(fd, position)
        return read_all(source, 3), source.position()
    finally:
        os.close(fd)


# -- lines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\n\n", ["a", ""]),
        (b"\n\na", ["", "", "a"]),
        (b"a\r\nb\rc\n", ["a\r", "b\rc"]),
        (b"\x00\n\xff\xe2\x82\n", ["\x00", "\udcff\udce2\udc82"]),
        (TEXT, LINES),
    ],
)
def test_a_line_ends_at_a_newline_and_nothing_is_lost(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    found, position = read_file(content, tmp_path)

    assert found == lines
    assert position == len(content)
    assert "\n".join(found).encode("utf-8", "surrogateescape") == content.removesuffix(b"\n") or not content


@pytest.mark.parametrize("chunk_bytes", range(1, len(TEXT) + 2))
def test_a_chunk_may_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr(pipe, "BLOCK_BYTES", chunk_bytes)

    found, position = read_file(TEXT, tmp_path)

    assert (found, position) == (LINES, len(TEXT))


def test_a_pipe_may_be_written_byte_by_byte(ends: tuple[int, int]) -> None:
    readable, writable = ends
    source = opened(readable)
    found = []
    for at in range(len(TEXT)):
        os.write(writable, TEXT[at : at + 1])
        some = source.read(10)
        assert some is not None
        found += some
        assert source.position() == sum(len(f.encode("utf-8", "surrogateescape")) + 1 for f in found)

    os.close(writable)

    assert found + read_all(source) == LINES
    assert source.position() == len(TEXT)


@settings(deadline=None, max_examples=60)
@given(
    content=st.binary(max_size=60) | st.text("a\n\réx€", max_size=60).map(str.encode),
    chunk_bytes=st.integers(1, 20),
    counts=st.lists(st.integers(1, 4), max_size=8),
)
def test_a_file_is_gone_on_with_exactly(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, chunk_bytes: int, counts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("pipe") / "lines"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    found: list[Any] = []
    position: Any = 0

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipe, "BLOCK_BYTES", chunk_bytes)
        for count in counts:
            source = opened(fd, position)
            found += read_some(source, count) or []
            position = source.position()
            source.close()
        found += read_all(opened(fd, position))
    os.close(fd)

    lines = content.decode("utf-8", "surrogateescape").split("\n")
    assert found == (lines if lines[-1] else lines[:-1])


@pytest.mark.parametrize("length", [1 << 18, (1 << 18) + 1, 3_000_000])
def test_a_long_line_comes_whole(tmp_path: Path, length: int) -> None:
    long = "x" * length

    found, _ = read_file(f"{long}\nshort\n{long}".encode(), tmp_path)

    assert found == [long, "short", long]


def test_a_line_that_is_too_long_names_the_option(ends: tuple[int, int]) -> None:
    readable, writable = ends
    source = opened(readable, max_line_bytes=5)
    os.write(writable, b"one\ntwo\n123456")

    assert source.read(10) == ["one", "two"]
    for _ in range(2):
        with pytest.raises(SourceError, match=r"more than 5 bytes, after byte 8: .*raise max_line_bytes"):
            source.read(10)
    os.close(writable)


def test_lines_before_one_that_is_too_long_are_given_first_though_they_come_together(ends: tuple[int, int]) -> None:
    readable, writable = ends
    os.write(writable, b"one\ntwo\n123456")
    source = opened(readable, max_line_bytes=5)

    assert source.read(1) == ["one"]
    assert source.read(1) == ["two"]
    with pytest.raises(SourceError, match="more than 5 bytes"):
        source.read(1)
    os.close(writable)


# -- records ---------------------------------------------------------------------------------------


def test_a_pipe_of_csv_is_gone_on_with_under_the_same_header(ends: tuple[int, int]) -> None:
    readable, writable = ends
    source = opened(readable, format="csv")
    os.write(writable, b"a,b\n1,2\n")
    first = read_exactly(source, 1)
    position = source.position()

    os.write(writable, b"3,4\n")
    os.close(writable)
    again = opened(readable, position, format="csv")

    assert position == [8, 2, ["a", "b"]]
    assert first + read_all(again) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_csv_may_be_read_from_the_middle_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("anything\na,b\n1,2\n")
    fd = os.open(tmp_path / "in", os.O_RDONLY)
    os.lseek(fd, 9, os.SEEK_SET)

    assert read_all(opened(fd, format="csv")) == [{"a": "1", "b": "2"}]
    os.close(fd)


# -- where it reads --------------------------------------------------------------------------------


def test_a_file_is_read_from_where_the_shell_has_put_it(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("a\nb\nc\nd\n")
    fd = os.open(tmp_path / "lines", os.O_RDONLY)
    os.lseek(fd, 2, os.SEEK_SET)

    source = opened(fd)
    assert read_exactly(source, 1) == ["b"]
    position = source.position()
    again = opened(fd, position)

    assert position == 4
    assert read_all(again) == ["c", "d"]
    os.close(fd)


def test_a_pipe_is_gone_on_with_what_comes_next_and_counts_on(ends: tuple[int, int]) -> None:
    readable, writable = ends
    os.write(writable, b"next\n")
    source = opened(readable, 100)

    assert read_exactly(source, 1) == ["next"]
    assert source.position() == 105
    os.close(writable)


def test_dev_null_is_empty() -> None:
    fd = os.open(os.devnull, os.O_RDONLY)

    assert read_all(opened(fd)) == []

    os.close(fd)


def test_a_terminal_gives_lines_as_they_are_typed() -> None:
    master, slave = pty.openpty()
    source = opened(slave)
    assert source.read(5) == []

    os.write(master, b"typed\n\x04")

    assert read_exactly(source, 1) == ["typed"]
    assert read_some(source, 1) is None
    os.close(master)
    os.close(slave)


def test_a_writer_that_is_slow_is_waited_for_by_a_caller_who_may_wait(ends: tuple[int, int]) -> None:
    readable, writable = ends
    source = opened(readable)
    source.may_block = True

    def write() -> None:
        os.write(writable, b"late\n")
        os.close(writable)

    writer = threading.Thread(target=write)
    writer.start()

    assert read_all(source) == ["late"]
    writer.join(timeout=10)


def test_a_caller_who_may_wait_is_let_go_after_a_while(ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "LONGEST_WAIT_MS", 1)
    readable, writable = ends
    source = opened(readable)
    source.may_block = True

    assert source.read(5) == []

    os.close(writable)


def test_a_descriptor_that_does_not_block_is_read_all_the_same(ends: tuple[int, int]) -> None:
    readable, writable = ends
    os.set_blocking(readable, False)
    source = opened(readable)

    assert source.read(5) == []
    os.write(writable, b"there\n")
    os.close(writable)

    assert read_all(source) == ["there"]


# -- what cannot be read ---------------------------------------------------------------------------


def test_a_closed_descriptor_is_refused(ends: tuple[int, int]) -> None:
    closed = os.dup(ends[0])
    os.close(closed)
    os.close(ends[1])

    with pytest.raises(SourceError, match=rf"standard input \(descriptor {closed}\) is closed: give the run a file"):
        opened(closed)


READ_NOTHING = """
import os
from consecution.errors import SourceError
from consecution.sources.pipe import PipeSource

assert os.open("/etc/passwd", os.O_RDONLY) == 0
try:
    PipeSource().open(None)
except SourceError as error:
    print(error)
"""


def test_a_file_that_took_the_place_of_a_closed_standard_input_is_not_read() -> None:
    ran = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" <&-', sys.executable, READ_NOTHING],
        stdout=subprocess.PIPE,
        timeout=30,
        check=True,
    )

    assert ran.stdout.startswith(b"standard input (descriptor 0) is closed")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    source = opened(fd)

    for _ in range(2):
        with pytest.raises(SourceError, match="cannot be read: Is a directory; give the run a file or a pipe"):
            source.read(1)

    os.close(fd)


def test_a_descriptor_that_is_closed_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("a\nb\n")
    fd = os.open(tmp_path / "lines", os.O_RDONLY)
    source = opened(fd)
    assert source.read(1) == ["a"]
    os.close(fd)

    assert source.read(1) == ["b"]
    with pytest.raises(SourceError, match="cannot be read"):
        source.read(1)
