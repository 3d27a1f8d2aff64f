"""The contract of sinks finds what is wrong with a sink, and passes those that are right."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consecution import SqlSink
from consecution.errors import WorldError
from consecution.protocol.values import BatchId
from consecution.sink import AppendSink, Sink, TransactionSink
from consecution.testing.sinks import BrokenSinkError, check_sink

ITEMS = [{"n": n} for n in range(40)]
BAD = {"n": "bad"}


class Lines(Sink):
    """Appends to a file, at least once; refuses what is bad before it writes."""

    def __init__(self, folder: Path) -> None:
        super().__init__("lines")
        self.path = folder / "out"

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        self._check(items)
        with open(self.path, "a") as file:
            file.writelines(json.dumps(item) + "\n" for item in items)

    def _check(self, items: list[Any]) -> None:
        if BAD in items:
            raise ValueError("bad")


def read_lines(folder: Path) -> list[Any]:
    path = folder / "out"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Frames(Lines):
    """A file for each frame: a repeat replaces it."""

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        self._check(items)
        assert batch_id is not None
        first = items[0]["n"] if items else 0
        new = self.path.with_name("new")
        new.write_text("".join(json.dumps(item) + "\n" for item in items))
        new.rename(self.path.with_name(f"frame-{first:06}-{batch_id.origin}-{batch_id.seq}"))


def read_frames(folder: Path) -> list[Any]:
    return [json.loads(line) for path in sorted(folder.glob("frame-*")) for line in path.read_text().splitlines()]


class Backwards(Lines):
    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        super().write(batch_id, items[::-1])


class Overwrites(Lines):
    def open(self) -> None:
        self.path.unlink(missing_ok=True)


class ClosesOnce(Lines):
    def open(self) -> None:
        self.fd = os.open(os.devnull, os.O_WRONLY)

    def close(self) -> None:
        os.close(self.fd)
        del self.fd


class WritesBeforeItRefuses(Lines):
    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        for item in items:
            super().write(batch_id, [item])


class Buffers(Lines):
    """Its items are safe only when it is closed."""

    def open(self) -> None:
        self.held: list[Any] = []

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        self._check(items)
        self.held += items

    def close(self) -> None:
        if hasattr(self, "held"):
            super().write(None, self.held)
            self.held = []


class Appends(AppendSink, Lines):
    def flush(self) -> Any:
        return self.path.stat().st_size if self.path.exists() else 0

    def cut_to(self, end: Any) -> None:
        if end is not None and self.path.exists():
            os.truncate(self.path, end)


class NeverCuts(Appends):
    def cut_to(self, end: Any) -> None:
        pass


class KeepsAll(TransactionSink, Lines):
    """Rewrites one small file at each commit: {"items": [...], "marks": {...}}."""

    def open(self) -> None:
        self.pending: list[Any] | None = None

    def _load(self) -> Any:
        return json.loads(self.path.read_text()) if self.path.exists() else {"items": [], "marks": {}}

    def _save(self, saved: Any) -> None:
        self.path.with_name("new").write_text(json.dumps(saved))
        self.path.with_name("new").rename(self.path)

    def begin_transaction(self) -> None:
        self.pending = []

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        self._check(items)
        if self.pending is not None:
            self.pending += items
            return
        saved = self._load()
        saved["items"] += items
        self._save(saved)

    def commit(self, owner: str, number: int, redo: bytes) -> None:
        assert self.pending is not None
        saved = self._load()
        if saved["marks"].get(owner, [0])[0] != number - 1:
            raise WorldError(f"{self}: the mark of {owner} is not {number - 1}")
        saved["items"] += self.pending
        saved["marks"][owner] = [number, redo.hex()]
        self._save(saved)
        self.pending = None

    def roll_back(self) -> None:
        self.pending = None

    def last_mark(self, owner: str) -> tuple[int, bytes]:
        number, redo = self._load()["marks"].get(owner, (0, ""))
        return number, bytes.fromhex(redo)


def read_all(folder: Path) -> list[Any]:
    path = folder / "out"
    return json.loads(path.read_text())["items"] if path.exists() else []  # type: ignore[no-any-return]


class ForgetsMarks(KeepsAll):
    def last_mark(self, owner: str) -> tuple[int, bytes]:
        return 0, b""


class MarksLater(KeepsAll):
    """Rows first, the mark in a commit of its own."""

    def commit(self, owner: str, number: int, redo: bytes) -> None:
        pending, self.pending = self.pending, None
        assert pending is not None
        self.write(None, pending)
        self.pending = []
        super().commit(owner, number, redo)


class TakesAnyNumber(KeepsAll):
    def commit(self, owner: str, number: int, redo: bytes) -> None:
        super().commit(owner, self.last_mark(owner)[0] + 1, redo)


class WithoutSavepoint(KeepsAll):
    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        for item in items:
            super().write(batch_id, [item])


GOOD: dict[type[Any], Callable[[Path], list[Any]]] = {Lines: read_lines, Appends: read_lines, KeepsAll: read_all}


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
def test_sinks_that_keep_the_contract_pass(kind: Any, tmp_path: Path) -> None:
    check_sink(kind, GOOD[kind], ITEMS, bad=BAD, folder=tmp_path)


def test_a_sink_whose_repeats_are_harmless_passes(tmp_path: Path) -> None:
    check_sink(Frames, read_frames, ITEMS, bad=BAD, folder=tmp_path, repeats_are_harmless=True)


@pytest.mark.parametrize(
    ("kind", "read", "problem"),
    [
        (Backwards, read_lines, "after one run: expected 40 items, found 40; item 0 is"),
        (Overwrites, read_lines, "after a second run over what the first has left"),
        (WritesBeforeItRefuses, read_lines, "after a frame with a bad item was offered, and then its parts"),
        (Buffers, read_lines, "after kills at"),
        (NeverCuts, read_lines, "after a life whose last write was not committed"),
        (ForgetsMarks, read_all, "the marks of a, b and c are"),
        (TakesAnyNumber, read_all, r"commit took the mark 2 after 2"),
        (MarksLater, read_all, "after three commits and two that had to be refused"),
        (WithoutSavepoint, read_all, "after writes that raised"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_a_sink_that_breaks_the_contract_is_found(kind: Any, read: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(BrokenSinkError, match=problem):
        check_sink(kind, read, ITEMS, bad=BAD, folder=tmp_path)


def test_a_sink_that_cannot_be_closed_twice_is_found(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        check_sink(ClosesOnce, read_lines, ITEMS, folder=tmp_path)


def test_a_sink_that_only_says_that_repeats_are_harmless_is_found(tmp_path: Path) -> None:
    with pytest.raises(BrokenSinkError, match="after a frame came three times"):
        check_sink(Lines, read_lines, ITEMS, folder=tmp_path, repeats_are_harmless=True)


def test_items_that_are_too_few_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="19 items are too few"):
        check_sink(Lines, read_lines, ITEMS[:19], folder=tmp_path)


def read_table(folder: Path) -> list[Any]:
    connection = sqlite3.connect(folder / "out.db")
    try:
        return [{"n": n} for (n,) in connection.execute("SELECT n FROM t ORDER BY rowid")]
    finally:
        connection.close()


def make_table(folder: Path) -> SqlSink:
    return SqlSink("table", f"sqlite:///{folder / 'out.db'}", "t")


def test_rows_in_sqlite_keep_the_contract(tmp_path: Path) -> None:
    check_sink(make_table, read_table, ITEMS, bad={"unknown": 1}, folder=tmp_path)
