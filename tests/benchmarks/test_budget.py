"""The budget of identity names steps that the library still has."""

from __future__ import annotations

from benchmarks import budget


def test_the_budget_is_that_of_all_steps() -> None:
    head, *steps, whole = [line.split() for line in budget.table(repeats=1, tries=1).splitlines()]

    assert head == ["list", "range"]
    assert len(steps) == len(list(budget.steps(budget.NUMBERS)))
    assert whole[:3] == ["all", "of", "them"]
    for place in (-4, -2):
        assert float(whole[place]) > max(float(step[place]) for step in steps)
