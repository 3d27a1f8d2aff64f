"""As many seeds as take some minutes; `make faults` draws others."""

from __future__ import annotations

import pytest

from tests.faults import attack

ITEMS = 200_000


@pytest.mark.faults
@pytest.mark.timeout(2 * attack.DEADLINE_S)
@pytest.mark.parametrize("seed", range(1000, 1040))
def test_every_item_is_completely_processed_whatever_dies(seed: int) -> None:
    outcome = attack.run(seed, ITEMS)

    assert not outcome.problems, attack.describe(outcome)
