"""Which compressions files have, by their suffixes: those that are read and written, and those that are not."""

from __future__ import annotations

SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
OTHER_SUFFIXES = (
    *(".7z", ".br", ".bz", ".bzip2", ".gzip", ".lz", ".lz4", ".lzma", ".lzo", ".rar", ".snappy", ".sz"),
    *(".tar", ".tbz2", ".tgz", ".txz", ".z", ".zip", ".zstd"),
)
"""Formats that are not read or written, and other names of those that are: none of them is plain text."""


def is_unknown(suffix: str) -> bool:
    """Whether a suffix promises a compression, and not by one of the names in `SUFFIXES`."""
    return suffix not in SUFFIXES and suffix.lower() in (*OTHER_SUFFIXES, *SUFFIXES)
