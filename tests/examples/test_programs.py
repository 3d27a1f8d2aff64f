"""What holds for every example."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from consecution import Pipeline
from consecution.cli import main
from tests.examples import programs

EVERY = pytest.mark.parametrize("name", programs.NAMES)


def test_every_example_is_tested_and_told_about() -> None:
    names = sorted(path.stem for path in programs.FOLDER.glob("*.py"))
    readme = (programs.FOLDER / "README.md").read_text()

    assert names == sorted(programs.NAMES)
    assert [name for name in names if f"({name}.py)" not in readme] == []
    assert [name for name in names if not (Path(__file__).parent / f"test_{name}.py").exists()] == []


@EVERY
def test_it_tells_what_it_does_and_how_to_run_it(name: str) -> None:
    example = programs.load(name)

    first, *_ = example.__doc__.splitlines()
    assert first.endswith("?")
    assert f"python examples/{name}.py" in example.__doc__
    assert f"consecution run examples/{name}.py" in example.__doc__


@EVERY
def test_it_has_help(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])

    with pytest.raises(SystemExit) as caught:
        programs.load(name).main()

    assert caught.value.code == 0
    assert f"usage: {name}.py" in capsys.readouterr().out


@EVERY
def test_its_plan_can_be_printed_and_loading_it_makes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, name)

    code = main(["plan", str(programs.FOLDER / f"{name}.py")])

    assert code == 0
    assert f"process mode: {len(fresh_plan(name))} workers" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def fresh_plan(name: str) -> tuple[object, ...]:
    pipeline = programs.load(name).pipeline
    assert isinstance(pipeline, Pipeline)
    return pipeline.plan().tasks
