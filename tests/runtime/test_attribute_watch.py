from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consecution import Map, Node, Pipeline
from consecution.runtime.attribute_watch import WATCHED_FRAMES, AttributeWatch


class Plain(Node):
    def __init__(self, **kept: Any) -> None:
        super().__init__("plain", **kept)


class Inside:
    def __init__(self) -> None:
        self.count = 0


def warnings_of(node: Node, change: Callable[[Any, int], None], frames: int = 30) -> list[str]:
    """What is told while ``change(node, frame)`` runs for so many frames."""
    watch = AttributeWatch(node)
    told = []
    for frame in range(frames):
        change(node, frame)
        warning = watch.look()
        if warning is not None:
            told.append(warning)
    return told


def count(node: Any, frame: int) -> None:
    node.kept += 1


def append(node: Any, frame: int) -> None:
    node.kept.append(frame)


def count_by_key(node: Any, frame: int) -> None:
    node.kept["key"] += 1


def append_by_key(node: Any, frame: int) -> None:
    node.kept["key"].append(frame)


def count_inside(node: Any, frame: int) -> None:
    node.kept.count += 1


def make(node: Any, frame: int) -> None:
    node.kept = [frame]


@pytest.mark.parametrize(
    ("kept", "change"),
    [
        (0, count),
        ([], append),
        (list(range(1000)), append),
        (Counter(key=1), count_by_key),
        ({"key": []}, append_by_key),
        (Inside(), count_inside),
        (None, make),
    ],
    ids=["a number", "a list", "a long list", "a counter", "lists by key", "an object", "something new"],
)
def test_data_kept_from_batch_to_batch_is_told_once_with_the_remedy(kept: Any, change: Any) -> None:
    told = warnings_of(Plain(kept=kept), change)

    assert len(told) == 1
    assert "plain: Plain keeps data in self.kept from batch to batch" in told[0]
    assert "inherit from StatefulNode or KeyedNode" in told[0]
    assert "stateless = True" in told[0]


def leave(node: Any, frame: int) -> None:
    pass


def open_late(node: Any, frame: int) -> None:
    if frame == 3:
        node.kept = open(__file__)
    if frame == 5:
        node.kept.close()


def fill(node: Any, frame: int) -> None:
    node.price_cache[frame] = 1


def use_clock(node: Any, frame: int) -> None:
    node.clock.start("x")
    node.clock.stop("x")


@pytest.mark.parametrize(
    ("kept", "change"),
    [
        ({"kept": float("nan"), "more": [float("nan")]}, leave),
        ({"kept": None}, open_late),
        ({"price_cache": {}}, fill),
        ({"kept": lambda item: item}, leave),
        ({}, use_clock),
    ],
    ids=["nothing", "a file opened once", "a cache", "a function", "the clock"],
)
def test_what_is_no_data_is_not_told(kept: dict[str, Any], change: Any) -> None:
    assert warnings_of(Plain(**kept), change) == []


def test_only_the_first_frames_are_watched() -> None:
    def change(node: Any, frame: int) -> None:
        if frame >= WATCHED_FRAMES:
            node.kept += 1

    assert warnings_of(Plain(kept=0), change, frames=WATCHED_FRAMES + 10) == []


# -- in a run ----------------------------------------------------------------------------------------


class Numbers(Node):
    """Gives every item a number, which it should not."""

    def begin(self) -> None:
        self.number = 0

    def process(self, item: Any) -> None:
        self.number += 1
        self.push((self.number, item))


class Stateless(Numbers):
    stateless = True


@pytest.mark.parametrize(("node", "warned"), [(Numbers, 1), (Stateless, 0)])
def test_a_run_in_processes_warns_in_its_log(
    node: type[Node], warned: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Pipeline(node("numbers") | Map(str, "text")).run(
        range(100), mode="process", batch_size=10, state_dir=tmp_path / "state", sync="process"
    )

    captured = capfd.readouterr()
    assert (captured.out + captured.err).count("keeps data in self.number") == warned


@pytest.mark.parametrize("options", [{"mode": "thread"}, {"mode": "process", "robustness": "track"}])
def test_where_nothing_was_promised_nothing_is_told(options: Any, capfd: pytest.CaptureFixture[str]) -> None:
    Pipeline(Numbers("numbers") | Map(str, "text")).run(range(100), batch_size=10, **options)

    captured = capfd.readouterr()
    assert "keeps data" not in captured.out + captured.err
