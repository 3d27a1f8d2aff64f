"""``consecution backup``: copy a state directory as of one instant, also while a run goes on."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from consecution.cli.outside import add_state_parser
from consecution.runtime.backup import Backup, back_up

DESCRIPTION = """Copy a state directory into a new folder, together with what is committed of the files that its sinks
append to. A run may go on meanwhile, and is not held up: all stores are copied as they are at one instant, as a
kill -9 of everything at that instant would have left them. The copy is read again and verified.

Databases that sinks write to are not part of it. Pause the run, back up both, and let it go on:
  consecution pause state --wait; consecution backup state DEST; pg_dump ...; consecution resume state

exit codes: 0 it is made, 2 it is not
"""
EXAMPLES = """examples:
  consecution backup state /backups/2026-11-24
  consecution backup state "/backups/$(date +%F-%H%M)" --json
"""


def add_parser(commands: Any) -> None:
    """Add this command's parser."""
    parser = add_state_parser(
        commands, "backup", help="copy a state directory, also of a live run", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("target", metavar="DEST", type=Path, help="the folder to make; it must be new, or empty")
    parser.set_defaults(command=make_backup)


def make_backup(arguments: argparse.Namespace) -> int:
    """Make it, and say what is in it."""
    made = back_up(arguments.state_dir, arguments.target)
    print(json.dumps(asdict(made)) if arguments.json else _describe(made, arguments.target))
    return 0


def _describe(made: Backup, target: Path) -> str:
    lines = [f"{target}: {made.state_dir} as of {made.made_at}, verified"]
    lines += [f"  {file.path}: {file.length:,} bytes, of {file.sink}" for file in made.files]
    lines += [
        f"  not part of it: the files of {name}, whose store does not say which they are" for name in made.unknown
    ]
    lines += [f"  not part of it: the database of {name}, which must be of the same moment" for name in made.databases]
    return "\n".join(lines)
