from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from consecution import Map, Pipeline, Producer
from consecution.errors import UsageError
from consecution.source import Source
from consecution.sources.iterable import IterableSource
from consecution.sources.manual import ManualSource
from consecution.sources.pipe import PipeSource

ROOT = Path(__file__).parents[1]


class Own(Source):
    def __init__(self) -> None:
        self.closed = 0
        self._left = [1, 2]

    def open(self, position: Any) -> None:
        self._left = [1, 2]

    def read(self, max_items: int) -> list[Any] | None:
        found, self._left = self._left[:max_items], self._left[max_items:]
        return found or None

    def position(self) -> Any:
        return 2 - len(self._left)

    def close(self) -> None:
        self.closed += 1


def collected(producer: Producer) -> list[Any]:
    found: list[Any] = []
    Pipeline(producer | Map(found.append, name="collect")).consume()
    return found


@pytest.mark.parametrize(
    ("what", "options", "kind"),
    [
        ("pipe", {}, PipeSource),
        ("pipe", {"fd": 3, "max_line_bytes": 10}, PipeSource),
        ("pipe", {"format": "csv", "delimiter": ";"}, PipeSource),
        ("manual", {}, ManualSource),
        ("manual", {"max_waiting": 5}, ManualSource),
        ([1, 2], {}, IterableSource),
        (range(3), {}, IterableSource),
        (lambda: [1], {}, IterableSource),
        (io.StringIO("a\n"), {}, IterableSource),
        (Own(), {}, Own),
    ],
)
def test_it_makes_the_source_of_whatever_it_is_given(what: Any, options: dict[str, Any], kind: type) -> None:
    assert isinstance(Producer(what, **options).make_source(), kind)


@pytest.mark.parametrize("what", ["pipes", "", 7, None])
def test_what_is_no_source_is_refused_at_once(what: Any) -> None:
    with pytest.raises(UsageError, match=r"expected one of 'pipe', 'manual'|is not iterable"):
        Producer(what)


def test_an_unknown_option_is_refused_where_it_stands_and_lists_those_there_are() -> None:
    with pytest.raises(
        UsageError, match=r"Producer\('pipe'\): unknown option 'max_lines'; it takes fd, format, .*, max_line_bytes"
    ):
        Producer("pipe", max_lines=3)


def test_options_go_with_a_kind_only() -> None:
    with pytest.raises(UsageError, match=r"'x', fd=\.\.\. can go with a kind only; leave that out"):
        Producer([1], "x", fd=3)


def test_arguments_of_a_kind_are_those_of_its_source() -> None:
    with pytest.raises(
        UsageError, match=r"Producer\('manual'\): too many positional arguments; it takes manual\(max_w"
    ):
        Producer("manual", 5, 6)

    assert isinstance(Producer("manual", 5).make_source(), ManualSource)


def test_its_name_is_producer_unless_told() -> None:
    assert Producer([1]).name == "producer"
    assert Producer([1], name="numbers").name == "numbers"


def test_every_run_has_a_source_of_its_own_but_a_given_one_is_used_again() -> None:
    own = Own()
    producer, again = Producer([1]), Producer(own)

    assert producer.make_source() is not producer.make_source()
    own.may_block = True
    assert again.make_source() is own
    assert not own.may_block


@pytest.mark.parametrize("what", [[1, 2], (1, 2), range(1, 3), lambda: iter([1, 2]), {1: 0, 2: 0}, Own()])
def test_item_by_item_it_gives_all_items_every_time(what: Any) -> None:
    found: list[Any] = []
    pipeline = Pipeline(Producer(what) | Map(found.append, name="collect"))

    for _ in range(2):
        pipeline.consume()

    assert found == [1, 2, 1, 2]


def test_item_by_item_a_source_is_closed_however_it_ends() -> None:
    own = Own()
    collected(Producer(own))

    def fail(item: Any) -> None:
        raise KeyError(item)

    with pytest.raises(KeyError):
        Pipeline(Producer(own) | Map(fail, name="fail")).consume()

    assert own.closed == 2


def test_item_by_item_an_error_of_the_iterable_comes_as_it_is() -> None:
    def items() -> Any:
        yield 1
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        collected(Producer(items))


def test_item_by_item_lines_come_from_a_descriptor(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("a\nb\n")
    fd = os.open(tmp_path / "lines", os.O_RDONLY)

    assert collected(Producer("pipe", fd=fd)) == ["a", "b"]

    os.close(fd)


def test_item_by_item_nobody_could_push() -> None:
    with pytest.raises(
        UsageError, match=r"nobody pushes into a manual producer in consume\(\); use start\(\), or push"
    ):
        collected(Producer("manual"))


FILTER = """
from consecution import Map, Pipeline, Producer
Pipeline(Producer("pipe") | Map(str.upper, name="upper") | Map(print, name="show")).consume()
"""


def test_it_is_a_unix_filter() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FILTER], input=b"one\ntwo", stdout=subprocess.PIPE, timeout=30, check=True, cwd=ROOT
    )

    assert ran.stdout == b"ONE\nTWO\n"
