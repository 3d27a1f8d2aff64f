"""A source that stamps the moment its first item is read, and a sink that stamps when the last one is written.

Stamps are wall-clock seconds in small files, so that they may come from any process.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contest import Outcome
from consecution import IterableSource, Pipeline, Producer, Sink
from consecution.options import Options
from consecution.report import Report


class FirstRead:
    """Left of a source among the bases of a class: its first read is stamped in the folder ``stamps``."""

    stamps: Path
    _stamped = False

    def read(self, max_items: int) -> list[Any] | None:
        if not self._stamped:
            self._stamped = True
            stamp_first(self.stamps)
        found: list[Any] | None = super().read(max_items)  # type: ignore[misc]
        return found


class StampedSource(FirstRead, IterableSource):
    """A list, a range or a text; stamps its first read."""

    def __init__(self, items: Any, folder: Path) -> None:
        super().__init__(items)
        self.stamps = folder


def stamp_first(folder: Path) -> None:
    """The first item is read, or sent, now; of several shares or senders the first one counts."""
    with contextlib.suppress(FileExistsError), open(folder / "first", "x") as file:
        file.write(repr(time.time()))


class StampedSink(Sink):
    """Sums up what it is given with ``measure``, and stamps when it is closed after the last write."""

    def __init__(
        self, name: str, folder: Path, measure: Callable[[list[Any]], int] = len, *, on_the_way: bool = False
    ) -> None:
        super().__init__(name)
        self.after_decision = not on_the_way
        self._folder = folder
        self._measure = measure

    def open(self) -> None:
        self._sum = 0
        self._last_s = 0.0

    def write(self, batch_id: Any, items: list[Any]) -> None:
        self._sum += self._measure(items)
        self._last_s = time.time()

    def close(self) -> None:
        (self._folder / f"{self.name}.{os.getpid()}.{id(self)}").write_text(f"{self._last_s!r} {self._sum}")


def run(build: Callable[[Path], Pipeline], items: Any, *, shares: int = 1, **options: Any) -> tuple[Outcome, Report]:
    """Run a pipeline whose `StampedSink`s lie in the folder given to ``build``. The answer is the sum of all sinks.

    The source is read in so many shares.
    """
    with tempfile.TemporaryDirectory(prefix="consecution-bench-") as made:
        folder = Path(made)
        pipeline = build(folder)
        if Options.of(**options).robust:
            options["state_dir"] = folder / "state"
        producer = Producer(StampedSource(items, folder)) * shares
        report = Pipeline(producer | pipeline.top_node).run(**options)
        assert report.exit_code == 0, str(report)
        return outcome(folder), report


def outcome(folder: Path) -> Outcome:
    """What the stamps say: from the first item to the last write, and the sum of all sinks."""
    first_s = float((folder / "first").read_text())
    told = [path.read_text().split() for path in folder.glob("sink*")]
    last_s = max(float(last) for last, _ in told)
    return Outcome(last_s - first_s, sum(int(total) for _, total in told))
