"""Kill -9 while failed items that a durable task keeps become new items of the source: each is there once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.test_failures import Runs

ROOT = Path(__file__).parents[2]
RETRY = """
import sys
from pathlib import Path
from consecution.cli import main
from consecution.runtime import failpoints, failures

traps, state_dir, failures.ENTRIES_PER_COMMIT = sys.argv[1], sys.argv[2], int(sys.argv[3])
failpoints.arm(traps)
print("ready", flush=True)
sys.exit(main(["failed", "retry", state_dir, "--at-source"]))
"""
RUN = """
import sys
from pathlib import Path
from consecution.runtime import failpoints
from tests.runtime.test_failures import Runs

failpoints.arm(sys.argv[1])
print("ready", flush=True)
Runs(Path(sys.argv[2]).parent)()
"""


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """Of ten items one has failed at a plain node, and three at a durable one."""
    runs = Runs(tmp_path)
    runs(bad=[2], uncounted=[5, 7, 8])
    return runs


def start(script: str, runs: Runs, traps: str = "", entries_per_commit: int = 1000) -> subprocess.Popen[str]:
    arguments = [traps, str(runs.state_dir), str(entries_per_commit)]
    made = subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    assert made.stdout.readline() == "ready\n"
    return made


def end(script: str, runs: Runs, traps: str = "", entries_per_commit: int = 1000) -> int:
    process = start(script, runs, traps, entries_per_commit)
    process.communicate(timeout=60)
    return process.returncode


def trap(runs: Runs, place: str) -> str:
    token = runs.folder / "token"
    token.touch()
    return f"{place}:{token}"


def listed_and_born(runs: Runs) -> tuple[int, int]:
    """How many items are listed as failed, and how many new ones there are."""
    source = next(origin for origin in runs.check().origins if origin.name == "numbers")
    return len(runs.ids()), source.emitted - 10


def assert_each_is_counted_once(runs: Runs, seen: list[Any], count: int) -> None:
    """After the next run; ``seen`` had arrived before."""
    again = runs()

    assert (again.emitted, again.completed, again.failed, again.open) == (10 + count, 10 + count, 0, 0)
    assert runs.ids() == []
    assert sorted(map(str, runs.out[len(seen) :])) == sorted(["2", "5", "7", "8", "10 counted"])
    assert runs.check().finished


@pytest.mark.parametrize(
    ("gap", "passes"),
    [("failed.reopened", 1), ("failed.born", 1), ("failed.born", 3), ("failed.dropped", 2), ("failed.moved", 2)],
)
def test_a_command_killed_in_a_gap_and_given_again_puts_each_item_back_once(runs: Runs, gap: str, passes: int) -> None:
    seen = runs.out

    assert end(RETRY, runs, trap(runs, f"{gap}@{passes}"), entries_per_commit=1) == -signal.SIGKILL
    listed, born = listed_and_born(runs)
    assert end(RETRY, runs) == 0
    after = listed_and_born(runs)

    assert listed + born == 4
    assert born == (0 if gap == "failed.reopened" else passes)
    assert after == (0, 4)
    assert_each_is_counted_once(runs, seen, 4)


@pytest.mark.parametrize("finisher", [RETRY, RUN], ids=["command", "run"])
@pytest.mark.parametrize(("first", "second"), [("failed.born", "failed.dropped"), ("failed.dropped", "failed.moved")])
def test_whoever_does_the_rest_may_be_killed_too(runs: Runs, first: str, finisher: str, second: str) -> None:
    seen = runs.out

    for script, place in ((RETRY, first), (finisher, second)):
        assert end(script, runs, trap(runs, f"{place}@1")) == -signal.SIGKILL
        assert listed_and_born(runs) == (1, 3)
    assert end(RETRY, runs) == 0

    assert_each_is_counted_once(runs, seen, 4)


def test_a_run_after_a_killed_command_does_the_rest(runs: Runs) -> None:
    seen = len(runs.out)
    assert end(RETRY, runs, trap(runs, "failed.born@1")) == -signal.SIGKILL
    assert sum(origin.moved for origin in runs.check().origins) == 3

    again = runs()

    assert (again.emitted, again.completed, again.failed) == (13, 13, 1)
    assert sorted(map(str, runs.out[seen:])) == ["5", "7", "8", "9 counted"]
    assert runs.ids() == ["numbers:0"]


def test_killed_at_any_moment_each_item_is_put_back_once(runs: Runs) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    seen = runs.out

    for _ in range(8):
        process = start(RETRY, runs, entries_per_commit=1)
        time.sleep(rng.uniform(0.0, 0.1))
        process.kill()
        process.communicate(timeout=60)
        assert sum(listed_and_born(runs)) == 4
    assert end(RETRY, runs) == 0

    assert_each_is_counted_once(runs, seen, 4)
