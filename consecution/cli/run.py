"""``consecution run``: run a pipeline to its end."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from consecution.cli.outside import escape_what_it_cannot_take
from consecution.cli.target import HELP, load_target
from consecution.errors import StoppedByItemError
from consecution.options import SETTINGS, Setting

DESCRIPTION = """Run a pipeline to the end of its stream.

exit codes: 0 all items completed, 1 some failed, 2 usage or bad pipeline, 3 stopped with work pending
"""
EXAMPLES = """examples:
  consecution run examples/airports.py < examples/airports.txt
  consecution run etl.py --state-dir state --retries 5
  consecution run etl.py:nightly --mode thread --robustness track --json
"""


def add_parser(commands: Any) -> None:
    """Add this command's parser."""
    parser = commands.add_parser(
        "run",
        help="run a pipeline to the end of its stream",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="TARGET", help=HELP)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    add_option_flags(parser)
    parser.set_defaults(command=run)


def add_option_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every setting."""
    for setting in SETTINGS:
        _add_flag(parser, setting)


def _add_flag(parser: argparse.ArgumentParser, setting: Setting) -> None:
    if setting.kind == "flag":
        parser.add_argument(setting.flag, action="store_true", default=argparse.SUPPRESS, help=setting.meaning)
        return
    kinds = {"int": int, "float": float, "port": int}
    default = "" if setting.default is None else f" (default {setting.default})"
    unit = f" [{setting.unit}]" if setting.unit else ""
    parser.add_argument(
        setting.flag,
        type=kinds.get(setting.kind, str),
        choices=setting.choices or None,
        metavar=None if setting.choices else setting.kind.upper(),
        default=argparse.SUPPRESS,
        help=(setting.meaning + unit + default).replace("%", "%%"),
    )


def options_from(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as flags."""
    given = vars(arguments)
    return {setting.name: given[setting.name] for setting in SETTINGS if setting.name in given}


def run(arguments: argparse.Namespace) -> int:
    """Run the target, show progress, print the report."""
    pipeline = load_target(arguments.target)
    options = {**options_from(arguments), "progress": not arguments.quiet}
    stopped: StoppedByItemError | None = None
    try:
        report = pipeline.run(**options)
    except StoppedByItemError as error:
        stopped, report = error, error.report
    escape_what_it_cannot_take(sys.stdout)
    print(json.dumps(report.to_dict(), indent=1) if arguments.json else report.to_text(at_command_line=True))
    if stopped is not None:
        print(f"consecution: {stopped}", file=sys.stderr)
    return int(report.exit_code)
