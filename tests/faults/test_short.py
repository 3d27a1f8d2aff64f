"""A few seeds with few items, chosen so that together they kill everything that can be killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import attack, mixed
from tests.faults.job import SOURCES
from tests.faults.schedule import LEDGER_POINT_GROUPS, POINT_GROUPS, VICTIMS, WORKERS, draw
from tests.faults.works import worker_of

ITEMS = {"travel": 6_000, "ledger": 2_000, "mixed": 1_500}
DEADLINE_S = 80.0
"""Shorter than that of the test, so that it can tell what was done."""
SEEDS = {"travel": (530, 820, 927, 1425, 1571, 2464), "ledger": (537, 1649, 3126, 4387, 5748), "mixed": (79, 250)}
KILLED: dict[tuple[str, int], bool] = {}
"""Whether anything was killed: a quick run may be over before what is aimed at a moment or at a place."""
GROUPS = {"travel": POINT_GROUPS, "ledger": LEDGER_POINT_GROUPS}


@pytest.mark.parametrize(("work", "seed"), [(work, seed) for work, seeds in SEEDS.items() for seed in seeds])
def test_every_item_is_completely_processed_whatever_dies(work: str, seed: int) -> None:
    outcome = attack.run(work, seed, ITEMS[work], deadline_s=DEADLINE_S)

    assert not outcome.problems, attack.describe(outcome)
    KILLED[work, seed] = bool(outcome.seen)


def test_most_of_these_runs_had_something_killed() -> None:
    if not KILLED:
        pytest.skip("none of them has run")

    assert 2 * sum(KILLED.values()) >= len(KILLED), KILLED


@pytest.mark.parametrize("work", GROUPS)
def test_the_seeds_cover_every_victim_failpoint_group_and_source(work: str) -> None:
    drawn = [draw(work, seed, ITEMS[work]) for seed in SEEDS[work]]

    kinds = set[str]().union(*(schedule.kinds() for schedule in drawn))

    assert kinds == {*VICTIMS, *(f"@{group}" for group in GROUPS[work])}
    assert {schedule.job.source for schedule in drawn} == set(SOURCES)


def test_the_ledgers_seeds_cover_both_kinds_of_stores() -> None:
    stores = {draw("ledger", seed, ITEMS["ledger"]).job.stores for seed in SEEDS["ledger"]}

    assert stores == {"own", "bundled"}


def test_the_seeds_of_mixed_cover_every_source_in_shares_and_the_pace_before_and_behind() -> None:
    drawn = [draw("mixed", seed, ITEMS["mixed"]) for seed in SEEDS["mixed"]]
    tasks = {task for schedule in drawn for life in schedule.lives for attack in life.attacks for task in attack.tasks}

    assert {kind for schedule in drawn for kind in schedule.job.shares} == set(mixed.KINDS)
    assert {schedule.job.paces_first for schedule in drawn} == {True, False}
    assert {"pace.0", "tag.1"} <= tasks


def test_the_seeds_cover_workers_of_one_task_and_of_several() -> None:
    drawn = {draw(work, seed, ITEMS[work]).job.workers for work, seeds in SEEDS.items() for seed in seeds}

    assert drawn == set(WORKERS)


@pytest.mark.parametrize("work", SEEDS)
def test_every_victim_has_a_worker_to_be_killed_with(work: str, tmp_path: Path) -> None:
    for seed in SEEDS[work]:
        schedule = draw(work, seed, ITEMS[work], str(tmp_path))
        tasks = {task for life in schedule.lives for attack in life.attacks for task in attack.tasks}

        hosts = worker_of(schedule.job)

        assert tasks <= hosts.keys()
        assert len(set(hosts.values())) == schedule.job.workers or schedule.job.workers == "per-task"
