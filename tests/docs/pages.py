"""The pages of the documentation, and what stands in them: blocks, links, commands, names of tests."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = tuple(
    sorted(
        [
            *(ROOT / folder / "README.md" for folder in ("", "examples", "benchmarks")),
            ROOT / "CHANGELOG.md",
            *(ROOT / "docs").glob("*.md"),
            *(ROOT / "deploy").rglob("*.md"),
        ]
    )
)
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
NAMED_TEST = re.compile(r"`(?P<path>tests/[\w/]+\.py)(?:::(?P<name>\w+))?`")
HEADING = re.compile(r"^#+ +(?P<text>.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. ``python run=x.py`` is written to x.py and run; ``text output`` is what that printed."""

    page: Path
    line: int
    language: str
    mark: str
    body: str

    @property
    def program(self) -> str:
        """The name of the file that a runnable block is written to; '' for any other block."""
        return self.mark.removeprefix("run=") if self.mark.startswith("run=") else ""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@functools.cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@functools.cache
def blocks_of(page: Path) -> tuple[Block, ...]:
    text = text_of(page)
    found = []
    for match in FENCE.finditer(text):
        language, _, mark = match["info"].strip().partition(" ")
        found.append(Block(page, text.count("\n", 0, match.start()) + 1, language, mark.strip(), match["body"]))
    return tuple(found)


def prose_of(page: Path) -> str:
    """The page without its blocks."""
    return FENCE.sub("", text_of(page))


def links_of(page: Path) -> list[str]:
    """What links lead to, but for other places of the web."""
    found = [match["target"] for match in LINK.finditer(prose_of(page))]
    return [target for target in found if not target.startswith(("http://", "https://", "mailto:"))]


def anchors_of(page: Path) -> set[str]:
    """What a link may name behind ``#``, as GitHub makes it from headings."""
    texts = (match["text"].lower() for match in HEADING.finditer(prose_of(page)))
    return {re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-") for text in texts}


def commands_of(page: Path) -> list[str]:
    """The command lines of console blocks: what follows ``$``, without comments."""
    lines = (line for block in blocks_of(page) if block.language == "console" for line in block.body.splitlines())
    return [line.removeprefix("$ ").partition("  #")[0].strip() for line in lines if line.startswith("$ ")]


def outputs_of(page: Path) -> list[tuple[int, str, str]]:
    """(line, command, output) of every command of a console block that shows what it prints."""
    found = []
    for block in (block for block in blocks_of(page) if block.language == "console"):
        for shown in re.split(r"^\$ ", block.body, flags=re.MULTILINE)[1:]:
            command, _, output = shown.partition("\n")
            if output.strip():
                found.append((block.line, command.strip(), output))
    return found


def named_tests_of(page: Path) -> list[tuple[str, str]]:
    """(file, name) of every test a page calls upon; the name is '' where a whole file is meant."""
    return [(match["path"], match["name"] or "") for match in NAMED_TEST.finditer(prose_of(page))]
