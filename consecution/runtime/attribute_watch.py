"""Notices a plain node that keeps data in its attributes from batch to batch: in ``robust`` such data is not safe.

Such a node loses them when its worker dies, and batches that run again change them twice. It is watched for its
first frames only, and only where that is cheap: plain values and containers, and one level of what lies in the
attributes of other objects. What changes once (a connection that is opened when it is first needed) and what is
called a cache is left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sized
from typing import Any

from consecution.nodes import Node
from consecution.protocol.values import USER_ERRORS

WATCHED_FRAMES = 20
CHANGES_TOLD = 2
"""So many frames have to change an attribute before it is told."""
SMALL_LENGTH = 100
"""Containers of up to so many entries are compared whole, others by their length."""
_VALUES = (int, float, complex, str, bytes, bool, type(None))
_OWN = {*vars(Node("any")), "pipeline", "push", "global_state", "_process", "replicas", "key_function"}
_HARMLESS = ("cache", "memo")


class AttributeWatch:
    """Watches one node. Called by the thread that runs it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._last = _looks_of(node)
        self._changes: Counter[str] = Counter()
        self._left = WATCHED_FRAMES

    def look(self) -> str | None:
        """After a frame: a warning, once; else None."""
        if not self._left:
            return None
        self._left -= 1
        now = _looks_of(self._node)
        # In lists, for a NaN does not differ from itself there.
        changed = [name for name in now if [now[name]] != [self._last.get(name)]]
        self._last = now
        self._changes.update(changed)
        told = [name for name in changed if self._changes[name] >= CHANGES_TOLD]
        if not told:
            return None
        self._left = 0
        return self._warning(told[0])

    def _warning(self, attribute: str) -> str:
        node = self._node
        return (
            f"warning: {node.name}: {type(node).__name__} keeps data in self.{attribute} from batch to batch. It is "
            "lost when this worker dies, and changes twice where a batch runs again: inherit from StatefulNode or "
            "KeyedNode, and keep it in self.state; or, if it is only a cache, say stateless = True in the class"
        )


def _looks_of(node: Node) -> dict[str, Any]:
    found = {}
    for name, value in list(vars(node).items()):
        if name not in _OWN and not any(word in name.lower() for word in _HARMLESS):
            try:
                found[name] = _look_of(value, deep=True)
            except USER_ERRORS:
                found[name] = type(value)
    return found


def _look_of(value: Any, *, deep: bool) -> Any:
    """Something that differs once the value has changed, as far as that can be seen cheaply."""
    if isinstance(value, _VALUES):
        return value
    if isinstance(value, Sized) and not isinstance(value, type):
        return _look_of_sized(value)
    inner = getattr(value, "__dict__", None)
    if not deep or callable(value) or not isinstance(inner, dict) or len(inner) > SMALL_LENGTH:
        return type(value)
    return [(name, _look_of(inner[name], deep=False)) for name in list(inner)]


def _look_of_sized(value: Sized) -> Any:
    try:
        length = len(value)
        if length > SMALL_LENGTH or not isinstance(value, (list, dict, set, tuple)):
            return length
        return length, [type(part) if not isinstance(part, _VALUES) else part for part in value], _values_of(value)
    except Exception:
        return type(value)


def _values_of(value: Any) -> Any:
    """The plain values of a dict: a counter changes without a new key."""
    if not isinstance(value, dict):
        return None
    return [part if isinstance(part, _VALUES) else _length_of(part) for part in value.values()]


def _length_of(part: Any) -> Any:
    return (type(part), len(part)) if isinstance(part, Sized) else type(part)
