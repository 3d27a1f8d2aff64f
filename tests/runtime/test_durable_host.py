"""The end of a stream at a durable node where items have failed: whole pipelines, in each mode."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from consecution import Pipeline, Producer, StatefulNode
from consecution.errors import WorkerError
from consecution.runtime.durable_store import DurableStore
from consecution.runtime.state import look_at_state_dir
from consecution.sinks.text import TextLines


class Sum(StatefulNode):
    """Adds up; an item is refused the first time it comes. ``folder`` remembers, whatever process it is."""

    def __init__(self, folder: Path, *, refused: tuple[int, ...] = (), end_raises: bool = False) -> None:
        super().__init__("sum")
        self.folder = folder
        self.refused = refused
        self.end_raises = end_raises

    def process(self, item: int) -> None:
        tried = self.folder / f"tried {item}"
        if item in self.refused and not tried.exists():
            tried.touch()
            raise ValueError(f"{item} comes again")
        self.state["sum"] = self.state.get("sum", 0) + item

    def end(self) -> None:
        if self.end_raises:
            raise ZeroDivisionError("no end")
        self.push(self.state["sum"])


def run(path: Path, mode: str, node: Sum, **options: Any) -> list[str]:
    """Sum up 1 to 5; returns the lines that come out."""
    lines = path / "out.txt"
    pipeline = Pipeline(Producer([1, 2, 3, 4, 5], name="numbers") | node | TextLines("lines", path=lines))
    pipeline.run(mode=mode, robustness="robust", state_dir=path / "state", retry_delay_s=0.05, **options)
    return lines.read_text().split()


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_end_waits_for_items_that_failed_in_its_node(mode: str, tmp_path: Path) -> None:
    node = Sum(tmp_path, refused=(2, 5))

    assert run(tmp_path, mode, node) == ["15"]


@pytest.mark.parametrize("refused", [(), (3,)], ids=["at once", "after a retry"])
@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_an_end_that_raises_is_named_whenever_it_runs(mode: str, refused: tuple[int, ...], tmp_path: Path) -> None:
    node = Sum(tmp_path, refused=refused, end_raises=True)

    with pytest.raises(WorkerError, match=r"sum.*: end\(\) raised ZeroDivisionError: no end"):
        run(tmp_path, mode, node)


class Ticker(StatefulNode):
    def process(self, item: int) -> None:
        self.state["seen"] = item

    def on_timer(self) -> None:
        self.push(self.state.get("seen"))


def test_a_node_with_a_timer_has_on_record_that_it_has_ended(tmp_path: Path) -> None:
    """Its next incarnation would tick until it is told so, when those behind it have ended."""
    node = Ticker("ticker").every(1000)
    pipeline = Pipeline(Producer([1, 2, 3], name="numbers") | node | TextLines("lines", path=tmp_path / "out.txt"))

    pipeline.run(robustness="robust", state_dir=tmp_path / "state")

    state = look_at_state_dir(tmp_path / "state")
    (name,) = (name for name in state.origins if name.startswith("ticker"))
    with closing(state.journal(name)) as store:
        assert isinstance(store, DurableStore)
        assert store.has_ended
