from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import sys
from pathlib import Path
from typing import Any

import pytest

from consecution import Csv, Parquet, Pipeline, Producer, TextLines
from consecution.errors import MissingExtraError, UsageError, WorldError
from consecution.sinks import compression
from consecution.sinks.compression import compression_of, last_byte_of


@pytest.mark.parametrize(
    ("suffix", "unpack"), [(".gz", gzip.decompress), (".bz2", bz2.decompress), (".xz", lzma.decompress)]
)
def test_pieces_one_after_another_are_a_sound_file(suffix: str, unpack: object) -> None:
    compress = compression_of(Path("out" + suffix), "sink")

    assert compress is not None
    assert callable(unpack)
    assert unpack(compress(b"first\n") + compress(b"second\n")) == b"first\nsecond\n"
    assert compress(b"same") == compress(b"same")


def test_zstandard_pieces_are_a_sound_file() -> None:
    zstandard = pytest.importorskip("zstandard")
    compress = compression_of(Path("out.zst"), "sink")

    assert compress is not None
    packed = compress(b"first\n") + compress(b"second\n")
    reader = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
    assert reader.read() == b"first\nsecond\n"


def test_without_a_library_zst_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("zstandard", "compression.zstd"):
        monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingExtraError, match=r"sink: .*pip install 'consecution\[zstd\]'") as caught:
        compression_of(Path("out.zst"), "sink")

    assert caught.value.extra == "zstd"


def lines_of(path: Path) -> list[Any]:
    found: list[Any] = []
    Pipeline(Producer("files", path) | found.append).run(mode="inline")
    return found


def last_byte(path: Path, content: bytes) -> bytes | None:
    path.write_bytes(content)
    with open(path, "rb") as file:
        return last_byte_of(file.fileno(), path)


@pytest.fixture(params=[".gz", ".bz2", ".xz", ".zst"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == ".zst":
        pytest.importorskip("zstandard")
    return tmp_path / f"out{request.param}"


@pytest.mark.parametrize("near_end_bytes", [compression.NEAR_END_BYTES, 5])
def test_a_file_is_whole_only_where_a_piece_ends(
    path: Path, near_end_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "NEAR_END_BYTES", near_end_bytes)
    compress = compression_of(path, "sink")
    assert compress is not None
    pieces = [compress(b"%d\n" % n * n) for n in (1, 50, 3)]
    ends = [0, *itertools.accumulate(map(len, pieces))]
    whole = b"".join(pieces)

    found = [end for end in range(1, len(whole) + 1) if last_byte(path, whole[:end]) == b"\n"]

    assert found == ends[1:]
    assert last_byte(path, whole + bytes(7)) == b"\n"
    assert last_byte(path, whole + compress(b"half a li")) == b"i"
    assert last_byte(path, whole + compress(b"")) == b"\n"
    assert last_byte(path, compress(b"")) == b""


def test_what_is_not_compressed_is_not_whole(path: Path) -> None:
    compress = compression_of(path, "sink")
    assert compress is not None

    for content in (b"plain text", compress(b"a\n") + b"more", bytes(100)):
        assert last_byte(path, content) is None, content


@pytest.mark.parametrize("mode", ["inline", "process"])
@pytest.mark.parametrize("robustness", ["none", "robust"])
def test_nothing_is_written_behind_what_was_cut_short(path: Path, robustness: str, mode: str) -> None:
    compress = compression_of(path, "sink")
    assert compress is not None
    torn = (compress(b"one\n") + compress(b"two\n"))[:-1]
    path.write_bytes(torn)
    program = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}[path.suffix]

    with pytest.raises(WorldError, match=rf"out{path.suffix}.* found {len(torn)} bytes that .* \({program} -dc FILE"):
        Pipeline(TextLines("sink", path)).run(["three"] * 10, mode=mode, robustness=robustness)
    assert path.read_bytes() == torn


@pytest.mark.parametrize("half", ["half a li", ""])
def test_half_a_line_is_ended_in_a_compressed_file_too(path: Path, half: str) -> None:
    compress = compression_of(path, "sink")
    assert compress is not None
    path.write_bytes(compress(b"one\n") + compress(half.encode()))

    for sink in (TextLines("sink", path), Csv("sink", path, columns=["a"])):
        Pipeline(sink).run([("two",)] if type(sink) is Csv else ["two"], mode="inline", robustness="none")

    assert lines_of(path) == ["one", *([half] if half else []), "two", "two"]


@pytest.mark.parametrize("name", ["out", "out.txt", "out.gz.txt"])
def test_other_suffixes_are_not_compressed(name: str) -> None:
    assert compression_of(Path(name), "sink") is None


@pytest.mark.parametrize("suffix", [".lz4", ".zip", ".zstd", ".tgz", ".GZ", ".Zst"])
def test_a_compression_that_is_not_written_is_refused(suffix: str) -> None:
    with pytest.raises(UsageError, match=rf"N\(out\): path=.*: expected .*\.xz or \.zst.*; found \{suffix}, which"):
        TextLines("out", path=f"out{suffix}")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_parquet_file_is_compressed_inside(suffix: str) -> None:
    with pytest.raises(UsageError, match=r"found \.\w+; a Parquet file is compressed inside: compression='gzip'"):
        Parquet("out", path=f"out.parquet{suffix}")
