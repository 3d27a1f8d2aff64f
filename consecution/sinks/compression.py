"""Compression by suffix. Several compressed pieces one after another are a sound file in all of these formats.

But nothing can be read behind a piece that was cut short: whoever appends to a file looks at how it ends first.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import lzma
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from consecution.compressions import is_unknown
from consecution.errors import MissingExtraError, UsageError

Compress = Callable[[bytes], bytes]
Decompressor = Callable[[], Any]
"""Makes what has ``decompress``, ``eof`` and ``unused_data``, for one piece."""

BEGINNINGS = {".gz": b"\x1f\x8b\x08", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\0", ".zst": b"\x28\xb5\x2f\xfd"}
PROGRAMS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
NEAR_END_BYTES = 4 << 20
"""So far before the end the last piece is looked for; of what was written commit by commit it begins there."""
MOST_TRIES = 4
"""What a piece begins with may stand in the middle of one, too."""
BLOCK_BYTES = 1 << 14


def check_suffix(path: Path, owner: str) -> None:
    """UsageError for a suffix that promises a compression which `compression_of` does not know."""
    if is_unknown(path.suffix):
        raise UsageError(
            f"{owner}: path={str(path)!r}: expected .gz, .bz2, .xz or .zst, or a suffix that promises no compression; "
            f"found {path.suffix}, which would hold plain bytes: choose another suffix"
        )


def compression_of(path: Path, owner: str) -> Compress | None:
    """What the suffix of the file asks for; None: nothing. ``owner`` is named where a library is missing."""
    if path.suffix == ".zst":
        return _zstandard(owner)
    return BY_SUFFIX.get(path.suffix)


def _gzip(content: bytes) -> bytes:
    """Without the time, so that the same content makes the same bytes."""
    return gzip.compress(content, compresslevel=6, mtime=0)


def _xz(content: bytes) -> bytes:
    return lzma.compress(content)


BY_SUFFIX: dict[str, Compress] = {".gz": _gzip, ".bz2": bz2.compress, ".xz": _xz}


def _zstandard(owner: str) -> Compress:
    """Python's own, from 3.14 on, or the package."""
    for module in ("compression.zstd", "zstandard"):
        try:
            found: Any = importlib.import_module(module)
        except ImportError:
            continue
        return lambda content: bytes(found.compress(content))
    raise MissingExtraError(
        f"{owner}: a path that ends with .zst needs the package zstandard: pip install 'consecution[zstd]', or choose "
        ".gz, .bz2 or .xz",
        extra="zstd",
    )


# -- how a file ends -------------------------------------------------------------------------------


def last_byte_of(fd: int, path: Path) -> bytes | None:
    """The last byte of what a compressed file holds, b"" if it holds nothing; None where no piece ends at its end.

    Only the last piece is read where it is short, whatever lies before it; else all of the file is.
    """
    make = _decompressor_of(path.suffix)
    begin = max(0, os.fstat(fd).st_size - NEAR_END_BYTES)
    near_end = os.pread(fd, NEAR_END_BYTES, begin)
    at = len(near_end)
    for _ in range(MOST_TRIES):
        at = near_end.rfind(BEGINNINGS[path.suffix], 0, at)
        found = None if at < 0 else _last_byte_from(fd, make, begin + at)
        if at < 0 or found:
            break
    return found or _last_byte_from(fd, make, 0)


def _last_byte_from(fd: int, make: Decompressor, at: int) -> bytes | None:
    """As `last_byte_of`, from the beginning of a piece on."""
    piece, last = make(), b""
    while block := os.pread(fd, BLOCK_BYTES, at):
        at += len(block)
        while block := block if piece else block.lstrip(b"\0"):  # Zeros may lie between two pieces.
            piece = piece or make()
            try:
                last = piece.decompress(block)[-1:] or last
            except Exception:
                return None
            block, piece = (piece.unused_data, None) if piece.eof else (b"", piece)
    return None if piece else last


def _decompressor_of(suffix: str) -> Decompressor:
    if suffix != ".zst":
        return DECOMPRESSORS[suffix]
    try:
        return importlib.import_module("compression.zstd").ZstdDecompressor  # type: ignore[no-any-return]
    except ImportError:
        library: Any = importlib.import_module("zstandard")  # `compression_of` has found it.
        return lambda: library.ZstdDecompressor().decompressobj()


DECOMPRESSORS: dict[str, Decompressor] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
}
