"""Which pipeline a command is about: ``file.py``, ``file.py:name`` or ``package.module:name``."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from consecution.errors import ConsecutionError, UsageError
from consecution.pipeline import Pipeline
from consecution.runtime.main_module import stand_in_for_main

DEFAULT_NAME = "pipeline"
HELP = "file.py, file.py:name or package.module:name; the default name is 'pipeline'"


def load_target(target: str) -> Pipeline:
    """Import the target's module and find its pipeline. UsageError says what is there instead.

    A file is imported by its name, with its folder first on the path, so that workers can import it too. What has run
    as a script before is the same code: its classes are found in that module.
    """
    place, _, name = target.partition(":")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    stand_in_for_main(module.__name__)
    name = name or DEFAULT_NAME
    found = getattr(module, name, None)
    if isinstance(found, Pipeline):
        return found
    remedy = f"it has no pipeline: write {name} = Pipeline(...) there"
    there = sorted(key for key, value in vars(module).items() if isinstance(value, Pipeline))
    if found is not None:
        what = f"{name!r} in {place} is of the type {type(found).__name__}, and no Pipeline"
    else:
        what = f"{place} has no {name!r}"
    hint = f"it has the pipelines {', '.join(there)}: use {place}:{there[0]}" if there else remedy
    raise UsageError(f"{what}; {hint}")


def load_script(path: Path) -> None:
    """Import a script, for the classes of what it has written. UsageError where it cannot be imported."""
    stand_in_for_main(_import_file(path).__name__)


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"there is no file {path}: check the path")
    stem = path.stem
    if not stem.isidentifier():
        raise UsageError(f"{path}: the name of the file must be a Python name, so that workers can import it")
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        module = _import_module(stem)
    except UsageError as error:
        if "attempted relative import" in str(error.__cause__):
            package, above = _package_of(path.resolve())
            raise UsageError(
                f"{path} is part of the package {package}, from which it imports, and cannot stand alone: name it as "
                f"{package}.{stem}, in the folder {above}"
            ) from error.__cause__
        raise
    origin = getattr(module, "__file__", None)
    if origin is None or Path(origin).resolve() != path.resolve():
        raise UsageError(
            f"{path}: a module named {stem!r} exists already ({origin or 'built in'}); give the file another name"
        )
    return module


def _package_of(path: Path) -> tuple[str, Path]:
    """The dotted name of the package that a file lies in, and the folder above it all."""
    above, names = path.parent.parent, [path.parent.name]
    while (above / "__init__.py").exists():
        above, names = above.parent, [above.name, *names]
    return ".".join(names), above


def _import_module(name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.split(".")[0] == error.name.split(".")[0]:
            raise UsageError(
                f"there is no module {name!r} (and no file of that name ending in .py): check the name, install its "
                "package, or give the path of a file that ends in .py"
            ) from error
        raise UsageError(f"{name} cannot be imported: {error}; install what it needs") from error
    except ConsecutionError:
        raise
    except Exception as error:
        told = "".join(traceback.format_exception(error)).rstrip()
        raise UsageError(f"{name} cannot be imported; it raises:\n{told}") from error
