"""Every bundled file sink keeps the contract that `check_sink` holds all sinks to."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consecution import Csv, JsonLines, Parquet, Sink, TextLines
from consecution.testing.sinks import check_sink

ITEMS = [{"number": str(n), "text": f"item, {n}"} for n in range(60)]
BAD = {"number": 1, "other": object()}


def _lines(place: Path) -> list[Any]:
    return [json.loads(line) for line in (place / "out").read_text().splitlines()]


def _files(place: Path) -> list[Path]:
    """In the order of their numbers; the last may not be complete."""
    return sorted(place.glob("out-*"))


def _rotated(place: Path) -> list[Any]:
    return [json.loads(line) for path in _files(place) for line in path.read_text().splitlines()]


def _compressed(place: Path) -> list[Any]:
    return [json.loads(line) for line in gzip.decompress((place / "out.gz").read_bytes()).splitlines()]


def _csv(place: Path) -> list[Any]:
    return [row for path in _files(place) for row in csv.DictReader(path.read_text().splitlines())]


def _parquet(place: Path) -> list[Any]:
    parquet = pytest.importorskip("pyarrow.parquet")
    return [row for path in _files(place) for row in parquet.read_table(path).to_pylist()]


KINDS: dict[str, tuple[Callable[[Path], Sink], Callable[[Path], list[Any]]]] = {
    "text": (lambda place: TextLines("sink", place / "out", format=json.dumps), _lines),
    "json": (lambda place: JsonLines("sink", place / "out"), _lines),
    "rotated": (lambda place: JsonLines("sink", place / "out-{number:04}", rotate_bytes=300), _rotated),
    "compressed": (lambda place: JsonLines("sink", place / "out.gz"), _compressed),
    "csv": (lambda place: Csv("sink", place / "out-{number:04}", rotate_items=7), _csv),
    "parquet": (lambda place: Parquet("sink", place / "out-{number:04}", rotate_items=7), _parquet),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_the_contract(kind: str, tmp_path: Path) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    make, read_back = KINDS[kind]

    check_sink(make, read_back, ITEMS, bad=BAD, folder=tmp_path)
