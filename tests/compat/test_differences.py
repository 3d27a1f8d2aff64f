"""The list of deliberate differences from 0.2.0. Each is run under both, so that it stays true.

What 0.2.0 accepted and then ignored, or could not get over, is refused with a reason or works.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import consecution

NEW_ROOT = Path(consecution.__file__).parents[1]
TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Difference:
    """``code`` leaves its ``result``; an exception's name stands for one that is raised."""

    name: str
    code: str
    old: Any
    new: Any


COMMON = """
from consecution import GlobalState, GroupByNode, Node, Pipeline

class Pass(Node):
    def process(self, item):
        self.push(item)

class Told(Node):
    def begin(self):
        told.append("begin " + self.name)
        if self.name == fails:
            raise ArithmeticError

    def process(self, item):
        told.append(self.name + " " + str(item))
        1 // item
        self.push(item)

class Same(GroupByNode):
    def key(self, item):
        return 1 // item

    def process(self, batch):
        told.append(batch)

def names(nodes):
    return sorted(node.name for node in nodes)

def always_b(item):
    return "b"

told, fails = [], ""
a, b, c, d = (Pass(name) for name in "abcd")
"""

DIFFERENCES = (
    Difference("a text is no list of nodes", "a | 'b'", "RecursionError", "GraphError"),
    Difference("an empty list has nothing to connect", "a | []; result = names(a.all_nodes)", ["a"], "GraphError"),
    Difference(
        "a chain is not led into from a second place by itself",
        "a | c; b | c; result = names(a._upstream_nodes)",
        ["b"],
        "GraphError",
    ),
    Difference("what is no node is refused", "a | [7, b]; result = names(a.all_nodes)", ["a", "b"], "GraphError"),
    Difference(
        "after an exception in begin, the last node begins last",
        """
p = Pipeline(Told("a") | [Told("b"), Told("c")] | Told("d"))
fails = "c" if p["a"]._downstream_nodes[0].name == "b" else "b"
try:
    p.consume([])
except ArithmeticError:
    fails, told = "", []
p.consume([])
result = told[-1] == "begin d"
""",
        False,
        True,
    ),
    Difference(
        "after an exception in process, the next item begins the pipeline anew",
        """
p = Pipeline(Told("a"))
try:
    p.consume([0])
except ZeroDivisionError:
    told = []
p.push(1)
result = told
""",
        ["a 1"],
        ["begin a", "a 1"],
    ),
    Difference(
        "after an exception, what was gathered is forgotten",
        """
p = Pipeline(Same("a"))
try:
    p.consume([2, 3, 0])
except ZeroDivisionError:
    pass
p.consume([4])
result = told
""",
        [[2, 3, 4]],
        [[4]],
    ),
    Difference(
        "items do not end in a process that yields, and never runs",
        """
class Yields(Node):
    def process(self, item):
        yield item

Pipeline(Yields("a") | Told("b")).consume([1])
result = told
""",
        ["begin b"],
        "GraphError",
    ),
    Difference(
        "a falsy global state is kept",
        "result = type(Pipeline(a, global_state=[]).global_state).__name__",
        "GlobalState",
        "list",
    ),
    Difference(
        "a second function in a list is not dropped without a word",
        "a | [b, always_b, c, len]; result = names(a.all_nodes)",
        ["a", "a.always_b", "b", "c"],
        "GraphError",
    ),
    Difference(
        "a function in a list left of | is not dropped without a word",
        "[b, c, always_b] | d; result = names(d.all_nodes)",
        ["b", "c", "d"],
        "GraphError",
    ),
    Difference(
        "a function alone in a list has nothing to route to",
        "a | [always_b]; result = names(a.all_nodes)",
        ["a", "a.always_b"],
        "GraphError",
    ),
    Difference(
        "a multiplied list does not lose its replicas without a word",
        "a | [b] * 2; result = names(a.all_nodes)",
        ["a", "b"],
        "GraphError",
    ),
    Difference(
        "a function in an inner list routes",
        "a | [c, [b, d, always_b]]; result = names(a.all_nodes)",
        ["a", "b", "c", "d"],
        ["a", "a.always_b", "b", "c", "d"],
    ),
    Difference(
        "pushing in begin is refused the second time, too",
        """
class Hasty(Pass):
    def begin(self):
        if told:
            self.push(1)

p = Pipeline(Hasty("a") | Told("b"))
p.consume([])
p.consume([])
result = told
""",
        ["begin b", "b 1", "begin b"],
        "AttributeError",
    ),
    Difference(
        "what a GroupByNode takes in is logged, too",
        """
import contextlib, io

same, out = Same("a"), io.StringIO()
same.log("input")
with contextlib.redirect_stdout(out):
    Pipeline(same).consume([2])
result = out.getvalue().count("node_log,input,a,2")
""",
        0,
        1,
    ),
)

RUNNER = """
import contextlib, io, json, sys
sys.setrecursionlimit(500)
common, *codes = json.load(sys.stdin)
results = []
for code in codes:
    names = {}
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exec(common + code, names)
        results.append(names.get("result"))
    except Exception as error:
        results.append(type(error).__name__)
import consecution
print(json.dumps([consecution.__version__, *results]))
"""


def run_under(root: Path, folder: Path) -> dict[str, Any]:
    """The version found in ``root``, and what each difference results in."""
    ran = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([COMMON, *(difference.code for difference in DIFFERENCES)]),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    version, *results = json.loads(ran.stdout)
    return {"version": version, **dict(zip((d.name for d in DIFFERENCES), results, strict=True))}


@pytest.fixture(scope="module")
def new_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_under(NEW_ROOT, tmp_path_factory.mktemp("new"))


@pytest.fixture(scope="module")
def old_results(old_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_under(old_root, tmp_path_factory.mktemp("old"))


def test_the_two_versions_are_compared(old_results: dict[str, Any], new_results: dict[str, Any]) -> None:
    assert old_results["version"] == "0.2.0"
    assert new_results["version"] == consecution.__version__


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.name)
def test_here(difference: Difference, new_results: dict[str, Any]) -> None:
    assert new_results[difference.name] == difference.new


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.name)
def test_in_0_2_0(difference: Difference, old_results: dict[str, Any]) -> None:
    assert old_results[difference.name] == difference.old
