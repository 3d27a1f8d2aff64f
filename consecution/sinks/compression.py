"""Compression by suffix. Several compressed pieces one after another are a sound file in all of these formats."""

from __future__ import annotations

import bz2
import gzip
import importlib
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

from consecution.compressions import is_unknown
from consecution.errors import MissingExtraError, UsageError

Compress = Callable[[bytes], bytes]


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
