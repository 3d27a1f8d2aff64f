"""What shells get to complete, asked as bash itself asks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from consecution.cli import COMMANDS, main
from consecution.options import SETTINGS
from tests.conftest import WriteModule

ASK = """
source ./script
for line in "$@"; do
    COMP_WORDS=($line); [[ $line == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
    _shtab_consecution consecution "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
    echo "${COMPREPLY[@]}"
done
"""


def script_of(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def test_bash_completes_commands_flags_choices_files_and_folders(
    write_module: WriteModule, capsys: pytest.CaptureFixture[str]
) -> None:
    write_module("etl", "")
    Path("etl_state").mkdir()
    Path("script").write_text(script_of("bash", capsys))

    def complete(*lines: str) -> list[set[str]]:
        done = subprocess.run(["bash", "-c", ASK, "ask", *lines], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return [set(line.split()) for line in done.stdout.splitlines()]

    commands, actions, flags, choices, files, folders = complete(
        "consecution ",
        "consecution failed ",
        "consecution run -",
        "consecution run --robustness ",
        "consecution plan et",
        "consecution status et",
    )
    assert commands == {module.__name__.rpartition(".")[2] for module in COMMANDS}
    assert actions == {"list", "show", "export", "retry", "drop"}
    assert flags >= {setting.flag for setting in SETTINGS}
    assert choices == {"none", "confirm", "track", "robust"}
    assert files == {"etl.py", "etl_state"}
    assert folders == {"etl_state"}


def test_zsh_gets_every_command_with_its_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = script_of("zsh", capsys)

    assert script.startswith("#compdef consecution\n")
    assert "\n    status:'how a run is doing, or what it has left'\n" in script
    zsh = shutil.which("zsh")
    if zsh is not None:
        (tmp_path / "_consecution").write_text(script)
        subprocess.run([zsh, "-n", str(tmp_path / "_consecution")], check=True, timeout=60)


def test_without_the_extra_an_error_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)

    assert main(["completion", "bash"]) == 2
    assert "pip install 'consecution[completion]'" in capsys.readouterr().err
