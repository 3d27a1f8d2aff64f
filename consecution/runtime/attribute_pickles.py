"""The attributes of a plain node, pickled so that an object which several of them hold stays one.

Each is pickled by itself, for only what has changed is written. But attributes that hold an object in common which can
change (``self.current = self.lists[key]``) are pickled together: put back one by one, each would have one of its own.
The node itself, which a helper or a table of its methods may refer to, is not pickled but named: a copy would take what
is done to it, and what it pushes, where nobody looks.
"""

from __future__ import annotations

import copyreg
import datetime
import decimal
import enum
import fractions
import functools
import io
import itertools
import pathlib
import pickle
import re
import types
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from consecution.transport.codec import REFUSED_BY_PICKLE, PickleCodec, dill_pickler

Names = tuple[str, ...]
"""Attributes that are pickled together, sorted; mostly one alone."""

_LEAVES = (
    *(str, bytes, int, float, complex, type(None), range, enum.Enum, uuid.UUID, pathlib.PurePath, re.Pattern),
    *(decimal.Decimal, fractions.Fraction, datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo),
    *(type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType),
)
"""What never changes, nor holds anything that does: whether two have one or each a copy makes no difference."""
_UNCHANGING = (*_LEAVES, tuple, frozenset)
"""What never changes itself."""
_WITH_ATTRIBUTES = (enum.Enum, datetime.tzinfo, type, types.FunctionType, types.ModuleType)
"""Of those, what has attributes by nature; a class of the user's that is another may give it some, and change them."""
_ARRAY_TYPE = ("numpy", "dtype")
"""All arrays of numbers of one kind have the same one. Named, for numpy may not be there."""
_LEAF_KINDS = frozenset((str, bytes, int, float, complex, bool, type(None)))
_CONTAINERS = frozenset((dict, list, set, tuple, frozenset))


def key_of(names: Names) -> Any:
    """The key in the store: a name, or several."""
    return names if len(names) > 1 else names[0]


def record_of(names: Names, values: list[Any]) -> tuple[Any, Any]:
    """Key and state in the store of what has these names and values."""
    return key_of(names), values if len(names) > 1 else values[0]


def attributes_of(key: Any, state: Any) -> tuple[Names, list[Any]]:
    """The names and values of a record of the store."""
    return (key, state) if isinstance(key, tuple) else ((key,), [state])


@dataclass(frozen=True)
class TheNode:
    """Stands for the node where its state is looked at from outside."""

    def __reduce__(self) -> Any:
        return the_node, ()

    def __getattr__(self, name: str) -> OfTheNode:
        if name.startswith("__"):
            raise AttributeError(name)
        return OfTheNode(name)


@dataclass(frozen=True)
class OfTheNode:
    """Stands for a method of the node there."""

    name: str

    def __reduce__(self) -> Any:
        return getattr, (TheNode(), self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{self.name}() can be called in a run only")


_node: ContextVar[Any] = ContextVar("_node")


def the_node() -> Any:
    """What a pickle has in the place of the node."""
    node = _node.get(None)
    return TheNode() if node is None else node


class NodeCodec(PickleCodec):
    """For what may refer to the node: decoded it refers to this very one."""

    def __init__(self, node: object) -> None:
        self._node = node

    def encode(self, items: Sequence[Any]) -> bytes:
        return _pickle_of(self._node, list(items))

    def decode(self, payload: Any) -> list[Any]:
        token = _node.set(self._node)
        try:
            return super().decode(payload)
        finally:
            _node.reset(token)


def pickle_attributes(values: Mapping[str, Any], node: object = None) -> dict[Names, bytes]:
    """A pickle of the list of values for each group of attributes of ``node``. What cannot be pickled is left out."""
    _pickle = functools.partial(_pickle_of, node)
    found: dict[Names, bytes] = {}
    may_share = {name for name, value in values.items() if not _never_changes(type(value), _LEAVES)}
    objects: dict[str, list[Any]] = {}
    for name, value in values.items():
        met = [value]
        alone = len(may_share) < 2 or name not in may_share or _holds_leaves(value)
        try:
            found[name,] = _pickle([value], None if alone else met)
        except Exception:
            continue  # a connection, a lock: begin() makes it anew
        if name in may_share:
            objects[name] = [part for part in _changing(met) if part is not node]
    for names in _sharing(objects):
        for name in names:
            del found[name,]
        found[names] = _pickle([values[name] for name in names])
    return found


def _pickle_of(node: object, values: list[Any], met: list[Any] | None = None) -> bytes:
    """The pickle; where it is wanted, with all objects that it comes upon."""
    try:
        return _pickle_with(lambda file: pickle.Pickler(file, 5), values, met, node)
    except REFUSED_BY_PICKLE:
        return _pickle_with(dill_pickler, values, met, node)


def _pickle_with(make_pickler: Callable[[Any], Any], values: list[Any], met: list[Any] | None, node: object) -> bytes:
    def reduce_node(found: Any) -> Any:
        return (the_node, ()) if found is node else found.__reduce_ex__(5)

    buffer = io.BytesIO()
    pickler = make_pickler(buffer)
    pickler.dispatch_table = {**copyreg.dispatch_table, type(node): reduce_node}
    if met is not None:
        pickler.persistent_id = met.append  # asked of each object, whether it is kept elsewhere; None: it is not
    pickler.dump(values)
    return buffer.getvalue()


def _sharing(objects: Mapping[str, list[Any]]) -> Iterable[Names]:
    """The groups of more than one: attributes where an object is met, and met again."""
    places = {name: set(map(id, met)) for name, met in objects.items()}
    group_of = {name: {name} for name in places}
    for one, other in itertools.combinations(places, 2):
        if not places[one].isdisjoint(places[other]):
            joined = group_of[one] | group_of[other]
            group_of.update(dict.fromkeys(joined, joined))
    return {tuple(sorted(group)) for group in group_of.values() if len(group) > 1}


def _holds_leaves(value: Any) -> bool:
    """Whether it is a plain container, of what cannot change: there may be many of them."""
    parts = itertools.chain(value, value.values()) if type(value) is dict else value
    return type(value) in _CONTAINERS and _LEAF_KINDS.issuperset(map(type, parts))


def _changing(objects: list[Any]) -> list[Any]:
    """Those that can change, by their types: there may be many objects, and there are few types."""
    kinds = {kind for kind in set(map(type, objects)) if not _never_changes(kind, _UNCHANGING)}
    return list(itertools.compress(objects, map(kinds.__contains__, map(type, objects)))) if kinds else []


def _never_changes(kind: type, unchanging: tuple[type, ...]) -> bool:
    """Whether objects of this type are of the unchanging ones, and have no attributes that could be set."""
    if issubclass(kind, unchanging):
        return not kind.__dictoffset__ or issubclass(kind, _WITH_ATTRIBUTES)
    return any((base.__module__, base.__name__) == _ARRAY_TYPE for base in kind.__mro__)
