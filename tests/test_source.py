from __future__ import annotations

from typing import Any

import pytest

from consecution import Map, Pipeline, Producer
from consecution.errors import SourceError, UsageError
from consecution.source import Source


class Numbers(Source):
    """As little as a source can be."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._at = 0

    def open(self, position: Any) -> None:
        self._at = position or 0

    def read(self, max_items: int) -> list[Any] | None:
        found = list(range(self._at, min(self._at + max_items, self._count)))
        self._at += len(found)
        return found or None

    def position(self) -> Any:
        return self._at


class OddPosition(Numbers):
    def position(self) -> Any:
        return {"at": self._at}


class NoPosition(Source):
    def read(self, max_items: int) -> list[Any] | None:
        return None


def test_what_must_be_defined_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"Source must define read\(self, max_items\)"):
        Source().read(1)
    with pytest.raises(NotImplementedError, match=r"NoPosition must define position\(self\)"):
        NoPosition().position()


def test_everything_else_may_be_left_out() -> None:
    source = NoPosition()

    source.open(None)
    source.batch_born(0, 1)
    source.batch_settled(0, 0, True)
    source.close()

    assert source.fileno() is None
    assert not source.in_parent
    assert not source.may_block


@pytest.mark.parametrize("mode", ["inline", "thread"])
def test_a_source_of_ones_own_is_read_and_resumed(tmp_path: Any, mode: str) -> None:
    seen: list[int] = []

    def see(item: int) -> None:
        seen.append(item)

    pipeline = Pipeline(Producer(Numbers(500)) | Map(see, name="see"))

    report = pipeline.run(mode=mode, state_dir=tmp_path / "state")

    assert (report.emitted, report.pending) == (500, 0)
    assert seen == list(range(500))
    assert pipeline.run(mode=mode, state_dir=tmp_path / "state").already_finished
    assert len(seen) == 500


@pytest.mark.parametrize("mode", ["inline", "thread"])
def test_a_position_of_an_odd_kind_is_refused_where_it_has_to_be_kept(tmp_path: Any, mode: str) -> None:
    pipeline = Pipeline(Producer(OddPosition(5)) | Map(str, name="text"))

    with pytest.raises((UsageError, SourceError), match=r"position of the source, \{'at': 5\}, cannot be kept"):
        pipeline.run(mode=mode, state_dir=tmp_path / "state")

    assert pipeline.run(mode=mode, robustness="track").completed == 5
