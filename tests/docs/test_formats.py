"""The page of formats names every table, record and message that is on disk or on the wire, with all of its fields."""

from __future__ import annotations

import inspect
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consecution.protocol.values import Frame
from consecution.runtime import durable_store, journal, journal_check, state, state_table
from consecution.runtime.durable_store import DurableStore
from consecution.runtime.journal import Journal
from consecution.sinks.database import MARKS
from consecution.sinks.sqlite import Sqlite
from consecution.sinks.text import TextLines
from consecution.transport import frames
from tests.docs.pages import ROOT, blocks_of

PAGE = ROOT / "docs" / "formats.md"
ROW = re.compile(r"^(?P<name>[a-z/]+) +(?P<key>\(.*?\)|-) +(?P<fields>\[.*\]|pickle .*)$", re.MULTILINE)
MESSAGE = re.compile(r"^(?P<name>[a-z]+) +\[(?P<number>\d+), .*\]", re.MULTILINE)


def table_block(mark: str) -> str:
    (block,) = [block for block in blocks_of(PAGE) if block.mark == mark]
    return block.body


def rows() -> dict[str, tuple[str, str]]:
    """Table or record → (its key, its fields), as the page has it."""
    return {row["name"]: (row["key"], row["fields"]) for row in ROW.finditer(table_block("records"))}


def count_fields(shown: str) -> int:
    """Fields between the outer brackets; a nested list is one field."""
    inner, depth, count = shown.strip()[1:-1], 0, 1
    for sign in inner:
        depth += {"[": 1, "]": -1}.get(sign, 0)
        count += sign == "," and depth == 0
    return count


def fields_of(is_right: Callable[[Any], bool]) -> int:
    """How many fields a check of `journal_check` wants; it keeps one check for each."""
    (kinds,) = [cell.cell_contents for cell in is_right.__closure__ or () if type(cell.cell_contents) is tuple]
    return len(kinds)


def key_sizes(shown: str) -> tuple[int, ...]:
    return tuple(int(size) for size in re.findall(r"\d+", shown))


def test_every_table_of_the_stores_is_described_and_no_other() -> None:
    described = {name.partition("/")[0] for name in rows()}

    assert described == {*DurableStore.tables, journal.NOTES}
    assert set(DurableStore.tables) == set(journal_check._DURABLE_TABLES)
    assert set(Journal.tables) == set(journal_check._TABLES)
    assert journal_check._MADE_LATER == (journal.NOTES,)


def test_every_record_has_the_fields_that_the_checker_wants() -> None:
    for name, (_, fields) in rows().items():
        if name in journal_check._PICKLED:
            continue
        assert count_fields(fields) == fields_of(journal_check._RECORDS[name]), name

    assert set(rows()) == {*journal_check._RECORDS, *journal_check._PICKLED}


def test_a_failed_item_has_the_fields_that_the_checker_wants() -> None:
    (line,) = [line for line in table_block("messages").splitlines() if line.startswith("failed ")]

    assert count_fields(line.removeprefix("failed").strip()) == fields_of(journal_check._is_failed)


def test_keys_have_the_lengths_that_the_page_says() -> None:
    for name, sizes in journal_check._KEY_BYTES.items():
        assert key_sizes(rows()[name][0]) == sizes, name

    assert struct.calcsize(durable_store._FRAME_KEY.format) == sum(journal_check._KEY_BYTES["inbox"])
    assert struct.calcsize(durable_store._ORIGIN_KEY.format) == sum(journal_check._KEY_BYTES["ledger"])
    assert struct.calcsize(journal._KEY.format) == sum(journal_check._KEY_BYTES["batches"])
    assert key_sizes(rows()["log"][0]) == (struct.calcsize(state_table._NUMBER.format),)
    assert key_sizes(rows()["state"][0])[0] == struct.calcsize(state_table._SLOT.format)


def test_every_message_of_the_wire_has_its_number_and_fields() -> None:
    block = table_block("messages")
    numbers = {match["name"]: int(match["number"]) for match in MESSAGE.finditer(block)}

    assert numbers == {
        "frame": frames.FRAME,
        "acks": frames.ACKS,
        "credits": frames.CREDITS,
        "gos": frames.GOS,
        "confirms": frames.CONFIRMS,
    }
    (line,) = [line for line in block.splitlines() if line.startswith("frame ")]
    shown = re.findall(r"[a-z_]+", line.partition("[")[2].partition("|")[0])
    # That it is whole shows in that it says how long tasks were at it.
    assert shown == [
        "target",
        *(name for name in Frame.__slots__ if name not in ("payload", "whole")),
        "or",
        "nil",
        "pieces",
    ]


@pytest.mark.parametrize("field", [*journal_check._MANIFEST_FIELDS, "checksum"])
def test_every_field_of_the_manifest_is_described(field: str) -> None:
    assert f"`{field}`" in PAGE.read_text()


def test_the_formats_have_the_number_that_the_page_says() -> None:
    assert {journal.FORMAT, journal_check.FORMAT, state.FORMAT} == {4}
    assert "format number is 4" in PAGE.read_text()


def test_the_table_of_marks_and_the_end_of_a_file_are_described() -> None:
    statement = inspect.getsource(Sqlite.read_mark)
    columns = re.findall(r"(\w+) \w+ NOT NULL", statement)
    shown = table_block("marks").splitlines()

    assert [shown[0], *(line.split()[0] for line in shown[1:])] == [MARKS, *columns]


def test_every_field_of_the_end_of_a_file_is_described(tmp_path: Path) -> None:
    sink = TextLines("file", tmp_path / "file.txt")
    sink.open()
    sink.cut_to(None)
    fields = sink.flush()
    sink.close()

    section = PAGE.read_text().partition("## Files")[2]
    assert [field for field in fields if f"`{field}`" not in section] == []
