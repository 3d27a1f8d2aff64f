"""The files of ``deploy/``, and the command lines in them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from consecution.cli import make_parser

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "systemd" / "consecution@.service"
CONTAINER = DEPLOY / "container"
KUBERNETES = DEPLOY / "kubernetes"


def settings(text: str) -> dict[str, list[str]]:
    """The lines ``key=value`` of a unit; a key may come several times."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def dockerfile() -> dict[str, list[str]]:
    """The arguments of each instruction of the Dockerfile, with lines that go on joined."""
    text = (CONTAINER / "Dockerfile").read_text().replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            instruction, _, rest = line.partition(" ")
            found.setdefault(instruction, []).append(rest.strip())
    return found


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def pod() -> Any:
    return load(KUBERNETES / "statefulset.yaml")["spec"]["template"]["spec"]


def words_of(line: str) -> list[str]:
    """The arguments of a line that begins with the program, wherever that lies."""
    program, *words = shlex.split(line)
    assert Path(program).name == "consecution", line
    return words


def check_command(words: list[str]) -> Any:
    """The line is one that the command takes; returns what it makes of it."""
    return make_parser().parse_args(words)
