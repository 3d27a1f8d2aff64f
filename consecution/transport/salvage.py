"""Decodes a pickled list of items of which some cannot be decoded.

A class whose ``__init__`` does not fit what its ``__reduce__`` says (an exception with two arguments is the usual
case), a ``__setstate__`` that raises: the pickle of the whole list cannot be loaded, though only one item is at
fault. Here each step that calls the code of others may raise: what it was to make is then *lost*, and so is
everything that holds it, up to the item. Slow, and only for what the quick way refuses.

A class or module that is not there is no item's fault: the code has changed, and what was stored must not be
given up for that. It raises MissingCodeError, which ends a run.

The pickle machine is the one of the standard library, in its Python form.
"""

from __future__ import annotations

import gc
import io
import pickle
import types
from collections.abc import Callable
from typing import Any, ClassVar

from consecution.errors import MissingCodeError, text_of
from consecution.protocol.poison import LostItem, Meet, PartlyDecodedError, PoisonError, show_untouched
from consecution.protocol.step import shorten_repr
from consecution.protocol.values import LIVE, USER_ERRORS

_Unpickler: Any = vars(pickle)["_Unpickler"]
_Pickler: Any = vars(pickle)["_Pickler"]
_STANDARD: dict[int, Callable[[Any], None]] = _Unpickler.dispatch
_BUILTIN = (list, dict, set, bytearray)
_BEYOND = (type, types.ModuleType, types.CodeType, types.BuiltinFunctionType)


def salvage(payload: Any, meet: Meet | None = None) -> list[Any]:
    """The items of a payload. PartlyDecodedError if some of them are lost; what pickle raises if it is no payload.

    ``meet`` is called before each call into the code of others, with that call's place in the payload. A payload
    that has stayed in its worker is the items themselves: nothing has to be called to have them.
    """
    if isinstance(payload, LIVE):
        return list(payload)
    unpickler = _Salvager(io.BytesIO(bytes(payload)), meet)
    items = list(unpickler.load())
    if not unpickler.lost:
        return items
    sifted = [_sift(item) for item in items]
    if any(isinstance(item, LostItem) for item in sifted):
        raise PartlyDecodedError(sifted)
    return items


def _sift(item: Any) -> Any:
    lost = _find_lost(item)
    if lost is None or item is lost:
        return item
    return LostItem(f"<{type(item).__name__} with {lost.shown}>", lost.error)


class _Salvager(_Unpickler):  # type: ignore[misc]
    """Loads what can be loaded; `LostItem`s stand for the rest."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_STANDARD)

    def __init__(self, file: io.BytesIO, meet: Meet | None) -> None:
        super().__init__(file)
        self.lost = 0
        self._meet = meet
        self._calls = 0

    def take(self, code: int, taken: int) -> None:
        """A step that makes something of the top ``taken`` objects."""
        parts = self.stack[-taken:]
        depth = len(self.stack) - taken
        lost = self._call(code, parts, parts[-1] if code == pickle.STACK_GLOBAL[0] else parts[0])
        if lost is not None:
            del self.stack[depth:]
            self.append(lost)

    def fill(self, code: int, taken: int) -> None:
        """A step that puts the top ``taken`` objects into the one below them."""
        depth = len(self.stack) - taken
        top, parts = self.stack[depth - 1], self.stack[depth:]
        lost = self._call_to_fill(code, top, parts)
        if lost is not None:
            del self.stack[depth:]
            self._replace_top(lost)

    def fill_with_all(self, code: int) -> None:
        """A step that puts everything above the mark into the object below it."""
        parts = self.stack
        lost = self._call_to_fill(code, self.metastack[-1][-1], parts)
        if lost is not None:
            if self.stack is parts:
                self.pop_mark()
            self._replace_top(lost)

    def freeze(self, code: int) -> None:
        """The frozen set of everything above the mark."""
        parts = self.stack
        lost = self._call(code, [], frozenset)
        if lost is not None:
            if self.stack is parts:
                self.pop_mark()
            self.append(lost)

    def _call_to_fill(self, code: int, top: Any, parts: list[Any]) -> LostItem | None:
        if type(top) is list and code != pickle.BUILD[0]:
            _STANDARD[code](self)  # nobody's code but Python's
            return None
        return self._call(code, [] if type(top) in _BUILTIN else [top, *parts], top)

    def _call(self, code: int, parts: list[Any], what: Any) -> LostItem | None:
        """A step that runs the code of others on ``parts``; what stands for its result, if that is lost."""
        self._calls += 1
        try:
            if self.lost and (lost := _find_lost(parts)) is not None:
                return lost
            if self._meet is not None:
                self._meet(b"@%d" % self._calls)
            _STANDARD[code](self)
        except USER_ERRORS as error:
            if code == pickle.STACK_GLOBAL[0] and not isinstance(error, PoisonError):
                needed = ".".join(map(str, parts))
                raise MissingCodeError(
                    f"an item needs {needed}, which is not there ({text_of(error)}): put it back, or, in a script, "
                    "define it above `if __name__ == '__main__':`; no item is given up for that"
                ) from error
            self.lost += 1
            return LostItem(_show(what, parts, error), error)
        return None

    def _replace_top(self, lost: LostItem) -> None:
        """The object on top is lost, wherever else the pickle refers to it."""
        broken, self.stack[-1] = self.stack[-1], lost
        for number, known in self.memo.items():
            if known is broken:
                self.memo[number] = lost


def _step(method: Callable[..., None], *given: Any) -> Callable[[Any], None]:
    return lambda salvager: method(salvager, *given)


for _code, _taken in ((pickle.REDUCE, 2), (pickle.NEWOBJ, 2), (pickle.NEWOBJ_EX, 3), (pickle.STACK_GLOBAL, 2)):
    _Salvager.dispatch[_code[0]] = _step(_Salvager.take, _code[0], _taken)
for _code, _taken in ((pickle.BUILD, 1), (pickle.APPEND, 1), (pickle.SETITEM, 2)):
    _Salvager.dispatch[_code[0]] = _step(_Salvager.fill, _code[0], _taken)
for _code in (pickle.APPENDS, pickle.SETITEMS, pickle.ADDITEMS):
    _Salvager.dispatch[_code[0]] = _step(_Salvager.fill_with_all, _code[0])
_Salvager.dispatch[pickle.FROZENSET[0]] = _step(_Salvager.freeze, pickle.FROZENSET[0])


def _show(what: Any, parts: list[Any], error: BaseException) -> str:
    """The class or function of a step, and what it was given: all that is left of the item for people to see."""
    name = what if isinstance(what, str) else getattr(what, "__name__", None) or type(what).__name__
    show = _show_untouched if isinstance(error, PoisonError) else shorten_repr
    given = [show(part) for part in parts if part is not what]
    return f"<{name} that cannot be decoded{', of ' if given else ''}{', '.join(given)}>"


def _show_untouched(part: Any) -> str:
    return show_untouched(part, f"<{type(part).__name__}>")


def _find_lost(item: Any) -> LostItem | None:
    """What is lost of an item, however deep it lies."""
    finder = _Finder(io.BytesIO(), 5)
    try:
        finder.dump(item)
    except USER_ERRORS:
        return finder.found or _search(item)
    return finder.found


class _Finder(_Pickler):  # type: ignore[misc]
    """Walks through an item as pickle does, up to something lost."""

    found: LostItem | None = None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, LostItem):
            self.found = obj
        super().save(obj, save_persistent_id)


def _search(item: Any) -> LostItem | None:
    """Look through all that an item refers to: for what plain pickle refuses."""
    seen: set[int] = set()
    left = [item]
    while left:
        found = left.pop()
        if isinstance(found, LostItem):
            return found
        if id(found) in seen or isinstance(found, _BEYOND):
            continue
        seen.add(id(found))
        if isinstance(found, types.FunctionType):
            left += [found.__closure__, found.__defaults__, found.__kwdefaults__]
        else:
            left += gc.get_referents(found)
    return None
