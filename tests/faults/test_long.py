"""As many seeds as take some minutes; `make faults` draws others."""

from __future__ import annotations

import pytest

from tests.faults import attack

ITEMS = {"travel": 200_000, "ledger": 100_000}
RUNS = [*(("travel", seed) for seed in range(1000, 1020)), *(("ledger", seed) for seed in range(1000, 1020))]


@pytest.mark.faults
@pytest.mark.timeout(2 * attack.LONG_DEADLINE_S)
@pytest.mark.parametrize(("work", "seed"), RUNS)
def test_every_item_is_completely_processed_whatever_dies(work: str, seed: int) -> None:
    outcome = attack.run(work, seed, ITEMS[work], deadline_s=attack.LONG_DEADLINE_S)

    assert not outcome.problems, attack.describe(outcome)
