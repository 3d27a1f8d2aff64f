"""What the help of every command has."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from consecution.cli import make_parser


def parsers_below(parser: argparse.ArgumentParser, words: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """All parsers of commands and their actions, by the words that lead to them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                path = f"{words} {word}".strip()
                yield path, below
                yield from parsers_below(below, path)


PARSERS = dict(parsers_below(make_parser()))


def dests(parser: argparse.ArgumentParser) -> set[str]:
    return {action.dest for action in parser._actions}


@pytest.mark.parametrize("words", PARSERS)
def test_its_help_says_what_it_does_and_has_examples_of_it(words: str) -> None:
    parser = PARSERS[words]

    assert parser.description
    assert parser.format_help().count("examples:\n") == 1
    examples = parser.format_help().partition("examples:\n")[2]
    assert f"consecution {words} " in examples or f"consecution {words}\n" in f"{examples}\n"


@pytest.mark.parametrize("words", [words for words, parser in PARSERS.items() if "state_dir" in dests(parser)])
def test_what_names_a_state_directory_prints_json(words: str) -> None:
    """There is no exception."""
    assert "json" in dests(PARSERS[words])


def test_all_commands_are_looked_at() -> None:
    assert {"run", "status", "failed retry", "journal check", "state get", "backup"} <= set(PARSERS)
