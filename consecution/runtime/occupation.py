"""What a task is doing just now, for whoever watches over hanging tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Occupied:
    """Says which step of user code is running; set by the task's thread, read by any."""

    occupied_with: str = ""
    """The name of the step, empty between them."""
    raised_in: str = ""
    """The name of the last step that has raised."""

    @contextlib.contextmanager
    def _occupied(self, what: str) -> Iterator[None]:
        self.occupied_with = what
        try:
            yield
        except BaseException:
            self.raised_in = what
            raise
        finally:
            self.occupied_with = ""
