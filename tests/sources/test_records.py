"""What a stream of bytes holds, however it is cut into blocks and wherever it is gone on with."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution.errors import SourceError, UsageError
from consecution.source import Rejected
from consecution.sources.records import RecordFormat, RecordStream


def stream_of(form: RecordFormat, position: Any = None) -> RecordStream:
    return RecordStream(form, "the stream", position, kind="pipe", max_line_bytes=1 << 20)


def read_blocks(
    stream: RecordStream, content: bytes, block_bytes: int, takes: Sequence[int] = ()
) -> tuple[list[Any], list[tuple[int, Any]]]:
    """All records, and (how many, position) after each take."""
    found: list[Any] = []
    positions = []
    sizes = iter([*takes, *[1000] * (len(content) + 2)])
    for start in range(stream.place.offset, len(content) + block_bytes, block_bytes):
        block = content[start : start + block_bytes]
        if block:
            stream.feed(block)
        else:
            stream.end()
        while stream:
            found += stream.take(next(sizes))
            positions.append((len(found), msgpack.unpackb(msgpack.packb(stream.position()))))
        if not block:
            break
    return found, positions


def read_all(content: bytes, format: str = "lines", block_bytes: int = 1 << 18, **options: Any) -> list[Any]:
    return read_blocks(stream_of(RecordFormat(format, **options)), content, block_bytes)[0]


def shown(found: list[Any]) -> list[Any]:
    """Rejected as what came and the beginning of what is wrong."""
    return [(item.item, str(item.error).partition("; found")[0]) if type(item) is Rejected else item for item in found]


# -- JSON ------------------------------------------------------------------------------------------


def test_each_line_is_a_json_value() -> None:
    content = '{"a": 1}\n[1, 2]\n"ü"\nnull\r\n3.5\n{"b": {}}'.encode()

    assert read_all(content, "ndjson") == [{"a": 1}, [1, 2], "ü", None, 3.5, {"b": {}}]


def test_a_bad_line_fails_alone_and_its_number_is_told() -> None:
    content = b'{"a": 1}\n\n{"a": }\n  {"b": 2}  \n1 2\n\xff\n3\n'

    assert shown(read_all(content, "ndjson")) == [
        {"a": 1},
        ('{"a": }', "the stream, line 3: expected a JSON value (Expecting value at column 7)"),
        {"b": 2},
        ("1 2", "the stream, line 5: expected a JSON value (Extra data at column 3)"),
        ("\udcff", "the stream, line 6: expected a JSON value (Expecting value at column 1)"),
        3,
    ]


@pytest.mark.parametrize("line", ["[" * 100_000, "1" * 5000, '"\\ud800', "nan", "{'a': 1}", "NaN"])
def test_whatever_a_line_is_it_takes_no_other_along(line: str) -> None:
    found = read_all(f"1\n{line}\n2\n".encode(), "ndjson")

    assert [type(item) for item in found] == [int, Rejected, int]


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_bad_input(constant: str) -> None:
    line = f'{{"celsius": [{constant}]}}'

    assert shown(read_all(f"1\n{line}\n2\n".encode(), "ndjson")) == [
        1,
        (line, f"the stream, line 2: expected a JSON value ({constant} is no JSON)"),
        2,
    ]


def test_an_error_shows_what_came_and_what_to_do() -> None:
    (rejected,) = read_all(b"no json\n", "ndjson")

    assert str(rejected.error) == (
        "the stream, line 1: expected a JSON value (Expecting value at column 1); found 'no json': mend it and put it "
        "back as the JSON value of the line, for it is not parsed again; the others went on without it"
    )


def test_an_error_of_a_row_says_that_a_dict_is_put_back() -> None:
    (rejected,) = read_all(b"id,n\n3,three,3\n", "csv")

    assert "found '3,three,3': mend it and put it back as a dict of the columns' texts, for it" in str(rejected.error)


def test_a_byte_order_mark_is_no_part_of_a_record() -> None:
    content = b"\xef\xbb\xbf" + b"1\n2\n"
    form = RecordFormat("ndjson")

    found, positions = read_blocks(stream_of(form), content, 100, [1, 1])

    assert found == [1, 2]
    assert positions == [(1, [5, 1]), (2, [7, 2])]
    assert read_blocks(stream_of(form, [5, 1]), content, 100)[0] == [2]
    assert read_all(b"\xef\xbb\xbfa,b\n1,2\n", "csv") == [{"a": "1", "b": "2"}]
    assert read_all(b"\xef\xbb\xbfa,b\n1,2\n", "csv", encoding="utf-8-sig") == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize("block_bytes", [1, 5, 100])
def test_a_byte_order_mark_is_no_part_of_a_line(block_bytes: int) -> None:
    content = b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n"
    form = RecordFormat()

    found, positions = read_blocks(stream_of(form), content, block_bytes, [1, 1])

    assert found == ["one", "\ufefftwo"]
    assert positions == [(1, 7), (2, 14)]
    assert read_blocks(stream_of(form, 7), content, block_bytes)[0] == ["\ufefftwo"]


@pytest.mark.parametrize("format", ["lines", "ndjson", "csv"])
def test_a_byte_order_mark_alone_is_no_record_and_is_read(format: str) -> None:
    stream = stream_of(RecordFormat(format))

    found, _ = read_blocks(stream, b"\xef\xbb\xbf", 100)

    assert found == []
    assert stream.place.offset == 3
    assert read_all(b"\xef\xbb\xbf\n") == [""]


# -- CSV -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [1, 5, 9, 100])
def test_a_byte_order_mark_counts_also_where_the_first_row_is_cut(block_bytes: int) -> None:
    content = b'\xef\xbb\xbf"a\nb",1\n2,3\n'
    form = RecordFormat("csv", columns=["x", "y"], header=False)

    found, positions = read_blocks(stream_of(form), content, block_bytes, [1, 1])

    assert found == [{"x": "a\nb", "y": "1"}, {"x": "2", "y": "3"}]
    assert [position[:2] for _, position in positions] == [[11, 2], [15, 3]]
    assert read_blocks(stream_of(form, positions[0][1]), content, block_bytes)[0] == found[1:]


def test_rows_become_dicts_by_their_header() -> None:
    content = b'a,b\r\n1,2\r\n\r\n"x, ""y""","two\nlines"\n,'

    assert read_all(content, "csv") == [{"a": "1", "b": "2"}, {"a": 'x, "y"', "b": "two\nlines"}, {"a": "", "b": ""}]


def test_names_may_be_given_with_a_header_or_without() -> None:
    content = b"a;b\n1;2\n"

    assert read_all(content, "csv", delimiter=";", columns=["x", "y"]) == [{"x": "1", "y": "2"}]
    assert read_all(content, "csv", delimiter=";", columns=["x", "y"], header=False) == [
        {"x": "a", "y": "b"},
        {"x": "1", "y": "2"},
    ]


def test_a_bad_row_fails_alone() -> None:
    content = b'a,b\n1,2\n1,2,3\n"q"q,2\n3,4\n"never closed,5\n6,7\n8\n9,10\n'

    for block_bytes in (1, 7, 1000):
        assert shown(read_all(content, "csv", block_bytes)) == [
            {"a": "1", "b": "2"},
            ("1,2,3", "the stream, line 3: expected 2 fields (a, b), found 3"),
            ('"q"q,2', "the stream, line 4: ',' expected after '\"'"),
            {"a": "3", "b": "4"},
            ('"never closed,5', "the stream, line 6: a quote that is opened here is not closed"),
            {"a": "6", "b": "7"},
            ("8", "the stream, line 8: expected 2 fields (a, b), found 1"),
            {"a": "9", "b": "10"},
        ]


def test_a_row_of_many_lines_that_has_too_many_fields_fails_as_a_whole() -> None:
    assert shown(read_all(b'a\n"1\n2",3\n4\n', "csv")) == [
        ('"1\n2",3', "the stream, line 2: expected 1 fields (a), found 2"),
        {"a": "4"},
    ]


def test_a_quote_that_is_never_closed_takes_no_row_along() -> None:
    rows = [f"{n},text {n}" for n in range(30_000)]
    content = "\n".join(["a,b", '"open,1', *rows]).encode()
    stream = stream_of(RecordFormat("csv"))

    found, _ = read_blocks(stream, content, 1 << 15)

    assert [type(item) for item in found] == [Rejected] + [dict] * 30_000
    assert "line 2: a quote that is opened here is not closed" in str(found[0].error)


def test_fields_may_be_as_large_as_a_line() -> None:
    large = [{"a": "of, many\nlines " * 20_000, "b": "1"}, {"a": 'with "quotes" ' * 20_000, "b": "2\n"}]
    rows = [*large, {"a": "x" * 200_000, "b": "3"}]
    text = io.StringIO()
    csv.writer(text).writerows([("a", "b"), *(row.values() for row in rows)])
    content = text.getvalue().encode()

    found, positions = read_blocks(stream_of(RecordFormat("csv")), content, 1 << 15)

    assert found == rows
    assert read_blocks(stream_of(RecordFormat("csv"), positions[0][1]), content, 1 << 15)[0] == rows[positions[0][0] :]


def test_a_row_that_is_larger_than_a_line_may_be_is_an_error_and_its_lines_are_no_rows() -> None:
    content = b'a,b\n1,2\n"' + b"3,4\n" * 600_000
    stream = stream_of(RecordFormat("csv"))
    found: list[Any] = []

    def read_on() -> None:
        for start in range(0, len(content), 1 << 15):
            stream.feed(content[start : start + (1 << 15)])
            found.extend(stream.take(9))

    with pytest.raises(SourceError, match=r", line 3: .* a row of more than 1048576 bytes, after byte 8: is a quote "):
        read_on()
    assert found == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize("line", [b"3,4\n", b'""quoted""\n'], ids=["without quotes", "with quotes"])
def test_a_row_that_goes_on_through_many_blocks_is_not_read_again_with_each(
    line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b'a,b\n"' + line * (1_000_000 // len(line)) + b'",7\n'
    form = RecordFormat("csv")
    parse, parsed = form.parse, []

    def count(block: bytes, *arguments: Any, **options: Any) -> Any:
        parsed.append(len(block))
        return parse(block, *arguments, **options)

    monkeypatch.setattr(form, "parse", count)

    found, _ = read_blocks(stream_of(form), content, 1 << 15)

    assert [row["b"] for row in found] == ["7"]
    assert sum(parsed) < 4 * len(content)


def test_a_row_with_a_stray_quote_comes_all_the_same() -> None:
    row = {"a": "x\n" * 100_000, "b": 'y"y'}
    content = b'a,b\n"' + row["a"].encode() + b'",y"y\n' + b"1,2\n" * 100_000

    found = read_all(content, "csv", 1 << 15)

    assert found == [row] + [{"a": "1", "b": "2"}] * 100_000


@pytest.mark.parametrize(
    ("content", "options", "problem"),
    [
        (b"a,b,a\n1,2,3\n", {}, "line 1: the header 'a,b,a' cannot be used: it has the column 'a' more than once"),
        (b'\n"a"b,c\n1,2\n', {}, "line 2: the header '\"a\"b,c' cannot be used: ',' expected after"),
        (b'"a,b\n1,2\n', {}, "line 1: .* cannot be used: a quote that is opened here is not closed"),
        (b"a,b\n", {"columns": ["x"]}, r"cannot be used: it has 2 fields, columns=\['x'\] has 1"),
    ],
)
def test_a_header_that_cannot_be_used_is_an_error(content: bytes, options: Any, problem: str) -> None:
    with pytest.raises(SourceError, match=problem):
        read_all(content, "csv", **options)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"format": "json"}, "format='json': expected one of 'lines', 'ndjson', 'csv'"),
        ({"format": "lines", "delimiter": ";"}, "delimiter, columns and header go with format='csv'"),
        ({"format": "csv", "delimiter": "||"}, "expected one character"),
        ({"format": "csv", "header": False}, "give the names of the columns"),
        ({"format": "csv", "columns": ["a", "a"]}, "expected a list of the columns' names, each once"),
        ({"format": "csv", "columns": "ab"}, "expected a list of the columns' names, each once"),
        ({"encoding": "utf-16"}, "does not write newlines and ASCII as single bytes"),
        *[
            ({"encoding": name}, f"encoding='{name}': what is ASCII may begin something else in it; convert the file")
            for name in ("iso2022_jp", "utf-7", "hz", "idna", "raw_unicode_escape")
        ],
        ({"encoding": "klingon"}, "unknown encoding: klingon"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        RecordFormat(**options)


def test_other_encodings() -> None:
    content = "Größe,Preis €\n".encode("cp1252")

    assert read_all(content, encoding="cp1252") == ["Größe,Preis €"]
    assert read_all(content + b"1,2\n", "csv", encoding="cp1252") == [{"Größe": "1", "Preis €": "2"}]
    assert read_all(b"\x81\n", encoding="cp1252") == ["\udc81"]


@pytest.mark.parametrize("block_bytes", [1, 5, 1000])
@pytest.mark.parametrize("format", ["lines", "csv"])
def test_a_line_that_is_too_long_is_an_error_however_much_of_it_comes_at_once(format: str, block_bytes: int) -> None:
    form = RecordFormat(format, **({"columns": ["x"], "header": False} if format == "csv" else {}))
    stream = RecordStream(form, "the stream", None, kind="pipe", max_line_bytes=9)
    content = b"1\n123456789\n1234567890\n3\n"
    found: list[Any] = []

    def read_on() -> None:
        for start in range(0, len(content), block_bytes):
            stream.feed(content[start : start + block_bytes])
            found.extend(stream.take(9))

    with pytest.raises(SourceError, match=r"has a line of more than 9 bytes, after byte 12: .* raise max_line_bytes"):
        read_on()
    found += stream.take(9)

    assert [item if format == "lines" else item["x"] for item in found] == ["1", "123456789"]
    assert stream.place.offset == 12


# -- wherever it is cut ----------------------------------------------------------------------------

JSON_LINES = st.lists(
    st.one_of(
        st.recursive(st.none() | st.integers() | st.text(max_size=4), lambda inner: st.lists(inner, max_size=3)).map(
            lambda value: json.dumps(value, ensure_ascii=False)
        ),
        st.sampled_from(["", "  ", " 7 ", "bad", "1 2", "{", "\x0b", "é\u2028"]),
    ),
    max_size=8,
)
CSV_ROWS = st.lists(st.tuples(*[st.text('ab\n",é ', max_size=4)] * 2), max_size=8)
SPOILED = st.lists(st.sampled_from(["1,2", '"', '"a', 'b"', "1", "", '"x\ny",2', "é,é", '""', ","]), max_size=8)


def check_cuts(form: RecordFormat, content: bytes, block_bytes: int, takes: list[int]) -> list[Any]:
    """The records, which are the same in one block, in small ones, and from any position on."""
    whole, _ = read_blocks(stream_of(form), content, len(content) + 1)

    found, positions = read_blocks(stream_of(form), content, block_bytes, takes)

    assert shown(found) == shown(whole)
    for count, position in positions:
        rest, _ = read_blocks(stream_of(form, position), content, block_bytes)
        assert shown(rest) == shown(whole[count:])
    return whole


CUTS = {"block_bytes": st.integers(1, 30), "takes": st.lists(st.integers(1, 3), max_size=9)}


@settings(deadline=None, max_examples=80)
@given(lines=JSON_LINES, newline=st.booleans(), **CUTS)
def test_json_is_the_same_wherever_it_is_cut(
    lines: list[str], newline: bool, block_bytes: int, takes: list[int]
) -> None:
    content = ("\n".join(lines) + "\n" * newline).encode()

    found = check_cuts(RecordFormat("ndjson"), content, block_bytes, takes)

    expected: list[Any] = []
    for line in lines:
        try:
            expected.append(json.loads(line))
        except ValueError:
            if line.strip():
                expected.append(line)
    assert [item.item if type(item) is Rejected else item for item in found] == expected


@settings(deadline=None, max_examples=80)
@given(rows=CSV_ROWS, newline=st.sampled_from(["\n", "\r\n"]), **CUTS)
def test_good_csv_is_what_python_reads(
    rows: list[tuple[str, str]], newline: str, block_bytes: int, takes: list[int]
) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator=newline).writerows([("x", "y"), *rows])

    found = check_cuts(RecordFormat("csv"), text.getvalue().encode(), block_bytes, takes)

    assert found == [{"x": x, "y": y} for x, y in rows]


@settings(deadline=None, max_examples=80)
@given(lines=SPOILED, **CUTS)
def test_spoiled_csv_loses_nothing_wherever_it_is_cut(lines: list[str], block_bytes: int, takes: list[int]) -> None:
    content = "\n".join(["x,y", *lines, "good,row", "good,row", ""]).encode()

    found = check_cuts(RecordFormat("csv"), content, block_bytes, takes)

    kept = "\n".join(item.item if type(item) is Rejected else ",".join(item.values()) for item in found)
    for letter in "ab12xyé":
        assert kept.count(letter) == "\n".join(lines).count(letter)
