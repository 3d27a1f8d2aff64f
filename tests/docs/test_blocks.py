"""Every program of the documentation runs as it stands there, and prints what the page says it prints."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from consecution.cli import main
from tests.docs.pages import PAGES, ROOT, Block, blocks_of, name_of, outputs_of

TIMEOUT_S = 100
TAUGHT = ("README.md", "docs/tutorial.md", "docs/moving-from-0.2.0.md")
"""Pages that teach: each of their Python blocks must be a program."""
PROGRAMS = tuple(page for page in PAGES if any(block.program for block in blocks_of(page)))


def run(block: Block, folder: Path) -> str:
    (folder / block.program).write_text(block.body, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, block.program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert ran.returncode == 0, f"{name_of(block.page)}:{block.line} ended with {ran.returncode}:\n{ran.stderr}"
    return ran.stdout


@pytest.mark.parametrize("page", PROGRAMS, ids=name_of)
def test_every_program_runs_and_prints_what_the_page_says(page: Path, tmp_path: Path) -> None:
    printed, program = "", ""

    for block in blocks_of(page):
        if block.program:
            printed, program = run(block, tmp_path), block.program
        elif block.mark == "output":
            assert printed.rstrip("\n") == block.body.rstrip("\n"), f"{name_of(page)}:{block.line}, of {program}"


def planned() -> list[tuple[Path, str, str]]:
    """(page, command, output) of every plan that a page shows."""
    shown = ((page, command, output) for page in PAGES for _, command, output in outputs_of(page))
    return [(page, command, output) for page, command, output in shown if command.startswith("consecution plan ")]


@pytest.mark.parametrize(("page", "command", "output"), planned(), ids=[name_of(page) for page, _, _ in planned()])
def test_a_plan_is_what_the_page_says(
    page: Path,
    command: str,
    output: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for block in (block for block in blocks_of(page) if block.program):
        (tmp_path / block.program).write_text(block.body, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    code = main(shlex.split(command)[1:])

    assert (code, capsys.readouterr().out.strip()) == (0, output.strip())


def test_plans_are_shown_on_two_pages() -> None:
    assert {name_of(page) for page, _, _ in planned()} == {"README.md", "docs/tutorial.md"}


@pytest.mark.parametrize("name", TAUGHT)
def test_no_python_block_of_a_page_that_teaches_is_left_out(name: str) -> None:
    blocks = [block for block in blocks_of(ROOT / name) if block.language.startswith("py")]

    assert blocks
    assert [block.line for block in blocks if not block.program] == []
