"""Damages a store in every way it is told, in a process that may die of it, and counts what came of it."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = 8
ALL_BITS = 0xFF


@dataclass(slots=True)
class Tally:
    """What came of the damages to one subject: how many of each kind, and some that should not be."""

    size_bytes: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(flip or cut, what came of it) → how many."""
    examples: list[str] = field(default_factory=list)

    def add(self, damage: str, answer: str) -> None:
        came = answer.partition(" ")[0]
        self.counts[damage.partition(" ")[0], came] += 1
        if came not in ("harmless", "noticed") and len(self.examples) < EXAMPLES:
            self.examples.append(f"{damage}: {answer}")

    def of(self, came: str) -> int:
        return sum(count for (_, what), count in self.counts.items() if what == came)

    @property
    def bad(self) -> int:
        return sum(self.counts.values()) - self.of("harmless") - self.of("noticed")


class _Looker:
    """The process that looks, and the one after it when it has died."""

    def __init__(self, subject: str, folder: Path) -> None:
        self._command = [sys.executable, "-m", "tests.damage.looker", subject, str(folder)]
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )
        self.size_bytes = int(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def ask(self, damage: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{damage}\n")
        self._process.stdin.flush()
        answer = self._read().rstrip("\n")
        if answer:
            return answer
        code = self._process.wait()
        self._start()
        return f"died by {-code}" if code < 0 else f"unclear end with {code}"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def _looker(subject: str) -> Iterator[_Looker]:
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="damage-", dir=place) as folder:
        looker = _Looker(subject, Path(folder) / "store")
        try:
            yield looker
        finally:
            looker.close()


def everything(size_bytes: int) -> Iterator[str]:
    """Every byte inverted in turn, and every length."""
    for place in range(size_bytes):
        yield f"flip {place} {ALL_BITS}"
    for length in range(size_bytes):
        yield f"cut {length}"


def sample(size_bytes: int, count: int, seed: int) -> Iterator[str]:
    """Some of everything, and some single bits."""
    chance = random.Random(seed)
    damages = list(everything(size_bytes))
    damages += [f"flip {place} {1 << chance.randrange(8)}" for place in range(size_bytes)]
    yield from chance.sample(damages, min(count, len(damages)))


def attack(subject: str, damages: Callable[[int], Iterable[str]], seen: Callable[[Tally], None] = id) -> Tally:
    """Do all of these damages to a subject, one after the other. ``seen`` is called after each."""
    tally = Tally()
    with _looker(subject) as looker:
        tally.size_bytes = looker.size_bytes
        for damage in damages(looker.size_bytes):
            tally.add(damage, looker.ask(damage))
            seen(tally)
    return tally
