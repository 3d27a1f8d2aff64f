"""Every link within the documentation leads somewhere, and every test that it calls upon exists."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors_of, links_of, name_of, named_tests_of

GUARANTEES = ROOT / "docs" / "guarantees.md"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_something_that_is_there(page: Path) -> None:
    missing = []

    for target in links_of(page):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or (anchor and anchor not in anchors_of(place)):
            missing.append(target)

    assert missing == []


@pytest.mark.parametrize("page", [page for page in PAGES if named_tests_of(page)], ids=name_of)
def test_every_test_that_is_named_exists(page: Path) -> None:
    missing = [(path, name) for path, name in named_tests_of(page) if not exists(path, name)]

    assert missing == []


def exists(path: str, name: str) -> bool:
    file = ROOT / path
    if not file.is_file():
        return False
    functions = {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}
    return name in functions if name else any(function.startswith("test_") for function in functions)


def test_every_promise_names_a_test() -> None:
    sections = GUARANTEES.read_text().split("\n## ")[1:]
    promises = [section for section in sections if section.startswith("Promise")]

    assert promises
    assert [section.splitlines()[0] for section in promises if "`tests/" not in section] == []


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {target.partition("#")[0] for target in links_of(ROOT / "README.md")}

    assert {name_of(page) for page in PAGES if page.parent.name == "docs"} <= linked
