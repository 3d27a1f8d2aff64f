"""``consecution init``: a starter project that runs and tests itself."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import consecution
from consecution.errors import UsageError

DESCRIPTION = """Make a folder with a small pipeline that works: a source, two nodes, a sink, data to read, tests, a
Makefile, and a README that says what to try. Change it into yours.

exit codes: 0 it is there, 2 the folder has something in it, or the name cannot be one
"""
EXAMPLES = """examples:
  consecution init orders
  cd orders && make run test
"""
NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
SUFFIX = ".in"
"""Of our own files, so that nobody takes them for programs and settings of this package."""
HIDDEN = {"gitignore": ".gitignore"}


def add_parser(commands: Any) -> None:
    """Add this command's parser."""
    parser = commands.add_parser(
        "init",
        help="make a starter project that runs and tests itself",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="NAME", type=Path, help="the folder to make; its name is the project's")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=make_project)


def make_project(arguments: argparse.Namespace) -> int:
    """Write the files, and say what to do with them."""
    folder: Path = arguments.folder
    name = folder.resolve().name
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a project: expected small letters and digits, with single '-' or '_' between"
        )
    try:
        _write(folder, {"{name}": name, "{version}": consecution.__version__})
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror or error}; give another folder") from error
    if arguments.json:
        print(json.dumps({"name": name, "folder": str(folder.resolve())}))
        return 0
    print(f"{folder} is there. Now:\n  cd {folder}\n  make run\n  make test\nand see README.md.")
    return 0


def _write(folder: Path, words: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UsageError(f"{folder} has something in it: give a new folder, or an empty one")
    for path, text in _files(resources.files(consecution.cli) / "starter"):
        for word, meant in words.items():
            text = text.replace(word, meant)
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


def _files(folder: Traversable) -> Iterator[tuple[Path, str]]:
    """Where each file of the project lies in it, and its text."""
    for found in folder.iterdir():
        if found.is_dir():
            yield from ((Path(found.name) / path, text) for path, text in _files(found))
        elif found.name.endswith(SUFFIX):
            name = found.name.removesuffix(SUFFIX)
            yield Path(HIDDEN.get(name, name)), found.read_text(encoding="utf-8")
