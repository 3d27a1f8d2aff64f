"""``consecution pause``: read no source until ``consecution resume``."""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from typing import Any

from consecution.cli.outside import NOT_YET, add_state_parser, length_in_seconds, seconds, tell
from consecution.errors import NotRunningError, UsageError
from consecution.runtime.outside import Outside, Sight
from consecution.runtime.state import lock_state_dir
from consecution.runtime.steering import keep_paused

LOOK_EVERY_S = 0.1
SURE_S = 0.3
"""At each look workers tell one after the other how far they are: what one is done with, another has not told of."""
DESCRIPTION = """Let a run read no source until `consecution resume`. What is open is finished; the run goes on, and is
"paused" once no source is read any more. A pause outlasts the run: one that is started again stays paused. Where no run
goes on, the next one is paused from its start. One with --for ends by itself, or with the run.

exit codes: 0 it is paused, 1 it is not yet, within --timeout (it will be), 2 this is no state directory
"""
EXAMPLES = """examples:
  consecution pause state
  consecution pause state --wait            # until what was open is finished, too
  consecution pause state --for 600         # goes on by itself after ten minutes
"""


def add_parser(commands: Any) -> None:
    """Add this command's parser."""
    parser = add_state_parser(
        commands, "pause", help="read no source until `resume`", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("--wait", action="store_true", help="wait until nothing is open any more, too")
    parser.add_argument(
        "--for", dest="for_s", metavar="S", type=length_in_seconds, help="go on by itself after so many seconds"
    )
    parser.add_argument("--timeout", metavar="S", type=seconds, default=60.0, help="seconds to wait (default 60)")
    parser.set_defaults(command=pause)


def pause(arguments: argparse.Namespace) -> int:
    """Ask for the pause, and see it begin."""
    outside = Outside(arguments.state_dir)
    try:
        outside.ask("pause", for_s=arguments.for_s)
        sight = _await_pause(outside, arguments)
    except NotRunningError:
        return _pause_the_next(outside, arguments)
    paused = sight.state == "paused" and not (arguments.wait and sight.open)
    said = "paused" if paused else f"not yet: the run is {sight.state}"
    tell(sight, as_json=arguments.json, said=f"{said}; {sight.open:,} items are pending")
    return 0 if paused else NOT_YET


def _await_pause(outside: Outside, arguments: argparse.Namespace) -> Sight:
    deadline_s = time.monotonic() + arguments.timeout
    quiet, quiet_since_s = None, 0.0
    while True:
        sight, now_s = outside.see(), time.monotonic()
        if not sight.running:
            raise NotRunningError(f"the run over {outside.path} has ended meanwhile")
        found = _quiet(sight)
        if found is None or found != quiet:
            quiet, quiet_since_s = found, now_s
        done = quiet is not None and now_s - quiet_since_s >= SURE_S if arguments.wait else sight.state == "paused"
        if done or now_s > deadline_s:
            return sight
        time.sleep(LOOK_EVERY_S)


def _quiet(sight: Sight) -> list[tuple[Any, ...]] | None:
    """What each task has done, where no source is read and nothing seems to be open; None: something is.

    The same at two looks: then nothing was under way in between either.
    """
    if sight.state != "paused" or sight.open:
        return None
    return [tuple(task[name] for name in ("items_in", "items_out", "frames")) for task in sight.counts.get("tasks", ())]


def _pause_the_next(outside: Outside, arguments: argparse.Namespace) -> int:
    if arguments.for_s is not None:
        raise UsageError(f"no run goes on over {outside.path}: there is nothing that --for could pause")
    with closing(lock_state_dir(outside.path)):
        keep_paused(outside.path, paused=True)
    tell(outside.see(), as_json=arguments.json, said="no run goes on; the next one will be paused")
    return 0
