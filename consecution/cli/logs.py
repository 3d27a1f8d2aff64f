"""``consecution logs``: what the workers of a run have printed, logged or crashed with."""

from __future__ import annotations

import argparse
import re
import sys
from collections import deque
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from consecution.cli.failed import time_of
from consecution.cli.outside import add_state_parser, count_of
from consecution.errors import UsageError
from consecution.runtime.log_file import LogLine, follow_log, read_log
from consecution.runtime.outside import Outside
from consecution.runtime.pending import node_of, nodes_of
from consecution.runtime.run_record import read_run_record
from consecution.runtime.state import look_at_state_dir

DESCRIPTION = """Print what the workers of a run have printed, logged or crashed with, and what the supervisor said: the
latest lines, whether the run goes on or not. The log is kept for runs in process mode; in the other modes your code
prints where your program does. Of each state directory the last 64 to 80 MiB are there.

exit codes: 0, 2 this is no state directory, or has no such node
"""
EXAMPLES = """examples:
  consecution logs state
  consecution logs state -f --node balance
  consecution logs state --since 10m --lines 1000
  consecution logs state --json | jq -r .text
"""
LINES = 100
WORKER = re.compile(r"supervisor|worker(\.\d+)?")
"""Names that no plan tells of."""


def add_parser(commands: Any) -> None:
    """Add this command's parser."""
    parser = add_state_parser(
        commands, "logs", help="what the workers have printed and logged", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on with the lines that come, until Ctrl-C")
    parser.add_argument(
        "-n", "--lines", metavar="N", type=count_of, default=LINES, help=f"the latest N lines (default {LINES})"
    )
    parser.add_argument(
        "--node",
        action="append",
        default=[],
        help="lines of this node, task (balance.0), worker (worker.0) or of the supervisor; may be repeated",
    )
    parser.add_argument(
        "--since", metavar="TIME", type=time_of, help="lines from then on: 2026-01-31T12:00, or 90s, 30m, 2h, 7d ago"
    )
    parser.set_defaults(command=show_logs)


def show_logs(arguments: argparse.Namespace) -> int:
    """Print the latest lines; go on with the next."""
    outside = Outside(arguments.state_dir)
    _check_names(outside.path, arguments.node)
    _tell_of_mode(outside.path)
    if not arguments.follow:
        latest = list(_latest(arguments, read_log(outside.path)))
        _show(arguments, latest)
        if not latest:
            _tell_why(arguments, read_log(outside.path))
        return 0
    try:
        lines = follow_log(outside.path)
        _show(arguments, _latest(arguments, _until_none(lines)))
        for line in lines:
            if line is not None and _wanted(arguments, line):
                _show(arguments, [line])
    except KeyboardInterrupt:
        pass
    return 0


def _check_names(path: Path, names: list[str]) -> None:
    """A name that was misspelt must not look like a node that is silent."""
    tasks = look_at_state_dir(path).tasks
    nodes = nodes_of(tasks)
    unknown = [name for name in names if name not in nodes and name not in tasks and not WORKER.fullmatch(name)]
    if not unknown:
        return
    written = {line.task for line in read_log(path)}  # also by nodes that the pipeline had before
    for name in unknown:
        if name not in written and name not in map(node_of, written):
            raise UsageError(
                f"{path}: there is no node, task or worker {name!r}; there are the nodes {', '.join(nodes)}, their "
                f"tasks (as {tasks[0]}), workers (as worker.0) and supervisor"
            )


def _tell_of_mode(path: Path) -> None:
    """What is not kept must not look like a run that is silent."""
    record = read_run_record(path)
    if record is not None and record.mode != "process":
        print(
            f"the latest run over {path} writes no log: it is in {record.mode} mode, where your code prints where your "
            "program does; only process mode keeps one (--mode process)",
            file=sys.stderr,
        )


def _tell_why(arguments: argparse.Namespace, lines: Iterable[LogLine]) -> None:
    """Which ones there are, where there is nothing of those that were asked for."""
    names = sorted({line.task for line in lines})
    if not names:
        print("the log is empty", file=sys.stderr)
    elif arguments.node:
        print(f"no such lines; there are lines of {', '.join(names)}", file=sys.stderr)


def _until_none(lines: Iterable[LogLine | None]) -> Iterable[LogLine]:
    for line in lines:
        if line is None:
            return
        yield line


def _latest(arguments: argparse.Namespace, lines: Iterable[LogLine]) -> Iterable[LogLine]:
    return deque((line for line in lines if _wanted(arguments, line)), maxlen=arguments.lines)


def _wanted(arguments: argparse.Namespace, line: LogLine) -> bool:
    if arguments.node and not line.is_of(arguments.node):
        return False
    if arguments.since is None:
        return True
    try:
        return bool(datetime.fromisoformat(line.time).timestamp() >= arguments.since)
    except ValueError:
        return False


def _show(arguments: argparse.Namespace, lines: Iterable[LogLine]) -> None:
    for line in lines:
        print(line.to_json() if arguments.json else f"{_local(line.time)} {line}")
    sys.stdout.flush()


def _local(time: str) -> str:
    try:
        return datetime.fromisoformat(time).astimezone().isoformat(" ", "milliseconds")[:23]
    except ValueError:
        return time
