"""Some thousand requests, some kills; `python -m tests.faults.http_attack` sends as many as one likes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.http_attack import attack


@pytest.mark.parametrize(("mode", "requests", "kills"), [("thread", 600, 1), ("process", 600, 2)])
def test_whatever_was_answered_with_202_is_there_once(mode: str, requests: int, kills: int, tmp_path: Path) -> None:
    seed = random.randrange(10_000)

    outcome = attack(tmp_path, requests=requests, kills=kills, seed=seed, mode=mode)

    assert not outcome.problems, f"seed {seed}, kills {outcome.kills}: {outcome.problems}"
    assert "at a commit" in outcome.kills
    assert len(outcome.kills) > kills
