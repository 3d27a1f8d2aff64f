"""Nodes, sinks and functions of the contract's pipelines: at the top of a module, so that workers can import them."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from consecution import BatchId, GroupByNode, Node, Sink, Source

LONGEST_WAIT_S = 30.0


class Collect(Sink):
    """Appends every item to a file, a line each; `collected` reads them back, from any process."""

    def __init__(self, name: str, path: Path, *, with_batch: bool = False) -> None:
        super().__init__(name)
        self.path = path
        self.with_batch = with_batch

    def open(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        self.check(items)
        found = [(batch_id, items)] if self.with_batch else items
        os.write(self._fd, b"".join(base64.b64encode(pickle.dumps(item)) + b"\n" for item in found))

    def check(self, items: list[Any]) -> None:
        """For sinks that refuse something."""

    def close(self) -> None:
        os.close(self._fd)


def collected(path: Path) -> list[Any]:
    """The items written so far; a line that is just being written does not count yet."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [pickle.loads(base64.b64decode(line)) for line in whole.splitlines()]


def open_descriptors() -> set[str]:
    """The descriptors that this process has open."""
    return {name for name in os.listdir("/dev/fd") if os.path.exists(f"/dev/fd/{name}")}


class Picky(Collect):
    """Refuses a frame that holds a negative number."""

    def check(self, items: list[Any]) -> None:
        if any(item < 0 for item in items):
            raise ValueError(f"a negative number among {len(items)}")


class Unopenable(Collect):
    def open(self) -> None:
        raise PermissionError("no way in")


class Unclosable(Collect):
    def close(self) -> None:
        super().close()
        raise OSError("the last page is missing")


class NotedClose(Collect):
    def close(self) -> None:
        super().close()
        self.path.with_suffix(".closed").touch()


def wait_for_file(path: Path) -> None:
    deadline_s = time.monotonic() + LONGEST_WAIT_S
    while not path.exists() and time.monotonic() < deadline_s:
        time.sleep(0.002)


class Notes:
    """A file that tasks of any process write a line to, whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, text: str) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(fd, text.encode() + b"\n")
        finally:
            os.close(fd)

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


class Diary(Node):
    """Notes what is called, and pushes a word when it ends."""

    def __init__(self, name: str, notes: Notes) -> None:
        super().__init__(name)
        self.notes = notes

    def begin(self) -> None:
        self.notes.add(f"begin {self.name}")

    def process(self, item: Any) -> None:
        self.push(item)

    def end(self) -> None:
        self.notes.add(f"end {self.name}")
        self.push(f"{self.name} ended")


class Dear(Node):
    """Takes so many seconds for an item."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(name)
        self.seconds = seconds

    def process(self, item: Any) -> None:
        time.sleep(self.seconds)
        self.push(item)


class DearTogether(Node):
    """Takes so many seconds for sixteen items."""

    timeout_s = 600.0

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(name)
        self.seconds = 16 * seconds

    async def process(self, item: Any) -> None:
        await asyncio.sleep(self.seconds)
        self.push(item)


class Tag(Node):
    """Pushes (item, a name that this replica alone has)."""

    def begin(self) -> None:
        self.who = uuid.uuid4().hex

    def process(self, item: Any) -> None:
        self.push((item, self.who))


class Total(Node):
    """Pushes the sum when the stream ends."""

    def begin(self) -> None:
        self.total = 0

    def process(self, item: int) -> None:
        self.total += item

    def end(self) -> None:
        self.push(self.total)


class SlowEnd(Total):
    """Says that it ends, and waits for a file to appear before it does."""

    def __init__(self, name: str, notes: Notes, gate: Path) -> None:
        super().__init__(name)
        self.notes = notes
        self.gate = gate

    def end(self) -> None:
        self.notes.add("ending")
        wait_for_file(self.gate)
        super().end()


class Tens(GroupByNode):
    def key(self, item: int) -> int:
        return item // 10

    def process(self, batch: list[int]) -> None:
        if batch:
            self.push((batch[0] // 10, len(batch)))


class FlakyTens(Tens):
    """Raises at the batches with these keys until each was tried so many times; tells at the end how many went."""

    def __init__(self, name: str, notes: Notes, keys: set[int], tries: int) -> None:
        super().__init__(name)
        self.notes = notes
        self.keys = keys
        self.tries = tries
        self.gone = 0

    def process(self, batch: list[int]) -> None:
        key = batch[0] // 10
        self.notes.add(str(key))
        self.push("half done")
        self.gone += 1
        if key in self.keys and self.notes.lines().count(str(key)) < self.tries:
            batch.clear()
            raise ValueError("no such batch")
        self.push(key)

    def end(self) -> None:
        self.push(f"{self.gone} gone")


class Flaky(Node):
    """Raises at each item until it was tried so many times; pushes it then."""

    def __init__(self, name: str, notes: Notes, tries: int) -> None:
        super().__init__(name)
        self.notes = notes
        self.tries = tries

    def process(self, item: int) -> None:
        self.notes.add(str(item))
        self.push(f"{item} half done")
        if self.notes.lines().count(str(item)) < self.tries:
            raise TimeoutError(f"{item} is not there yet")
        self.push(item)


class Unseen:
    """Whose repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no looking")


class ReprRaises(Unseen, Exception):
    """Whose text raises too."""

    __str__ = Unseen.__repr__


def fail(item: Any) -> Any:
    """Raises what the item says; passes all others on."""
    if item == "raise":
        raise ValueError("this one")
    if item == "exit":
        raise SystemExit(3)
    if item == "stop iteration":
        raise StopIteration
    if item == "generator exit":
        raise GeneratorExit
    if item == "unspeakable":
        raise ReprRaises
    return item


def fail_late(item: Any) -> Iterator[Any]:
    """Pushes before it raises: what it pushed is dropped."""
    yield item
    if isinstance(item, int) and item % 10 == 3:
        raise ArithmeticError(f"{item} ends in 3")
    yield -item


class Fail(Node):
    """`fail`, as a node of its own."""

    def process(self, item: Any) -> None:
        self.push(fail(item))


class BadBegin(Node):
    def begin(self) -> None:
        raise LookupError("nothing to begin with")

    def process(self, item: Any) -> None:
        self.push(item)


class BadEnd(Node):
    def process(self, item: Any) -> None:
        self.push(item)

    def end(self) -> None:
        raise LookupError("no end in sight")


class Mute(Node):
    """In one of its steps it raises what cannot even say what it is."""

    def __init__(self, name: str, step: str) -> None:
        super().__init__(name)
        self.step = step
        self.every(0.01)

    def begin(self) -> None:
        self.fail("begin")

    def process(self, item: Any) -> None:
        self.push(item)

    def on_timer(self) -> None:
        self.fail("on_timer")

    def end(self) -> None:
        self.fail("end")

    def fail(self, step: str) -> None:
        if self.step == step:
            raise ReprRaises


class Gate(Node):
    """Holds every item until a file appears."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        self.path = path

    def process(self, item: Any) -> None:
        wait_for_file(self.path)
        self.push(item)


class WritesState(Node):
    def process(self, item: Any) -> None:
        self.global_state.seen = item
        self.push(item)


class ReadsState(Node):
    def process(self, item: int) -> None:
        self.push(item * self.global_state.factor)


def increase(item: int) -> int:
    return item + 1


def double(item: int) -> Iterator[int]:
    yield item
    yield item * 1000


def is_even(item: int) -> bool:
    return item % 2 == 0


def negate(item: int) -> int:
    return -item


def square(item: int) -> int:
    return item * item


def last_digit(item: Any) -> int:
    return abs(item) % 10


def parity_name(item: int) -> str:
    return "odd" if item % 2 else "even"


def parity_index(item: int) -> int:
    return item % 2


def bad_route(item: Any) -> str:
    return "nowhere" if item == "lost" else fail(item) and "here"


class Fickle:
    """A router that raises at every third question, whatever it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, item: Any) -> int:
        self.asked += 1
        if self.asked % 3 == 0:
            raise LookupError(f"question {self.asked}")
        return self.asked % 2


def bad_key(item: Any) -> Any:
    if item == "list":
        return [item]
    return fail(item)


def make_generator(item: Any) -> Any:
    """What no pickle takes, for the item 5."""
    return (item for _ in [1]) if item == 5 else item


def identity(item: Any) -> Any:
    return item


def type_name(item: Any) -> str:
    return type(item).__name__


def is_number(item: Any) -> bool:
    return isinstance(item, int)


def last_third(item: int) -> int:
    return item // 3


def last_digit_by_twos(item: int) -> int | str:
    """Of odd numbers: 1 → the first way, 3 and 5 → by name, 7 and 9 → the third."""
    digit = item % 10
    return 0 if digit == 1 else "by_index" if digit in (3, 5) else 2


def fail_unless_true(item: int) -> bool:
    if item == 0:
        raise ZeroDivisionError("nothing")
    return True


def fail_on_numbers(item: Any) -> Any:
    if isinstance(item, int):
        raise TypeError(f"{item} is a number")
    return item


def fail_on_unseen(item: Any) -> Any:
    if isinstance(item, Unseen):
        raise ValueError("unseen")
    return item


# -- sources -------------------------------------------------------------------------------------


def count_up() -> Iterator[int]:
    """Never ends."""
    return itertools.count()


def fifty() -> Iterator[int]:
    yield from range(50)


def numbers_and_generators() -> Iterator[Any]:
    for number in range(20):
        yield (number for _ in [1]) if number % 10 == 5 else number


def breaks_after(count: int) -> Callable[[], Iterator[int]]:
    def read() -> Iterator[int]:
        yield from range(count)
        raise OSError("the line went dead")

    return read


class BadSource(Source):
    """Gives three numbers, and raises where it is told to."""

    def __init__(self, fails_in: str, error: BaseException) -> None:
        self.fails_in = fails_in
        self.error = error
        self.at = 0

    def fail_in(self, where: str) -> None:
        if where == self.fails_in:
            raise self.error

    def open(self, position: Any) -> None:
        self.at = position or 0
        self.fail_in("open")

    def read(self, max_items: int) -> list[Any] | None:
        if self.at == 3:
            self.fail_in("read")
            return None
        self.at += 1
        return [self.at]

    def position(self) -> int:
        return self.at

    def close(self) -> None:
        self.fail_in("close")


class OneThread(Source):
    """Gives some numbers, now and then nothing, and may be touched by one thread only. It has no descriptor."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.thread: int | None = None

    def open(self, position: Any) -> None:
        self.thread = threading.get_ident()
        self.at = position or 0
        self.asked = 0

    def read(self, max_items: int) -> list[Any] | None:
        assert threading.get_ident() == self.thread
        self.asked += 1
        if self.at >= self.count:
            return None
        if self.asked % 2:
            return []
        found = list(range(self.at, min(self.count, self.at + min(3, max_items))))
        self.at += len(found)
        return found

    def position(self) -> int:
        assert threading.get_ident() == self.thread
        return self.at

    def close(self) -> None:
        assert self.thread in (None, threading.get_ident())
        self.thread = None
