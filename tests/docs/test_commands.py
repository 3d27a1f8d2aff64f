"""Every command line that the documentation shows could be typed: command, action, flags, targets and modules exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from consecution.cli import make_parser
from tests.docs.pages import PAGES, ROOT, blocks_of, commands_of, name_of, prose_of

INLINE = re.compile(r"`(consecution [a-z][^`]*|make [a-z-]+[^`]*|python -m [a-z.]+[^`]*)`")
MAKE_TARGET = re.compile(r"^([a-z-]+):", re.MULTILINE)


def shown_in(page: Path) -> list[str]:
    return [*commands_of(page), *(match[1] for match in INLINE.finditer(prose_of(page)))]


SHOWN = [(page, line) for page in PAGES for line in shown_in(page)]


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=[f"{name_of(page)}: {line[:60]}" for page, line in SHOWN])
def test_every_command_line_exists(page: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line.partition(" & ")[0].partition(" < ")[0].partition(" > ")[0], comments=True)

    if words[:1] == ["consecution"]:
        check_consecution(words[1:], capsys)
    elif words[:1] == ["make"]:
        assert {word for word in words[1:] if "=" not in word} <= make_targets()
    elif words[:2] == ["python", "-m"] and words[2] not in ("pip", "venv"):
        assert importlib.util.find_spec(words[2]) is not None
    elif words[:1] == ["python"] and words[1:2] != ["-m"]:
        assert is_there(page, words[1])


def check_consecution(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The words that are no flags lead to a command, whose help has all the flags."""
    path = [word for word in words[:2] if re.fullmatch(r"[a-z]+(\|[a-z]+)*", word)]
    for choice in path[-1].split("|") if path else []:
        text = help_of([*path[:-1], choice], capsys)
        assert [word for word in words if word.startswith("--") and word.partition("=")[0] not in text] == []


def help_of(path: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args([*path, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def make_targets() -> set[str]:
    return set(MAKE_TARGET.findall((ROOT / "Makefile").read_text()))


def is_there(page: Path, program: str) -> bool:
    """A file of this project, or one that the page itself makes."""
    return (ROOT / program).is_file() or program in {block.program for block in blocks_of(page)}


def test_the_check_itself_finds_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError):
        check_consecution(["run", "etl.py", "--no-such-flag"], capsys)
    with pytest.raises(AssertionError):
        check_consecution(["fly"], capsys)
