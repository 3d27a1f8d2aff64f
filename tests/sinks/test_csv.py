from __future__ import annotations

import csv
import dataclasses
import gzip
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from consecution import Csv, Pipeline, Producer
from consecution.errors import UsageError


@dataclasses.dataclass
class Person:
    name: str
    born: int


class Point(NamedTuple):
    x: int
    y: int


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.csv"


def write(path: Path, *frames: list[Any], **options: Any) -> str:
    sink = Csv("sink", path, **options)
    sink.open()
    for items in frames:
        sink._write_frame(None, items)
    sink._close_for_good()
    return path.read_text()


@pytest.mark.parametrize(
    ("items", "options", "text"),
    [
        ([{"a": 1, "b": 2}, {"b": 4, "a": 3}], {}, "a,b\n1,2\n3,4\n"),
        ([{"a": 1}, {"b": 2}], {"columns": ["b", "a"]}, "b,a\n,1\n2,\n"),
        ([Person("Ada", 1815)], {}, "name,born\nAda,1815\n"),
        ([Person("Ada", 1815)], {"columns": "born"}, "born\n1815\n"),
        ([Point(1, 2), Point(3, 4)], {}, "x,y\n1,2\n3,4\n"),
        ([(1, None), [2, "x"]], {"columns": ["a", "b"]}, "a,b\n1,\n2,x\n"),
        ([(1, 2)], {"columns": ["a", "b"], "header": False}, "1,2\n"),
        ([(1, 2)], {"columns": ["a", "b"], "delimiter": ";"}, "a;b\n1;2\n"),
    ],
)
def test_rows_of_every_kind_stand_under_their_names(
    path: Path, items: list[Any], options: dict[str, Any], text: str
) -> None:
    assert write(path, items, **options) == text


def test_what_needs_quotes_comes_back(path: Path) -> None:
    held = ['say "no"', "a,b", "two\nlines", " ", "", "é"]

    write(path, [tuple(held)], columns=list("abcdef"))

    with path.open(newline="") as file:
        assert list(csv.reader(file))[1] == held


def test_a_carriage_return_is_quoted_in_names_too_and_comes_back(path: Path) -> None:
    items = [{"a\r": "x\ry", "b": 1}, {"a\r": "last\r\n", "b": 2}, {"a\r": "ok", "b": None}]
    read: list[Any] = []

    write(path, items)
    Pipeline(Producer("files", path, "csv") | read.append).run(mode="inline", robustness="track")

    assert path.read_bytes() == b'"a\r",b\n"x\ry",1\n"last\r\n",2\nok,\n'
    assert [row["a\r"] for row in read] == [item["a\r"] for item in items]


def test_the_header_stands_there_once_however_often_the_file_is_opened(path: Path) -> None:
    for number in (1, 2):
        write(path, [{"n": number}], [{"n": -number}])

    assert path.read_text() == "n\n1\n-1\n2\n-2\n"


def test_each_file_of_a_rotation_has_the_header_of_the_first_row(tmp_path: Path) -> None:
    sink = Csv("sink", tmp_path / "{number}.csv.gz", rotate_items=2)

    Pipeline(sink).run([{"a": 1, "b": 2}, {"b": 3}, {"b": 4}], mode="inline")

    assert gzip.decompress((tmp_path / "2.csv.gz").read_bytes()) == b"a,b\n,4\n"


def test_the_columns_outlive_the_process(tmp_path: Path) -> None:
    first = Csv("sink", tmp_path / "{number}.csv", rotate_items=1)
    first.open()
    first.write(None, [{"a": 1, "b": 2}])
    end = first.flush()
    first.close()

    again = Csv("sink", tmp_path / "{number}.csv", rotate_items=1)
    again.open()
    again.cut_to(end)
    again._write_frame(None, [{"b": 3}])
    again.close()

    assert (tmp_path / "2.csv").read_text() == "a,b\n,3\n"


@pytest.mark.parametrize(
    ("items", "options"),
    [
        ([{"a": 1}, {"a": 2, "b": 3}, {"a": 4}], {}),
        ([(1,), (2, 3), (4,)], {"columns": "a"}),
        ([{"a": 1}, "text", {"a": 4}], {}),
    ],
)
def test_a_row_that_does_not_fit_fails_alone(path: Path, items: list[Any], options: dict[str, Any]) -> None:
    report = Pipeline(Csv("sink", path, **options)).run(items, mode="inline", robustness="track")

    assert [failure.item for failure in report.failures] == [items[1]]
    assert path.read_text() == "a\n1\n4\n"


def test_rows_of_another_length_say_what_is_needed(path: Path) -> None:
    items = [(1, 2), (3,), (4, 5, 6), (7, 8)]

    report = Pipeline(Csv("sink", path, columns=["a", "b"])).run(items, mode="inline", robustness="track")

    assert [failure.error for failure in report.failures] == [
        f"UsageError: the row has {count} values; the columns are a, b: as many are needed" for count in (1, 3)
    ]


def test_an_empty_first_row_fails_alone_and_the_next_one_names_the_columns(path: Path) -> None:
    report = Pipeline(Csv("sink", path)).run([{}, {"a": 1}, {}], mode="inline", robustness="track")

    assert [failure.error for failure in report.failures] == [
        "UsageError: N(sink): the first row is an empty dict, and names no columns; leave it out, or give columns=[...]"
    ]
    assert path.read_text() == 'a\n1\n""\n'


@pytest.mark.parametrize("item", [(1, 2), 7, "text", []])
def test_a_first_row_without_names_is_refused(path: Path, item: Any) -> None:
    sink = Csv("sink", path)
    sink.open()

    with pytest.raises(UsageError, match=r"sink.*a row"):
        sink.write(None, [item])

    sink.close()


def test_a_file_with_other_columns_is_refused(path: Path) -> None:
    path.write_text("x,y\r\n1,2\r\n")

    with pytest.raises(UsageError, match=r"out\.csv begins with b'x,y'; expected the columns b'a,b'"):
        write(path, [{"a": 1, "b": 2}])
    write(path, [{"x": 3, "y": 4}])

    assert path.read_bytes() == b"x,y\r\n1,2\r\n3,4\n"


@pytest.mark.parametrize("delimiter", [";;", "", '"', "\n", "\r", None])
def test_a_delimiter_that_cannot_be_told_from_the_rest_is_refused_at_once(path: Path, delimiter: Any) -> None:
    with pytest.raises(UsageError, match=r"N\(sink\): delimiter=.*: expected one character, but no quote"):
        Csv("sink", path, delimiter=delimiter)


def test_half_a_row_that_the_file_ends_with_is_ended(path: Path) -> None:
    path.write_text("a\nhalf")

    assert write(path, [{"a": 1}]) == "a\nhalf\n1\n"
