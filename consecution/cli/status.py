"""``consecution status``: how a run is doing, or what one has left."""

from __future__ import annotations

import argparse
from typing import Any

from consecution.cli.outside import WORK_PENDING, add_state_parser, tell
from consecution.runtime.outside import Outside

DESCRIPTION = """Say how a run is doing: running, paused, recovering, ending, ...; of one that is over, when it ended,
how, and what its journals still hold.

exit codes: 0 it runs (also when it is paused), 3 it does not, 2 this is no state directory, or the run does not answer
"""
EXAMPLES = """examples:
  consecution status state
  consecution status state --json
  consecution status state > /dev/null || systemctl restart etl
"""


def add_parser(commands: Any) -> None:
    """Add this command's parser."""
    parser = add_state_parser(
        commands, "status", help="how a run is doing, or what it has left", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.set_defaults(command=show_status)


def show_status(arguments: argparse.Namespace) -> int:
    """Print how things stand."""
    sight = Outside(arguments.state_dir).see()
    tell(sight, as_json=arguments.json)
    return 0 if sight.running else WORK_PENDING
