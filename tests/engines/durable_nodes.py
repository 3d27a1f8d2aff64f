"""Durable nodes and a file that holds every item once, for `tests.engines.test_durable`."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consecution import AppendSink, BatchId, KeyedNode, Node, StatefulNode


class OnceFile(AppendSink):
    """Appends ``repr`` lines; where it ends is committed, and what lies behind is cut off at the next start."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        self.path = path

    def open(self) -> None:
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def cut_to(self, end: Any) -> None:
        os.ftruncate(self._fd, end or 0)

    def write(self, batch_id: BatchId | None, items: list[Any]) -> None:
        os.write(self._fd, "".join(f"{item!r}\n" for item in items).encode())

    def flush(self) -> int:
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        os.close(self._fd)


def lines_of(path: Path) -> list[Any]:
    text = path.read_text() if path.exists() else ""
    return [eval(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class Balance(KeyedNode):
    """Sums up amounts per account; pushes every new balance, and all accounts at the end."""

    def key(self, item: tuple[str, int]) -> str:
        return item[0]

    def process(self, item: tuple[str, int]) -> None:
        self.state["total"] = self.state.get("total", 0) + item[1]
        self.state["items"] = self.state.get("items", 0) + 1
        if item[1] < 0:
            raise ValueError("nobody takes back")
        self.push((item[0], self.state["total"]))

    def end(self) -> None:
        for account, state in self.states():
            self.push((f"{account} at the end", state["total"]))


@dataclass
class Seen:
    count: int = 0
    largest: int = 0


class Watch(StatefulNode):
    """A typed state: how many totals were seen, and the largest."""

    def initial_state(self) -> Seen:
        return Seen()

    def process(self, item: tuple[str, int]) -> None:
        self.state.count += 1
        self.state.largest = max(self.state.largest, item[1])
        self.push(item)

    def end(self) -> None:
        self.push(("seen", self.state.count))


class Fickle(Node):
    """Answers differently each time: every execution gives an item another tag."""

    def process(self, item: tuple[str, int]) -> None:
        self.push((*item, uuid.uuid4().hex))


class DiesOnce(Node):
    """Kills its process, once, at an item."""

    def __init__(self, name: str, token: Path, at: Any) -> None:
        super().__init__(name)
        self.token, self.at = token, at

    def process(self, item: Any) -> None:
        self._die_at(item)
        self.push(item)

    def _die_at(self, item: Any) -> None:
        if item == self.at and self.token.exists():
            self.token.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


class Till(DiesOnce):
    """A plain node that holds an account twice: among all of them, and as the one in hand."""

    def begin(self) -> None:
        self.accounts: dict[str, dict[str, int]] = {}
        self.in_hand: dict[str, int] = {}

    def process(self, item: tuple[str, int]) -> None:
        account, amount = item
        if amount % 100 == 0:
            self.in_hand = self.accounts.setdefault(account, {"total": 0})
        self.in_hand["total"] += amount
        self._die_at(item)

    def end(self) -> None:
        for account, kept in self.accounts.items():
            self.push((f"{account} at the end", kept["total"]))


class Beat(StatefulNode):
    """Pushes what it has counted every so often."""

    def process(self, item: Any) -> None:
        self.state["count"] = self.state.get("count", 0) + 1

    def on_timer(self) -> None:
        if self.state.get("count", 0) != self.state.get("told", 0):
            self.state["told"] = self.state["count"]
            self.push(self.state["told"])


def payments(count: int) -> list[tuple[str, int]]:
    return [(f"account {number % 7}", number) for number in range(count)]


def totals(items: list[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for account, amount in items:
        found[account] = found.get(account, 0) + amount
    return found


def slowly(items: list[Any], gate: Path, after: int) -> Iterator[Any]:
    """Stops after so many items until the gate file is there."""
    import time

    deadline_s = time.monotonic() + 30.0
    for number, item in enumerate(items):
        while number == after and not gate.exists() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        yield item
