"""``consecution plan``: what a run would start, without starting it."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from typing import Any

from consecution.cli.run import add_option_flags, options_from
from consecution.cli.target import HELP, load_target
from consecution.errors import UsageError
from consecution.plan import Plan, describe, to_dict, to_dot, to_mermaid
from consecution.runtime.assembly import make_sources
from consecution.runtime.durable_states import check_it_loads
from consecution.runtime.relocation import kinds_of
from consecution.runtime.state import foresee, shares_before

DRAW_TIMEOUT_S = 60
DESCRIPTION = """Show what a run would start, as text or as a picture: tasks, edges, and which worker hosts which tasks.
Nothing is started.

With --workers N the nodes that keep nothing, and keyed ones, have a replica in each worker; an edge that never leaves
a worker is "local". A source that only your program can read (a generator, standard input) is shown in the first
worker, and runs in your program.

With --state-dir it also says what a run would do with what is in there: go on, move state to other replicas, begin with
nothing; what would be refused, or dropped with --drop-state. What is to go on is loaded, to see whether this code can.
Nothing in there is changed.

exit codes: 0, or 2 where the pipeline, or the state directory under it, would be refused
"""
EXAMPLES = """examples:
  consecution plan examples/profit_share.py
  consecution plan etl.py --workers 2
  consecution plan new_etl.py --state-dir state
  consecution plan etl.py --json | jq .workers
  consecution plan etl.py --format mermaid
  consecution plan etl.py --format svg > plan.svg
"""


def add_parser(commands: Any) -> None:
    """Add this command's parser."""
    parser = commands.add_parser(
        "plan",
        help="show tasks, workers and edges of a pipeline",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="TARGET", help=HELP)
    parser.add_argument(
        "--format",
        choices=("text", "mermaid", "dot", "svg"),
        default="text",
        help="text (default), mermaid, dot, or svg, which needs Graphviz",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead, with the tasks of each worker")
    add_option_flags(parser)
    parser.set_defaults(command=show)


def show(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    plan = load_target(arguments.target).plan(**options_from(arguments))
    make_sources(plan, None)  # what they are given wrong would stop a run
    if arguments.json:
        print(json.dumps({**to_dict(plan), "state_dir": _going_on(plan)}))
        return 0
    formats = {"text": describe, "mermaid": to_mermaid, "dot": to_dot, "svg": to_svg}
    print(formats[arguments.format](plan))
    foreseen = _going_on(plan) if arguments.format == "text" else None
    if foreseen is not None:
        print(f"\nover the state directory {foreseen['path']}:")
        for line in foreseen["foreseen"]:
            print(f"  {line}")
    return 0


def _going_on(plan: Plan) -> dict[str, Any] | None:
    """What would become of the state directory, line by line; None where there is none."""
    if plan.options.state_dir is None or not plan.options.robust:
        return None
    path = plan.options.state_dir.absolute()
    foreseen = foresee(path, plan)
    if not plan.options.fresh and shares_before(path):
        check_it_loads(path, kinds_of(plan))
    return {"path": str(path), "foreseen": foreseen}


def to_svg(plan: Plan) -> str:
    """The plan drawn by Graphviz's ``dot``; UsageError where that is not installed."""
    dot = shutil.which("dot")
    if dot is None:
        raise UsageError("--format svg needs Graphviz's `dot`: install graphviz, or use --format mermaid")
    drawn = subprocess.run([dot, "-Tsvg"], input=to_dot(plan), capture_output=True, text=True, timeout=DRAW_TIMEOUT_S)
    if drawn.returncode:
        raise UsageError(f"dot could not draw the plan: {drawn.stderr.strip()}; use --format mermaid, or --format dot")
    return drawn.stdout
