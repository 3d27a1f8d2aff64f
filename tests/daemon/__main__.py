"""A long life of a daemon: ``python -m tests.daemon --minutes 10 --seed 7``. Exit code 0: all is well."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.daemon.life import World, growths
from tests.daemon.server import server_here


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run a daemon over kills, reconnects, rotations, locks, slow nodes; books balance, nothing grows.",
        epilog="example: python -m tests.daemon --minutes 10 --seed 7",
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="repeats the trouble of another run")
    parser.add_argument("--per-second", type=int, default=2000, help="lines that come in a second")
    parser.add_argument("--kill-every-s", type=float, default=4.0)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="consecution-daemon-") as folder, server_here() as server:
        world = World(
            Path(folder),
            arguments.seed,
            per_second=arguments.per_second,
            kill_every_s=arguments.kill_every_s,
            server=server,
        )
        story = world.live(60 * arguments.minutes)
        story.problems += growths(story.samples)
    print(story)
    return 1 if story.problems else 0


if __name__ == "__main__":
    sys.exit(main())
