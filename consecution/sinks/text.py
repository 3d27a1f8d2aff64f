"""Lines appended to a file."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable
from typing import Any

from consecution.calling import call_each
from consecution.protocol.step import shorten_repr
from consecution.report import Failure
from consecution.sinks.file import FileSink


class TextLines(FileSink):
    """Appends one line per item to a file: ``format(item)``, which is ``str`` unless told otherwise
    (a text that holds newlines makes several). An item at which ``format`` raises fails alone.

    What is promised at which robustness, rotation and compression: see `consecution.sinks.file.FileSink`. Half a
    line that the file ends with before the first run is ended, so that it spoils no other.
    """

    def __init__(
        self, name: str, path: str | os.PathLike[str], format: Callable[[Any], str] = str, **kwargs: Any
    ) -> None:
        super().__init__(name, path, **kwargs)
        self.format = format

    def encode(self, items: list[Any]) -> bytes:
        are_lines = self.format is str and set(map(type, items)) == {str}
        lines = items if are_lines else call_each(self.format, items)
        return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")

    def found(self, size_bytes: int) -> None:
        self.end_line()


class JsonLines(TextLines):
    """Appends each item as a line of JSON. An item that JSON cannot hold, NaN included, fails at this node.

    Named tuples and tuples become arrays, keys that are no text become text, as `json.dumps` has it; dataclasses
    become objects. Of a `Failure` the item is written as its ``repr`` where JSON cannot hold it.
    The rest as in `TextLines` and `consecution.sinks.file.FileSink`.
    """

    def __init__(self, name: str, path: str | os.PathLike[str], **kwargs: Any) -> None:
        super().__init__(name, path, format=_to_json, **kwargs)

    def encode(self, items: list[Any]) -> bytes:
        if _chunks_of is None or self.format is not _to_json:
            return super().encode(items)
        lines = map("".join, call_each(_chunks_of, items, itertools.repeat(0)))
        return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def _fields_of(item: Any) -> dict[str, Any]:
    """A dataclass as JSON writes it; TypeError for whatever else JSON does not know."""
    if not dataclasses.is_dataclass(item) or isinstance(item, type):
        how = "with its tolist()" if hasattr(item, "tolist") else "say to a text"
        raise TypeError(
            f"JSON cannot hold {shorten_repr(item)}, of type {type(item).__name__}: convert it in a node before, {how} "
            "(expected texts, numbers, booleans, None, lists, tuples, dicts and dataclasses)"
        )
    fields = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    if isinstance(item, Failure) and not _is_json(item.item):
        fields["item"] = shorten_repr(item.item)
    return fields


def _is_json(value: Any) -> bool:
    try:
        _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


_ENCODER = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False, default=_fields_of
)


def _to_json(item: Any) -> str:
    return _ENCODER.encode(item)


def _make_chunker() -> Any:
    """The compiled encoder that `json` makes anew for every call of ``encode``, kept; None where there is none."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return None
    return make(
        None,  # no check for circles: they raise RecursionError
        _ENCODER.default,
        json.encoder.encode_basestring,
        None,
        _ENCODER.key_separator,
        _ENCODER.item_separator,
        False,
        False,
        False,
    )


_chunks_of = _make_chunker()
