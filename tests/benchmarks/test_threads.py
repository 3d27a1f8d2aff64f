from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks import threads
from benchmarks.threads import ROOT, Interpreter

DEADLINE_S = 120


def test_each_work_is_done_by_one_replica_and_by_two_and_every_answer_is_right() -> None:
    command = [sys.executable, "-m", "benchmarks.threads", "--quick", "--rounds", "1"]

    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)

    assert found.returncode == 0, found.stderr
    _, _, *rows = found.stdout.splitlines()
    version = sys.version.split()[0]
    assert [row.split("|")[1].strip() for row in rows if f"CPython {version}" in row] == list(threads.WORKS)


def test_a_program_that_is_no_python_is_named() -> None:
    command = [sys.executable, "-m", "benchmarks.threads", "--python", "/bin/false"]

    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)

    assert found.returncode == 2
    assert "/bin/false cannot be run" in found.stderr


def test_a_run_that_has_the_lock_although_it_was_to_go_without_it_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = '{"seconds": 1.0, "answer": 45, "locked": true}'
    monkeypatch.setattr(subprocess, "run", lambda *a, **b: subprocess.CompletedProcess(a, 0, stdout=told, stderr=""))
    monkeypatch.setitem(threads.WORKS, "cpu", threads.Work(threads.run_cpu, lambda size: 45, "items", 10))

    assert threads.measure(Interpreter("python", "CPython 3.13t", "1"), "cpu", 10, 1) == 10.0
    with pytest.raises(RuntimeError, match=r"without the lock: cpu \* 1 answered .*'locked': True"):
        threads.measure(Interpreter("python", "CPython 3.13t", "0"), "cpu", 10, 1)
