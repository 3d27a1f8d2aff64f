"""Calling a function of the user's for every item of a frame."""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Iterable
from typing import Any

from consecution.graph import name_of_callable

IN_PYTHON = (types.FunctionType, types.MethodType)
"""What the interpreter calls quicker from a loop of its own than `map` does; all else it calls more slowly."""


def call_each(function: Callable[..., Any], items: Iterable[Any], *others: Iterable[Any]) -> list[Any]:
    """What ``function`` makes of each item, as quick as can be. ``items`` must know how many are left of them.

    RuntimeError where a call has raised StopIteration, which to whoever goes through a `map` looks like the end of the
    items: the rest would be lost without a word. Taken one by one it is found which item it was.
    """
    if isinstance(function, IN_PYTHON) and not others:
        try:
            return [function(item) for item in items]
        except StopIteration as error:
            raise RuntimeError(f"{name_of_callable(function)} raised StopIteration") from error
    expected = operator.length_hint(items)
    made = list(map(function, items, *others))
    if len(made) != expected:
        raise RuntimeError(f"{name_of_callable(function)} raised StopIteration at item {len(made)} of {expected}")
    return made


__all__ = ["IN_PYTHON", "call_each"]
