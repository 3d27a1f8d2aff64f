"""``consecution stop``: end a run in good order, as SIGTERM does."""

from __future__ import annotations

import argparse
from typing import Any

from consecution.cli.outside import NOT_YET, WORK_PENDING, add_state_parser, seconds, tell
from consecution.errors import NotRunningError
from consecution.runtime.outside import Outside, Sight

DESCRIPTION = """Stop a run as SIGTERM does, and wait until it is over: sources are read no more, what is open is
finished, state is committed. What is not finished in time is left for the next run. Nothing is lost either way.

exit codes: 0 nothing is left open (also where no run goes on), 3 work is pending, 1 the run has not ended or ended
with an error, 2 this is no state directory
"""
EXAMPLES = """examples:
  consecution stop state
  consecution stop state --timeout 300
  consecution stop state --now
"""
CLOSING_S = 60.0
"""So long after its time is over a run may take to close."""


def add_parser(commands: Any) -> None:
    """Add this command's parser."""
    parser = add_state_parser(
        commands, "stop", help="stop a run in good order", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=seconds,
        help="seconds in which what is open may be finished (default: the run's stop_timeout_s)",
    )
    parser.add_argument("--now", action="store_true", help="leave what is open to the next run, as after a crash")
    parser.set_defaults(command=stop)


def stop(arguments: argparse.Namespace) -> int:
    """Ask the run to stop, and see it end."""
    outside = Outside(arguments.state_dir)
    try:
        answer = outside.ask("stop", timeout_s=arguments.timeout, now=arguments.now)
    except NotRunningError:
        return tell_end(arguments, outside.see(), was_running=False)
    if not outside.await_end(answer["pid"], answer["grace_s"] + CLOSING_S):
        tell(
            outside.see(), as_json=arguments.json, said=f"process {answer['pid']} has not ended yet; `kill -9` ends it"
        )
        return NOT_YET
    return tell_end(arguments, outside.see(), was_running=True)


def tell_end(arguments: argparse.Namespace, sight: Sight, *, was_running: bool) -> int:
    """Print how the run has ended; the exit code for it."""
    if sight.running:  # somebody, a service manager say, has started another one
        said = f"stopped; process {sight.pid} has taken over {sight.state_dir} since"
    elif not was_running:
        said = f"no run goes on over {sight.state_dir}; {sight.open:,} items are pending"
    else:
        said = f"{sight.state}; {sight.counts['completed']:,} items completed, {sight.open:,} pending"
    if was_running and sight.error is not None:
        said += f"; it ended with {sight.error}"
    tell(sight, as_json=arguments.json, said=said)
    if was_running and not sight.running and sight.state in ("failed", "killed"):
        return NOT_YET
    return WORK_PENDING if sight.open and not sight.running else 0
