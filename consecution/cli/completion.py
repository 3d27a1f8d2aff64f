"""``consecution completion``: what a shell needs to complete commands, flags, files and state directories."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consecution.errors import MissingExtraError

SHELLS = ("bash", "zsh")
DESCRIPTION = """Print a script that lets a shell complete this command: its commands, flags and choices, files, and
folders where a state directory is meant. It is made from the very flags that this version has. Needs the extra
`completion` (shtab) when it is made, not when it is used.

exit codes: 0 it is printed, 2 usage, or shtab is missing
"""
EXAMPLES = """examples:
  consecution completion bash > ~/.local/share/bash-completion/completions/consecution
  consecution completion zsh > ~/.zfunc/_consecution        # ~/.zfunc is in $fpath before compinit
  eval "$(consecution completion bash)"                     # only this shell
"""


def add_parser(commands: Any) -> None:
    """Add this command's parser."""
    parser = commands.add_parser(
        "completion",
        help="print a script that lets bash or zsh complete this command",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="bash or zsh")
    parser.set_defaults(command=complete)


def complete(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from consecution.cli import make_parser

    try:
        import shtab
    except ImportError as error:
        raise MissingExtraError(
            f"consecution completion needs shtab: pip install 'consecution[completion]' ({error})", extra="completion"
        ) from error
    parser = make_parser()
    for action in _actions_of(parser):
        if action.dest == "state_dir":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.dest == "target" or action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, arguments.shell))
    return 0


def _actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All flags and arguments, those of its commands too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for listed in action._choices_actions:
                command = action.choices[listed.dest]
                command.description = listed.help  # the one line that zsh shows beside it
                yield from _actions_of(command)
        else:
            yield action
