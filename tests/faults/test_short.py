"""A few seeds with few items, chosen so that together they kill everything that can be killed."""

from __future__ import annotations

import pytest

from tests.faults import attack
from tests.faults.pipeline import SOURCES
from tests.faults.schedule import POINT_GROUPS, VICTIMS, draw

ITEMS = 6_000
DEADLINE_S = 80.0
"""Shorter than that of the test, so that it can tell what was done."""
SEEDS = (530, 820, 927, 1425, 1571, 2464)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_item_is_completely_processed_whatever_dies(seed: int) -> None:
    outcome = attack.run(seed, ITEMS, deadline_s=DEADLINE_S)

    assert not outcome.problems, attack.describe(outcome)
    assert outcome.seen, f"nothing was killed; {attack.describe(outcome)}"


def test_the_seeds_cover_every_victim_failpoint_group_and_source() -> None:
    drawn = [draw(seed, ITEMS, "") for seed in SEEDS]

    kinds = set[str]().union(*(schedule.kinds() for schedule in drawn))

    assert kinds == {*VICTIMS, *(f"@{group}" for group in POINT_GROUPS)}
    assert {schedule.job.source for schedule in drawn} == set(SOURCES)
