"""The trouble that some items make: they raise, always or once, or kill the worker that has them in hand, once."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence

from tests.faults.job import Job

Marks = dict[str, dict[int, str]]
"""Node → number → what it does there: always (raises), once (raises the first time), kill (its worker, once)."""

Wanted = Sequence[tuple[str, str, int]]
"""How many numbers do what at which node."""


def draw_marks(job: Job, wanted: Wanted, numbers: Sequence[int]) -> Marks:
    """Which numbers make trouble: drawn by the seed, none twice; one run in four has none that always fails."""
    rng = random.Random(f"marks {job.seed}")
    wanted = [(node, kind, count) for node, kind, count in wanted if job.seed % 4 or kind != "always"]
    drawn = rng.sample(numbers, sum(count for _, _, count in wanted))
    marks: Marks = {}
    for node, kind, count in wanted:
        for _ in range(count):
            marks.setdefault(node, {})[drawn.pop()] = kind
    return marks


def lay_tokens(job: Job, marks: Marks) -> None:
    """A file for everything that may happen only once."""
    job.path("tokens").mkdir()
    for node, kinds in marks.items():
        for number, kind in kinds.items():
            if kind != "always":
                job.path(f"tokens/{node}-{number}").touch()


class Trouble:
    """Makes the trouble of one node."""

    def __init__(self, job: Job, node: str, marks: Marks) -> None:
        self._marks = marks.get(node, {})
        self._prefix = str(job.path(f"tokens/{node}-"))

    def meet(self, number: int) -> None:
        kind = self._marks.get(number)
        if kind == "always":
            raise ValueError(f"{number} always raises")
        if kind is not None and self._take_token(number):
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError(f"{number} raises the first time")

    def _take_token(self, number: int) -> bool:
        try:
            os.unlink(f"{self._prefix}{number}")
        except FileNotFoundError:
            return False
        return True
