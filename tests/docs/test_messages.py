"""Messages that the page of operations explains are messages that the code gives."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.docs.pages import ROOT

SECTION = (ROOT / "docs" / "operations.md").read_text().partition("## What to do when")[2].partition("\n## ")[0]
QUOTED = re.findall(r"\*([^*\n]+)\*", SECTION)


def texts() -> Iterator[str]:
    """Every text of the code; what is put in at run time is a gap."""
    for path in sorted((ROOT / "consecution").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "\0".join(part.value for part in node.values if isinstance(part, ast.Constant))


ALL_TEXTS = tuple(texts())


@pytest.mark.parametrize("quoted", QUOTED)
def test_it_is_a_message_of_the_code(quoted: str) -> None:
    parts = [part.strip() for part in re.split(r"\.\.\.|\bN\b", quoted) if part.strip()]

    assert [part for part in parts if not any(part in text for text in ALL_TEXTS)] == []


def test_there_are_messages_to_look_for() -> None:
    assert len(QUOTED) > 10
