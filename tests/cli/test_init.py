"""A starter project: made, run and tested as its README says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import consecution
from consecution.cli import main


def test_a_new_project_runs_and_tests_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "shop-totals"]) == 0
    assert "cd shop-totals\n  make run\n" in capsys.readouterr().out
    project = tmp_path / "shop-totals"
    package = str(Path(consecution.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package, "PYTHONDONTWRITEBYTECODE": "1"}

    made = subprocess.run(
        ["make", "run", "test", f"PYTHON={sys.executable}"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert made.returncode == 0, made.stdout + made.stderr
    assert "emitted 4 = completed 4 + pending 0" in made.stdout
    assert "3 passed" in made.stdout
    totals = [json.loads(line) for line in (project / "out" / "totals.jsonl").read_text().splitlines()]
    assert [(total["customer"], total["cents"]) for total in totals] == [("ada", 1250), ("grace", 400), ("ada", 2000)]


def test_a_project_has_its_name_and_code_that_is_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", str(tmp_path / "shop"), "--json"])

    project = tmp_path / "shop"
    assert json.loads(capsys.readouterr().out) == {"name": "shop", "folder": str(project)}
    assert tomllib.loads((project / "pyproject.toml").read_text())["project"] == {
        "name": "shop",
        "version": "0.1.0",
        "description": "What each customer has spent",
        "requires-python": ">=3.11",
        "dependencies": [f"consecution>={consecution.__version__}"],
        "optional-dependencies": {"test": ["pytest>=8"]},
    }
    assert (project / "README.md").read_text().startswith("# shop\n")
    assert "/state/\n" in (project / ".gitignore").read_text()
    for check in (["check", "--select", "E,F,W,I,UP,B,SIM,RUF"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *check, "--isolated", "--line-length", "120", "."]
        subprocess.run(ruff, cwd=project, check=True, timeout=60)


def test_a_project_passes_the_strict_type_checker(tmp_path: Path) -> None:
    """With the cache of `make check`, which has looked at the package just before."""
    main(["init", str(tmp_path / "shop"), "--json"])
    root = Path(consecution.__file__).parents[1]
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(root / ".mypy_cache")]

    checked = subprocess.run(
        [*mypy, "pipeline.py"],
        cwd=tmp_path / "shop",
        env={**os.environ, "MYPYPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=110,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Shop", "'Shop' cannot name a project: expected small letters and digits"),
        ("full", "full has something in it: give a new folder, or an empty one"),
        ("full/file/shop", "Not a directory; give another folder"),
    ],
)
def test_what_cannot_be_made_is_told_and_nothing_is_touched(
    name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/file").write_text("mine")

    assert main(["init", name]) == 2
    assert why in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "file"]
