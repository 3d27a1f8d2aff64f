"""A journal opened by a reader: no lock, and nothing can be changed. A run may go on meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from consecution.runtime.journal import Journal, check_is_there
from consecution.runtime.journal_check import open_to_read


class Glimpse(Journal):
    """What one journal holds just now. Read it inside ``opened``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    @contextmanager
    def opened(self) -> Iterator[Journal]:
        """DamagedStoreError where it is missing or not sound."""
        with ExitStack() as stack:
            with self._explained("read"):
                check_is_there(self.path)
                self._env = stack.enter_context(open_to_read(self.path))
                self._handles = {name: self._env.open_db(name.encode(), create=False) for name in Journal.tables}
                self._meta = self._handles["meta"]
                self._failures = self._handles["failures"]
            yield self

    def _check_notes(self, txn: Any) -> None:
        """Nobody asks for them here, and their table may be made while we look."""
