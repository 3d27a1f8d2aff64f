"""``consecution failed list | show | export | retry | drop``: items that failed, and what to do about them."""

from __future__ import annotations

import argparse
import contextlib
import json
import pprint
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from consecution.cli.outside import add_script_flag, count_of, look_here_too, new_file
from consecution.errors import UsageError
from consecution.report import tries_of
from consecution.runtime.failures import Edited, Failed, FailureStore, Selection, look, read_edited

DESCRIPTION = """Look at the failed items of a state directory, and put them back or drop them.

An id is the name of the origin that keeps an item and a number: source:3. It stays as long as the item does; an item
that is tried again and fails again gets a new one. list, show and export may be used while a run goes on; retry and
drop need the state directory for themselves.
"""
EXAMPLES = """examples:
  consecution failed list state --node parse --since 2h
  consecution failed show state --id source:3
  consecution failed export state --output failed.jsonl
  consecution failed retry state --error "ConnectionError"
  consecution failed retry state --from failed.jsonl
  consecution failed drop state --until 2026-01-31 --dry-run
"""
ACTIONS = {
    "list": "Print a line for each failed item.",
    "show": "Print traceback and item of each failed item.",
    "export": "Write a JSON object for each failed item, a line each. The field item is the item, where JSON can hold\n"
    "it; else the field pickle is the pickle of a list with just the item, as base64.",
    "retry": "Put failed items back, with all their tries; the next run tries them again, also where the last one had\n"
    "finished. By default an item goes to the node it failed at. Nodes that get some and had run end() run it again.",
    "drop": "Remove failed items for good. They are no longer counted as failed.",
}
SHOWN_IDS = 10
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def add_parser(commands: Any) -> None:
    """Add this command's parsers."""
    shaped = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": EXAMPLES}
    parser = commands.add_parser(
        "failed", help="look at failed items, retry or drop them", description=DESCRIPTION, **shaped
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    for name, description in ACTIONS.items():
        action = actions.add_parser(name, help=description.split(".")[0].lower(), description=description, **shaped)
        action.add_argument("state_dir", metavar="STATE_DIR", type=Path, help="the state_dir that the run was given")
        _add_filters(action)
        if name != "drop":
            add_script_flag(action)
        _ADD_FLAGS[name](action)
        action.set_defaults(command=_COMMANDS[name])


def _add_filters(parser: argparse.ArgumentParser) -> None:
    filters = parser.add_argument_group("which items (all of these must be so; without any: all items)")
    filters.add_argument("--id", action="append", default=[], help="the item with this id; may be repeated")
    filters.add_argument("--node", action="append", default=[], help="items that failed at this node; may be repeated")
    filters.add_argument(
        "--error", metavar="TEXT", help="errors that contain this, or match it as a regular expression"
    )
    when = "a time (2026-01-31, 2026-01-31T12:00) or how long ago (90s, 30m, 2h, 7d)"
    filters.add_argument("--since", metavar="TIME", type=time_of, help=f"items that last failed then or later: {when}")
    filters.add_argument("--until", metavar="TIME", type=time_of, help="items that last failed before")
    filters.add_argument("--limit", metavar="N", type=count_of, help="no more than so many, the first ones")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, a line for each item")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, which is what it does anyway")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write to this file, which must be new")


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only say which items it would be")
    _add_json(parser)


def _add_retry(parser: argparse.ArgumentParser) -> None:
    _add_dry_run(parser)
    parser.add_argument(
        "--at-source",
        action="store_true",
        help="as new items of the source, from the beginning. An item has the form that it had where it failed (on a "
        "failed edge: without the Failure around it): mend it with --from where the nodes before that expect another "
        "one",
    )
    parser.add_argument(
        "--source",
        metavar="NAME",
        help="where the pipeline has several sources: the one to which what durable nodes keep goes with --at-source "
        "(what a source keeps goes back to that one)",
    )
    parser.add_argument(
        "--from",
        dest="edited",
        metavar="FILE",
        type=Path,
        help="JSON lines as export writes them, - for standard input: just these items, each replaced by what its line "
        "holds; ids that are gone were put back before, and are only named. The next run loads their pickles: take "
        "only files of your own",
    )


def _add_drop(parser: argparse.ArgumentParser) -> None:
    _add_dry_run(parser)
    parser.add_argument("--all", action="store_true", help="needed where no filter is given")


# -- what was asked ------------------------------------------------------------------------------


def time_of(text: str) -> float:
    """Wall-clock seconds of a time, or of a moment so long ago. Times without a zone are local."""
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    try:
        if ago is not None:
            return time.time() - timedelta(**{UNITS[ago[2]]: float(ago[1])}).total_seconds()
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected 2026-01-31, 2026-01-31T12:00, 90s, 30m, 2h or 7d"
        ) from None


def _selection(arguments: argparse.Namespace) -> Selection:
    given = arguments
    return Selection(tuple(given.node), given.error, given.since, given.until, tuple(given.id), given.limit)


def _found(arguments: argparse.Namespace) -> Iterator[Failed]:
    look_here_too(arguments.script)
    return _selection(arguments).of(look(arguments.state_dir))


# -- looking -------------------------------------------------------------------------------------


def list_items(arguments: argparse.Namespace) -> int:
    """A line for each item."""
    number = 0
    for failed in _found(arguments):
        number += 1
        print(json.dumps(_without_long(failed)) if arguments.json else _printable(_line(failed)))
    if not number and not arguments.json:
        print(_none(arguments))
    return 0


def _none(arguments: argparse.Namespace) -> str:
    """Why nothing was found: a misspelt node should not look like good news."""
    nodes = Counter(failed.node for failed in look(arguments.state_dir))
    if not nodes:
        return "no failed items"
    there = ", ".join(f"{number:,} at {node}" for node, number in sorted(nodes.items()))
    return f"no failed items like that; there are {there}"


def _without_long(failed: Failed) -> dict[str, Any]:
    told = failed.to_dict()
    for name in ("traceback", "item", "pickle"):
        told.pop(name, None)
    return told


def _line(failed: Failed) -> str:
    tries = tries_of(failed.entry.attempts)
    state = tries if failed.given_up else f"{tries}, waits for another"
    error = _shortened(" ".join(failed.entry.failed.error.split()))
    return f"{failed.id}  {_when(failed)}  at {failed.node}, {state}: {error}; item {failed.entry.failed.shown}"


def _when(failed: Failed) -> str:
    return datetime.fromtimestamp(failed.entry.failed_s).isoformat(" ", "seconds")


def _shortened(text: str, width: int = 80) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _printable(text: str) -> str:
    """Names of files that are no UTF-8 hold lone surrogates, which no terminal takes."""
    return text.encode(errors="backslashreplace").decode()


def show_items(arguments: argparse.Namespace) -> int:
    """Traceback and item of each."""
    number = 0
    for failed in _found(arguments):
        number += 1
        print(json.dumps(failed.to_dict()) if arguments.json else _printable(f"{_shown(failed)}\n"))
    if not number and not arguments.json:
        print(_none(arguments))
    return 0


def _shown(failed: Failed) -> str:
    entry = failed.entry
    try:
        item = pprint.pformat(failed.item(), width=110, sort_dicts=False)
    except UsageError as error:
        item = f"{entry.failed.shown}\n({error})"
    state = "given up" if failed.given_up else "waits for another try"
    where = f"at {failed.node}, {_when(failed)}, after {tries_of(entry.attempts)}, {state}"
    return f"{failed.id}: {where}\n\n{entry.failed.traceback.rstrip() or entry.failed.error}\n\nitem: {item}"


def export_items(arguments: argparse.Namespace) -> int:
    """JSON lines, to a file or to standard output."""
    with contextlib.ExitStack() as stack:
        out = sys.stdout if arguments.output is None else stack.enter_context(new_file("--output", arguments.output))
        number = 0
        for failed in _found(arguments):
            number += 1
            print(json.dumps(failed.to_dict()), file=out)
    if arguments.output is not None:
        print(f"{number:,} failed items written to {arguments.output}")
    return 0


# -- changing ------------------------------------------------------------------------------------


def retry_items(arguments: argparse.Namespace) -> int:
    """Put items back. A file may be given again: what of it is gone was put back before."""
    if arguments.source is not None and not arguments.at_source:
        raise UsageError("--source says where --at-source puts items: add --at-source, or leave it out")
    look_here_too(arguments.script)
    selection, edited = _selection(arguments), None
    if arguments.edited is not None:
        edited = _read_edited(arguments.edited)
        selection = _only(selection, edited)
    with FailureStore(arguments.state_dir) as store:
        ids = store.retry(
            selection,
            edited=edited,
            at_source=arguments.at_source,
            source=arguments.source,
            dry_run=arguments.dry_run,
        )
    _tell_of_gone(arguments, edited, ids)
    where = "at the source" if arguments.at_source else "at the nodes they failed at"
    _tell(arguments, ids, f"put back {where}; the next run with this state_dir tries them again", "would be put back")
    return 0


def _read_edited(path: Path) -> dict[str, Edited]:
    if str(path) == "-":
        return read_edited(iter(sys.stdin), "standard input")
    try:
        with open(path, encoding="utf-8") as file:
            return read_edited(iter(file), str(path))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"--from {path}: {why}; give a file of `consecution failed export`") from error


def _only(selection: Selection, edited: dict[str, Edited]) -> Selection:
    """What the file names, as far as the filters let it pass."""
    if not edited:
        raise UsageError("--from: the file names no items: write it with `consecution failed export`")
    if not selection.is_all:
        raise UsageError("--from names the items itself: leave out the other filters")
    return Selection(ids=tuple(edited), some_may_be_gone=True)


def _tell_of_gone(arguments: argparse.Namespace, edited: dict[str, Edited] | None, ids: list[str]) -> None:
    gone = sorted((edited or {}).keys() - set(ids))
    if gone:
        shown = ", ".join(gone[:SHOWN_IDS]) + (", ..." if len(gone) > SHOWN_IDS else "")
        print(
            f"--from {arguments.edited}: {len(gone):,} of its ids are no failed items (any more): {shown}",
            file=sys.stderr,
        )


def drop_items(arguments: argparse.Namespace) -> int:
    """Remove items."""
    selection = _selection(arguments)
    if selection.is_all and not arguments.all and not arguments.dry_run:
        raise UsageError("this would drop every failed item: say --all, or which ones; --dry-run shows them")
    with FailureStore(arguments.state_dir) as store:
        ids = store.drop(selection, dry_run=arguments.dry_run)
    _tell(arguments, ids, "dropped", "would be dropped")
    return 0


def _tell(arguments: argparse.Namespace, ids: list[str], done: str, would: str) -> None:
    if arguments.json:
        print(json.dumps({"ids": ids, "dry_run": arguments.dry_run}))
        return
    if arguments.dry_run:
        for found in ids:
            print(found)
    items = f"{len(ids):,} failed item{'' if len(ids) == 1 else 's'}"
    print(f"{items} {would if arguments.dry_run else done}" if ids else _none(arguments))


_ADD_FLAGS = {
    "list": _add_json,
    "show": _add_json,
    "export": _add_output,
    "retry": _add_retry,
    "drop": _add_drop,
}
_COMMANDS = {
    "list": list_items,
    "show": show_items,
    "export": export_items,
    "retry": retry_items,
    "drop": drop_items,
}
