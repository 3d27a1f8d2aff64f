"""``consecution drain``: read nothing more, finish all of what is open, then end."""

from __future__ import annotations

import argparse
from typing import Any

from consecution.cli.outside import NOT_YET, add_state_parser, seconds, tell
from consecution.cli.stop import tell_end
from consecution.errors import NotRunningError
from consecution.runtime.outside import Outside

DESCRIPTION = """Let a run read nothing more, finish everything that is open, retries included, however long that takes,
and end. Afterwards nothing is in flight in its state directory: the shape of the graph may change.

exit codes: 0 it has ended and nothing is open (also where no run goes on and nothing is), 3 work is pending, 1 it has
not ended in that time (it goes on draining), or has ended with an error, 2 this is no state directory
"""
EXAMPLES = """examples:
  consecution drain state
  consecution drain state --timeout 600 --json
"""


def add_parser(commands: Any) -> None:
    """Add this command's parser."""
    parser = add_state_parser(
        commands, "drain", help="finish all that is open, then end", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("--timeout", metavar="S", type=seconds, help="seconds to wait (default: as long as it takes)")
    parser.set_defaults(command=drain)


def drain(arguments: argparse.Namespace) -> int:
    """Ask the run to drain, and see it end."""
    outside = Outside(arguments.state_dir)
    try:
        answer = outside.ask("drain")
    except NotRunningError:
        return tell_end(arguments, outside.see(), was_running=False)
    if not outside.await_end(answer["pid"], arguments.timeout):
        sight = outside.see()
        tell(sight, as_json=arguments.json, said=f"still draining: {sight.open:,} items are pending")
        return NOT_YET
    return tell_end(arguments, outside.see(), was_running=True)
