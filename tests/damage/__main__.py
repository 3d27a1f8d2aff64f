"""``python -m tests.damage``: damage small stores in every way there is. `make faults` calls it."""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial

from tests.damage.attack import Tally, attack, everything, sample
from tests.damage.subjects import PLAIN, SUBJECTS

CAME = ("noticed", "harmless", "wrong", "unclear", "died")
TOLD_EVERY = 20_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.damage", description=__doc__)
    parser.add_argument("subjects", nargs="*", choices=[*SUBJECTS, []], help="which stores (default: all)")
    parser.add_argument("--count", type=int, help="only so many damages of each, drawn by --seed")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    damages = everything if options.count is None else partial(sample, count=options.count, seed=options.seed)
    bad = 0
    for name in options.subjects or [subject for subject in SUBJECTS if subject != PLAIN]:
        started_s = time.monotonic()
        tally = attack(name, damages, _tell)
        print(f"{name}, {tally.size_bytes:,} bytes, {time.monotonic() - started_s:.0f} s", flush=True)
        for kind in ("flip", "cut"):
            counts = ", ".join(f"{tally.counts[kind, came]:,} {came}" for came in CAME)
            print(f"  {kind}: {sum(tally.counts[kind, came] for came in CAME):,}: {counts}")
        print("".join(f"    {example}\n" for example in tally.examples), end="", flush=True)
        bad += tally.bad
    return 1 if bad else 0


def _tell(tally: Tally) -> None:
    done = sum(tally.counts.values())
    if done % TOLD_EVERY == 0:
        print(f"  {done:,} done", flush=True)


if __name__ == "__main__":
    sys.exit(main())
