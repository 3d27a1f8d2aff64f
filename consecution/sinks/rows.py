"""What a row is: how items of several kinds become values in the order of the columns."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from consecution.calling import call_each
from consecution.errors import UsageError

Row = Sequence[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """What the first row was, and so what all must be."""

    kind: type
    columns: tuple[str, ...]
    values_of: Callable[[Any], Row]
    as_they_are: bool

    def rows_of(self, items: list[Any]) -> Iterable[Row]:
        """The values of each item, in the order of the columns."""
        if self.as_they_are and self._are_complete(items):
            return items
        if self._are_alike(items):
            get = operator.itemgetter(*self.columns)
            with contextlib.suppress(KeyError):
                return list(map(get, items)) if len(self.columns) > 1 else list(zip(map(get, items)))
        try:
            return call_each(self.values_of, items)
        except AttributeError as error:
            if type(error.obj) is self.kind or not any(item is error.obj for item in items):
                raise
            found = type(error.obj).__name__
            raise UsageError(f"expected a {self.kind.__name__} as the rows before, found {found}") from error

    def columns_of(self, items: list[Any]) -> list[Sequence[Any]]:
        """The values of each column, in the order of the items."""
        if self._are_alike(items):
            with contextlib.suppress(KeyError):
                return [list(map(operator.itemgetter(column), items)) for column in self.columns]
        return list(zip(*self.rows_of(items), strict=True))

    def widened(self, items: list[Any]) -> Shape | None:
        """A shape that has the columns, too, which dicts among these bring; None: they bring none."""
        if not issubclass(self.kind, Mapping):
            return None
        rows = [item for item in items if isinstance(item, Mapping)]
        names = tuple(dict.fromkeys(itertools.chain(self.columns, *rows)))
        if len(names) == len(self.columns) or not all(isinstance(name, str) for name in names):
            return None
        return _shape_of_mappings(self.kind, names)

    def _are_complete(self, items: list[Any]) -> bool:
        """Sequences of one type with a value for each column; of others the one that is wrong is found row by row."""
        return set(map(type, items)) == {self.kind} and set(map(len, items)) == {len(self.columns)}

    def _are_alike(self, items: list[Any]) -> bool:
        """Dicts with as many keys as there are columns: where none lacks a column, none has another key."""
        columns = len(self.columns)
        return (
            self.kind is dict and columns > 0 and set(map(type, items)) == {dict} and set(map(len, items)) == {columns}
        )


def shape_of(row: Any, columns: tuple[str, ...] | None, sink: str) -> Shape:
    """The shape of a first row; UsageError if it is none, or has no names for its columns."""
    if isinstance(row, Mapping):
        names = columns or check_names("columns", tuple(row)) or ()
        _check_any(names, row, sink)
        return _shape_of_mappings(type(row), names)
    if dataclasses.is_dataclass(row) and not isinstance(row, type):
        names = columns or tuple(field.name for field in dataclasses.fields(row))
        _check_any(names, row, sink)
        return Shape(type(row), names, _values_of_attributes(names), False)
    if isinstance(row, (tuple, list)):
        names = columns or tuple(getattr(row, "_fields", ()))
        if not names:
            raise UsageError(f"{sink}: a row is a {type(row).__name__} without names; give columns=[...]")
        _values_of_sequence(row, names)
        return Shape(type(row), names, lambda item: _values_of_sequence(item, names), True)
    raise UsageError(
        f"{sink}: a row must be a dict, a dataclass, a named tuple, or a tuple with columns=[...]; found "
        f"{type(row).__name__}"
    )


def _shape_of_mappings(kind: type, names: tuple[str, ...]) -> Shape:
    return Shape(kind, names, lambda item: _values_of_mapping(item, names), False)


def _check_any(names: tuple[str, ...], row: Any, sink: str) -> None:
    """Later rows would have to be without columns, too."""
    if not names:
        raise UsageError(
            f"{sink}: the first row is an empty {type(row).__name__}, and names no columns; leave it out, or give "
            "columns=[...]"
        )


def _values_of_mapping(row: Any, columns: tuple[str, ...]) -> Row:
    if not isinstance(row, Mapping):
        raise UsageError(f"expected a dict as the rows before, found {type(row).__name__}")
    unknown = row.keys() - set(columns)
    if unknown:
        raise UsageError(
            f"the row has a column {min(unknown, key=str)!r}; the columns are {', '.join(columns)}, those of the first "
            "row unless columns=[...] names them: leave it out, or name it there"
        )
    return [row.get(column) for column in columns]


def _values_of_attributes(columns: tuple[str, ...]) -> Callable[[Any], Row]:
    get = operator.attrgetter(*columns)
    if len(columns) > 1:
        return get
    return lambda item: (get(item),)


def _values_of_sequence(row: Any, columns: tuple[str, ...]) -> Row:
    if not isinstance(row, (tuple, list)):
        raise UsageError(f"expected a tuple as the rows before, found {type(row).__name__}")
    if len(row) != len(columns):
        raise UsageError(f"the row has {len(row)} values; the columns are {', '.join(columns)}: as many are needed")
    return row


def check_names(option: str, given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of columns as a tuple; UsageError if they are none, or not each there once."""
    if given is None:
        return None
    names = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise UsageError(f"{option}={given!r}: expected names of columns, each once")
    return names


def quote(name: str) -> str:
    """A name as SQL has it, whatever it holds."""
    return '"' + name.replace('"', '""') + '"'


def quote_all(names: Sequence[str]) -> str:
    return ", ".join(map(quote, names))


def insert_statement(
    table: str, columns: Sequence[str], key: Sequence[str], marks: Iterable[str], rows: int = 1
) -> str:
    """INSERT, or with a key an upsert; ``marks`` stand for the values of a row. SQLite and PostgreSQL agree on it."""
    values = ", ".join([f"({', '.join(marks)})"] * rows)
    statement = f"INSERT INTO {quote(table)} ({quote_all(columns)}) VALUES {values}"
    if not key:
        return statement
    others = [quote(column) for column in columns if column not in key]
    update = "UPDATE SET " + ", ".join(f"{column} = excluded.{column}" for column in others)
    return f"{statement} ON CONFLICT ({quote_all(key)}) DO {update if others else 'NOTHING'}"
