"""What a column of PostgreSQL holds: values are made to fit it without loss, or refused.

Left to itself the server rounds a number to whole ones or to so many digits, and cuts the time off a date, without a
word. Texts are not looked at but for their length: the server reads them as the column's type, or refuses them.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import numbers
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from consecution.sinks.database import Target
from consecution.sinks.rows import Row

NONE = type(None)
MICROSECOND_DIGITS = 6
REAL_DIGITS = range(6, 10)
"""So many digits tell any two numbers of four bytes apart; the fewest that do are what the server shows."""
LENGTH_HEADER = 4
"""The server adds it to lengths and precisions in a column's modifier."""

Fit = Callable[[Any], Any]
"""The value as the column takes it; `_LossError` where something of it would be lost."""


class _LossError(Exception):
    """The column cannot hold the value as it is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column as it is in the table."""

    name: str
    kind: str
    """Its type without a length: what values are cast to, for a cast would cut them off."""
    modifier: int
    """The length, or the precision and scale, as the server keeps it; -1: none."""
    shown: str
    """Its type with all."""


Convert = Callable[[Iterable[Row]], Iterable[Row]]


def converter(target: Target, columns: Sequence[Column]) -> Convert:
    """What values need beside psycopg's own conversion. TypeError, which names the column, for one that does not fit.

    A column whose values are all of types that always fit is passed on as it is.
    """
    fits = [(place, *fit) for place, column in enumerate(columns) if (fit := _fit_of(column)) is not None]
    if not fits:
        return lambda rows: rows

    def convert(rows: Iterable[Row]) -> Iterable[Row]:
        rows = rows if isinstance(rows, list) else list(rows)
        try:
            values = list(zip(*rows, strict=True))
        except ValueError:
            return rows  # Of different lengths: the server names the one that is wrong.
        changed = False
        for place, always, fit in fits:
            if place < len(values) and not always.issuperset(map(type, values[place])):
                values[place] = _fitted(target, columns[place], fit, values[place])
                changed = True
        return list(zip(*values, strict=True)) if changed else rows

    return convert


def _fitted(target: Target, column: Column, fit: Fit, values: Iterable[Any]) -> tuple[Any, ...]:
    made = []
    for value in values:
        try:
            made.append(None if value is None else fit(value))
        except _LossError:
            raise TypeError(
                f"{target.sink}: column {column.name!r} of the table {target.table}: expected a value that "
                f"{column.shown} holds as it is, found {type(value).__name__} {value!s:.80}: make it one before (round "
                "it, say), or give the column another type"
            ) from None
    return tuple(made)


def _fit_of(column: Column) -> tuple[frozenset[type], Fit] | None:
    """The types whose values always fit, or are refused by the server; and what to do with others. None: nothing."""
    if column.kind.endswith("[]"):
        element = _fit_of(dataclasses.replace(column, kind=column.kind.removesuffix("[]")))
        return None if element is None else (frozenset((NONE, str)), _each(element[1]))
    if column.kind not in _FITS:
        return None
    always, make = _FITS[column.kind]
    fit = make(column.modifier)
    return None if fit is None else (frozenset((NONE, *always)), fit)


def _each(fit: Fit) -> Fit:
    def fit_all(value: Any) -> Any:
        return [fit_all(element) for element in value] if isinstance(value, (list, tuple)) else value and fit(value)

    return fit_all


# -- numbers ---------------------------------------------------------------------------------------


def _is_fractional(value: Any) -> bool:
    """Whether it is a number that may have a fraction."""
    return isinstance(value, decimal.Decimal) or (
        isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
    )


def _whole(value: Any) -> Any:
    if not _is_fractional(value):
        return value
    try:
        whole = int(value)
    except (ValueError, OverflowError):
        raise _LossError from None
    if whole != value:
        raise _LossError
    return whole


def _numeric(modifier: int) -> Fit:
    # Eleven bits, of which one is the sign.
    scale = None if modifier < 0 else (((modifier - LENGTH_HEADER) & 0x7FF) ^ 1024) - 1024

    def fit(value: Any) -> Any:
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            value = decimal.Decimal(str(value))  # The server would take 15 digits of a float.
        if scale is not None and isinstance(value, decimal.Decimal) and _digits_after(value) > scale:
            raise _LossError
        return value

    return fit


def _digits_after(value: decimal.Decimal) -> int:
    """The place of the last digit that is not 0: 2 for 1.250, -1 for 120."""
    _, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int) or not value:
        return -decimal.MAX_PREC
    return -exponent - next(place for place, digit in enumerate(reversed(digits)) if digit)


def _double(value: Any) -> Any:
    return _as_float(value, float)


def _real(value: Any) -> Any:
    return _as_float(value, _shortest_real)


def _as_float(value: Any, approximate: Callable[[Any], float]) -> Any:
    """The value, where the float that stands for it is shown as the same number."""
    if isinstance(value, bool) or not isinstance(value, (decimal.Decimal, numbers.Real)):
        return value
    if value != value:
        return value
    try:
        near = approximate(value)
    except OverflowError:
        raise _LossError from None
    if near != value and not (isinstance(value, decimal.Decimal) and decimal.Decimal(repr(near)) == value):
        raise _LossError
    return value


def _shortest_real(value: Any) -> float:
    given = float(value)
    real: float = struct.unpack("f", struct.pack("f", given))[0]
    if real == given:
        return given
    shown = (float(f"{real:.{digits}g}") for digits in REAL_DIGITS)
    return next(near for near in shown if struct.unpack("f", struct.pack("f", near))[0] == real)


def _boolean(value: Any) -> Any:
    if not isinstance(value, numbers.Integral):
        return value
    if value not in (0, 1):
        raise _LossError
    return bool(value)


# -- times -----------------------------------------------------------------------------------------


def _date(value: Any) -> Any:
    if not isinstance(value, datetime.datetime):
        return value
    if value.tzinfo is not None or value.time() != datetime.time() or _has_nanoseconds(value):
        raise _LossError
    return value.date()


def _has_nanoseconds(value: Any) -> bool:
    """As times of pandas may."""
    return bool(getattr(value, "nanosecond", 0))


def _time_of(*, has_day: bool, has_zone: bool) -> Callable[[int], Fit]:
    """For the four types of times. A date is the midnight that it begins with."""

    def make(modifier: int) -> Fit:
        unit = 1 if modifier < 0 else 10 ** (MICROSECOND_DIGITS - modifier)

        def fit(value: Any) -> Any:
            if not isinstance(value, (datetime.datetime, datetime.time)):
                return value
            is_cut = isinstance(value, datetime.datetime) and not has_day
            is_moved = value.tzinfo is not None and not has_zone
            if is_cut or is_moved or value.microsecond % unit or _has_nanoseconds(value):
                raise _LossError
            return value

        return fit

    return make


# -- others ----------------------------------------------------------------------------------------


def _text(modifier: int) -> Fit | None:
    if modifier < 0:
        return None

    def fit(value: Any) -> Any:
        # The server refuses what is too long, but for spaces at the end.
        if isinstance(value, str) and len(value) > modifier - LENGTH_HEADER:
            raise _LossError
        return value

    return fit


def _json(modifier: int) -> Fit:
    from psycopg.types.json import Jsonb

    return Jsonb


def _plain(fit: Fit) -> Callable[[int], Fit]:
    """For types that have no length."""
    return lambda modifier: fit


_WHOLE = (int, str), _plain(_whole)
_JSON: tuple[tuple[type, ...], Callable[[int], Fit]] = (), _json
_FITS: dict[str, tuple[tuple[type, ...], Callable[[int], Fit | None]]] = {
    "smallint": _WHOLE,
    "integer": _WHOLE,
    "bigint": _WHOLE,
    "numeric": ((str,), _numeric),
    "double precision": ((float, str), _plain(_double)),
    "real": ((str,), _plain(_real)),
    "boolean": ((bool, str), _plain(_boolean)),
    "character varying": ((), _text),
    "date": ((datetime.date, str), _plain(_date)),
    "time without time zone": ((str,), _time_of(has_day=False, has_zone=False)),
    "time with time zone": ((str,), _time_of(has_day=False, has_zone=True)),
    "timestamp without time zone": ((str,), _time_of(has_day=True, has_zone=False)),
    "timestamp with time zone": ((str,), _time_of(has_day=True, has_zone=True)),
    "json": _JSON,
    "jsonb": _JSON,
}
"""For each type: what always fits it or is refused by the server, and what makes other values fit."""
