from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from tests.daemon.life import Sample, World, growths

SEED = int(os.environ.get("DAEMON_SEED", random.randrange(10**6)))


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_the_books_of_a_short_life_balance(tmp_path: Path) -> None:
    story = World(tmp_path, SEED, per_second=2000, kill_every_s=2.0).live(6.0)

    assert story.problems == [], f"DAEMON_SEED={SEED}\n{story}\n{(tmp_path / 'log').read_text()[-3000:]}"
    assert story.lines > 0 < story.rows
    assert story.kills + story.locks > 0


@pytest.mark.parametrize(("name", "by"), [("memory_mib", 1.0), ("handles", 1), ("disk_mib", 1.0)])
def test_what_grows_is_found(name: str, by: float) -> None:
    flat = {"memory_mib": 200.0, "handles": 90, "disk_mib": 3.0}
    steady = [Sample(at, **flat) for at in range(100)]
    growing = [Sample(at, **flat | {name: flat[name] + by * at}) for at in range(100)]

    assert growths(steady) == []
    assert [found.split()[0] for found in growths(growing)] == [name]
