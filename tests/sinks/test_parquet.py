from __future__ import annotations

import dataclasses
import datetime
import math
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from consecution import Parquet, Pipeline, Producer
from consecution.errors import UsageError, WorldError

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

DAY = datetime.date(2020, 1, 1)
NOON = datetime.datetime(2020, 1, 1, 12)
EAST = datetime.timezone(datetime.timedelta(hours=5))


@dataclasses.dataclass
class Person:
    name: str
    born: int


class Point(NamedTuple):
    x: int
    y: float


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return found


@pytest.mark.parametrize(
    ("items", "options", "expected"),
    [
        ([{"a": 1, "b": "x"}, {"a": None, "b": "y"}], {}, [{"a": 1, "b": "x"}, {"a": None, "b": "y"}]),
        ([Person("Ada", 1815)], {}, [{"name": "Ada", "born": 1815}]),
        ([Point(1, 2.5)], {}, [{"x": 1, "y": 2.5}]),
        ([(1, [2, 3])], {"columns": ["a", "b"]}, [{"a": 1, "b": [2, 3]}]),
    ],
)
def test_rows_of_every_kind_become_a_file_at_the_end(
    path: Path, items: list[Any], options: dict[str, Any], expected: list[Any]
) -> None:
    Pipeline(Parquet("sink", path, **options)).run(items, mode="inline")

    assert rows(path) == expected
    assert [file.name for file in path.parent.iterdir()] == ["out.parquet"]


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
@pytest.mark.parametrize("robustness", ["track", "robust"])
def test_row_groups_do_not_depend_on_frames(tmp_path: Path, mode: str, robustness: str) -> None:
    made = []
    for batch_size in (7, 1000):
        folder = tmp_path / str(batch_size)
        folder.mkdir()
        sink = Parquet("sink", folder / "{number}.parquet", rotate_items=400, row_group_rows=150)
        graph = Producer(range(1000)) | (lambda n: {"n": n}) | sink
        Pipeline(graph).run(mode=mode, robustness=robustness, batch_size=batch_size)
        made.append({file.name: file.read_bytes() for file in folder.iterdir()})

    assert made[0] == made[1]
    assert sorted(made[0]) == ["1.parquet", "2.parquet", "3.parquet"]
    found = parquet.ParquetFile(tmp_path / "7" / "1.parquet").metadata
    assert [found.row_group(i).num_rows for i in range(found.num_row_groups)] == [150, 150, 100]
    assert [row["n"] for n in (1, 2, 3) for row in rows(tmp_path / "7" / f"{n}.parquet")] == list(range(1000))


def test_what_does_not_fit_the_types_fails_alone(path: Path) -> None:
    items = [{"a": 1}, {"a": "text"}, {"a": 2}, {"b": 1}]

    report = Pipeline(Parquet("sink", path, schema=arrow.schema([("a", arrow.int64())]))).run(
        items, mode="inline", retries=0
    )

    assert [failure.item for failure in report.failures] == [{"a": "text"}, {"b": 1}]
    assert rows(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("first", "wrong", "told"),
    [
        (1, 2.5, "expected int64, the type of the first rows; found float 2.5, of which 2 would be left"),
        (1, "text", "expected int64, .*found str 'text'"),
        (1.5, 2**53 + 1, "expected double, .*found int 9007199254740993"),
        (1.5, True, "expected double, .*found bool True, of which 1.0 would be left"),
        (1.5, math.inf, None),
        (1.5, 2, None),
        (1, 2.0, None),
        ("a", b"b", r"expected string, .*found bytes b'b'"),
        (b"a", "b", "expected binary, .*found str 'b'"),
        (DAY, datetime.datetime(2020, 1, 2, 13), "expected date32.*found datetime"),
        (NOON, NOON.replace(tzinfo=EAST), r"expected timestamp\[us\], .*found datetime"),
        (NOON.replace(tzinfo=EAST), NOON, r"expected timestamp\[us, tz=.*found datetime"),
        (NOON.replace(tzinfo=EAST), NOON.replace(tzinfo=datetime.UTC), None),
        (NOON.time(), NOON.time().replace(tzinfo=EAST), "expected time64.*found time"),
        (datetime.timedelta(1), datetime.timedelta(microseconds=1), None),
        (Decimal("1.5"), Decimal("2.25"), "expected decimal128.*found Decimal"),
        ({"x": 1}, {"x": 2, "y": "lost"}, r"expected struct<x: int64>, .*found dict .*, of which \{'x': 2\}"),
        ({"x": 1}, {"x": 2.5}, "expected struct<x: int64>"),
        ({"x": 1, "y": 2}, {"y": None}, None),
        ([1], [2, 2.5], "expected list"),
        ([{"x": 1}], [{"x": 1, "z": 3}], "expected list<.*found list"),
        ([1], (2, None), None),
        ([], ["a"], "expected list"),
    ],
)
def test_a_value_is_held_as_it_is_or_fails_alone(path: Path, first: Any, wrong: Any, told: str | None) -> None:
    items = [{"a": first}, {"a": wrong}, {"a": None}, {"a": first}]

    report = Pipeline(Parquet("sink", path)).run(items, mode="inline", robustness="track", batch_size=1)

    held = [row["a"] for row in rows(path)]
    assert [failure.item for failure in report.failures] == ([items[1]] if told else [])
    assert len(held) == 4 - report.failed
    if told:
        assert re.search(f"column 'a': {told}", report.failures[0].error)
    elif not isinstance(wrong, tuple | dict):
        assert held[1] == wrong


def test_values_of_several_types_in_the_first_rows_are_told_with_their_column(path: Path) -> None:
    items = [{"a": DAY}, {"a": NOON}]

    report = Pipeline(Parquet("sink", path)).run(items, mode="inline", robustness="track", batch_size=2)

    assert [failure.item for failure in report.failures] == items[1:]
    assert rows(path) == items[:1]


def test_numbers_and_times_of_numpy_are_held_as_they_are(path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    good = {"i": numpy.int8(3), "t": numpy.datetime64("2020-01-01T12", "us"), "l": numpy.array([1, 2])}
    items = [{"i": 1, "t": NOON, "l": [3]}, good, {**good, "i": numpy.float64(1.5)}, {**good, "l": numpy.array([1.5])}]

    report = Pipeline(Parquet("sink", path)).run(items, mode="inline", robustness="track", batch_size=1)

    assert report.failed == 2
    assert rows(path)[1] == {"i": 3, "t": NOON, "l": [1, 2]}


@pytest.mark.parametrize(
    ("kind", "value", "held"),
    [
        (arrow.float32(), 0.1, True),
        (arrow.float32(), 1e300, False),
        (arrow.list_(arrow.float32()), [0.1, 2, None], True),
        (arrow.list_(arrow.float32()), [1e300], False),
        (arrow.timestamp("us"), 5, True),
        (arrow.timestamp("us"), 5.5, False),
        (arrow.timestamp("s"), NOON, True),
        (arrow.timestamp("s"), NOON.replace(microsecond=1), False),
        (arrow.map_(arrow.string(), arrow.int64()), {"k": 1}, True),
        (arrow.map_(arrow.string(), arrow.int64()), {"k": 1.5}, False),
        (arrow.struct([("x", arrow.int64())]), [("x", 1)], True),
        (arrow.struct([("x", arrow.int64())]), [("x", 1), ("z", 2)], False),
        (arrow.int8(), 300, False),
    ],
    ids=str,
)
def test_what_a_schema_asks_for_is_done_and_nothing_else(path: Path, kind: Any, value: Any, held: bool) -> None:
    sink = Parquet("sink", path, schema=arrow.schema([("a", kind)]))

    report = Pipeline(sink).run([{"a": None}, {"a": value}], mode="inline", robustness="track", batch_size=1)

    assert report.failed == (not held)
    if not held:
        assert "that of the schema" in report.failures[0].error


def test_none_in_a_column_that_must_not_hold_it_fails_alone(path: Path) -> None:
    sink = Parquet("sink", path, schema=arrow.schema([arrow.field("a", arrow.int64(), nullable=False)]))

    report = Pipeline(sink).run([{"a": 1}, {"a": None}], mode="inline", robustness="track")

    assert [failure.item for failure in report.failures] == [{"a": None}]
    assert rows(path) == [{"a": 1}]


STRICT = arrow.struct([arrow.field("x", arrow.int64(), nullable=False)])
STRICT_ITEM = arrow.field("item", arrow.int64(), nullable=False)


@pytest.mark.parametrize(
    ("kind", "held", "refused"),
    [
        (STRICT, [{"x": 1}, None, {"x": 2}], {"x": None}),
        (STRICT, [{"x": 1}, None], {}),
        (arrow.list_(STRICT_ITEM), [[1], None, []], [2, None]),
        (arrow.large_list(STRICT_ITEM), [[1], None, []], [2, None]),
        (arrow.list_(STRICT_ITEM, 2), [[1, 2], None], [3, None]),
        (arrow.map_(arrow.string(), STRICT_ITEM), [[("k", 1)], None, []], [("k", None)]),
        (arrow.list_(STRICT), [[None, {"x": 1}], None], [{"x": None}]),
        (arrow.struct([arrow.field("y", STRICT)]), [{"y": {"x": 1}}, {"y": None}, None], {"y": {"x": None}}),
        (arrow.struct([arrow.field("y", STRICT, nullable=False)]), [{"y": {"x": 1}}, None], {"y": None}),
    ],
    ids=str,
)
def test_none_inside_a_value_that_must_not_hold_it_fails_alone(
    path: Path, kind: Any, held: list[Any], refused: Any
) -> None:
    items = [{"a": value} for value in [*held, refused, *held]]

    report = Pipeline(Parquet("sink", path, schema=arrow.schema([("a", kind)]))).run(items, mode="inline", retries=0)

    assert [failure.item for failure in report.failures] == [{"a": refused}]
    assert re.search(r"column 'a': found None in '\w+', and the schema says nullable=False", report.failures[0].error)
    assert rows(path) == [{"a": value} for value in [*held, *held]]


def test_an_empty_first_row_fails_alone_and_the_next_one_names_the_columns(path: Path) -> None:
    report = Pipeline(Parquet("sink", path)).run([{}, {"a": 1}, {}], mode="inline", robustness="track")

    assert [failure.item for failure in report.failures] == [{}]
    assert "the first row is an empty dict, and names no columns" in report.failures[0].error
    assert rows(path) == [{"a": 1}, {"a": None}]


@pytest.mark.parametrize(
    "kind",
    [
        arrow.dictionary(arrow.int32(), arrow.string()),
        arrow.list_(arrow.dictionary(arrow.int32(), arrow.string())),
        arrow.struct([]),
        arrow.run_end_encoded(arrow.int32(), arrow.int64()),
    ],
    ids=str,
)
def test_a_type_that_no_parquet_file_holds_is_refused_before_rows_come(path: Path, kind: Any) -> None:
    sink = Parquet("sink", path, schema=arrow.schema([("a", arrow.int64()), ("b", kind)]))

    with pytest.raises(UsageError, match=r"sink.*column 'b': expected a type that a Parquet file holds, found "):
        Pipeline(sink).run([{"a": 1, "b": None}], mode="inline")


def test_first_rows_of_a_type_that_no_parquet_file_holds_fail_and_others_are_written(path: Path) -> None:
    items = [{"a": {}}, {"a": {}}, {"a": {"x": 1}}]

    report = Pipeline(Parquet("sink", path)).run(items, mode="inline", batch_size=1, retries=0)

    assert [failure.item for failure in report.failures] == items[:2]
    assert "column 'a': expected a type that a Parquet file holds, found struct<>" in report.failures[0].error
    assert rows(path) == items[2:]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compression": "snapy"}, "compression='snapy': expected one that pyarrow has"),
        ({"compression": "lzo"}, "compression='lzo': expected one that pyarrow has"),
        ({"compression": 5}, "compression=5: expected one that pyarrow has"),
        ({"schema": {"a": "int64"}}, "schema={'a': 'int64'}: expected a pyarrow.Schema"),
        ({"row_group_rows": 0}, "row_group_rows=0: expected a whole number of at least 1"),
        ({"row_group_rows": "many"}, "row_group_rows='many': expected a whole number of at least 1"),
    ],
)
def test_what_no_file_could_be_made_with_is_refused_before_rows_come(
    path: Path, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=f"sink.*{re.escape(reason)}"):
        Pipeline(Parquet("sink", path, **options)).run([{"a": 1}], mode="inline")


def test_a_schema_without_columns_is_told(path: Path) -> None:
    report = Pipeline(Parquet("sink", path, schema=arrow.schema([]))).run([{"a": 1}], mode="inline", retries=0)

    assert "expected a schema with columns, found one without" in report.failures[0].error


def test_rows_of_another_length_fail_alone_and_say_what_is_needed(path: Path) -> None:
    items = [(1, 2), (3,), (4, 5, 6), (7, 8)]

    report = Pipeline(Parquet("sink", path, columns=["a", "b"])).run(items, mode="inline", robustness="track")

    assert [failure.error for failure in report.failures] == [
        f"UsageError: the row has {count} values; the columns are a, b: as many are needed" for count in (1, 3)
    ]
    assert rows(path) == [{"a": 1, "b": 2}, {"a": 7, "b": 8}]


def test_a_column_of_none_asks_for_a_schema(path: Path) -> None:
    sink = Parquet("sink", path)
    sink.open()

    with pytest.raises(UsageError, match=r"sink.*only None in column 'a': give schema=pyarrow\.schema"):
        sink.write(None, [{"a": None}])

    sink.close()


def test_the_types_outlive_the_process(tmp_path: Path) -> None:
    def opened(end: Any) -> Parquet:
        sink = Parquet("sink", tmp_path / "{number}.parquet", rotate_items=1)
        sink.open()
        sink.cut_to(end)
        return sink

    first = opened(None)
    first.write(None, [{"a": 1.5}])
    end = first.flush()
    first.close()
    again = opened(end)
    again._write_frame(None, [{"a": 2}])
    again.close()

    assert [parquet.read_table(tmp_path / f"{n}.parquet").schema.field("a").type for n in (1, 2)] == [
        arrow.float64()
    ] * 2


def test_after_a_first_write_that_failed_the_next_one_begins_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError("broken disk")

    sink = Parquet("sink", path)
    sink.open()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(WorldError, match="broken disk"):
            sink._write_frame(None, [{"a": 1}])
    sink._write_frame(None, [{"a": 2}])
    sink._close_for_good()

    assert rows(path) == [{"a": 2}]


def test_a_crash_between_the_file_and_the_end_of_its_part_is_made_up_for(path: Path) -> None:
    first = Parquet("sink", path)
    first.open()
    first.cut_to(None)
    first.write(None, [{"a": 1}])
    first.complete(ended=True)
    end = first.flush()
    part = path.with_name("out.parquet.part").read_bytes()
    first.committed()
    first.close()
    path.with_name("out.parquet.part").write_bytes(part)

    again = Parquet("sink", path)
    again.open()
    again.cut_to(end)
    again.close()

    assert rows(path) == [{"a": 1}]
    assert os.listdir(path.parent) == ["out.parquet"]


def test_a_foreign_file_is_neither_added_to_nor_overwritten(path: Path) -> None:
    path.write_text("mine")

    with pytest.raises(Exception, match=r"out\.parquet is there already, and a file of this kind cannot be added to"):
        Pipeline(Parquet("sink", path)).run([{"a": 1}], mode="inline", retries=0)

    assert path.read_text() == "mine"


def test_a_file_that_appears_meanwhile_is_not_overwritten(path: Path) -> None:
    sink = Parquet("sink", path)
    sink.open()
    sink.write(None, [{"a": 1}])
    path.write_text("mine")

    with pytest.raises(WorldError, match=r"there is a file .* that this sink has not made"):
        sink._close_for_good()

    assert path.read_text() == "mine"
    assert sorted(os.listdir(path.parent)) == ["out.parquet", "out.parquet.part"]


def test_a_run_that_was_stopped_keeps_its_rows_for_the_next(path: Path) -> None:
    def start() -> Any:
        graph = Producer("manual") | Parquet("sink", path)
        return Pipeline(graph).start(mode="inline", state_dir=path.parent / "state")

    with start() as running:
        running.push({"a": 1})
        running.stop()
    assert not path.exists()
    with start() as running:
        running.push({"a": 2})
        running.wait()

    assert rows(path) == [{"a": 1}, {"a": 2}]


def test_rotation_by_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Parquet 'sink': rotate_bytes does not go with Parquet files"):
        Parquet("sink", tmp_path / "{number}", rotate_bytes=1000)
