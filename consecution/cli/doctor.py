"""``consecution doctor``: is this machine, this folder and this pipeline fit for a run?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import consecution
from consecution.cli.run import add_option_flags, options_from
from consecution.cli.target import HELP, load_target
from consecution.errors import ConsecutionError
from consecution.runtime.checkup import BAD, Finding, check_machine, check_pipeline

DESCRIPTION = """Look at what a run needs: versions and extras, limits of the system, sockets, the place of the state
directory (file system, free disk, what an fsync takes there, whether a store can be made), and, with TARGET, what of a
pipeline cannot be sent to workers. The pipeline's file is imported; nothing is run, and nothing is left behind.

  ok     as it should be
  note   something will be slow, or is not as one may think
  BAD    a run would fail, or a promise would break; what to do stands below

exit codes: 0 nothing is bad, 1 something is, 2 usage
"""
EXAMPLES = """examples:
  consecution doctor
  consecution doctor etl.py --state-dir /srv/etl/state
  consecution doctor etl.py --json
"""
LARGEST_NAME = 15


def add_parser(commands: Any) -> None:
    """Add this command's parser."""
    parser = commands.add_parser(
        "doctor",
        help="look whether machine, folder and pipeline are fit for a run",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="TARGET", nargs="?", help=f"a pipeline: {HELP}")
    parser.add_argument("--json", action="store_true", help="print JSON, a line for each finding")
    add_option_flags(parser)
    parser.set_defaults(command=look)


def look(arguments: argparse.Namespace) -> int:
    """A line or two for each finding, as they come."""
    is_bad = False
    for finding in _findings(arguments):
        is_bad = is_bad or finding.level == BAD
        print(json.dumps(asdict(finding)) if arguments.json else _describe(finding), flush=True)
    return 1 if is_bad else 0


def _findings(arguments: argparse.Namespace) -> Iterator[Finding]:
    options = options_from(arguments)
    folder = Path(options.get("state_dir", "."))
    yield from check_machine(folder, consecution.__version__, is_state_dir="state_dir" in options)
    if arguments.target is None:
        return
    try:
        pipeline = load_target(arguments.target)
        plan = pipeline.plan(**options)
    except ConsecutionError as error:
        yield Finding("pipeline", BAD, str(error))
        return
    yield from check_pipeline(plan, pipeline.global_state)


def _describe(finding: Finding) -> str:
    level = finding.level.upper() if finding.level == BAD else finding.level
    text = f"{level: <4}  {finding.what: <{LARGEST_NAME}}  {finding.found}"
    return f"{text}\n{'': <{8 + LARGEST_NAME}}{finding.remedy}" if finding.remedy else text
