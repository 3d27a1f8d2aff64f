"""Every error this package raises of its own accord.

Three families, by whose mistake it is:

- **yours** (`UsageError`): a graph, an option or a node that cannot work. Raised before anything
  starts wherever that is possible.
- **the world's** (`WorldError`): a locked directory, a damaged file, a worker that keeps dying.
- **ours** (`ProtocolError`): a rule of the protocol was broken; please report it.

Each message names the object, what was expected, what was found and the next step.

What user code raises is told with `text_of`, `traceback_of` and `add_note`, which raise nothing themselves.
"""

from __future__ import annotations

import contextlib
import errno
import os
import traceback
from types import TracebackType
from typing import Any


def text_of(error: BaseException) -> str:
    """The class of an error, and what it says; the class alone where its ``__str__`` raises. Never raises."""
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # whatever it is: somebody waits to be told
        return type(error).__name__


def reason_of(error: Exception) -> str:
    """What an error of the system says, in words and with the file that it is about; any other as it is."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    path = error.filename2 or error.filename  # of two, the one that was to be made
    return f"{error.strerror} ({os.fsdecode(path)})" if isinstance(path, str | bytes) else error.strerror


def lacks_room(error: OSError) -> bool:
    """Whether a disk is full, or what a user may have of it used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def traceback_of(error: BaseException, since: TracebackType | None = None) -> str:
    """Its traceback, or the part of it that begins at ``since``; `text_of` where even that cannot be had."""
    try:
        return "".join(traceback.format_exception(type(error), error, since or error.__traceback__))
    except BaseException:
        return text_of(error)


def add_note(error: BaseException, text: str) -> None:
    """``error.add_note``, where the class of the error lets it be; lost where it does not."""
    with contextlib.suppress(BaseException):
        error.add_note(text)


class ConsecutionError(Exception):
    """The root of all errors of this package."""


class UsageError(ConsecutionError, ValueError):
    """Your mistake: a graph, option, node or source that cannot work."""


class GraphError(UsageError):
    """Nodes were joined in a way that makes no pipeline."""


class OptionError(UsageError):
    """An option has an unknown name or an impossible value."""


class ShippingError(UsageError):
    """A node cannot be sent to a worker process (or copied for a replica).

    ``node`` names the node, ``attribute`` the attribute at fault ('' when it is the node as a whole).
    """

    def __init__(self, message: str, *, node: str = "", attribute: str = "") -> None:
        super().__init__(message)
        self.node = node
        self.attribute = attribute


class KeyEncodingError(UsageError, TypeError):
    """A key function returned something that has no stable encoding."""


class MisplacedKeyError(UsageError):
    """An item has come to a replica that does not own its key, which has become another one since it was sent there."""


class ReadOnlyError(UsageError, AttributeError):
    """A worker process wrote to its read-only copy of the global state."""


class MissingExtraError(ConsecutionError, ImportError):
    """A library of an extra is not installed; ``extra`` says which extra brings it."""

    def __init__(self, message: str, *, extra: str) -> None:
        super().__init__(message)
        self.extra = extra


class WorldError(ConsecutionError):
    """The world's mistake: files, processes, limits."""


class StateDirError(WorldError):
    """A state directory is locked, foreign, or does not fit the pipeline."""


class DamagedStoreError(WorldError):
    """A record on disk fails its checksum or cannot be read; ``path`` and ``record`` say which."""

    def __init__(self, message: str, *, path: str = "", record: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.record = record


class UndecodableStateError(WorldError):
    """A state on disk cannot be unpickled: the code that it was written with is not there any more."""


class MissingCodeError(WorldError, ImportError):
    """What an item is made of is not in the code (any more): no item is at fault, and none is given up for it."""


class OutageError(WorldError):
    """What a sink writes to cannot take anything just now: a lost connection, a lock, a full disk.

    A sink raises it where nobody's item is at fault. Nothing of that call, and of the transaction that was open,
    may be left; a commit may have happened. The call, or the transaction, is repeated until it succeeds.
    """


class SourceError(WorldError):
    """A source could not be opened or raised while it was read."""


class BadRecordError(WorldError, ValueError):
    """What came from outside is no record of the format that was expected. It fails at the source, alone."""


class BackPressureError(WorldError, TimeoutError):
    """`Running.push` waited for room and its timeout ran out."""


class WorkerError(WorldError):
    """A worker could not start, or died more often than its restart limit allows.

    ``task`` names the task, ``cause_text`` holds the worker's traceback where there is one.
    """

    def __init__(self, message: str, *, task: str = "", cause_text: str = "") -> None:
        super().__init__(message)
        self.task = task
        self.cause_text = cause_text


class StoppedByItemError(WorldError):
    """An item failed at a node whose ``on_error`` is "stop": the run took nothing new and finished what was open.

    ``node`` names the node, ``shown`` is the item's ``repr``, ``report`` the run's report.
    """

    def __init__(self, message: str, *, node: str = "", shown: str = "", report: Any = None) -> None:
        super().__init__(message)
        self.node = node
        self.shown = shown
        self.report = report


class FrameError(WorldError):
    """Bytes that claim to be a frame are not one. The only error the frame decoder raises."""


class NotRunningError(UsageError, RuntimeError):
    """A run has ended or was stopped, and can no longer do what was asked."""


class ProtocolError(ConsecutionError, AssertionError):
    """Ours: a rule of the protocol was broken. Please report it with the log."""
