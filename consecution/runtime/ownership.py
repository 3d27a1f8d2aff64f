"""Whose a state directory is: what it holds is unpickled, and so must be of one's own."""

from __future__ import annotations

import os
from pathlib import Path

from consecution.errors import StateDirError


def check_owner(path: Path) -> None:
    """StateDirError where a state directory is another user's."""
    if path.stat().st_uid != os.getuid():
        raise StateDirError(
            f"the state directory {path} belongs to user {path.stat().st_uid}, this process runs as "
            f"{os.getuid()}: run as its owner, or use another directory"
        )
