"""What we have to say to people while a run goes on. Whether they can hear it is nothing to the run.

User code may have closed or replaced standard error, in our worker too, and a logger's handlers write to it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Any, TextIO

from consecution.protocol.values import USER_ERRORS

DUMB = ("dumb", "unknown")


def write(text: str) -> None:
    """To standard error, at once; lost where that cannot take it."""
    with contextlib.suppress(*USER_ERRORS):
        sys.stderr.write(text)
        sys.stderr.flush()


def tell(line: str) -> None:
    """`write`, a line."""
    write(f"{line}\n")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether what stands on it can be written over. One that says it is dumb (TERM) shows line after line."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "").lower() not in DUMB


def warn(text: str, *given: Any) -> None:
    """A warning of the logger ``consecution``; lost where its handlers raise."""
    with contextlib.suppress(*USER_ERRORS):
        logging.getLogger("consecution").warning(text, *given)


__all__ = ["is_terminal", "tell", "warn", "write"]
