"""The fork server, as its parent sees it. It has imported everything a worker needs, and opened nothing.

Its own socket lies in a folder that any later run sweeps away; what the server itself does is in `nursery`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import multiprocess
import multiprocess.process
import multiprocess.util

from consecution.transport.sockets import SocketFolder

START_WITHIN_S = 5.0
ASK_AGAIN_S = 0.01
PRELOADED = ["consecution.runtime.nursery"]

Started = TypeVar("Started")


def context() -> Any:
    """The context that starts processes by the fork server."""
    _use_swept_folder()
    made = multiprocess.get_context("forkserver")
    made.set_forkserver_preload(PRELOADED)
    return made


def insist(start: Callable[[], Started]) -> Started:
    """Start a process by the server. One that dies under it is replaced, which takes a moment to be noticed.

    Whatever ``start`` opened it must have closed when it raises: a half-started process ends by that.
    """
    deadline_s = time.monotonic() + START_WITHIN_S
    while True:
        try:
            return start()
        except (EOFError, ConnectionError):
            if time.monotonic() > deadline_s:
                raise
            time.sleep(ASK_AGAIN_S)


def _use_swept_folder() -> None:
    """What multiprocess puts into its temporary folder would stay there for ever if this process is killed."""
    config = multiprocess.process.current_process()._config
    if "tempdir" not in config:
        folder = SocketFolder()
        config["tempdir"] = folder.path
        multiprocess.util.Finalize(None, folder.close, exitpriority=-100)
