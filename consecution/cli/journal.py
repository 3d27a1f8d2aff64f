"""``consecution journal check | list | replay``: what a state directory holds, and whether it is sound."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from consecution.cli.outside import add_script_flag, look_here_too, new_file
from consecution.runtime.journal_check import CheckResult, OriginSummary, check_state_dir
from consecution.runtime.pending import DECIDED, OPEN, RETRY, PendingBatch, check_node, pending_in
from consecution.runtime.snapshot import take_snapshot

DESCRIPTION = """Look into a state directory: whether it is sound, and what in it is not done. A run may go on
meanwhile. Nothing is changed.
"""
CHECK = """Read a state directory with a reader of its own, and verify every record.

exit codes: 0 it is sound, 1 it is damaged, 2 it is no state directory
"""
EXAMPLES = """examples:
  consecution journal check state
  consecution journal check state --json
  consecution journal list state
  consecution journal replay state --to pending.jsonl
  consecution journal replay state --items | consecution run other.py
"""
LIST = """Print a line for each batch that is not done: the origin that answers for it and its number, where it enters
next, and how many items it has. A run may go on meanwhile: what is shown is of one instant.

  open     not decided: the next run executes it again, from where it enters
  decided  will not be executed again: its items lie at a durable node or sink, in the form they have there
  retry    an item that has failed and waits for another try
"""
REPLAY = """Print the items that are pending, an object in JSON a line: origin, batch, state (see `consecution journal
list`), the node that they enter at (where behind is true, what follows it: they have come out of it), and the item;
where JSON cannot hold it, the field pickle is the pickle of a list with just the item, as base64, and shown is for
people. Nothing is changed: the next run with this state directory does
them itself. This is for looking at them, and for doing them elsewhere when that run will never be.

Items are loaded where they are of your own classes: run this where the pipeline's modules can be imported, or name the
script that has written them (--script), and only on state directories of your own.

exit codes: 0 all were printed, 1 --items left some out, 2 this is no state directory, or has no such node
"""
WHAT = {
    OPEN: "runs again from",
    DECIDED: "is decided, and lies at",
    RETRY: "has failed, and is tried again at",
}


def add_parser(commands: Any) -> None:
    """Add this command's parsers."""
    shaped = {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = commands.add_parser("journal", help="look into a state directory", description=DESCRIPTION, **shaped)
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="verify every record", description=CHECK, **shaped)
    check.add_argument("state_dir", metavar="STATE_DIR", type=Path, help="the state_dir that the run was given")
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    check.set_defaults(command=check_journal)
    listing = actions.add_parser("list", help="the batches that are not done", description=LIST, **shaped)
    listing.add_argument("state_dir", metavar="STATE_DIR", type=Path, help="the state_dir that the run was given")
    listing.add_argument("--json", action="store_true", help="print JSON, a line for each batch")
    add_script_flag(listing)
    listing.set_defaults(command=list_batches)
    replay = actions.add_parser("replay", help="the items that are pending, as JSON", description=REPLAY, **shaped)
    replay.add_argument("state_dir", metavar="STATE_DIR", type=Path, help="the state_dir that the run was given")
    replay.add_argument("--json", action="store_true", help="print JSON, which is what it does anyway")
    replay.add_argument("--items", action="store_true", help="only the items themselves; those of JSON")
    replay.add_argument("--node", action="append", default=[], help="only what has this node; may be repeated")
    replay.add_argument("--to", metavar="FILE", type=Path, help="write to this file, which must be new")
    add_script_flag(replay)
    replay.set_defaults(command=replay_items)


def check_journal(arguments: argparse.Namespace) -> int:
    """Print what was found."""
    result = check_state_dir(arguments.state_dir)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(result), indent=1, default=repr))
    else:
        print(_describe(result))
    return 1 if result.problems else 0


def _describe(result: CheckResult) -> str:
    lines = [f"state directory: {'finished' if result.finished else 'not finished'}, epoch {result.epoch}"]
    for origin in result.origins:
        lines += [_describe_origin(origin), *([_describe_durable(origin)] if origin.durable else [])]
    lines += [f"DAMAGED: {problem}" for problem in result.problems] or ["every record is sound"]
    return "\n".join(lines)


def _describe_origin(origin: OriginSummary) -> str:
    place = "" if origin.durable else f", at position {origin.position!r}"
    moved = f"; failed items of other stores that are batches now, and void there, {origin.moved:,}"
    return (
        f"  {origin.name}: {origin.emitted:,} items emitted in {origin.next_seq:,} batches{place}; open batches "
        f"{origin.open_batches:,} ({origin.open_items:,} items), decided and not yet applied everywhere "
        f"{origin.decided:,}, waiting for a retry {origin.waiting:,}, given up {origin.given_up:,}"
        f"{moved if origin.moved else ''}"
    )


def _describe_durable(origin: OriginSummary) -> str:
    applied = ", ".join(f"{seq:,} of {name}" for name, seq in origin.ledger) or "none"
    return (
        f"    {origin.keys:,} states in its table and {origin.logged:,} records in its log, {origin.staged:,} frames "
        f"staged; last batches applied: {applied}"
    )


def list_batches(arguments: argparse.Namespace) -> int:
    """A line for each."""
    look_here_too(arguments.script)
    number = 0
    with take_snapshot(arguments.state_dir) as snapshot:
        for batch in pending_in(snapshot):
            number += 1
            print(json.dumps(_told(batch)) if arguments.json else _line(batch))
    if not number and not arguments.json:
        print("nothing is pending")
    return 0


def _told(batch: PendingBatch) -> dict[str, Any]:
    items = len(batch.items()) if batch.count is None else batch.count
    place = {"node": batch.node, "behind": batch.behind}
    return {"origin": batch.origin, "batch": batch.seq, "state": batch.state, **place, "items": items}


def _line(batch: PendingBatch) -> str:
    items = _told(batch)["items"]
    number = f"{items:,} item{'' if items == 1 else 's'}"
    return f"{batch.origin} {batch.seq}: {number}, {WHAT[batch.state]} {'behind ' if batch.behind else ''}{batch.node}"


def replay_items(arguments: argparse.Namespace) -> int:
    """JSON lines, to a file or to standard output."""
    look_here_too(arguments.script)
    number = left_out = 0
    with contextlib.ExitStack() as stack:
        snapshot = stack.enter_context(take_snapshot(arguments.state_dir))
        for node in arguments.node:
            check_node(snapshot, node)
        out = sys.stdout if arguments.to is None else stack.enter_context(new_file("--to", arguments.to))
        for batch in pending_in(snapshot):
            for told in batch.to_dicts() if not arguments.node or batch.node in arguments.node else ():
                if arguments.items and "item" not in told:
                    left_out += 1
                    continue
                number += 1
                print(json.dumps(told["item"] if arguments.items else told), file=out)
    if arguments.to is not None:
        print(f"{number:,} items written to {arguments.to}")
    elif not number and not left_out:
        print(f"nothing is pending{' there' if arguments.node else ''}", file=sys.stderr)
    if left_out:
        print(
            f"{left_out:,} items are left out, for JSON cannot hold them; without --items they are there",
            file=sys.stderr,
        )
    return 1 if left_out else 0
