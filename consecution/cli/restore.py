"""``consecution restore``: put a backup of a state directory back."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from consecution.runtime.backup import restore

DESCRIPTION = """Put a backup back: the files of its sinks first, then the state directory. The next run over it goes on
where the backup was made, and does again what was done since.

A file goes to where it was. One that begins with the very bytes of the backup stays as it is: the sink cuts off what is
behind them when it starts. What stands in its place otherwise is only written over with --force. Files that were
complete under their final names when the backup was made are not part of it; those of later numbers are in the way, and
the run will say so.

exit codes: 0 it is back, 2 it is not
"""
EXAMPLES = """examples:
  consecution restore /backups/2026-11-24 state
  consecution restore /backups/2026-11-24 state --files-to out
"""


def add_parser(commands: Any) -> None:
    """Add this command's parser."""
    parser = commands.add_parser(
        "restore",
        help="put a backup back",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("backup", metavar="BACKUP", type=Path, help="a folder that `consecution backup` has made")
    parser.add_argument(
        "state_dir", metavar="STATE_DIR", type=Path, help="the folder to make; it must be new, or empty"
    )
    parser.add_argument("--files-to", metavar="DIR", type=Path, help="put the files there, instead of where they were")
    parser.add_argument("--no-files", action="store_true", help="put no files back")
    parser.add_argument("--force", action="store_true", help="write over files that are there")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=put_back)


def put_back(arguments: argparse.Namespace) -> int:
    """Put it back, and say what else belongs to it."""
    restored = restore(
        arguments.backup,
        arguments.state_dir,
        files=not arguments.no_files,
        files_to=arguments.files_to,
        force=arguments.force,
    )
    if arguments.json:
        print(json.dumps(asdict(restored)))
        return 0
    print(f"{arguments.state_dir}: {restored.backup.state_dir} as of {restored.backup.made_at}")
    for path in restored.put_back:
        print(f"  {path}: put back")
    for path in restored.as_they_are:
        print(f"  {path}: begins with what the backup has of it; what is behind that is cut off by the next run")
    for name in restored.backup.databases:
        print(f"  restore the database of {name} to the same moment before you run it")
    return 0
