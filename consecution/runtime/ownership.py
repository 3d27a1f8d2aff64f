"""Whose a state directory is: what it holds is unpickled, and so must be of one's own."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NoReturn

from consecution.errors import StateDirError, reason_of


def deny(path: Path, error: PermissionError) -> NoReturn:
    """StateDirError where the system lets nobody but its owner look at a state directory."""
    with contextlib.suppress(OSError):
        check_owner(path)
    raise StateDirError(
        f"the state directory {path} cannot be looked at: {reason_of(error)}; run as its owner, or use another "
        "directory"
    ) from error


def check_owner(path: Path) -> None:
    """StateDirError where a state directory is another user's."""
    if path.stat().st_uid != os.getuid():
        raise StateDirError(
            f"the state directory {path} belongs to user {path.stat().st_uid}, this process runs as "
            f"{os.getuid()}: run as its owner, or use another directory"
        )
