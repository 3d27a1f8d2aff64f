"""Some thousand requests, some kills; `python -m tests.faults.http_attack` sends as many as one likes."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.faults import http_attack
from tests.faults.http_attack import attack, judge


@pytest.mark.parametrize(("mode", "requests", "kills"), [("thread", 600, 1), ("process", 600, 2)])
def test_whatever_was_answered_with_202_is_there_once(mode: str, requests: int, kills: int, tmp_path: Path) -> None:
    seed = random.randrange(10_000)

    outcome = attack(tmp_path, requests=requests, kills=kills, seed=seed, mode=mode)

    assert not outcome.problems, f"seed {seed}, kills {outcome.kills}: {outcome.problems}"
    assert "at a commit" in outcome.kills
    assert len(outcome.kills) > kills


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed: apt-get install wrk")
def test_what_wrk_was_told_is_there_once(tmp_path: Path) -> None:
    seed = random.randrange(10_000)

    outcome = attack(tmp_path, requests=2000, kills=2, seed=seed, wrk=True)

    assert not outcome.problems, f"seed {seed}, kills {outcome.kills}: {outcome.problems}"
    assert outcome.acked >= 2000
    assert len([kill for kill in outcome.kills if kill != "at a commit"]) == 2


def test_who_is_never_answered_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_attack, "ANSWERS_WITHIN_S", 0.0)

    outcome = attack(tmp_path, requests=10**9, kills=0, seed=0, mode="thread")

    assert [problem for problem in outcome.problems if problem.startswith("no request was answered with 202 for 0 s")]


def test_the_judge_finds_what_is_lost_and_what_is_there_twice() -> None:
    assert judge(["a", "b"], Counter({"a": 1, "b": 1, "not answered": 1})) == []

    lost, twice = judge(["a", "b"], Counter({"a": 1, "not answered": 2}))

    assert "1 items were answered with 202 and are not in the sink: ['b']" in lost
    assert "1 items are in the sink more than once: ['not answered']" in twice
