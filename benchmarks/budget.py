"""``python -m benchmarks.budget``: what each step of identity in ``robust`` costs an item, in ns of processor time.

The steps are the library's own, for a batch of numbers that stays in its worker. Each figure is the least of
several, for whatever else runs on the machine only ever makes it larger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.identity import identity
from consecution import IterableSource, Map
from consecution.runtime.journal import seal
from consecution.transport.codec import PickleCodec, ReusingCodec

BATCH = 4000
REPEATS = 200
TRIES = 9


def steps() -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is done with a batch, in order."""
    source, codec, node = IterableSource(range(2 * BATCH * REPEATS * TRIES)), ReusingCodec(), Map(identity, "identity")
    source.open(2 * BATCH)
    items = list(range(2 * BATCH, 3 * BATCH))
    payload = PickleCodec().encode(items)
    key = bytes(8)
    yield "read the numbers", lambda: source.read(BATCH)
    yield "copy the list, at its birth", lambda: list(items)
    yield "pickle it for the journal", lambda: PickleCodec().encode(items)
    yield "seal that", lambda: seal(key, payload)
    yield "copy the list, for the node", lambda: codec.decode(items)
    yield "call the function", lambda: node._process_frame(iter(items), [])
    yield "pickle what it made for the inbox", lambda: PickleCodec().encode(items)
    yield "seal that, too", lambda: seal(key, payload)
    yield "unpickle it after the decision", lambda: codec.decode(payload)
    yield "add it up in the sink", lambda: sum(items)


def nanoseconds(step: Callable[[], Any], repeats: int, tries: int) -> float:
    """Processor time for an item."""
    found = []
    for _ in range(tries):
        started_ns = time.process_time_ns()
        for _ in range(repeats):
            step()
        found.append(time.process_time_ns() - started_ns)
    return min(found) / repeats / BATCH


def table(repeats: int = REPEATS, tries: int = TRIES) -> str:
    """The steps and their sum, a line each."""
    found = [(name, nanoseconds(step, repeats, tries)) for name, step in steps()]
    found.append(("all of them", sum(cost for _, cost in found)))
    return "\n".join(f"{name: <36}{cost:6.1f} ns" for name, cost in found)


if __name__ == "__main__":
    print(table())
