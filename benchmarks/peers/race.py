"""All contestants in turn, round by round, each run in processes of its own; what is busy is run again.

A run beside which other processes took more CPU than `neighbours.BUSY_CORES` is repeated, a bounded number of times,
and the quietest counts. A wrong answer, a crash and a run that does not end are failures and give no figure.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.neighbours import BUSY_CORES, watched
from benchmarks.peers import task as tasks
from benchmarks.peers.environments import cache, interpreter
from benchmarks.peers.field import Contestant, Work, prepare

TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Run:
    """One run. ``failure`` is '' where it went well, and then ``told`` has what `child.gather` found."""

    round: int
    contestant: str
    work: str
    size: int
    told: dict[str, Any]
    startup_s: float | None
    others: float | None
    attempts: int = 1
    failure: str = ""

    @property
    def busy(self) -> bool:
        return self.others is not None and self.others > BUSY_CORES

    @property
    def rate(self) -> float:
        """Items a second; 0 where that is not what was asked, or it failed."""
        seconds = self.told.get("seconds")
        return self.size / seconds if seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Runner = Callable[[Contestant, Work, int, int], Run]
"""Contestant, work, size, round → a run."""


def hold(
    contestants: Sequence[Contestant],
    works: Sequence[Work],
    rounds: int,
    run: Runner,
    *,
    divisor: int = 1,
    repeats: int = 2,
    limit_s: float = float("inf"),
) -> Iterator[Run]:
    """Work by work, all contestants once per round, but for tools that take part in fewer.

    After ``limit_s`` no other run is started, nor repeated.
    """
    end_s = time.monotonic() + limit_s
    for number in range(rounds):
        for work in works:
            for contestant in contestants:
                if work.name not in contestant.works or number >= contestant.tool.rounds:
                    continue
                if time.monotonic() > end_s:
                    return
                size = contestant.size_of(work, divisor)
                yield quietest(
                    lambda c=contestant, w=work, s=size, n=number: run(c, w, s, n),  # type: ignore[misc]
                    lambda: repeats if time.monotonic() < end_s else 0,
                )


def quietest(attempt: Callable[[], Run], repeats: Callable[[], int]) -> Run:
    """Run, and again while others took too much; the one that they disturbed least. A failure is not repeated."""
    found = [attempt()]
    while found[-1].busy and not found[-1].failure and len(found) <= repeats():
        found.append(attempt())
    best = min(found, key=lambda run: (bool(run.failure), run.others or 0.0))
    return Run(**{**best.as_dict(), "attempts": len(found)})


def run_once(contestant: Contestant, work: Work, size: int, number: int) -> Run:
    """Start a contestant's child, wait for its end, check its answer."""
    inputs = cache() / "inputs"
    prepare(work, size, inputs)
    with tempfile.TemporaryDirectory(prefix="consecution-peers-") as made:
        task = tasks.Task(work.same_as or work.name, size, contestant.workers, Path(made), inputs, contestant.options)
        started_s = time.time()
        with watched() as seen:
            told, failure = _call(contestant, task)
    startup_s = told["first_s"] - started_s if "first_s" in told else None
    failure = failure or _check(work, told, work.expected(size) if work.name != "kill" else None)
    return Run(number, contestant.name, work.name, size, {} if failure else told, startup_s, seen.others, 1, failure)


def _call(contestant: Contestant, task: tasks.Task) -> tuple[dict[str, Any], str]:
    python, path = interpreter(contestant.tool)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        tasks.VARIABLE: task.dumps(),
    }
    command = [str(python), "-m", "benchmarks.peers.child", contestant.tool.module]
    with tempfile.TemporaryFile("w+") as output:
        # To a file, since what a child leaves behind may hold a pipe open.
        process = subprocess.Popen(
            command, cwd=task.folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = None
        output.seek(0)
        printed = output.read().rstrip()
    if code == 0:
        return json.loads(printed.rpartition("\n")[2]), ""
    return {}, f"exit code {code}:\n{printed[-2000:]}" if code is not None else f"did not end within {TIMEOUT_S} s"


def _check(work: Work, told: dict[str, Any], expected: Any) -> str:
    if work.name == "kill":
        return ""  # what was lost and doubled is a finding, and so is no output at all
    found = told["answer"]
    return "" if found == json.loads(json.dumps(expected)) else f"answered {found!r}, expected {expected!r}"
