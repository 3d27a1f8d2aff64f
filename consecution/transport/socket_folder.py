"""The folder of a run's sockets: only its owner can enter, and its path is short enough for the kernel (107 bytes).

It needs no ZeroMQ, so that whoever only wants a folder need not wait for that to be imported.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path

from consecution.own_descriptors import give_back, keep_from_children

PREFIX = "consecution-"
OWN_NAME = re.compile(re.escape(PREFIX) + r"\w{8}")
"""As `tempfile.mkdtemp` makes them; others begin so, too."""
LONGEST_BASE_BYTES = 60
"""Leaves room for the folder's own name, and for a task's number and incarnation."""


class SocketFolder:
    """A private folder for one run's sockets. Folders whose run is dead are swept away at the next start."""

    def __init__(self) -> None:
        base = base_folder()
        sweep(base)
        while not self._make(base):
            pass

    def _make(self, base: str) -> bool:
        """Make and lock a folder. False: another run has swept it away before it was locked."""
        self.path = tempfile.mkdtemp(prefix=PREFIX, dir=base)
        try:
            self._lock = os.open(os.path.join(self.path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return False
        keep_from_children(self._lock)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if os.fstat(self._lock).st_nlink:
            return True
        os.close(give_back(self._lock))
        return False

    def close(self) -> None:
        """Remove the folder and all that lies in it. Harmless when repeated."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(give_back(self._lock))
            self._lock = -1


def sweep(base: str) -> None:
    """Remove socket folders of this user that no living run holds.

    One that is empty has no lock yet, or not any more: whoever made or removed it was killed on the way. If it is just
    being made, another one is.
    """
    for folder in Path(base).glob(PREFIX + "*"):
        if OWN_NAME.fullmatch(folder.name):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        with contextlib.suppress(OSError):
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def remove_if_empty(folder: str) -> None:
    """The last worker of a dead supervisor takes the folder away."""
    with contextlib.suppress(OSError):
        if os.listdir(folder) == ["lock"]:
            shutil.rmtree(folder, ignore_errors=True)


def base_folder() -> str:
    """The folder for temporary files, or a shorter one: socket paths must stay under 107 bytes.

    Not ``XDG_RUNTIME_DIR``: it goes away when the user logs out, and a run may outlive that.
    """
    found = tempfile.gettempdir()
    return found if len(os.fsencode(found)) < LONGEST_BASE_BYTES else "/tmp"
