"""Seeded damages of every kind; `make faults` does all of them."""

from __future__ import annotations

import os
import random
from functools import partial

import pytest

from tests.damage.attack import attack, everything, sample
from tests.damage.subjects import PLAIN, SUBJECTS

SEED = int(os.environ.get("DAMAGE_SEED", random.randrange(1_000_000)))
COUNT = 400


@pytest.mark.parametrize("subject", [subject for subject in SUBJECTS if subject != PLAIN])
def test_damage_is_noticed_or_harmless_and_never_gives_another_answer(subject: str) -> None:
    print(f"DAMAGE_SEED={SEED}")

    tally = attack(subject, partial(sample, count=COUNT, seed=SEED))

    assert tally.of("noticed") > COUNT / 20
    assert tally.bad == 0, tally.examples


def test_the_command_leaves_out_no_byte_and_no_length() -> None:
    damages = list(everything(50))

    assert {line for line in damages if line.startswith("flip")} == {f"flip {place} 255" for place in range(50)}
    assert {line for line in damages if line.startswith("cut")} == {f"cut {length}" for length in range(50)}


def test_a_store_that_compares_nothing_gives_another_answer() -> None:
    """So that there is something to be found by looking."""
    tally = attack(PLAIN, everything)

    assert tally.of("wrong") == 2 * tally.size_bytes
