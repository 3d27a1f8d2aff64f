from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from consecution.runtime import failpoints

SCRIPT = """
import sys
from consecution.runtime import failpoints
failpoints.arm(sys.argv[1])
for i in range(5):
    print(i, flush=True)
    failpoints.passed("task.sent")
"""


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch()
    return path


def run(text: str) -> tuple[int, int]:
    """The exit code, and how often the place was reached."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, text], capture_output=True, text=True, start_new_session=True)
    return done.returncode, len(done.stdout.split())


def test_the_process_dies_when_the_place_is_passed_for_the_nth_time(token: Path) -> None:
    assert run(f"task.sent@3:{token}") == (-signal.SIGKILL, 3)
    assert not token.exists()


def test_without_its_token_a_trap_lets_pass(token: Path) -> None:
    token.unlink()

    assert run(f"task.sent@3:{token}") == (0, 5)


def test_other_places_are_passed_freely(token: Path) -> None:
    assert run(f"task.acked@1:{token}") == (0, 5)
    assert token.exists()


def test_several_traps_may_be_set(token: Path) -> None:
    other = token.with_name("other")
    other.touch()

    assert run(f"task.acked@1:{other},task.sent@2:{token}") == (-signal.SIGKILL, 2)
    assert other.exists()


def test_a_group_dies_together(token: Path) -> None:
    token.write_text(failpoints.GROUP)
    script = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {SCRIPT!r}, "task.sent@2:{token}"])
child.wait()
print("survived")
"""

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, start_new_session=True)

    assert done.returncode == -signal.SIGKILL
    assert "survived" not in done.stdout


def test_unset_places_cost_nothing_and_do_nothing() -> None:
    failpoints.arm("")

    for name in failpoints.NAMES:
        failpoints.passed(name)


def test_an_unknown_place_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown failpoint 'task.lost'; known: origin.before_commit"):
        failpoints.arm("task.lost@1:/nowhere")
