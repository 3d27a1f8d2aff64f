"""Every bundled source that reads what is here keeps the contract that `check_source` holds all sources to."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from consecution.sources.iterable import IterableSource
from consecution.sources.manual import ManualSource
from consecution.sources.pipe import PipeSource
from consecution.testing.sources import LARGE_BYTES, check_source

ITEMS = [f"item {n}" for n in range(25)]


def generate() -> Any:
    yield from ITEMS


def large_lines(folder: Path) -> Path:
    """Lines with nothing in them take no space on disk."""
    path = folder / "large"
    with open(path, "wb") as file:
        for at in range(0, LARGE_BYTES, 1 << 16):
            file.seek(at)
            file.write(b"\n")
        file.truncate(LARGE_BYTES)
    return path


# -- iterables -------------------------------------------------------------------------------------


def test_a_list(tmp_path: Path) -> None:
    check_source(lambda folder: IterableSource(ITEMS), ITEMS, folder=tmp_path, kills=False)


def test_a_generator_function(tmp_path: Path) -> None:
    check_source(
        lambda folder: IterableSource(generate),
        ITEMS,
        folder=tmp_path,
        make_large=lambda folder: IterableSource(lambda: (bytes(1000) for _ in range(LARGE_BYTES // 1000))),
    )


# -- standard input --------------------------------------------------------------------------------


class StandardInput(PipeSource):
    """Has the descriptor of a file or a fifo, as the shell would have put it at 0."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(-1, **options)
        self.path = path

    def open(self, position: Any) -> None:
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(self._fd, True)
        super().open(position)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def make_file(folder: Path) -> PipeSource:
    path = folder / "in"
    path.write_text("".join(f"{item}\n" for item in ITEMS))
    return StandardInput(path)


def test_lines_of_a_file_on_standard_input(tmp_path: Path) -> None:
    check_source(make_file, ITEMS, folder=tmp_path, make_large=lambda folder: StandardInput(large_lines(folder)))


def make_json(folder: Path, *bad: str) -> PipeSource:
    path = folder / "in"
    lines = [json.dumps(item) for item in ITEMS]
    path.write_text("\n".join([*lines[:9], *bad, *lines[9:]]))
    return StandardInput(path, format="ndjson")


def test_json_of_a_file_on_standard_input(tmp_path: Path) -> None:
    bad = ("[1,", "", "{}}")
    check_source(make_json, ITEMS, folder=tmp_path, kills=False, make_bad=lambda folder: make_json(folder, *bad))


ROWS = [{"n": str(n), "text": f"line {n}\nand more"} for n in range(25)]


def make_csv(folder: Path, *bad: str) -> PipeSource:
    path = folder / "in"
    rows = [f'{row["n"]},"{row["text"]}"' for row in ROWS]
    path.write_text("\n".join(["n,text", *rows[:9], *bad, *rows[9:]]))
    return StandardInput(path, format="csv")


def test_csv_of_a_file_on_standard_input(tmp_path: Path) -> None:
    bad = ("1", '"2', "3,4,5")
    check_source(make_csv, ROWS, folder=tmp_path, kills=False, make_bad=lambda folder: make_csv(folder, *bad))


class Fifo(PipeSource):
    """Standard input that is a pipe; its other end is open from the start until `finish`, or the end."""

    def __init__(self, folder: Path) -> None:
        super().__init__(-1)
        self.writable = -1
        self.lock = threading.Lock()

    def open(self, position: Any) -> None:
        self._fd, self.writable = os.pipe()
        super().open(position)

    def close(self) -> None:
        self.finish()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def write(self, folder: Path, items: Sequence[str]) -> None:
        for item in items:
            with self.lock:
                os.write(self.writable, f"{item}\n".encode())

    def finish(self, folder: Path | None = None) -> None:
        with self.lock:
            if self.writable >= 0:
                os.close(self.writable)
                self.writable = -1


def test_lines_of_a_pipe_on_standard_input(tmp_path: Path) -> None:
    check_source(Fifo, ITEMS, folder=tmp_path, send=Fifo.write, finish=Fifo.finish)


# -- what the program pushes -----------------------------------------------------------------------


def push(source: ManualSource, folder: Path, items: Sequence[Any]) -> None:
    for item in items:
        source.push(item)


def flood(source: ManualSource, folder: Path) -> None:
    for _ in range(LARGE_BYTES >> 20):
        source.push(bytearray(1 << 20))


def test_a_manual_source(tmp_path: Path) -> None:
    check_source(
        lambda folder: ManualSource(max_waiting=8),
        ITEMS,
        folder=tmp_path,
        send=push,
        finish=lambda source, folder: source.finish(),
        make_large=lambda folder: ManualSource(max_waiting=8),
        flood=flood,
    )
