"""The budget of identity names steps that the library still has."""

from __future__ import annotations

from benchmarks import budget


def test_the_budget_is_that_of_all_steps() -> None:
    *steps, whole = [line.rsplit(maxsplit=2) for line in budget.table(repeats=1, tries=1).splitlines()]

    assert len(steps) == len(list(budget.steps()))
    assert whole[0] == "all of them"
    assert float(whole[1]) > max(float(cost) for _, cost, _ in steps)
