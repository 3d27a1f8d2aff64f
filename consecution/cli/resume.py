"""``consecution resume``: read the sources again."""

from __future__ import annotations

import argparse
from contextlib import closing
from typing import Any

from consecution.cli.outside import add_state_parser, tell
from consecution.errors import NotRunningError
from consecution.runtime.outside import Outside
from consecution.runtime.state import lock_state_dir
from consecution.runtime.steering import keep_paused

DESCRIPTION = """Let a run that was paused read its sources again. Harmless where nothing is paused. Where no run goes
on, the next one will not be paused.

exit codes: 0 it goes on, 2 this is no state directory
"""
EXAMPLES = """examples:
  consecution resume state
"""


def add_parser(commands: Any) -> None:
    """Add this command's parser."""
    parser = add_state_parser(
        commands, "resume", help="read the sources of a paused run again", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.set_defaults(command=resume)


def resume(arguments: argparse.Namespace) -> int:
    """Ask the run to go on."""
    outside = Outside(arguments.state_dir)
    said = "reading again"
    try:
        outside.ask("resume")
    except NotRunningError:
        with closing(lock_state_dir(outside.path)):
            keep_paused(outside.path, paused=False)
        said = "no run goes on; the next one will read"
    tell(outside.see(), as_json=arguments.json, said=said)
    return 0
