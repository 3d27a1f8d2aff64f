"""The bytes of a file, decompressed by its suffix, from any place on; and how it is known again."""

from __future__ import annotations

import bz2
import hashlib
import importlib
import lzma
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from consecution.errors import MissingExtraError, SourceError, text_of
from consecution.sources.records import BLOCK_BYTES

COMPRESSED_BYTES = 1 << 16
PIECE_BYTES = 256
"""A block of zstandard may be 4 bytes long and hold 128 KiB."""
PRINT_BYTES = 1024
DIGEST_BYTES = 8


class CutShortError(EOFError):
    """A compressed file ends in the middle; more of it may be on its way."""


class Content:
    """A file that is open to be read, from its beginning on. Offsets count decompressed bytes.

    SourceError for what cannot be opened or read, with the path in its text; `CutShortError` where a compressed file
    ends in the middle: it may be read on when the file has grown.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.offset = 0
        decompressor = decompressor_of(path)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"{path} cannot be opened: {error.strerror}") from error
        self._inflated = None if decompressor is None else _Inflated(self._fd, decompressor)

    @property
    def is_compressed(self) -> bool:
        return self._inflated is not None

    def look(self) -> os.stat_result:
        """Size and identity of the file that is open."""
        return os.fstat(self._fd)

    @property
    def read_share(self) -> float:
        """How much of the file has been read, from 0 to 1; of what is compressed, as it lies there."""
        size_bytes = self.look().st_size
        return min(1.0, os.lseek(self._fd, 0, os.SEEK_CUR) / size_bytes) if size_bytes else 1.0

    def read(self, most_bytes: int | None = None) -> bytes:
        """Up to so many bytes, or a block; none at the end, which may not be the end for ever."""
        most_bytes = BLOCK_BYTES if most_bytes is None else most_bytes
        try:
            if self._inflated is None:
                read = os.read(self._fd, most_bytes)
            else:
                read = self._inflated.read(most_bytes)
        except CutShortError:
            raise
        except Exception as error:
            raise SourceError(
                f"{self.path} cannot be read behind byte {self.offset} of what it holds "
                f"({text_of(error)}): put a good copy in its place, and run again"
            ) from error
        self.offset += len(read)
        return read

    def read_behind(self, tail: bytes) -> bytes | None:
        """More of a file that is not compressed; None: what lies before it is not ``tail`` any more, as it was."""
        try:
            found = os.pread(self._fd, len(tail) + BLOCK_BYTES, self.offset - len(tail))
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read behind byte {self.offset}: {error.strerror}") from error
        if not found.startswith(tail):
            return None
        self.offset += len(found) - len(tail)
        return found[len(tail) :]

    def read_exactly(self, count: int) -> bytes:
        """So many bytes, or what there is."""
        parts = []
        while count and (part := self.read(min(count, BLOCK_BYTES))):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def skip_to(self, offset: int) -> None:
        """Go on to this place, or to the end if that comes first."""
        if self._inflated is None:
            self.offset = os.lseek(self._fd, offset, os.SEEK_SET)
            return
        while self.offset < offset and self.read(min(offset - self.offset, BLOCK_BYTES)):
            pass

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -- decompression ---------------------------------------------------------------------------------

Decompressor = Callable[[], Any]
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def _gzip() -> Any:
    return zlib.decompressobj(wbits=31)


BY_SUFFIX: dict[str, Decompressor] = {".gz": _gzip, ".bz2": bz2.BZ2Decompressor, ".xz": lzma.LZMADecompressor}


def decompressor_of(path: str) -> Decompressor | None:
    """What the suffix of the file asks for; None: nothing. MissingExtraError where a library is missing."""
    suffix = os.path.splitext(path)[1]
    return _zstandard(path) if suffix == ".zst" else BY_SUFFIX.get(suffix)


def _zstandard(path: str) -> Decompressor:
    """Python's own, from 3.14 on, or the package."""
    try:
        return importlib.import_module("compression.zstd").ZstdDecompressor  # type: ignore[no-any-return]
    except ImportError:
        pass
    try:
        package = importlib.import_module("zstandard")
    except ImportError as error:
        raise MissingExtraError(
            f"{path} needs the package zstandard: pip install 'consecution[zstd]', or decompress it first", extra="zstd"
        ) from error
    return lambda: _ZstdMember(package.ZstdDecompressor().decompressobj())


class _ZstdMember:
    """What the package has for a member. It knows no limit of its own, so it is given pieces too small to get large."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._given = b""
        self._at = 0
        self._found = b""

    @property
    def needs_input(self) -> bool:
        return self._at == len(self._given) and not self._found

    @property
    def eof(self) -> bool:
        return self._inner.eof and not self._found

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data) + self._given[self._at :]

    def decompress(self, given: bytes, most_bytes: int) -> bytes:
        if given:
            self._given, self._at = self._given[self._at :] + given, 0
        parts = [self._found]
        found_bytes = len(self._found)
        while found_bytes < most_bytes and self._at < len(self._given) and not self._inner.eof:
            piece = self._given[self._at : self._at + PIECE_BYTES]
            self._at += len(piece)
            parts.append(self._inner.decompress(piece))
            found_bytes += len(parts[-1])
        whole = b"".join(parts)
        self._found = whole[most_bytes:]
        return whole[:most_bytes]


class _Inflated:
    """What is in a compressed file: of one member after the other, as much as is asked for at a time."""

    def __init__(self, fd: int, make: Decompressor) -> None:
        self._fd = fd
        self._make = make
        self._member: Any = None
        self._has_begun = False
        self._input = b""

    def read(self, most_bytes: int) -> bytes:
        while True:
            if self._member is None and not self._begin():
                return b""
            if not self._input and getattr(self._member, "needs_input", True):
                self._input = os.read(self._fd, COMPRESSED_BYTES)
                if not self._input:
                    raise CutShortError("it ends in the middle")
            found = self._step(most_bytes)
            if found:
                return found

    def _begin(self) -> bool:
        """Begin the next member; zeros may lie in between, but not before the first. False: there is none (yet)."""
        while not self._input:
            read = os.read(self._fd, COMPRESSED_BYTES)
            if not read:
                return False
            if not self._has_begun and read.startswith(b"\0"):
                raise ValueError("it begins with zeros, as a file whose content a power cut has taken")
            self._input = read.lstrip(b"\0")
        self._member = self._make()
        self._has_begun = True
        return True

    def _step(self, most_bytes: int) -> bytes:
        member = self._member
        found: bytes = member.decompress(self._input, most_bytes)
        self._input = getattr(member, "unconsumed_tail", b"")
        if member.eof:
            self._input = member.unused_data.lstrip(b"\0")
            self._member = None
        return found


# -- how a file is known again ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Print:
    """What the first ``mark`` bytes of a file begin and end with: enough to know the file, or a copy of it, again."""

    mark: int = 0
    head: bytes = b""
    tail: bytes = b""


def digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


class Printer:
    """Makes the print of what has been read of a file so far."""

    def __init__(self) -> None:
        self.mark = 0
        self._head = b""
        self._tail = b""

    @property
    def tail(self) -> bytes:
        """The last bytes that were read, as many as a print knows."""
        return self._tail

    def feed(self, block: bytes) -> None:
        if len(self._head) < PRINT_BYTES:
            self._head += block[: PRINT_BYTES - len(self._head)]
        self._tail = block[-PRINT_BYTES:] if len(block) >= PRINT_BYTES else (self._tail + block)[-PRINT_BYTES:]
        self.mark += len(block)

    def print(self) -> Print:
        return Print(self.mark, digest(self._head), digest(self._tail))


def read_on(content: Content, known: Print, offset: int) -> tuple[Printer, bytes] | None:
    """Go to ``offset`` in a file, which was read up to the print's mark; None: it is another file, or a shorter one.

    Returns the printer, and what was read behind the offset to make sure.
    """
    printer = Printer()
    head = content.read_exactly(min(PRINT_BYTES, known.mark))
    if digest(head) != known.head and known.mark:
        return None
    begin = max(len(head), min(offset, max(0, known.mark - PRINT_BYTES)))
    content.skip_to(begin)
    rest = content.read_exactly(known.mark - begin) if known.mark > begin else b""
    whole = head + rest if begin == len(head) else rest
    if content.offset != known.mark or (known.mark and digest(whole[-PRINT_BYTES:]) != known.tail):
        return None
    printer.mark, printer._head, printer._tail = known.mark, head, whole[-PRINT_BYTES:]
    return printer, whole[len(whole) - (known.mark - offset) :] if offset < known.mark else b""
