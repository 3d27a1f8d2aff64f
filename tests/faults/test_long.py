"""As many seeds as take some minutes; `make faults` draws others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from tests.faults import attack
from tests.faults.server import Databases, a_server

ITEMS = {"travel": 200_000, "ledger": 100_000}
RUNS = [*(("travel", seed) for seed in range(1000, 1020)), *(("ledger", seed) for seed in range(1000, 1020))]


@pytest.fixture(scope="module")
def make_database() -> Iterator[Databases]:
    with a_server(wanted=None) as make:
        yield make


@pytest.mark.faults
@pytest.mark.timeout(2 * attack.LONG_DEADLINE_S)
@pytest.mark.parametrize(("work", "seed"), RUNS)
def test_every_item_is_completely_processed_whatever_dies(work: str, seed: int, make_database: Databases) -> None:
    with make_database() if work == "ledger" else nullcontext("") as server:
        outcome = attack.run(work, seed, ITEMS[work], server=server, deadline_s=attack.LONG_DEADLINE_S)

    assert not outcome.problems, attack.describe(outcome)
