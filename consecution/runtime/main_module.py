"""The module that a script's own classes are found in, whatever name it had when they were written down.

A class is pickled by the name that its module has just then: ``__main__`` under ``python etl.py``, ``__mp_main__`` in
the workers of that run, ``etl`` under ``consecution run etl.py``. All of them mean the same file. Whoever reads what
another of these has written must find one class under all names: with two, ``isinstance`` would say no without a word.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from consecution.errors import text_of

NAME_IN_WORKERS = "__mp_main__"
"""What multiprocess calls the script that it imports as the main module of a worker."""


@dataclass(frozen=True, slots=True)
class _StandIn:
    """What a module asks for a name that it lacks: here another one has it, which is imported when it is needed."""

    module: str

    def __call__(self, name: str) -> Any:
        if not name.startswith("__"):
            found = getattr(importlib.import_module(self.module), name, None)
            if found is not None:
                return found
        raise AttributeError(f"module '__main__' has no attribute {name!r}, nor has {self.module}")


def stand_in_for_main(module: str) -> None:
    """From now on, what the main module lacks is looked for in this one, which can be imported."""
    vars(sys.modules["__main__"])["__getattr__"] = _StandIn(module)
    _name_as_in_workers()


def stand_in() -> str | None:
    """The module that stands in for the main one; None: it stands for itself."""
    found = vars(sys.modules["__main__"]).get("__getattr__")
    return found.module if isinstance(found, _StandIn) else None


def know_script_by_all_names() -> None:
    """Let a script that is the main module be found by the name that others import it by, too."""
    main = sys.modules["__main__"]
    name = _import_name(main)
    if name is not None:
        sys.modules.setdefault(name, main)
    _name_as_in_workers()


def _name_as_in_workers() -> None:
    sys.modules.setdefault(NAME_IN_WORKERS, sys.modules["__main__"])


def _import_name(main: ModuleType) -> str | None:
    """None where it has none, or where that is another module's."""
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return None if spec.name.rpartition(".")[2] == "__main__" else str(spec.name)
    if file is None or not os.path.exists(file):
        return None
    name = os.path.splitext(os.path.basename(file))[0]
    if not name.isidentifier() or name in sys.modules:
        return None
    found = PathFinder.find_spec(name)
    is_it = found is not None and found.origin is not None and os.path.realpath(found.origin) == os.path.realpath(file)
    return name if is_it else None


def is_of_a_script(error: BaseException) -> bool:
    """Whether what could not be loaded is sought in a main module."""
    return any(name in text_of(error) for name in ("__main__", NAME_IN_WORKERS))


def where_to_load(error: BaseException) -> str:
    """For people: what a command needs that could not load something."""
    if is_of_a_script(error):
        return "it is of a class of a script that was run as `python FILE`: name that file with --script FILE"
    return "run this where the pipeline's modules can be imported"
