"""Values as an Arrow array, all of them as they were.

pyarrow makes 2 of 2.5 where the type is that of whole numbers; it drops the keys that a struct has no field for, the
time of day where there is only a date, and the zone of a time; and says nothing. The rules this file keeps:

1. A value comes back as it went in, or is refused. What an explicit schema asks for may also be the rounding of a
   float to a shorter one, and a whole number where a type of time is a count of its units.
2. Of most columns the types of Python's values show that nothing can be lost, without a look at the values
   (`_surely_holds`). Only where they do not, each value is compared with what comes back (`_is_same`).
"""

from __future__ import annotations

import datetime
import decimal
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

SHOWN_LENGTH = 80
REFUSALS = (ValueError, TypeError, ArithmeticError, NotImplementedError)
"""What pyarrow raises at a value."""

HELD = (
    ("is_integer", {int}),
    ("is_float64", {float, int}),
    ("is_boolean", {bool}),
    ("is_string", {str}),
    ("is_large_string", {str}),
    ("is_binary", {bytes}),
    ("is_large_binary", {bytes}),
    ("is_fixed_size_binary", {bytes}),
    ("is_date32", {datetime.date}),
    ("is_decimal", {decimal.Decimal, int}),
)
"""What pyarrow takes as it is, or refuses by itself."""
FINE_UNITS = ("us", "ns")
"""Python's times are multiples of these."""
TIMES = (datetime.date, datetime.time, datetime.timedelta)
LARGEST = {16: 65504.0, 32: 3.4028234663852886e38}
"""Of the shorter floats, by their bits; beyond it is infinity."""


class MisfitError(ValueError):
    """A value that a column cannot hold as it is; the text says which, and why."""


def array_of(arrow: Any, values: Sequence[Any], kind: Any, *, is_given: bool) -> Any:
    """The values as an array of this type; MisfitError names the first that does not fit.

    ``is_given``: somebody has chosen the type, it was not found out from other values.
    """
    try:
        array = arrow.array(values, type=kind)
    except REFUSALS as error:
        raise _first_refused(arrow, values, kind, error) from error
    if not _surely_holds(arrow, values, kind, is_given):
        for value, back in zip(values, array.to_pylist(), strict=True):
            if not _is_same(value, back, is_given):
                raise MisfitError(f"{_shown(value)}, of which {back!r:.{SHOWN_LENGTH}} would be left")
    return array


def forbidden_none(arrow: Any, array: Any, field: Any) -> str | None:
    """The first field, this one or one inside, that says nullable=False and has None; None: there is none."""
    if array.null_count and not field.nullable:
        return str(field.name)
    if not _has_strict_fields(field.type):
        return None
    parts = (forbidden_none(arrow, part, inner) for inner, part in _parts_of(arrow, array, field.type))
    return next(filter(None, parts), None)


def _has_strict_fields(kind: Any) -> bool:
    """Whether anything inside says nullable=False. The keys of a map always do."""
    fields = [kind.field(index) for index in range(kind.num_fields)]
    return any(not field.nullable or _has_strict_fields(field.type) for field in fields)


def _parts_of(arrow: Any, array: Any, kind: Any) -> list[tuple[Any, Any]]:
    """Each field inside, with what the values that are there have in it."""
    if arrow.types.is_struct(kind):
        there = array.drop_null()
        return [(kind.field(index), there.field(index)) for index in range(kind.num_fields)]
    if arrow.types.is_map(kind):
        return [(kind.key_field, array.keys), (kind.item_field, array.items)]
    return [(kind.value_field, array.flatten())]


def _first_refused(arrow: Any, values: Sequence[Any], kind: Any, error: Exception) -> MisfitError:
    for value in values:
        try:
            arrow.array([value], type=kind)
        except REFUSALS as found:
            return MisfitError(f"{_shown(value)} ({found})")
    return MisfitError(f"values that do not go together ({error})")


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.{SHOWN_LENGTH}}"


# -- by the types of a whole column ------------------------------------------------------------------


def _surely_holds(arrow: Any, values: Sequence[Any], kind: Any, is_given: bool) -> bool:
    """Whether a type that pyarrow has made an array of holds these values, whatever they are; False: not known."""
    types = arrow.types
    found = set(map(type, values)) - {NoneType}
    if not found or any(found <= held for name, held in HELD if getattr(types, name)(kind)):
        return True
    if types.is_floating(kind):
        return is_given and found <= {float, int} and _is_in_range(values, LARGEST[kind.bit_width])
    if types.is_temporal(kind):
        return _surely_holds_times(found, values, kind)
    if types.is_struct(kind):
        return found == {dict} and _surely_holds_fields(arrow, values, kind, is_given)
    if types.is_map(kind):
        return found == {dict} and _surely_holds_entries(arrow, values, kind, is_given)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = list(itertools.chain.from_iterable(filter(None, values))) if found <= {list, tuple} else None
        return inner is not None and _surely_holds(arrow, inner, kind.value_type, is_given)
    return False


def _is_in_range(values: Sequence[Any], largest: float) -> bool:
    return max(map(abs, filter(None, values)), default=0.0) <= largest


def _surely_holds_times(found: set[type], values: Sequence[Any], kind: Any) -> bool:
    """A zone must be where the type has one, and only there."""
    if getattr(kind, "unit", None) not in FINE_UNITS:
        return False
    if found == {datetime.timedelta} or _are_numpy_times(found):
        return True
    if found not in ({datetime.datetime}, {datetime.time}):
        return False
    zone = getattr(kind, "tz", None)
    return {value.tzinfo is None for value in values if value is not None} == {zone is None}


def _are_numpy_times(found: set[type]) -> bool:
    """These pyarrow takes only in the very unit of the type; and of nanoseconds nothing else makes values again."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and found <= {numpy.datetime64, numpy.timedelta64}


def _surely_holds_fields(arrow: Any, values: Sequence[Any], kind: Any, is_given: bool) -> bool:
    rows = [value for value in values if value is not None]
    fields = [kind.field(index) for index in range(kind.num_fields)]
    return set(itertools.chain.from_iterable(rows)) <= {field.name for field in fields} and all(
        _surely_holds(arrow, [row.get(field.name) for row in rows], field.type, is_given) for field in fields
    )


def _surely_holds_entries(arrow: Any, values: Sequence[Any], kind: Any, is_given: bool) -> bool:
    rows = [value for value in values if value is not None]
    keys = list(itertools.chain.from_iterable(rows))
    items = [item for row in rows for item in row.values()]
    return _surely_holds(arrow, keys, kind.key_type, is_given) and _surely_holds(arrow, items, kind.item_type, is_given)


# -- value by value ----------------------------------------------------------------------------------


def _is_same(value: Any, back: Any, is_given: bool) -> bool:
    """Whether what comes back is what went in."""
    if back is None:
        return True  # what pyarrow takes for nothing: None, a NaT
    if isinstance(back, dict):
        fields = _fields_of(value, back)
        return all(
            _is_same(field, back[name], is_given) if name in back else field is None for name, field in fields.items()
        )
    if isinstance(back, (list, tuple)):
        parts = list(value.items() if isinstance(value, Mapping) else value)
        return len(parts) == len(back) and all(map(_is_same, parts, back, itertools.repeat(is_given)))
    if isinstance(value, bool) and not isinstance(back, bool):
        return False
    if is_given and isinstance(back, float):
        return math.isinf(back) == math.isinf(value)
    if is_given and type(value) is int and isinstance(back, TIMES):
        return True
    return bool(value == back or (value != value and back != back))


def _fields_of(value: Any, back: Mapping[str, Any]) -> Mapping[Any, Any]:
    """What pyarrow takes as a struct: a mapping, pairs, or the values of the fields."""
    try:
        return dict(value)
    except (TypeError, ValueError):
        return dict(zip(back, value, strict=True))
