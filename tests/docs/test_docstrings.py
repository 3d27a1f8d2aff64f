"""What the docstrings of the public names refer to can be found by whoever reads them with ``help``."""

from __future__ import annotations

import inspect
import pydoc
import re
from collections.abc import Iterator

import pytest

import consecution

REFERENCE = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")


def docstrings_of(owner: type) -> Iterator[str]:
    yield inspect.getdoc(owner) or ""
    for name, member in inspect.getmembers(owner):
        if not name.startswith("_") and (callable(member) or isinstance(member, property)):
            yield inspect.getdoc(member) or ""


def is_found(name: str, owner: type) -> bool:
    """As ``help(name)`` would after ``import consecution``, as a public name, or beside what refers to it."""
    if hasattr(owner, name.split(".")[0]):
        return True
    return pydoc.locate(f"consecution.{name}") is not None or pydoc.locate(name) is not None


@pytest.mark.parametrize("name", consecution.__all__)
def test_what_a_docstring_refers_to_is_found(name: str) -> None:
    owner = getattr(consecution, name)

    lost = {found for text in docstrings_of(owner) for found in REFERENCE.findall(text) if not is_found(found, owner)}

    assert not lost
