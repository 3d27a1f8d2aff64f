from __future__ import annotations

import bz2
import gzip
import lzma
import sys
from pathlib import Path

import pytest

from consecution import Parquet, TextLines
from consecution.errors import MissingExtraError, UsageError
from consecution.sinks.compression import compression_of


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
