"""Some thousand requests, some kills; `python -m tests.faults.http_attack` sends as many as one likes."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.http_attack import attack, judge


@pytest.mark.parametrize(("mode", "requests", "kills"), [("thread", 600, 1), ("process", 600, 2)])
def test_whatever_was_answered_with_202_is_there_once(mode: str, requests: int, kills: int, tmp_path: Path) -> None:
    seed = random.randrange(10_000)

    outcome = attack(tmp_path, requests=requests, kills=kills, seed=seed, mode=mode)

    assert not outcome.problems, f"seed {seed}, kills {outcome.kills}: {outcome.problems}"
    assert "at a commit" in outcome.kills
    assert len(outcome.kills) > kills


def test_the_judge_finds_what_is_lost_and_what_is_there_twice() -> None:
    assert judge(["a", "b"], Counter({"a": 1, "b": 1, "not answered": 1})) == []

    lost, twice = judge(["a", "b"], Counter({"a": 1, "not answered": 2}))

    assert "1 items were answered with 202 and are not in the sink: ['b']" in lost
    assert "1 items are in the sink more than once: ['not answered']" in twice
