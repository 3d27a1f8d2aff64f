"""Imports point one way: cli, pipeline → engines → runtime → transport → protocol → errors.

Every module is parsed, none is imported. Imports for the type checker alone do not count.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import consecution

PACKAGE = Path(consecution.__file__).parent
WORDS = {
    "batching",
    "calling",
    "clock",
    "compressions",
    "delimiters",
    "error_policy",
    "graph",
    "joining",
    "nodes",
    "options",
    "pacing",
    "plan",
    "postgresql",
    "producer",
    "reduction",
    "report",
    "routing",
    "sink",
    "source",
    "sqlite",
    "stateful",
    "states",
    "telling",
    "utils",
}
"""What users compose pipelines of, and what a run starts from: pure values, no machinery."""

MAY_IMPORT = {
    "errors": set[str](),
    "own_descriptors": set[str](),
    "kernel": set[str](),
    "protocol": {"protocol", "errors"},
    "transport": {"transport", "protocol", "errors", "own_descriptors"},
    "words": {"words", "protocol", "errors"},
    "sources": {"sources", "words", "protocol", "errors", "own_descriptors", "kernel"},
    "sinks": {"sinks", "words", "protocol", "errors", "own_descriptors"},
    "item_loop": {"protocol", "errors"},
    "runtime": {
        "runtime",
        "transport",
        "protocol",
        "words",
        "sources",
        "errors",
        "item_loop",
        "own_descriptors",
        "kernel",
    },
    "engine": {"words", "errors"},
    "engines": {"engine", "engines", "runtime", "transport", "protocol", "words", "sources", "errors"},
    "pipeline": {"engine", "words", "errors"},
    "testing": {
        "testing",
        "engine",
        "engines",
        "runtime",
        "transport",
        "protocol",
        "words",
        "sources",
        "errors",
        "pipeline",
    },
    "cli": {"cli", "pipeline", "runtime", "words", "errors", "package"},
    "package": {"cli"},
}
LATE = {("producer", "sources"), ("nodes", "item_loop")}
"""Imports inside functions that may go the other way: a producer makes its source when it is asked to, and an async
node, outside of an engine, the loop it runs in.
"""

MACHINERY = {
    "asyncio",
    "dill",
    "lmdb",
    "multiprocess",
    "multiprocessing",
    "select",
    "selectors",
    "signal",
    "socket",
    "sqlite3",
    "subprocess",
    "threading",
    "zmq",
}
WORLD = MACHINERY | {"io", "os", "pathlib", "random", "secrets", "shutil", "sys", "tempfile", "time", "uuid"}
"""What the protocol may not touch: it reads no clock, draws no random number, opens nothing."""


@dataclass(frozen=True, slots=True)
class Import:
    """One module that another imports; ``late`` inside a function."""

    target: str
    late: bool


HANDED_IN = {"consecution.protocol.step": {"time"}}
"""Where a default of something handed in names the world: the step's clock, which only measures busy time."""


def imports_of(text: str) -> list[Import]:
    return list(_walk(ast.parse(text).body, late=False))


def _walk(statements: list[ast.stmt], *, late: bool) -> Iterator[Import]:
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (Import(alias.name, late) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert not statement.level, "imports are written in full"
            yield from _targets(statement, late)
        elif isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            yield from _walk(statement.orelse, late=late)
        else:
            inside = late or isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _walk(_children(statement), late=inside)


def _targets(statement: ast.ImportFrom, late: bool) -> Iterator[Import]:
    """`from consecution.runtime import control` imports a module; `from x import name` imports x."""
    module = statement.module or ""
    for alias in statement.names:
        inner = PACKAGE.parent.joinpath(*module.split("."), alias.name)
        is_module = module.startswith("consecution") and (inner.is_dir() or inner.with_suffix(".py").is_file())
        yield Import(f"{module}.{alias.name}" if is_module else module, late)


def _children(statement: ast.stmt) -> list[ast.stmt]:
    found: list[ast.stmt] = []
    for field in ("body", "orelse", "finalbody"):
        found += getattr(statement, field, [])
    for handler in getattr(statement, "handlers", getattr(statement, "cases", [])):
        found += handler.body
    return found


def room_of(module: str) -> str:
    """The room of the house a dotted name stands in."""
    parts = module.split(".")
    if len(parts) == 1 or parts[1] == "__main__":
        return "package"
    return "words" if parts[1] in WORDS else parts[1]


def modules() -> list[str]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def read(module: str) -> str:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def wrong_ways(module: str, text: str) -> list[str]:
    """The imports of a module that point the wrong way."""
    room = room_of(module)
    return [
        f"{module} ({room}) imports {found.target} ({room_of(found.target)})"
        for found in imports_of(text)
        if found.target.split(".")[0] == "consecution"
        and room_of(found.target) not in MAY_IMPORT[room]
        and not (found.late and (module.split(".")[-1], room_of(found.target)) in LATE)
    ]


def roots_of(text: str, *, at_import: bool) -> set[str]:
    return {found.target.split(".")[0] for found in imports_of(text) if not (at_import and found.late)}


@pytest.mark.parametrize("module", modules())
def test_imports_point_one_way(module: str) -> None:
    assert room_of(module) in MAY_IMPORT, f"{module} stands in no room of the house: give it one here, or move it"
    assert wrong_ways(module, read(module)) == []


@pytest.mark.parametrize("module", [m for m in modules() if room_of(m) == "protocol"])
def test_the_protocol_touches_nothing_outside_itself(module: str) -> None:
    assert roots_of(read(module), at_import=False) & WORLD <= HANDED_IN.get(module, set())


@pytest.mark.parametrize("module", [m for m in modules() if room_of(m) in ("words", "engine", "errors")])
def test_pure_modules_import_no_machinery(module: str) -> None:
    allowed = {"signal", "threading"} if room_of(module) == "engine" else set()

    assert roots_of(read(module), at_import=True) & MACHINERY <= allowed


def test_no_modules_import_each_other_in_a_circle_when_loaded() -> None:
    known = set(modules())
    waits = {
        module: {i.target for i in imports_of(read(module)) if not i.late and i.target in known - {module}}
        for module in known
    }
    while ready := [module for module, targets in waits.items() if not targets & waits.keys()]:
        for module in ready:
            del waits[module]

    # A package's own file and the modules inside it may wait for each other: the package comes first.
    assert {m for m in waits if m not in ("consecution", "consecution.cli", "consecution.cli.plan")} == set()


def test_composing_a_pipeline_loads_no_machinery() -> None:
    code = (
        "import sys; from consecution import Pipeline, Node, Producer, TextLines, Options; import consecution.plan;"
        "print(sorted({'zmq', 'lmdb', 'dill', 'multiprocess'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("consecution.protocol.origin", "from consecution.transport.frames import encode_message"),
        ("consecution.runtime.worker", "def f():\n    import consecution.engines.process"),
        ("consecution.transport.frames", "from consecution.runtime import journal"),
        ("consecution.nodes", "try:\n    pass\nexcept Exception:\n    from consecution import pipeline"),
        ("consecution.producer", "from consecution.sources.pipe import PipeSource"),
    ],
)
def test_a_wrong_import_is_found_wherever_it_hides(module: str, text: str) -> None:
    assert len(wrong_ways(module, text)) == 1


def test_imports_for_the_type_checker_do_not_count() -> None:
    assert imports_of("if TYPE_CHECKING:\n    from consecution.pipeline import Pipeline") == []
