"""Which nodes end, and when."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from consecution.protocol.ending import Ending
from consecution.protocol.values import TaskIndex


def tasks(*numbers: int) -> list[TaskIndex]:
    return [TaskIndex(number) for number in numbers]


def test_nothing_ends_before_the_source() -> None:
    ending = Ending([tasks(1, 2)])

    assert ending.task_ended(TaskIndex(1)) == []
    assert ending.due == []
    assert (ending.started, ending.finished) == (False, False)


def test_stages_end_one_after_another() -> None:
    ending = Ending([tasks(2, 1), tasks(3)])

    assert ending.source_finished() == tasks(1, 2)
    assert ending.due == tasks(1, 2)
    assert ending.task_ended(TaskIndex(2)) == []
    assert ending.due == tasks(1)
    assert ending.task_ended(TaskIndex(1)) == tasks(3)
    assert not ending.finished
    assert ending.task_ended(TaskIndex(3)) == []
    assert ending.finished


def test_all_that_were_told_so_far_can_be_told_again() -> None:
    ending = Ending([tasks(2, 1), tasks(3), tasks(4)])
    assert ending.told == []

    ending.source_finished()
    assert ending.told == tasks(1, 2)
    ending.task_ended(TaskIndex(2))
    ending.task_ended(TaskIndex(1))

    assert ending.told == tasks(1, 2, 3)


def test_without_nodes_that_want_an_end_the_source_is_all() -> None:
    ending = Ending([[], []])

    assert ending.source_finished() == []
    assert ending.finished


def test_repeats_and_words_of_others_change_nothing() -> None:
    ending = Ending([tasks(1), tasks(2)])
    ending.source_finished()

    assert ending.source_finished() == []
    assert ending.task_ended(TaskIndex(2)) == []
    assert ending.task_ended(TaskIndex(9)) == []
    assert ending.task_ended(TaskIndex(1)) == tasks(2)
    assert ending.task_ended(TaskIndex(1)) == []
    assert ending.due == tasks(2)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 3), max_size=5), st.randoms(use_true_random=False))
def test_every_task_ends_once_and_no_stage_before_the_one_above_it(sizes: list[int], rng: Any) -> None:
    numbers = iter(range(100))
    stages = [[TaskIndex(next(numbers)) for _ in range(size)] for size in sizes]
    ending = Ending(stages)
    told = list(ending.source_finished())
    ended: list[TaskIndex] = []

    while len(ended) < len(told):
        task = rng.choice([task for task in told if task not in ended])
        assert task in ending.due
        above = [t for stage in stages for t in stage if t < task and stage is not _stage_of(stages, task)]
        assert set(above) <= set(ended)
        ended.append(task)
        told += ending.task_ended(task)

    assert ending.finished
    assert sorted(ended) == [task for stage in stages for task in stage]


def _stage_of(stages: list[list[TaskIndex]], task: TaskIndex) -> list[TaskIndex]:
    return next(stage for stage in stages if task in stage)
