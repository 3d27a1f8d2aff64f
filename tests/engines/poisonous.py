"""Nodes, sinks and items that take their workers down, at the top of a module, so that workers can import them."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from consecution import GroupByNode, KeyedNode, Node, Sink, Source, StatefulNode
from tests.engines.misbehaving import WAYS

MIB = 1024 * 1024


class Poisoned(Node):
    """Passes items on, but comes to grief at some of them, each in its way."""

    def __init__(self, name: str, ways: dict[Any, str]) -> None:
        super().__init__(name)
        self.ways = ways

    def process(self, item: Any) -> None:
        if item in self.ways:
            WAYS[self.ways[item]]()
        self.push(item)


class PoisonedRetry(Node):
    """Raises when an item comes for the first time; when it comes again, its worker dies of it."""

    def __init__(self, name: str, at: Any, folder: Path) -> None:
        super().__init__(name)
        self.at, self.tried = at, folder / "tried"

    def process(self, item: Any) -> None:
        if item == self.at:
            if self.tried.exists():
                WAYS["segfault"]()
            self.tried.touch()
            raise ValueError("not yet")
        self.push(item)


class Hungry(Node):
    """Takes as many MiB as the item says."""

    def process(self, item: int) -> None:
        taken = bytearray(item * MIB)
        self.push(len(taken) // MIB)


class Totals(KeyedNode):
    """The sum of the items of each key; comes to grief at one of them."""

    def __init__(self, name: str, at: int, way: str = "segfault") -> None:
        super().__init__(name)
        self.at, self.way = at, way

    def key(self, item: int) -> int:
        return item % 7

    def process(self, item: int) -> None:
        self.state["total"] = self.state.get("total", 0) + item
        if item == self.at:
            WAYS[self.way]()

    def end(self) -> None:
        for key, state in self.states():
            self.push((key, state["total"]))


class Tens(GroupByNode):
    """Passes on how many items of each ten there are; comes to grief at some of the lists, and not at their items."""

    def __init__(self, name: str, ways: dict[int, str]) -> None:
        super().__init__(name)
        self.ways = ways

    def key(self, item: int) -> int:
        return item // 10

    def process(self, batch: list[int]) -> None:
        if batch[0] in self.ways:
            WAYS[self.ways[batch[0]]]()
        self.push(batch[0] + len(batch))


class Tally(StatefulNode):
    """Counts what it is given, whatever that is, and says so at the end."""

    def process(self, item: Any) -> None:
        self.state["count"] = self.state.get("count", 0) + 1

    def end(self) -> None:
        self.push(self.state.get("count", 0))


class Collapsing(Sink):
    """Writes lines, but comes to grief at one of them."""

    def __init__(self, name: str, path: Path, at: Any, *, after_decision: bool) -> None:
        super().__init__(name)
        self.path, self.at, self.after_decision = path, at, after_decision

    def write(self, batch_id: Any, items: list[Any]) -> None:
        if self.at in items:
            WAYS["segfault"]()
        with self.path.open("a") as file:
            file.write("".join(f"{item}\n" for item in items))


class TwoPartsError(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__(first)


class DeadlyToDecode:
    """Takes down whoever decodes it."""

    def __setstate__(self, state: Any) -> None:
        WAYS["segfault"]()

    def __getstate__(self) -> Any:
        return {"some": "state"}


class Spoiling(Node):
    """Makes of one item something that cannot be decoded."""

    def __init__(self, name: str, at: Any, made: type) -> None:
        super().__init__(name)
        self.at, self.made = at, made

    def process(self, item: Any) -> None:
        self.push(spoiled(self.made) if item == self.at else item)


def spoiled(made: type) -> Any:
    return made(1, 2) if made is TwoPartsError else made()


class FailsOnce(Node):
    """Raises once at an item, which so has to be tried again."""

    def __init__(self, name: str, token: Path) -> None:
        super().__init__(name)
        self.token = token

    def process(self, item: Any) -> None:
        if isinstance(item, str) and self.token.exists():
            self.token.unlink()
            raise ValueError("once")
        self.push(item)


class DeadlyToShow:
    """Takes down whoever shows it."""

    def __repr__(self) -> str:
        WAYS["exit"]()
        return ""


class Refusing(Node):
    """Raises at whatever is no small number."""

    def process(self, item: Any) -> None:
        if not isinstance(item, int) or item == 33:
            raise ValueError("no")
        self.push(item)


def deadly_decision(error: BaseException, item: Any) -> str:
    WAYS["exit"]()
    return "park"


def deadly_key(item: Any) -> Any:
    if item == 33:
        WAYS["segfault"]()
    return item % 3


class DeadlyToEncode:
    """Takes down whoever encodes it."""

    def __reduce__(self) -> Any:
        WAYS["segfault"]()


class EncodesBadly(Source):
    """Numbers, and one thing among them that takes its worker down when it goes into the journal."""

    def __init__(self, count: int, at: int) -> None:
        self.count, self.at, self.place = count, at, 0

    def open(self, position: Any) -> None:
        self.place = position or 0

    def read(self, max_items: int) -> list[Any] | None:
        if self.place == self.count:
            return None
        start, self.place = self.place, min(self.count, self.place + max_items)
        return [DeadlyToEncode() if item == self.at else item for item in range(start, self.place)]

    def position(self) -> int:
        return self.place


class Slow(Tally):
    """Notes how far its task is, as those who watch over it see it."""

    def process(self, item: Any) -> None:
        super().process(item)
        self.seen = [*getattr(self, "seen", []), self.look()]
        self.push(len(set(self.seen)))

    def look(self) -> Any:
        host: Any = next(o for o in gc.get_objects() if type(o).__name__ == "DurableHost" and o.node is self)
        return host.progress()
