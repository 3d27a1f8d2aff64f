from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from tests.daemon.life import Sample, Story, World, growths
from tests.daemon.server import server_here

SEED = int(os.environ.get("DAEMON_SEED", random.randrange(10**6)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("daemon")


@pytest.fixture(scope="module")
def story(folder: Path) -> Story:
    """A short life. What grows is not looked for in it: it ends before all has warmed up, with half of it killed."""
    if sys.platform != "linux":
        pytest.skip("it looks into /proc")
    with server_here() as server:
        return World(folder, SEED, per_second=2000, kill_every_s=0.6, server=server).live(4.0)


def test_the_books_of_a_short_life_balance(story: Story, folder: Path) -> None:
    assert story.problems == [], f"DAEMON_SEED={SEED}\n{story}\n{(folder / 'log').read_text()[-3000:]}"
    assert story.lines > 0 < story.rows
    assert story.kills + story.locks > 0


def test_the_short_life_has_rotations_and_kills(story: Story) -> None:
    assert story.rotations > 0 < story.kills


def test_the_short_life_has_reconnects(story: Story) -> None:
    if story.no_server:
        pytest.skip(story.no_server)
    assert story.reconnects > 0 < story.restarts


@pytest.mark.parametrize(("name", "by"), [("memory_mib", 1.0), ("handles", 1), ("disk_mib", 1.0)])
def test_what_grows_is_found(name: str, by: float) -> None:
    flat = {"memory_mib": 200.0, "handles": 90, "disk_mib": 3.0}
    steady = [Sample(at, **flat) for at in range(100)]
    growing = [Sample(at, **flat | {name: flat[name] + by * at}) for at in range(100)]

    assert growths(steady) == []
    assert [found.split()[0] for found in growths(growing)] == [name]
