"""What every bundled sink keeps, whatever it writes to."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import json
import lzma
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from consecution import Csv, JsonLines, Parquet, Pipeline, SqlSink, TextLines
from consecution.errors import UsageError
from consecution.protocol.values import BatchId
from consecution.sink import AppendSink, Sink

ROOT = Path(__file__).parents[2]
BATCH = BatchId("source.0@epoch", 7, 1, (0,))


class Row(NamedTuple):
    number: Any


def _read_table(folder: Path) -> list[Any]:
    connection = sqlite3.connect(folder / "out.db")
    try:
        return [number for (number,) in connection.execute("SELECT number FROM rows ORDER BY rowid")]
    finally:
        connection.close()


def _csv(folder: Path) -> list[Any]:
    header, *found = csv.reader((folder / "out.csv").read_text().splitlines())
    assert header == ["number"]
    return [int(number) for (number,) in found]


def _json_numbers(content: bytes) -> list[Any]:
    return [json.loads(line)[0] for line in content.splitlines()]


def _rotated(folder: Path) -> list[Any]:
    files = sorted(folder.glob("out-*"))
    return [number for file in files for number in _json_numbers(file.read_bytes())]


def _zst(content: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdDecompressor().stream_reader(content, read_across_frames=True).read()


def _parquet(folder: Path) -> list[Any]:
    """Complete files, and what waits to become one: whole batches, for a kill may have come in the middle of one."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    found = []
    for file in sorted(folder.glob("out-*")):
        if file.suffix == ".part":
            with contextlib.suppress(arrow.ArrowInvalid, OSError), arrow.ipc.open_stream(file) as stream:
                for batch in stream:
                    found += batch.to_pylist()
        elif file.suffix != ".making":  # Its rows are still in the part.
            found += parquet.read_table(file).to_pylist()
    return [row["number"] for row in found]


def _make_parquet(folder: Path) -> Sink:
    pytest.importorskip("pyarrow")
    return Parquet("sink", folder / "out-{number:06}.parquet", rotate_items=1000)


class Kind(NamedTuple):
    """A sink, how to read back the numbers it wrote, and an item it cannot take."""

    make: Callable[[Path], Sink]
    read: Callable[[Path], list[Any]]
    wrong: Any


KINDS = {
    "text": Kind(
        lambda folder: TextLines("sink", folder / "out.txt", format=lambda row: str(row.number)),
        lambda folder: [int(line) for line in (folder / "out.txt").read_text().splitlines()],
        "no row",
    ),
    "json": Kind(
        lambda folder: JsonLines("sink", folder / "out.jsonl"),
        lambda folder: [json.loads(line)[0] for line in (folder / "out.jsonl").read_text().splitlines()],
        Row(float("nan")),
    ),
    "csv": Kind(
        lambda folder: Csv("sink", folder / "out.csv"),
        _csv,
        (1, 2),
    ),
    **{
        f"json{suffix}": Kind(
            lambda folder, suffix=suffix: JsonLines("sink", folder / f"out.jsonl{suffix}"),
            lambda folder, suffix=suffix, unpack=unpack: _json_numbers(
                unpack((folder / f"out.jsonl{suffix}").read_bytes())
            ),
            Row(object()),
        )
        for suffix, unpack in {
            ".gz": gzip.decompress,
            ".bz2": bz2.decompress,
            ".xz": lzma.decompress,
            ".zst": _zst,
        }.items()
    },
    "rotated": Kind(
        lambda folder: JsonLines("sink", folder / "out-{number:06}.jsonl", rotate_items=1000), _rotated, Row({1, 2})
    ),
    "parquet": Kind(_make_parquet, _parquet, Row("no number")),
    "sql": Kind(
        lambda folder: SqlSink("sink", f"sqlite:///{folder / 'out.db'}", table="rows"),
        _read_table,
        Row(object()),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def sink(kind: Kind, tmp_path: Path) -> Any:
    made = kind.make(tmp_path)
    made.open()
    yield made
    made.close()


def rows(*numbers: Any) -> list[Row]:
    return [Row(number) for number in numbers]


def put(sink: Sink, items: list[Any]) -> None:
    """Write the items and make them safe, as engines do."""
    sink.write(BATCH, items)
    if isinstance(sink, AppendSink):
        sink.flush()
        sink.committed()


def test_what_was_made_safe_can_be_read_by_others_at_once(sink: Sink, kind: Kind, tmp_path: Path) -> None:
    put(sink, rows(3, 1))
    put(sink, rows(2))

    assert kind.read(tmp_path) == [3, 1, 2]


def test_opened_again_it_goes_on_behind_what_is_there(kind: Kind, tmp_path: Path) -> None:
    for numbers in ((1, 2), (3,)):
        sink = kind.make(tmp_path)
        sink.open()
        put(sink, rows(*numbers))
        sink.close()

    assert kind.read(tmp_path) == [1, 2, 3]


def test_one_object_may_be_used_in_several_runs(kind: Kind, tmp_path: Path) -> None:
    sink = kind.make(tmp_path)
    for number in (1, 2):
        sink.open()
        put(sink, rows(number))
        sink.close()
        sink.close()

    assert kind.read(tmp_path) == [1, 2]


def test_no_items_write_nothing(sink: Sink, kind: Kind, tmp_path: Path) -> None:
    put(sink, [])
    put(sink, rows(1))
    put(sink, [])

    assert kind.read(tmp_path) == [1]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_write_that_raises_has_written_nothing(sink: Sink, kind: Kind, tmp_path: Path, at: int) -> None:
    put(sink, rows(0))
    items: list[Any] = list(rows(1, 2))
    items.insert(at, kind.wrong)

    with pytest.raises(Exception):
        put(sink, items)

    assert kind.read(tmp_path) == [0]


@pytest.mark.parametrize("mode", ["inline", "thread"])
def test_a_wrong_item_fails_alone(kind: Kind, tmp_path: Path, mode: str) -> None:
    items = [*rows(1, 2), kind.wrong, *rows(3)]

    report = Pipeline(kind.make(tmp_path)).run(items, mode=mode, robustness="track")

    assert report.failed == 1
    assert [repr(failure.item) for failure in report.failures] == [repr(kind.wrong)]
    assert kind.read(tmp_path) == [1, 2, 3]


def test_a_folder_that_is_not_there_is_named(kind: Kind, tmp_path: Path) -> None:
    sink = kind.make(tmp_path / "nowhere")

    with pytest.raises(UsageError, match=r"sink.*: the folder .*nowhere does not exist; make it, or choose another"):
        sink.open()


def test_a_sink_that_was_never_opened_can_be_closed(kind: Kind, tmp_path: Path) -> None:
    kind.make(tmp_path).close()

    assert list(tmp_path.iterdir()) == []


def test_item_by_item_it_writes_the_same(kind: Kind, tmp_path: Path) -> None:
    Pipeline(kind.make(tmp_path)).consume(rows(*range(2500)))

    assert kind.read(tmp_path) == list(range(2500))


WRITES_FOR_EVER = """
import sys
from pathlib import Path
from tests.sinks.test_contract import KINDS, put, rows

sink = KINDS[sys.argv[1]].make(Path(sys.argv[2]))
sink.sync = sys.argv[3]
sink.open()
number = 0
while True:
    put(sink, rows(*range(number, number + 50)))
    number += 50
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("sync", ["power", "process"])
@pytest.mark.parametrize("name", KINDS)
def test_a_kill_9_loses_nothing_that_was_made_safe(tmp_path: Path, name: str, sync: str) -> None:
    arguments = [sys.executable, "-c", WRITES_FOR_EVER, name, str(tmp_path), sync]
    writer = subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=ROOT)
    assert writer.stdout is not None
    lines = [writer.stdout.readline() for _ in range(5)]

    writer.kill()
    lines += writer.stdout.read().splitlines(keepends=True)
    writer.stdout.close()
    writer.wait(timeout=10)

    told = max(int(line) for line in lines if line.endswith(b"\n"))
    sink = KINDS[name].make(tmp_path)
    sink.open()
    put(sink, rows(-1))
    sink.close()
    found = KINDS[name].read(tmp_path)
    assert found[: told + 1] in ([*range(told), -1], [*range(told), told])
    assert found[-1] == -1
