"""What the commands on a running pipeline have in common: the state directory they name, and how they tell of it."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from consecution.cli.target import load_script
from consecution.errors import UsageError
from consecution.report import NodeCounts, node_table
from consecution.runtime.outside import Sight

NOT_YET = 1
WORK_PENDING = 3


def add_state_parser(commands: Any, name: str, *, help: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """The parser of a command on a state directory, with ``--json``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("state_dir", metavar="STATE_DIR", type=Path, help="the state_dir that the run was given")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def seconds(text: str) -> float:
    """An argument that is a number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, 0 or more")
    return value


def length_in_seconds(text: str) -> float:
    """An argument that says how long something lasts, which must not be over as it begins."""
    value = seconds(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, more than 0")
    return value


def count_of(text: str) -> int:
    """A number of lines or items."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of 0 or more")
    return int(text)


def add_script_flag(parser: argparse.ArgumentParser) -> None:
    """For commands that load items or states."""
    parser.add_argument(
        "--script",
        metavar="FILE",
        type=Path,
        help="where they are of classes of a script that was run as `python FILE`: that file, which is imported",
    )


def look_here_too(script: Path | None) -> None:
    """Items and states may be of classes that lie in the folder where the pipeline is, or in a script."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    if script is not None:
        load_script(script)


@contextlib.contextmanager
def new_file(flag: str, path: Path) -> Iterator[TextIO]:
    """A file to write to that was not there before; after an error it is not there again, for it would look whole."""
    try:
        file = open(path, "x", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror or error}; give the name of a new file") from error
    try:
        with file:
            yield file
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(
                f"{flag} {path}: {error.strerror or error}, so nothing is left of it; make room, or give a file on "
                "another disk"
            ) from error
        raise


def escape_what_it_cannot_take(output: TextIO) -> None:
    """From now on a letter that is not in the output's encoding (ä, in ASCII) is printed as \\xe4, as errors are."""
    if isinstance(output, io.TextIOWrapper) and output.errors == "strict":
        output.reconfigure(errors="backslashreplace")


def tell(sight: Sight, *, as_json: bool, said: str = "") -> None:
    """Print how things stand; for people with what was ``said`` about it in front."""
    if as_json:
        print(json.dumps(to_dict(sight)))
    else:
        print(said or describe(sight))


def to_dict(sight: Sight) -> dict[str, Any]:
    """The fields of `consecution status --json`; times as ISO 8601 with the local zone."""
    return {
        "state_dir": sight.state_dir,
        "running": sight.running,
        "state": sight.state,
        "paused": sight.paused,
        "open": sight.open,
        "pid": sight.pid,
        "mode": sight.mode,
        "started": _iso(sight.started_s),
        "ended": _iso(sight.ended_s),
        "error": sight.error,
        "metrics_port": sight.metrics_port,
        **sight.counts,
    }


def _iso(at_s: float | None) -> str | None:
    return None if at_s is None else datetime.fromtimestamp(at_s).astimezone().isoformat(timespec="seconds")


def describe(sight: Sight) -> str:
    """How things stand, in a few lines."""
    lines = [f"{sight.state_dir}: {_headline(sight)}"]
    if sight.error is not None:
        lines.append(f"  it ended with {sight.error}")
    if sight.pause_kept and not sight.running:
        lines.append(f"  paused: the next run reads nothing until `consecution resume {sight.state_dir}`")
    lines += ["", *_counts(sight.counts)]
    if sight.counts.get("nodes"):
        lines += ["", *_node_table(sight.counts["nodes"])]
    if not sight.running:
        lines += ["", _next_step(sight)]
    return "\n".join(lines)


def _headline(sight: Sight) -> str:
    if sight.state == "busy":
        return f"process {sight.pid} starts, closes, or is another command at work there"
    if sight.running:
        metrics = "" if sight.metrics_port is None else f", metrics at port {sight.metrics_port}"
        return f"{sight.state}, process {sight.pid}, mode {sight.mode}, since {_moment(sight.started_s)}{metrics}"
    if sight.state == "unknown":
        return "not running; when a run was here is not known, as after a restore: run.json is not there, or damaged"
    if sight.state == "new":
        return "no run has been here"
    if sight.state == "killed":
        return f"not running; process {sight.pid} was killed, it last wrote at {_moment(sight.ended_s)}"
    return f"not running; {sight.state} at {_moment(sight.ended_s)}"


def _moment(at_s: float | None) -> str:
    return "?" if at_s is None else datetime.fromtimestamp(at_s).isoformat(" ", "seconds")


def _counts(counts: dict[str, Any]) -> list[str]:
    below = f"   (and {counts['pending_below']:,} below)" if counts["pending_below"] else ""
    handled = f"   handled {counts['handled']:,}" if counts["handled"] else ""
    lines = [
        f"  emitted {counts['emitted']:,} = completed {counts['completed']:,} + pending {counts['pending']:,}{below}",
        f"  failed {counts['failed']:,}{handled}",
    ]
    if "restarts" in counts:
        lines[-1] += f"   replayed batches {counts['replayed']:,}   restarts {counts['restarts']:,}"
    return lines


_NODE_FIELDS = ("node", "replicas", "items_in", "items_out", "failed", "busy_s")


def _node_table(nodes: list[dict[str, Any]]) -> list[str]:
    return node_table([NodeCounts(*map(node.__getitem__, _NODE_FIELDS)) for node in nodes])


def _next_step(sight: Sight) -> str:
    if sight.open:
        return f"{sight.open:,} items are pending: run the pipeline again with this state directory to go on."
    if sight.counts["failed"]:
        return f"Nothing is pending; `consecution failed list {sight.state_dir}` shows what failed."
    return "Nothing is pending."
