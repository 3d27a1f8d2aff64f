"""Every store that LMDB has written is sound; a page whose pointers are damaged is named before LMDB follows them."""

from __future__ import annotations

import random
from pathlib import Path

import lmdb
import pytest

from consecution.runtime.pages import LEAF_LIMIT, PageError, PageWalk, check_file, read_commit, read_leaf

PAGE = 4096
SIZES = (0, 1, 10, 11, 100, 101, 1500, 3000, 9000, 50_000)


def write(folder: Path, tables: dict[str, dict[bytes, bytes]]) -> bytes:
    with lmdb.open(str(folder), map_size=1 << 30, max_dbs=8, sync=False) as env:
        for name, records in tables.items():
            db = env.open_db(name.encode())
            with env.begin(db=db, write=True) as txn:
                for key, value in records.items():
                    txn.put(key, value)
    return (folder / "data.mdb").read_bytes()


def check(content: bytes, limit: int | None = None) -> None:
    def read(page: int) -> bytes:
        return content[page * PAGE : (page + 1) * PAGE]

    commit = max((read_commit(read(page)) for page in (0, 1)), key=lambda found: found.number)
    PageWalk(read, PAGE, len(content), leaf_limit=limit).check(commit)


def inverted(content: bytes, place: int, mask: int = 0xFF) -> bytes:
    return content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :]


def numbered(count: int, value: bytes) -> dict[bytes, bytes]:
    return {number.to_bytes(8, "big"): value for number in range(count)}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two levels of branches' worth of records, a few large values, and pages that are free."""
    tables = {"many": numbered(2000, b"a value of some size"), "large": numbered(3, b"x" * 10_000)}
    tables["gone"] = numbered(500, b"soon gone")
    folder = tmp_path_factory.mktemp("pages")
    write(folder, tables)
    with lmdb.open(str(folder), map_size=1 << 30, max_dbs=8, sync=False) as env:
        db = env.open_db(b"gone")
        for key in tables["gone"]:
            with env.begin(db=db, write=True) as txn:
                txn.delete(key)
    return (folder / "data.mdb").read_bytes()


def pages_of(content: bytes, kind: int) -> list[int]:
    """Pages of the last commit: those whose damage is noticed."""
    found = []
    for page in range(2, len(content) // PAGE):
        at = page * PAGE
        if content[at + 10] != kind:
            continue
        try:
            check(inverted(content, at))
        except PageError:
            found.append(page)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_whatever_was_put_and_deleted_the_pages_are_sound(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with lmdb.open(str(tmp_path), map_size=1 << 30, max_dbs=8, sync=False) as env:
        tables = [env.open_db(b"table %d" % number) for number in range(4)]
        for step in range(150):
            with env.begin(write=True) as txn:
                for _ in range(chance.choice((1, 3, 30, 200))):
                    db = chance.choice(tables)
                    key = chance.randbytes(chance.choice((1, 2, 3))) + b"k" * chance.choice((0, 1, 2, 100, 400))
                    if chance.random() < (0.4 if step % 60 < 40 else 0.8):
                        cursor = txn.cursor(db=db)
                        if cursor.set_range(key[:1]):
                            cursor.delete()
                    else:
                        txn.put(key, bytes(chance.choice(SIZES)), db=db)
            check_file(tmp_path / "data.mdb", PAGE, leaf_limit=None)


def test_a_new_store_is_sound(tmp_path: Path) -> None:
    check(write(tmp_path, {}))
    check_file(tmp_path / "data.mdb", PAGE)


@pytest.mark.parametrize(("kind", "least"), [(1, 1), (2, 10), (4, 3)])
def test_every_byte_of_a_pages_header_and_of_its_places_is_noticed(stored: bytes, kind: int, least: int) -> None:
    """But the two that mean nothing."""
    pages = pages_of(stored, kind)
    assert len(pages) >= least
    for page in pages[:12]:
        lower = int.from_bytes(stored[page * PAGE + 12 : page * PAGE + 14], "little") if kind != 4 else 16
        for at in {*range(lower)} - {8, 9}:
            with pytest.raises(PageError):
                check(inverted(stored, page * PAGE + at))


@pytest.mark.parametrize("bit", range(8))
def test_a_page_number_in_a_branch_is_noticed(stored: bytes, bit: int) -> None:
    for page in pages_of(stored, 1):
        at = page * PAGE
        count = (int.from_bytes(stored[at + 12 : at + 14], "little") - 16) // 2
        for node in range(count):
            place = at + int.from_bytes(stored[at + 16 + 2 * node : at + 18 + 2 * node], "little")
            for byte in range(8):
                with pytest.raises(PageError):
                    check(inverted(stored, place + byte, 1 << bit))


@pytest.mark.parametrize("bit", range(8))
def test_a_page_said_to_be_free_is_neither_in_use_nor_behind_the_last(stored: bytes, bit: int) -> None:
    """The next commit would write over it."""
    root = max((read_commit(stored[at : at + PAGE]) for at in (0, PAGE)), key=lambda found: found.number).free.root
    page = stored[root * PAGE : (root + 1) * PAGE]
    nodes = read_leaf(root, page, ordered=False)
    assert nodes.values

    for value in nodes.values:
        for at in range(len(value)):
            with pytest.raises(PageError):
                check(inverted(stored, root * PAGE + page.index(value) + at, 1 << bit))


def test_the_page_is_named(stored: bytes) -> None:
    branch = pages_of(stored, 1)[0]

    with pytest.raises(PageError, match=f"page {branch} says that it is page {branch ^ 0xFF}") as caught:
        check(inverted(stored, branch * PAGE))

    assert caught.value.where == f"page {branch}"


def test_a_file_that_ends_before_its_pages_is_noticed(stored: bytes) -> None:
    with pytest.raises(PageError, match="is pointed at; the file has 20 pages"):
        check(stored[: 20 * PAGE])


def test_two_ways_to_a_page_are_noticed(stored: bytes) -> None:
    branch = pages_of(stored, 1)[0] * PAGE
    first, second = (int.from_bytes(stored[branch + at : branch + at + 2], "little") + branch for at in (16, 18))
    doubled = stored[:second] + stored[first : first + 4] + stored[second + 4 :]

    with pytest.raises(PageError, match="is pointed at twice"):
        check(doubled)


def test_above_the_limit_branches_are_looked_at_and_leaves_are_not(stored: bytes) -> None:
    leaf, branch = pages_of(stored, 2)[0], pages_of(stored, 1)[0]

    check(inverted(stored, leaf * PAGE), limit=0)
    with pytest.raises(PageError):
        check(inverted(stored, leaf * PAGE), limit=LEAF_LIMIT)
    with pytest.raises(PageError):
        check(inverted(stored, branch * PAGE), limit=0)
