"""How much memory a worker's own data may take.

Linux counts what a process can write and shares with nobody (``RLIMIT_DATA``): its heap, its threads' stacks.
Maps of files do not count, and LMDB's are large and sparse. At the limit an allocation fails, and Python raises
`MemoryError`, which is one item's failure; without a limit the kernel kills the worker, or its neighbours.
"""

from __future__ import annotations

import sys
from pathlib import Path

from consecution.errors import WorldError

ROOM_BYTES = 64 * 1024 * 1024
"""What a worker needs beside what it has at its start: threads, sockets, the node's own modules."""


def can_limit_memory() -> bool:
    """Elsewhere the limit can be set, but nothing comes of it."""
    return sys.platform == "linux"


def limit_memory(limit_bytes: int) -> None:
    """Limit this process; 0: do not. WorldError if it could not even begin to work with so little."""
    if not limit_bytes or not can_limit_memory():
        return
    import resource

    needed = data_bytes() + ROOM_BYTES
    if limit_bytes < needed:
        raise WorldError(
            f"memory_limit_bytes={limit_bytes}: a worker needs at least {needed} bytes to start; set more, or 0 for "
            "no limit"
        )
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = limit_bytes if most == resource.RLIM_INFINITY else min(limit_bytes, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def data_bytes() -> int:
    """What of this process counts at present."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0
