"""What one contestant is to do in one run, and the marks by which it tells what it did.

The contest (`race.py`) starts `child.py` with the task in the environment, so that every process of a contestant,
however it was started, can ask for `current`. Marks are small files in the task's folder: the moment of the
first item read, and for each sink its last write and its share of the answer. This file, like `child.py` and the
contestants, is imported in the virtual environments of the peers: it needs nothing but Python.
"""

from __future__ import annotations

import functools
import json
import math
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.airports import Place

VARIABLE = "BENCHMARK_TASK"
RATE = {"latency": 2000, "kill": 500}
"""Items a second where they come one by one."""

Dated = tuple[int, float]
"""A number, and the moment it was due."""


@dataclass(frozen=True, slots=True)
class Task:
    """``size`` counts what the work counts; ``options`` are those of one contestant alone."""

    work: str
    size: int
    workers: int
    folder: Path
    inputs: Path
    options: dict[str, Any] = field(default_factory=dict)

    def dumps(self) -> str:
        return json.dumps({name: str(v) if isinstance(v, Path) else v for name, v in self._fields().items()})

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("work", "size", "workers", "folder", "inputs", "options")}

    @classmethod
    def loads(cls, text: str) -> Task:
        told = json.loads(text)
        return cls(**{**told, "folder": Path(told["folder"]), "inputs": Path(told["inputs"])})

    @property
    def lines_file(self) -> Path:
        return self.inputs / f"lines-{self.size}.txt"

    def lines(self) -> list[str]:
        """The lines to count the words of."""
        return self.lines_file.read_text().split("\n")

    def airports(self) -> list[tuple[str, tuple[str, ...]]]:
        """Each airport with those before it."""
        codes = json.loads((self.inputs / f"codes-{self.size}.json").read_text())
        return [(code, tuple(codes[:index])) for index, code in enumerate(codes)]

    def paced(self) -> Paced:
        return Paced(self.size, RATE[self.work], self.folder / "pace")


@functools.cache
def current() -> Task:
    """The task of this run, in any of its processes."""
    return Task.loads(os.environ[VARIABLE])


@functools.cache
def places() -> dict[str, Place]:
    found = json.loads((current().inputs / "places.json").read_text())
    return {code: (code, lat, lon) for code, (lat, lon) in found.items()}


def attach(pair: tuple[str, str]) -> tuple[Place, Place]:
    known = places()
    return known[pair[0]], known[pair[1]]


class Paced:
    """Numbers that become due one after another at a rate. A second one, after a crash, keeps the pace of the first."""

    def __init__(self, size: int, rate: float, path: Path) -> None:
        self.size = size
        self._rate = rate
        self._path = path
        self.next = 0
        self._start_s = math.nan

    def start(self) -> float:
        if math.isnan(self._start_s):
            if not self._path.exists():
                partial = self._path.with_suffix(f".{os.getpid()}")
                partial.write_text(repr(time.time()))
                partial.rename(self._path)
            self._start_s = float(self._path.read_text())
        return self._start_s

    def due_s(self, number: int) -> float:
        return self.start() + number / self._rate

    def take(self, most: int = 1000) -> list[Dated] | None:
        """The numbers that are due by now; None at the end."""
        if self.next >= self.size:
            return None
        due = int((time.time() - self.start()) * self._rate) + 1
        first, self.next = self.next, max(self.next, min(due, self.next + most, self.size))
        return [(number, self.due_s(number)) for number in range(first, self.next)]

    def wait(self) -> None:
        """Sleep until the next one is due."""
        time.sleep(max(0.0, self.due_s(self.next) - time.time()))

    def __iter__(self) -> Iterator[Dated]:
        while (found := self.take(1)) is not None:
            if found:
                yield found[0]
            else:
                self.wait()


@functools.cache
def begun() -> None:
    """To be called when the first item is read; harmless, and quick, afterwards."""
    path = current().folder / f"first.{os.getpid()}"
    if not path.exists():
        path.write_text(repr(time.time()))


class Total:
    """A sink's share of the answer: add to it, and close it when there is nothing more to come."""

    def __init__(self) -> None:
        self.sum = 0
        self.last_s = 0.0

    def add(self, value: int) -> None:
        self.sum += value
        self.last_s = time.time()

    def close(self) -> None:
        name = f"done.{os.getpid()}.{threading.get_ident()}"
        (current().folder / name).write_text(f"{self.last_s!r} {self.sum}")


class Latencies(Total):
    """A sink of dated numbers; keeps how late each of them came, but for the first fifth: a start is told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._late_s: list[float] = []
        self._warm = current().size // 5

    def take(self, item: Dated) -> None:
        self.add(item[0])
        self.count += 1
        if item[0] >= self._warm:
            self._late_s.append(self.last_s - item[1])

    def close(self) -> None:
        super().close()
        (current().folder / f"late.{os.getpid()}").write_text("\n".join(map(repr, self._late_s)))
