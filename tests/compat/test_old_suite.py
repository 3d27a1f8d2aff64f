"""0.2.0's own tests, run against this package."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path

import consecution

TIMEOUT_S = 100
IMPORTS = (
    (r"from consecution\.(nodes|pipeline|utils) import", "from consecution import"),
    (r"from consecution\.tests\.testing_helpers import", "from testing_helpers import"),
    (r"from mock import", "from unittest.mock import"),
)
VIRTUAL_TIME = '''
import time

import pytest

import consecution.clock


@pytest.fixture(autouse=True)
def virtual_time(monkeypatch):
    """The old tests sleep and compare tenths of seconds: here they sleep in no time, and a little long."""
    now_s = [0.0]
    monkeypatch.setattr(consecution.clock, "perf_counter", lambda: now_s[0])
    monkeypatch.setattr(time, "sleep", lambda wait_s: now_s.__setitem__(0, now_s[0] + 1.05 * wait_s))
'''


def test_all_tests_of_0_2_0_pass(old_root: Path, tmp_path: Path) -> None:
    files = _rewrite(old_root / "consecution" / "tests", tmp_path)
    expected = sum(_count_tests(path.read_text()) for path in files)
    assert expected > 50

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--rootdir=.", "-p", "no:cacheprovider", "--junitxml=report.xml"]
        + [path.name for path in files],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(consecution.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    (suite,) = xml.etree.ElementTree.parse(tmp_path / "report.xml").getroot()
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": expected, "failures": 0, "errors": 0, "skipped": 0}


def _rewrite(tests: Path, target: Path) -> list[Path]:
    """The old tests with their imports pointed at this package."""
    (target / "conftest.py").write_text(VIRTUAL_TIME)
    for path in tests.glob("*.py"):
        text = path.read_text()
        for old, new in IMPORTS:
            text = re.sub(old, new, text)
        assert not re.search(r"^(from|import) consecution\.", text, re.MULTILINE)
        (target / path.name).write_text(text)
    return sorted(target.glob("*_tests.py"))


def _count_tests(text: str) -> int:
    """How many tests unittest finds in a module, counted without running it."""
    classes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    return sum(len(set(_tests_of(name, classes))) for name in classes if _is_case(name, classes))


def _bases_of(name: str, classes: dict[str, ast.ClassDef]) -> list[str]:
    return [ast.unparse(base) for base in classes[name].bases] if name in classes else []


def _is_case(name: str, classes: dict[str, ast.ClassDef]) -> bool:
    return name == "TestCase" or any(_is_case(base, classes) for base in _bases_of(name, classes))


def _tests_of(name: str, classes: dict[str, ast.ClassDef]) -> Iterator[str]:
    for base in _bases_of(name, classes):
        yield from _tests_of(base, classes)
    if name in classes:
        functions = (node for node in classes[name].body if isinstance(node, ast.FunctionDef))
        yield from (function.name for function in functions if function.name.startswith("test"))
