from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from consecution import FilesSource, Pipeline, Producer, TextLines
from consecution.errors import SourceError, UsageError
from consecution.runtime import failpoints
from consecution.sources import content
from consecution.sources.records import BLOCK_BYTES
from consecution.testing.sources import check_source
from tests.sources.test_conformance import ITEMS, ROWS, large_lines
from tests.sources.test_contract import read_all, read_exactly

ROOT = Path(__file__).parents[2]
TEXT = "".join(f"{item}\n" for item in ITEMS).encode()


def zstd(whole: bytes) -> bytes:
    return bytes(pytest.importorskip("zstandard").compress(whole))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def opened(paths: Any, position: Any = None, **options: Any) -> FilesSource:
    source = FilesSource(paths, **options)
    source.open(msgpack.unpackb(msgpack.packb(position)))
    return source


def all_of(paths: Any, **options: Any) -> list[Any]:
    source = opened(paths, **options)
    try:
        return read_all(source)
    finally:
        source.close()


# -- the contract ----------------------------------------------------------------------------------


def three_files(folder: Path) -> FilesSource:
    """With an empty one in between, and a last line without a newline."""
    (folder / "a.log").write_text("".join(f"{item}\n" for item in ITEMS[:10]))
    (folder / "b.log").write_text("")
    (folder / "c.log").write_text("\n".join(ITEMS[10:]))
    return FilesSource(folder / "*.log")


def test_lines_of_files_keep_the_contract(tmp_path: Path) -> None:
    check_source(three_files, ITEMS, folder=tmp_path, make_large=lambda folder: FilesSource(large_lines(folder)))


def test_a_share_of_files_keeps_the_contract(tmp_path: Path) -> None:
    def make_share(folder: Path) -> FilesSource:
        (folder / "other").write_bytes(b"of another share\n")
        (folder / "items").write_bytes(TEXT)
        (share, _) = FilesSource([folder / "items", folder / "other"]).split(2) or ()
        return share  # type: ignore[return-value]

    check_source(make_share, ITEMS, folder=tmp_path)


def test_shares_have_each_file_once_whatever_else_has_come(tmp_path: Path) -> None:
    names = [f"{number}.log" for number in range(20)]
    for name in names:
        (tmp_path / name).write_text(f"{name}\n")
    paths = [tmp_path / "3.log", tmp_path / "*.log", tmp_path / "7.log", tmp_path / "?.log"]
    first, *others = FilesSource(paths).split(3) or ()

    first.open(None)
    found = read_all(first)
    (tmp_path / "new.log").write_text("new\n")
    for share in others:
        share.open(None)
        mine = read_all(share)
        assert len(mine) > 1
        found += mine

    assert "3.log" in found[:1]
    assert sorted(name for name in found if name != "new") == sorted(names)


def test_files_of_a_pattern_are_dealt_out_evenly_though_their_names_are_alike(tmp_path: Path) -> None:
    for number in range(64):
        (tmp_path / f"{number}.csv").write_text("line\n")

    for share in FilesSource(tmp_path / "*.csv").split(2) or ():
        share.open(None)
        assert 16 <= len(read_all(share)) <= 48


@pytest.mark.parametrize(
    ("sizes", "shares", "even"),
    [
        ([100], 2, False),
        ([100, 100], 2, True),
        ([300, 101], 2, True),
        ([300, 99], 2, False),
        ([100, 100], 4, True),
        ([100, 50], 4, False),
        ([100] * 3, 8, True),
        ([], 2, True),  # what is wrong with that is told when it is opened
    ],
)
def test_shares_are_even_where_none_has_most_of_the_bytes(
    sizes: list[int], shares: int, even: bool, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.txt" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_text("x" * size)

    assert FilesSource([*paths, tmp_path / "*.none"]).splits_evenly(shares) is even


def test_thousands_of_named_files_are_dealt_out_in_turn() -> None:
    paths = [f"/there/is/none/{number}" for number in range(20_000)]
    source = FilesSource([*paths, *paths])

    assert source.splits_evenly(50)
    assert source._shares_of(source._paths[:100], 50) == [*range(50), *range(50)]


def test_one_file_is_read_in_one_place(tmp_path: Path) -> None:
    assert FilesSource(tmp_path / "a").split(2) is None


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_files_keep_the_contract(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(folder: Path) -> FilesSource:
        (folder / f"in{suffix}").write_bytes(b"".join(map(COMPRESS[suffix], (TEXT[:70], b"", TEXT[70:]))))
        return FilesSource(folder / f"in{suffix}")

    def make_bomb(folder: Path) -> FilesSource:
        (folder / f"in{suffix}").write_bytes(COMPRESS[suffix]((b"\n" + bytes(99)) * 700_000))
        return FilesSource(folder / f"in{suffix}")

    large: Any = {"make_large": make_bomb} if suffix in (".gz", ".zst") else {}  # The others are slow to make.
    check_source(make, ITEMS, folder=tmp_path, kills=False, **large)


def test_csv_files_keep_the_contract(tmp_path: Path) -> None:
    def make(folder: Path, *bad: str) -> FilesSource:
        rows = [f'{row["n"]},"{row["text"]}"' for row in ROWS]
        (folder / "a.csv").write_text("\n".join(["n,text", *rows[:9], *bad]))
        (folder / "b.csv").write_text("\n".join(["n,text", *rows[9:]]))
        return FilesSource([folder / "a.csv", folder / "b.csv"], "csv")

    bad = ('"open', "1", "2,3,4")
    check_source(make, ROWS, folder=tmp_path, kills=False, make_bad=lambda folder: make(folder, *bad))


def make_parquet(folder: Path, *, rows: int = 4) -> FilesSource:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name, part in (("a", ROWS[:14]), ("b", ROWS[14:])):
        parquet.write_table(arrow.Table.from_pylist(part), folder / f"{name}.parquet", row_group_size=rows)
    return FilesSource(folder / "*.parquet", "parquet")


def test_parquet_files_keep_the_contract(tmp_path: Path) -> None:
    check_source(make_parquet, ROWS, folder=tmp_path, kills=False)


# -- how far it is ---------------------------------------------------------------------------------


def shares_while_read(source: FilesSource, *, position: Any = None, most: int = 1000) -> list[float]:
    source.open(position)
    found = []
    while source.read(most) is not None:
        assert source.read_share is not None
        found.append(source.read_share)
    source.close()
    return found


@pytest.mark.parametrize("suffix", COMPRESS)
def test_how_much_was_read_goes_by_the_bytes_of_all_files_as_they_lie_there(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "COMPRESSED_BYTES", 4096)
    for name, count in (("a", 6), ("b", 2)):
        members = [random.Random(number).randbytes(BLOCK_BYTES).hex("\n", 50).encode() for number in range(count)]
        (tmp_path / f"{name}{suffix}").write_bytes(b"".join(map(COMPRESS[suffix], members)))
    source = FilesSource(tmp_path / "*")

    found = shares_while_read(source, most=100)
    source.open(None)
    source.read(100)
    position = source.position()

    assert found == sorted(found)
    assert found[-1] == 1.0
    assert len(set(found)) > 2
    assert shares_while_read(source, position=position)[0] >= found[0]


def test_what_was_read_ahead_does_not_count_as_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("twelve bytes\n" * 20)

    found = shares_while_read(FilesSource(tmp_path / "*"), most=5)

    assert found == [0.25, 0.5, 0.75, 1.0]


def test_how_much_was_read_of_parquet_goes_by_its_rows(tmp_path: Path) -> None:
    found = shares_while_read(make_parquet(tmp_path), most=1)

    assert found == sorted(found)
    assert found[-1] == 1.0
    assert len(set(found)) == len(ROWS)


def test_of_nothing_all_was_read(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    source = opened(tmp_path / "empty")

    assert (source.read(1), source.read_share) == (None, 1.0)
    source.close()


# -- which files -----------------------------------------------------------------------------------


def test_files_come_in_the_order_of_the_paths_and_of_their_names(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a", "c[1]", "b/deep/er/3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    assert all_of([tmp_path / "c[1]", tmp_path / "b" / "*", tmp_path / "a"]) == ["c[1]", "b/1", "b/2", "a"]
    assert all_of([tmp_path / "b" / "2", tmp_path / "**" / "[0-9]"]) == ["b/2", "b/1", "b/deep/er/3"]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("none", "there is no file .*none: check the path"),
        ("*.log", r"no file matches .*\*\.log: check the pattern"),
        ("folder", r"folder is a folder: give a pattern for the files in it, .*folder/\*"),
        ("fifo", r"fifo is no file that can be read again: Producer\('pipe'\) reads"),
    ],
)
def test_what_is_no_file_is_refused(path: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")

    with pytest.raises(SourceError, match=problem):
        opened(tmp_path / path)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (([],), "expected a path or pattern, or a list"),
        ((7,), "expected a path or pattern, or a list|not iterable"),
        (("x", "xml"), "format='xml': expected one of 'lines', 'ndjson', 'csv', 'parquet'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        FilesSource(*arguments)


def test_a_path_is_that_from_where_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").write_text("x\n")
    monkeypatch.chdir(tmp_path)
    source = FilesSource("in")
    monkeypatch.chdir("/")

    source.open(None)

    assert read_all(source) == ["x"]
    source.close()


@pytest.mark.parametrize("name", ["in[1]", "in?", "*"])
def test_a_pattern_is_found_in_whatever_folder_it_was_given(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name / "deep").mkdir(parents=True)
    for line in ("in", "deep/in", "late"):
        (tmp_path / name / f"{line}.txt").write_text(f"{line}\n")
    monkeypatch.chdir(tmp_path / name)

    assert all_of("deep/../*.txt") == ["in", "late"]
    assert all_of(["in.txt", "**/*.txt"]) == ["in", "deep/in", "late"]


def test_files_that_come_later_are_not_read_and_those_that_are_done_may_go(tmp_path: Path) -> None:
    for name in "bcd":
        (tmp_path / name).write_text(f"{name}1\n{name}2\n")
    out = tmp_path / "out"

    def stop_at_c2(line: str) -> str:
        if line == "c2" and not (tmp_path / "go").exists():
            raise ValueError(line)
        return line

    def make() -> Pipeline:
        source = Producer("files", tmp_path / "[a-d]")
        return Pipeline(source | stop_at_c2 | TextLines("out", out))

    options: dict[str, Any] = {"mode": "inline", "state_dir": tmp_path / "state", "batch_size": 1, "max_pending": 1}
    pipeline = make()
    pipeline["stop_at_c2"].on_error("stop")
    with pytest.raises(Exception, match="stopped the run"):
        pipeline.run(**options)
    (tmp_path / "b").unlink()
    (tmp_path / "a").write_text("a1\n")

    make().run(**options)

    assert out.read_text().split() == ["b1", "b2", "c1", "d1", "d2"]


def test_the_name_of_a_file_may_be_no_utf_8(tmp_path: Path) -> None:
    for name in (b"a\xff", b"b"):
        (tmp_path / os.fsdecode(name)).write_text(f"{chr(name[0])}1\n{chr(name[0])}2\n")
    source = opened(tmp_path / "*")
    found = source.read(1)
    note, position = source.take_note(0), source.position()
    source.close()
    (tmp_path / "c").write_text("late\n")

    source = FilesSource(tmp_path / "*")
    assert note is not None
    source.recall([(0, note.body)])
    source.open(position)

    assert [*(found or []), *read_all(source)] == ["a1", "a2", "b1", "b2"]
    source.close()


@pytest.mark.parametrize("newline", ["\n", ""])
def test_a_file_may_go_when_a_batch_has_ended_where_it_ends(newline: str, tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text(f"{path.name}1\n{path.name}2{newline}")
    source = opened(paths)
    found = read_exactly(source, 2)
    position = source.position()
    source.close()
    paths[0].unlink()

    source = opened(paths, position)

    assert found + read_all(source) == ["a1", "a2", "b1", "b2"]
    source.close()


def test_a_file_that_is_done_and_there_is_read_to_its_new_end(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_text("one\n")
    source = opened(path)
    found = read_exactly(source, 1)
    position = source.position()
    source.close()
    path.write_text("one\ntwo\n")

    for known in (position, position[:-1]):  # As it is, and as it was before the end was noted.
        source = opened(path, known)
        assert found + read_all(source) == ["one", "two"]
        source.close()


# -- killed ----------------------------------------------------------------------------------------

JOB = """
from consecution import Pipeline, Producer, TextLines

pipeline = Pipeline(Producer("files", "in-*.gz", "csv") | (lambda row: row["n"]) | TextLines("out", "out"))

if __name__ == "__main__":
    pipeline.run(mode="process", state_dir="state", batch_size=50, max_pending=4, sync="process")
"""


def test_when_everything_is_killed_it_goes_on_at_the_very_row(tmp_path: Path) -> None:
    for name in range(3):
        rows = "".join(f"{n},some text\n" for n in range(name * 500, name * 500 + 500))
        (tmp_path / f"in-{name}.gz").write_bytes(gzip.compress(f"n,text\n{rows}".encode()))
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "token").write_text(failpoints.GROUP)

    killed = run_job(tmp_path, f"origin.committed@7:{tmp_path / 'token'}")
    there = len((tmp_path / "out").read_text().split()) if (tmp_path / "out").exists() else 0
    ended = run_job(tmp_path, "")

    assert (killed, ended) == (-signal.SIGKILL, 0)
    assert there < 1500
    assert (tmp_path / "out").read_text().split() == [str(n) for n in range(1500)]


def run_job(folder: Path, traps: str) -> int:
    env = {**os.environ, "PYTHONPATH": str(ROOT), failpoints.VARIABLE: traps}
    job = subprocess.Popen([sys.executable, "job.py"], cwd=folder, env=env, start_new_session=True)
    try:
        return job.wait(60)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()


# -- what has changed meanwhile --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda path: path.unlink(), r"in is gone, and was not read to its end before: put it back"),
        (lambda path: os.truncate(path, 5), r"in has 5 bytes, but 25000 of it were taken before: give the run the"),
        (lambda path: path.write_text("x" * 30_000), r"in is another file than the one of which 25000 bytes"),
        (lambda path: path.write_text("a\n" * 12_000 + "b\n" * 600), r"in is another file than the one of which"),
    ],
)
def test_a_file_that_is_not_the_same_any_more_is_refused(
    change: Callable[[Path], Any], problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "in"
    path.write_text("a\n" * 12_500)
    source = opened(path)
    read_exactly(source, 3000)
    position = source.position()
    source.close()

    change(path)

    with pytest.raises(SourceError, match=problem):
        opened(path, position)


def test_other_files_than_at_the_start_are_refused(tmp_path: Path) -> None:
    source = three_files(tmp_path)
    source.open(None)
    read_exactly(source, 3)
    position = source.position()
    source.close()
    (tmp_path / "d.log").write_text("late\n")

    with pytest.raises(SourceError, match="had 3 files at the start, and now there are 4, or others"):
        source.open(position)


def test_a_file_that_has_grown_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_text("one\ntw")
    source = opened(path)
    first = read_exactly(source, 1)
    position = source.position()
    source.close()
    with open(path, "a") as file:
        file.write("o\nthree\n")

    source = opened(path, position)

    assert first + read_all(source) == ["one", "two", "three"]
    source.close()


# -- what cannot be read ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_compressed_file_that_is_cut_short_gives_what_it_has_and_then_an_error(suffix: str, tmp_path: Path) -> None:
    numbers = [str(n * n * n) for n in range(40_000)]
    whole = COMPRESS[suffix]("\n".join(numbers).encode())
    path = tmp_path / f"in{suffix}"
    path.write_bytes(whole[:-20])
    source = opened(path)
    found: list[Any] = []

    def read_on() -> None:
        while (some := source.read(1000)) is not None:
            found.extend(some)

    for _ in range(2):
        with pytest.raises(SourceError, match=r"ends in the middle of what was compressed, behind byte \d+"):
            read_on()
    position = source.position()
    source.close()
    path.write_bytes(whole)
    source = opened(path, position)

    assert len(found) > 20_000 or suffix == ".bz2"
    assert found + read_all(source) == numbers
    source.close()


def test_what_is_not_compressed_as_its_name_says_is_an_error(tmp_path: Path) -> None:
    for suffix, _ in list(COMPRESS.items())[1:]:
        (tmp_path / f"in{suffix}").write_bytes(b"plain text, no magic number\n")

        with pytest.raises(SourceError, match=rf"in{suffix} cannot be read behind byte 0 of what it holds"):
            all_of(tmp_path / f"in{suffix}")


@pytest.mark.parametrize("suffix", [".lz4", ".zip", ".GZ"])
def test_what_would_be_read_as_text_though_it_is_compressed_is_refused(suffix: str, tmp_path: Path) -> None:
    for name in ("a.txt", f"b.txt{suffix}"):
        (tmp_path / name).write_bytes(TEXT)

    with pytest.raises(SourceError, match=rf"b\.txt{suffix}: expected \.gz, .*; found {suffix}.*: decompress it first"):
        opened(str(tmp_path / "*"))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_zeros_where_a_compressed_file_was_are_an_error(suffix: str, tmp_path: Path) -> None:
    if suffix == ".zst":
        pytest.importorskip("zstandard")
    (tmp_path / f"in{suffix}").write_bytes(bytes(5000))

    with pytest.raises(
        SourceError, match=rf"in{suffix} cannot be read behind byte 0 .*it begins with zeros.*good copy"
    ):
        all_of(tmp_path / f"in{suffix}")


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_file_that_was_cut_short_can_be_replaced_by_what_can_be_read_of_it(suffix: str, tmp_path: Path) -> None:
    numbers = [str(n * n * n) for n in range(40_000)]
    path = tmp_path / f"in{suffix}"
    path.write_bytes(COMPRESS[suffix]("\n".join(numbers).encode())[:-20_000])
    source = opened(path)

    with pytest.raises(SourceError, match="or what can still be read of it, compressed anew, and run again"):
        list(iter(lambda: source.read(1000), None))
    position = source.position()
    source.close()
    path.write_bytes(COMPRESS[suffix](readable_of(path)))
    source = opened(path, position)
    rest = read_all(source)
    source.close()

    readable = readable_of(path)
    assert "\n".join(numbers).encode().startswith(readable)
    assert rest == readable[position[3] :].decode().split("\n")


def readable_of(path: Path) -> bytes:
    parts: list[bytes] = []
    with content.Content(str(path)) as file, contextlib.suppress(content.CutShortError):
        parts.extend(iter(file.read, b""))
    return b"".join(parts)


def test_zeros_between_members_are_no_content(tmp_path: Path) -> None:
    (tmp_path / "in.gz").write_bytes(gzip.compress(b"a\n") + bytes(512) + gzip.compress(b"b\n") + bytes(10))

    assert all_of(tmp_path / "in.gz") == ["a", "b"]


def test_a_line_that_is_too_long_is_an_error_that_names_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "BLOCK_BYTES", 10)
    (tmp_path / "in").write_text("short\n" + "x" * 50 + "\n")
    source = opened(tmp_path / "in", max_line_bytes=20)

    with pytest.raises(
        SourceError, match=r"in has a line of more than 20 bytes, after byte 6: .*Producer\('files', max_line_bytes"
    ):
        read_all(source)
    source.close()


def test_a_row_whose_quote_is_not_closed_fails_alone_once_the_rest_may_be_as_large_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the error says that ends the run before; what was taken by then does not come again."""
    monkeypatch.setattr(content, "BLOCK_BYTES", 10)
    (tmp_path / "in").write_text('n\n1\n\n2\n"3\n' + "4\n" * 50)
    source = opened(tmp_path / "in", format="csv", max_line_bytes=20)
    found = source.read(9)
    with pytest.raises(SourceError, match=r"in, line 5: it begins a row of more than 20 bytes, after byte 7: .* raise"):
        read_all(source)
    position = source.position()
    source.close()

    source = opened(tmp_path / "in", position, format="csv", max_line_bytes=2000)
    (rejected, *rest) = read_all(source)
    source.close()

    assert found == [{"n": "1"}, {"n": "2"}]
    assert "in, line 5: a quote that is opened here is not closed" in str(rejected.error)
    assert rest == [{"n": "4"}] * 50


def test_a_file_that_is_no_parquet_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "in").write_text("no parquet")

    with pytest.raises(SourceError, match="in cannot be read as Parquet"):
        all_of(tmp_path / "in", format="parquet")


def test_columns_of_parquet_may_be_chosen(tmp_path: Path) -> None:
    make_parquet(tmp_path)

    assert all_of(tmp_path / "b.parquet", format="parquet", columns=["n"]) == [{"n": row["n"]} for row in ROWS[14:]]
    with pytest.raises(SourceError, match=r"b\.parquet has no column 'm'; its columns are n, text"):
        all_of(tmp_path / "b.parquet", format="parquet", columns=["m"])


def test_a_parquet_file_that_was_replaced_is_refused(tmp_path: Path) -> None:
    source = make_parquet(tmp_path)
    source.open(None)
    read_exactly(source, 3)
    position = source.position()
    source.close()
    make_parquet(tmp_path, rows=5)

    with pytest.raises(SourceError, match=r"a\.parquet is another file than the one that was begun before"):
        source.open(position)


# -- blocks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("block_bytes", [1, 7, 1000])
def test_wherever_blocks_end_it_can_be_gone_on_with(
    suffix: str, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(content, "PRINT_BYTES", 16)
    path = tmp_path / f"in{suffix}"
    path.write_bytes(COMPRESS[suffix](TEXT.replace(b"item 7", b"a longer item " * 9)))
    expected = all_of(path)

    for count in range(1, len(expected), 3):
        source = opened(path)
        first = read_exactly(source, count)
        position = source.position()
        source.close()
        source = opened(path, position)
        assert first + read_all(source) == expected
        source.close()


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(
    ("format", "text", "items"),
    [
        ("lines", "one\ntwo\n", ["one", "two"]),
        ("ndjson", "1\n2\n", [1, 2]),
        ("csv", '"id",n\n1,2\n3,4\n', [{"id": "1", "n": "2"}, {"id": "3", "n": "4"}]),
    ],
)
def test_the_byte_order_mark_of_each_file_is_left_out_wherever_it_is_gone_on_with(
    format: str, text: str, items: list[Any], suffix: str, tmp_path: Path
) -> None:
    for name in "ab":
        (tmp_path / f"{name}{suffix}").write_bytes(COMPRESS[suffix](text.encode("utf-8-sig")))
    source = opened(tmp_path / "*", format=format)
    found: list[Any] = []

    while some := source.read(1):
        found += some
        position = source.position()
        source.close()
        source = opened(tmp_path / "*", position, format=format)
    source.close()

    assert found == 2 * items


def test_json_lines_of_several_files(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(json.dumps({"file": name}) + "\n")

    assert all_of(tmp_path / "[ab]", format="ndjson") == [{"file": "a"}, {"file": "b"}]
