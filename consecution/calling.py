"""Calling a function of the user's for every item of a frame."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from consecution.graph import name_of_callable


def call_each(function: Callable[..., Any], items: Iterable[Any], *others: Iterable[Any]) -> list[Any]:
    """What ``function`` makes of each item, as quick as `map`. ``items`` must know how many are left of them.

    RuntimeError where a call has raised StopIteration, which to whoever goes through a `map` looks like the end of the
    items: the rest would be lost without a word. Taken one by one it is found which item it was.
    """
    expected = operator.length_hint(items)
    made = list(map(function, items, *others))
    if len(made) != expected:
        raise RuntimeError(f"{name_of_callable(function)} raised StopIteration at item {len(made)} of {expected}")
    return made


__all__ = ["call_each"]
