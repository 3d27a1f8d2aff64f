"""``consecution state list | get | export``: look at the durable states of a state directory."""

from __future__ import annotations

import argparse
import contextlib
import json
import pprint
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from consecution.cli.outside import add_script_flag, look_here_too, new_file
from consecution.runtime.durable_states import KINDS, OneState, nodes_in, state_of, states_in
from consecution.runtime.snapshot import take_snapshot

DESCRIPTION = """Look at what durable nodes have remembered. A run may go on meanwhile: what is shown is of one instant.

States are loaded where they are of your own classes: run this where the pipeline's modules can be imported, or name
the script that has written them (--script), and only on state directories of your own.
"""
EXAMPLES = """examples:
  consecution state list state
  consecution state get state balance Ada
  consecution state get state balance '["Ada", 7]'     # a key of several parts
  consecution state list state --script etl.py         # that was run as `python etl.py`
  consecution state export state --node balance --output balance.jsonl
"""
KEY = """the key: as JSON (7 is a number, '"7"' a text, '["a", 7]' a key of two parts), as plain text, or as Python
shows it (b'x'); without one all states of the node"""


def add_parser(commands: Any) -> None:
    """Add this command's parsers."""
    shaped = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": EXAMPLES, "description": DESCRIPTION}
    parser = commands.add_parser("state", help="look at the states of durable nodes", **shaped)
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="durable nodes, and how many states each has", **shaped)
    getting = actions.add_parser("get", help="the state under a key", **shaped)
    exporting = actions.add_parser("export", help="all states, a JSON object a line", **shaped)
    for action in (listing, getting, exporting):
        action.add_argument("state_dir", metavar="STATE_DIR", type=Path, help="the state_dir that the run was given")
        add_script_flag(action)
    getting.add_argument("node", metavar="NODE", help="a durable node, as `list` names it")
    getting.add_argument("key", metavar="KEY", nargs="?", help=KEY)
    exporting.add_argument("--node", action="append", default=[], help="only of this node; may be repeated")
    exporting.add_argument("--output", metavar="FILE", type=Path, help="write to this file, which must be new")
    exporting.add_argument("--json", action="store_true", help="print JSON, which is what it does anyway")
    for action in (listing, getting):
        action.add_argument("--json", action="store_true", help="print JSON, a line for each")
    listing.set_defaults(command=list_nodes)
    getting.set_defaults(command=get_states)
    exporting.set_defaults(command=export_states)


def list_nodes(arguments: argparse.Namespace) -> int:
    """A line for each durable node."""
    look_here_too(arguments.script)
    with take_snapshot(arguments.state_dir) as snapshot:
        nodes = nodes_in(snapshot)
    if arguments.json:
        for node in nodes:
            print(json.dumps(asdict(node)))
    elif not nodes:
        print("there are no durable nodes")
    width = max((len(node.node) for node in nodes), default=0)
    for node in nodes if not arguments.json else ():
        replicas = f"{node.replicas} replica{'' if node.replicas == 1 else 's'}"
        number = f", {node.states:,} states" if node.states else ""
        print(f"{node.node: <{width}}  {KINDS[node.kind]}, {replicas}{number}")
    return 0


def get_states(arguments: argparse.Namespace) -> int:
    """One, or all of a node."""
    look_here_too(arguments.script)
    with take_snapshot(arguments.state_dir) as snapshot:
        if arguments.key is None:
            found: Iterator[OneState] = states_in(snapshot, arguments.node)
        else:
            found = iter([state_of(snapshot, arguments.node, arguments.key)])
        for one in found:
            print(json.dumps(one.to_dict()) if arguments.json else _shown(one, with_key=arguments.key is None))
    return 0


def _shown(one: OneState, *, with_key: bool) -> str:
    state = pprint.pformat(one.state, width=110, sort_dicts=False)
    text = f"{one.key!r}: {state}" if with_key and one.key is not None else state
    return text.encode(errors="backslashreplace").decode()


def export_states(arguments: argparse.Namespace) -> int:
    """JSON lines, to a file or to standard output."""
    look_here_too(arguments.script)
    number = 0
    with contextlib.ExitStack() as stack:
        snapshot = stack.enter_context(take_snapshot(arguments.state_dir))
        out = sys.stdout if arguments.output is None else stack.enter_context(new_file("--output", arguments.output))
        for node in arguments.node or sorted(snapshot.state.kinds):
            for one in states_in(snapshot, node):
                number += 1
                print(json.dumps(one.to_dict()), file=out)
    if arguments.output is not None:
        print(f"{number:,} states written to {arguments.output}")
    return 0
