"""The keys that rows are ordered by: as a place in the journal, and whether they grow as they must.

A place is a list of [column, kind, value]: what the journal cannot hold as it is (`Decimal`, a date, a UUID) is
held as text or numbers that give back the very same value.

Times with a zone are compared in UTC: within a zone Python compares what clocks show, so that in the hour in which they
are set back later times may be smaller; and it says of the times of that hour that they equal none of another zone.
"""

from __future__ import annotations

import datetime
import decimal
import itertools
import operator
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from consecution.errors import SourceError

Key = tuple[Any, ...]
"""The values of the key's columns, in their order."""

LARGEST = 2**63
PLAIN = (bool, int, float, str, bytes)


def _timedelta_fields(value: datetime.timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _timedelta_of(fields: list[int]) -> datetime.timedelta:
    return datetime.timedelta(*fields)


KINDS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "decimal": (decimal.Decimal, str, decimal.Decimal),
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
    "timedelta": (datetime.timedelta, _timedelta_fields, _timedelta_of),
    "uuid": (uuid.UUID, str, uuid.UUID),
    "int": (int, str, int),
    "bytes": (bytearray, bytes, bytearray),
}
"""Kind → (type, to what the journal can hold, and back). A datetime is a date, too: the first that fits counts."""

NUMBERS = {bool, int, float, decimal.Decimal}
MOMENTS = (datetime.datetime, datetime.date)


def place_of(columns: Sequence[str], key: Key) -> list[Any]:
    """The key as a position of a source. SourceError for a value that cannot be one."""
    return [[column, *_encode(column, value)] for column, value in zip(columns, key, strict=True)]


def _encode(column: str, value: Any) -> tuple[str, Any]:
    if type(value) in PLAIN and not (type(value) is int and not -LARGEST <= value < LARGEST):
        return "", value
    for kind, (known, encode, _) in KINDS.items():
        if isinstance(value, known):
            return kind, encode(value)
    raise SourceError(
        f"the column {column!r} has a value of type {type(value).__name__}, which cannot be a place in the table: "
        "expected a number, text, bytes, a date or time, or a UUID; give another order_by, or cast it in a query"
    )


def key_at(columns: Sequence[str], place: Any) -> Key:
    """The key of a place; SourceError for one that was made with another order_by."""
    try:
        found = [column for column, _, _ in place]
        values = tuple(KINDS[kind][2](value) if kind else value for _, kind, value in place)
    except (TypeError, ValueError, KeyError) as error:
        raise SourceError(
            f"the position {place!r} is none of a sql source: give this pipeline its own state_dir, or start afresh "
            "with fresh=True"
        ) from error
    if found != list(columns):
        raise SourceError(
            f"order_by={list(columns)!r}, but the position {place!r} was taken with order_by={found!r}: give the run "
            "the same order_by, or start afresh with fresh=True"
        )
    return values


def in_utc(key: Key) -> Key:
    """The key with its times as they are to be compared."""
    return tuple(map(_in_utc, key))


def _in_utc(value: Any) -> Any:
    if not isinstance(value, datetime.datetime) or value.tzinfo is None:
        return value
    try:
        return value.astimezone(datetime.UTC)
    except OverflowError:  # In the first or the last hours there are: no zone sets its clocks there.
        return value


def _all_in_utc(values: Sequence[Any]) -> Sequence[Any]:
    has_times = any(issubclass(kind, datetime.datetime) for kind in set(map(type, values)))
    return list(map(_in_utc, values)) if has_times else values


def count_known(
    values: Sequence[Sequence[Any]], before: Key | None, where: str, columns: Sequence[str], *, again: bool = True
) -> int:
    """How many of these keys, which follow ``before``, were taken already: 0; or 1 where it was asked for ``again``.

    ``values`` are those of each column of the key, row by row. SourceError where the keys do not grow from row to
    row. The order of texts is the database's own: of these only those that are equal are found out.
    """
    values = list(map(_all_in_utc, values))
    before = None if before is None else in_utc(before)
    known = 1 if again and before is not None and tuple([column[0] for column in values]) == before else 0
    if len(values) == 1 and _clearly_grows(values[0] if before is None or known else [*before, *values[0]]):
        return known
    after = list(itertools.islice(zip(*values, strict=True), known, None))
    line = after if before is None else [before, *after]
    wrong = _first_that_does_not_grow(line)
    if wrong is None and before is not None and before in after:
        wrong = after.index(before)
    if wrong is None:
        return known
    pair = f"{_shown(line[wrong])} and then {_shown(line[wrong + 1])}"
    raise SourceError(
        f"{where}: order_by={list(columns)!r} does not tell the rows apart, or does not order them: there are "
        f"{pair}; add the columns of the primary key, as in order_by=[{columns[0]!r}, 'id']"
    )


def _shown(key: Key) -> str:
    return repr(key[0] if len(key) == 1 else key)


def _clearly_grows(values: Sequence[Any]) -> bool:
    """Whether each value is larger than the one before, in the eyes of every database. So none is there twice."""
    try:
        return _grows_everywhere(values) and all(map(operator.lt, values, itertools.islice(values, 1, None)))
    except TypeError:
        return False


def _first_that_does_not_grow(line: Sequence[Key]) -> int | None:
    """The place in the line whose successor is not larger."""
    wrong = operator.ge if all(map(_grows_everywhere, zip(*line, strict=True))) else operator.eq
    try:
        found = list(map(wrong, line, itertools.islice(line, 1, None)))
    except TypeError:  # A date with a zone, and one without.
        found = list(map(operator.eq, line, itertools.islice(line, 1, None)))
    return found.index(True) if True in found else None


def _grows_everywhere(values: Sequence[Any]) -> bool:
    """Whether every database orders such values as Python does."""
    kinds = set(map(type, values))
    return kinds <= NUMBERS or (len(kinds) == 1 and kinds.pop() in MOMENTS)
