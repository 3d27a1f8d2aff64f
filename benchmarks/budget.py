"""``python -m benchmarks.budget``: what each step of identity in ``robust`` costs an item, in ns of processor time.

The steps are the library's own, for a batch of numbers that stays in its worker: once of a list, once of a range. Each
figure is the least of several, for whatever else runs on the machine only ever makes it larger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.identity import identity
from consecution import IterableSource, Map
from consecution.protocol.values import copied
from consecution.runtime.journal import seal
from consecution.transport.codec import PickleCodec, ReusingCodec

BATCH = 16_000
REPEATS = 50
TRIES = 9
NUMBERS = range(2 * BATCH, 3 * BATCH)


def steps(numbers: Sequence[int]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is done with a batch, in order."""
    source, codec, node = IterableSource(numbers), ReusingCodec(), Map(identity, "identity")
    made = list(numbers)
    born, staged = PickleCodec().encode(numbers), PickleCodec().encode(made)
    key = bytes(8)

    def read() -> Any:
        source.open(None)
        return source.read(BATCH)

    yield "read the numbers", read
    yield "copy them, at their birth", lambda: copied(numbers)
    yield "pickle them for the journal", lambda: PickleCodec().encode(numbers)
    yield "seal that", lambda: seal(key, born)
    yield "copy them, for the node", lambda: codec.decode(numbers)
    yield "call the function", lambda: node._process_frame(iter(numbers), [])
    yield "pickle what it made for the inbox", lambda: PickleCodec().encode(made)
    yield "seal that, too", lambda: seal(key, staged)
    yield "unpickle it after the decision", lambda: codec.decode(staged)
    yield "add it up in the sink", lambda: sum(made)


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
    """The steps and their sum, a line each: of a list, and of a range."""
    lines = [("", *(f"{kind: >9}" for kind in ("list", "range")))]
    sums = [0.0, 0.0]
    for (name, of_list), (_, of_range) in zip(steps(list(NUMBERS)), steps(NUMBERS), strict=True):
        costs = [nanoseconds(step, repeats, tries) for step in (of_list, of_range)]
        sums = [total + cost for total, cost in zip(sums, costs, strict=True)]
        lines.append((name, *(f"{cost:6.1f} ns" for cost in costs)))
    lines.append(("all of them", *(f"{total:6.1f} ns" for total in sums)))
    return "\n".join(f"{name: <36}{''.join(costs)}" for name, *costs in lines)


if __name__ == "__main__":
    print(table())
