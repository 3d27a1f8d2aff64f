"""Looks at the pages of an LMDB file before LMDB does: that believes every pointer, and dies of a wrong one.

LMDB has no checksums. What is compared here is what must hold between pages: whatever is pointed at lies in the
file, is of the kind it should be, says its own number and is pointed at once; what a page says of itself adds up.
All but `check_file` is bytes in, values or `PageError` out.

The layout is LMDB's 0.9, in the machine's own byte order::

    page      number (8 bytes)  pad (2)  kind (2)  lower (2)  upper (2)  ...
    meta      page header, magic (4)  version (4)  address (8)  size (8)  free: tree  main: tree
              last page (8)  commit (8);  the first two pages of a file, written in turn
    tree      pad (4)  flags (2)  depth (2)  branch pages (8)  leaf pages (8)  overflow pages (8)  entries (8)  root (8)
    branch,   page header, the place of each node in the page (2 each, up to ``lower``), a gap, and from ``upper`` to
    leaf      the end the nodes, without gaps, each of an even number of bytes
    node      size, low half (2)  high half (2)  flags (2)  key size (2)  key  value; in a branch the first
              three are the number of the page below
    overflow  page header with the number of pages (4) in the place of lower and upper, then one value

The value of a leaf's node is its bytes; or with a flag the number of an overflow page, or a named tree. Those of the
table of free pages are lists of page numbers (8 bytes each, after their count), in which a page that is in use would
be written over.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HEADER_BYTES = 16
NO_PAGE = 2**64 - 1
DEEPEST = 32
"""LMDB's own bound for the depth of a tree."""
LEAF_LIMIT = 4096
"""So many leaves and overflow pages are looked at where nobody asks for all: 16 MiB, in about 60 ms."""

_BRANCH, _LEAF, _OVERFLOW, _DIRTY = 1, 2, 4, 16
_BIG, _TREE = 1, 2
_FREE_FLAGS = 8
"""The keys of the table of free pages are whole numbers."""
_HEADER = struct.Struct("=QHHHH")
_NODE = struct.Struct("=HHHH")
_NODE_BYTES = _NODE.size
_TREES = struct.Struct("=IHHQQQQQ")
_COUNT = struct.Struct("=I")
_NUMBER = struct.Struct("=Q")
_MAIN_AT = 40 + _TREES.size
_LAST_AT = _MAIN_AT + _TREES.size


class PageError(Exception):
    """A page, or a table, cannot be what it should be; ``where`` says which, ``what`` was found there."""

    def __init__(self, where: int | str, what: str) -> None:
        self.where = where if isinstance(where, str) else f"page {where}"
        self.what = what
        super().__init__(f"{self.where} {what}")


def check_file(data: Path, page_bytes: int, commit: int | None = None, *, leaf_limit: int | None = LEAF_LIMIT) -> None:
    """Go over the pages of one commit of a file that LMDB has opened; None: of the last one, where nobody writes.

    PageError at the first page that cannot be what it should be. See `PageWalk` for the limit.
    """
    file = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    try:

        def read(page: int) -> bytes:
            return os.pread(file, page_bytes, page * page_bytes)

        first: list[Commit] = []
        while (commits := [read_commit(read(page)) for page in (0, 1)]) != first:
            first = commits  # Until they are the same twice: a run that goes on may just be writing one.
        chosen = next((found for found in commits if found.number == commit), max(commits, key=lambda c: c.number))
        PageWalk(read, page_bytes, os.fstat(file).st_size, leaf_limit=leaf_limit).check(chosen)
    finally:
        os.close(file)


@dataclass(frozen=True, slots=True)
class Tree:
    """Where a tree begins, and how much it says it has."""

    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


@dataclass(frozen=True, slots=True)
class Commit:
    """What a meta page holds."""

    number: int
    last_page: int
    free: Tree
    main: Tree


@dataclass(frozen=True, slots=True)
class Leaf:
    """Its values; and what its nodes point at: overflow pages with the size of their value, and named trees."""

    values: tuple[bytes, ...]
    big: tuple[tuple[int, int], ...]
    trees: tuple[tuple[bytes, Tree], ...]


def read_commit(page: bytes) -> Commit:
    """What a meta page says; that it is one, LMDB has seen to."""
    last_page, number = struct.unpack_from("=QQ", page, _LAST_AT)
    return Commit(number, last_page, _read_tree(page, 40), _read_tree(page, _MAIN_AT))


def _read_tree(page: bytes, at: int) -> Tree:
    return Tree(*_TREES.unpack_from(page, at)[1:])


def read_branch(number: int, page: bytes, *, ordered: bool = True) -> list[int]:
    """The numbers of the pages below. The first one's key is never looked at by LMDB, and may be anything."""
    below: list[int] = []
    used_bytes, last_key = 0, b""
    for at in _nodes_of(number, page, _BRANCH):
        low, high, top, key_bytes = _NODE.unpack_from(page, at)
        key = page[at + _NODE_BYTES : at + _NODE_BYTES + key_bytes]
        if ordered and len(below) > 1 and key <= last_key:
            raise PageError(number, "does not have its keys in order")
        last_key = key
        below.append(low | high << 16 | top << 32)
        used_bytes += _NODE_BYTES + key_bytes + key_bytes % 2
    _check_is_full(number, page, used_bytes)
    if len(below) < 2:
        raise PageError(number, f"is a branch with {len(below)} pages below; expected 2 or more")
    return below


def read_leaf(number: int, page: bytes, *, ordered: bool = True) -> Leaf:
    """``ordered`` False: the keys are numbers, which compare otherwise."""
    places, end = _nodes_of(number, page, _LEAF), len(page)
    values: list[bytes] = []
    big: list[tuple[int, int]] = []
    trees: list[tuple[bytes, Tree]] = []
    used_bytes, last_key = 0, b""
    for at in places:
        low, high, flags, key_bytes = _NODE.unpack_from(page, at)
        value_at = at + _NODE_BYTES + key_bytes
        size_bytes = low | high << 16
        if flags:
            if flags == _BIG and value_at + 8 <= end:
                big.append((_NUMBER.unpack_from(page, value_at)[0], size_bytes))
                size_bytes = 8
            elif flags == _TREE and size_bytes == _TREES.size and value_at + size_bytes <= end:
                trees.append((page[at + _NODE_BYTES : value_at], _read_tree(page, value_at)))
            else:
                raise PageError(number, f"has a node with flags {flags} and {size_bytes} bytes")
        else:
            values.append(page[value_at : value_at + size_bytes])
        key = page[at + _NODE_BYTES : value_at]
        if ordered and at != places[0] and key <= last_key:
            raise PageError(number, "does not have its keys in order")
        last_key = key
        taken = _NODE_BYTES + key_bytes + size_bytes
        used_bytes += taken + taken % 2
    _check_is_full(number, page, used_bytes)
    if not places:
        raise PageError(number, "is a leaf without nodes")
    return Leaf(tuple(values), tuple(big), tuple(trees))


def _nodes_of(number: int, page: bytes, kind: int) -> Sequence[int]:
    """The places of a page's nodes; each has room for a node's header."""
    found, _, flags, lower, upper = _HEADER.unpack_from(page)
    if found != number:
        raise PageError(number, f"says that it is page {found}")
    if flags & ~_DIRTY != kind:
        raise PageError(number, f"is of kind {flags}; expected {kind}")
    if not HEADER_BYTES <= lower <= upper <= len(page) or lower % 2:
        raise PageError(number, f"says that its nodes are known up to {lower} and lie from {upper} on")
    places = struct.unpack_from(f"={(lower - HEADER_BYTES) // 2}H", page, HEADER_BYTES)
    if places and not (upper <= min(places) and max(places) + _NODE_BYTES <= len(page)):
        raise PageError(number, f"says that nodes lie at {min(places)} to {max(places)}, and from {upper} on")
    return places


def _check_is_full(number: int, page: bytes, used_bytes: int) -> None:
    """With this, no two places are the same, and nothing reaches over the end."""
    upper = _HEADER.unpack_from(page)[4]
    if used_bytes != len(page) - upper:
        raise PageError(number, f"has nodes of {used_bytes} bytes in a room of {len(page) - upper}")


class PageWalk:
    """Goes over the pages of one commit. ``read`` gives a page; shorter, or nothing, behind the end of the file.

    All branches are looked at, and leaves (with what they point at) from the smallest tree on, up to ``leaf_limit``
    pages; None: all of them.
    """

    def __init__(
        self, read: Callable[[int], bytes], page_bytes: int, file_bytes: int, *, leaf_limit: int | None = LEAF_LIMIT
    ) -> None:
        self._read_page = read
        self._page_bytes = page_bytes
        self._used = bytearray(file_bytes // page_bytes)
        self._left = leaf_limit

    def check(self, commit: Commit) -> None:
        """PageError at the first page that cannot be what it should be."""
        used = self._used
        used[:2] = b"\1" * len(used[:2])
        free = self._check_tree("the table of free pages", commit.free, _FREE_FLAGS, ordered=False)
        main = self._check_tree("the table of tables", commit.main, 0, always=True)
        trees = [(name.decode(errors="replace"), tree) for leaf in main for name, tree in leaf.trees]
        for name, tree in sorted(trees, key=lambda found: found[1].leaf_pages + found[1].overflow_pages):
            if any(leaf.trees for leaf in self._check_tree(f"table {name!r}", tree, 0)):
                raise PageError(f"table {name!r}", "has tables in it")
        for leaf in free:
            for listed in (*leaf.values, *(self._read_big(page, size_bytes) for page, size_bytes in leaf.big)):
                self._check_free(listed, commit.last_page)

    def _read_big(self, number: int, size_bytes: int) -> bytes:
        count = (HEADER_BYTES + size_bytes - 1) // self._page_bytes + 1
        whole = b"".join(self._read(page) for page in range(number, number + count))
        return whole[HEADER_BYTES : HEADER_BYTES + size_bytes]

    def _check_free(self, listed: bytes, last_page: int) -> None:
        """Free pages need not be in the file: some were given back before they were written."""
        numbers = struct.unpack(f"={len(listed) // 8}Q", listed[: len(listed) // 8 * 8])
        if len(listed) % 8 or not numbers or numbers[0] != len(numbers) - 1:
            raise PageError("the table of free pages", f"has a list that does not fit its {len(listed)} bytes")
        for number in numbers[1:]:
            if number > last_page:
                raise PageError(number, f"is said to be free; the last page is {last_page}")
            if number < len(self._used):
                self._take(number)

    def _check_tree(
        self, name: str, tree: Tree, flags: int, *, ordered: bool = True, always: bool = False
    ) -> list[Leaf]:
        """The leaves that were looked at: all, or none."""
        if (tree.flags & 0xFFF if flags else tree.flags) != flags:
            raise PageError(name, f"has flags {tree.flags}; expected {flags}")
        if tree.depth > DEEPEST or len({tree.root != NO_PAGE, tree.depth > 0, tree.entries > 0}) > 1:
            raise PageError(
                name, f"begins at page {tree.root} with depth {tree.depth}, and counts {tree.entries} entries"
            )
        if not tree.depth:
            return []
        pages, branches = [tree.root], 0
        self._take(tree.root)
        for _ in range(tree.depth - 1):
            branches += len(pages)
            pages = [below for page in pages for below in self._below(page, ordered=ordered)]
        if (branches, len(pages)) != (tree.branch_pages, tree.leaf_pages):
            raise PageError(
                name,
                f"has {branches} branches and {len(pages)} leaves, and counts {tree.branch_pages} and "
                f"{tree.leaf_pages}",
            )
        if self._left is not None and not always:
            if tree.leaf_pages + tree.overflow_pages > self._left:
                return []
            self._left -= tree.leaf_pages + tree.overflow_pages
        return self._check_leaves(name, tree, pages, ordered)

    def _below(self, page: int, *, ordered: bool) -> list[int]:
        below = read_branch(page, self._read(page), ordered=ordered)
        for number in below:
            self._take(number)
        return below

    def _check_leaves(self, name: str, tree: Tree, pages: list[int], ordered: bool) -> list[Leaf]:
        leaves = [read_leaf(page, self._read(page), ordered=ordered) for page in pages]
        overflow = sum(self._check_big(page, size_bytes) for leaf in leaves for page, size_bytes in leaf.big)
        found = sum(len(leaf.values) + len(leaf.big) + len(leaf.trees) for leaf in leaves), overflow
        if found != (tree.entries, tree.overflow_pages):
            raise PageError(
                name,
                f"has {found[0]} entries and {found[1]} overflow pages, and counts {tree.entries} and "
                f"{tree.overflow_pages}",
            )
        return leaves

    def _check_big(self, number: int, size_bytes: int) -> int:
        """A value that was longer before keeps its pages."""
        self._take(number)
        page = self._read(number)
        found, _, flags, _, _ = _HEADER.unpack_from(page)
        count: int = _COUNT.unpack_from(page, 12)[0]
        if found != number or flags & ~_DIRTY != _OVERFLOW:
            raise PageError(number, f"says that it is page {found} of kind {flags}; expected kind {_OVERFLOW}")
        if count * self._page_bytes < HEADER_BYTES + size_bytes:
            raise PageError(number, f"has {count} pages for a value of {size_bytes} bytes")
        if number + count > len(self._used):
            raise PageError(number, f"has {count} pages, and the file ends before")
        for page_number in range(number + 1, number + count):
            self._take(page_number)
        return count

    def _take(self, number: int) -> None:
        if number >= len(self._used):
            raise PageError(number, f"is pointed at; the file has {len(self._used)} pages")
        if self._used[number]:
            raise PageError(number, "is pointed at twice")
        self._used[number] = 1

    def _read(self, number: int) -> bytes:
        page = self._read_page(number)
        if len(page) != self._page_bytes:
            raise PageError(number, f"has {len(page)} of {self._page_bytes} bytes")
        return page
