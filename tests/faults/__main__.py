"""``python -m tests.faults``: kill real processes, seed by seed, and sum it up. `make faults` calls it."""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext

from tests.faults import attack
from tests.faults.attack import Outcome
from tests.faults.schedule import draw
from tests.faults.server import a_server
from tests.faults.works import WORKS

ITEMS = {"travel": 200_000, "ledger": 1_000_000, "mixed": 100_000}
RUNS = {"travel": 20, "ledger": 100, "mixed": 50}


def main() -> int:
    options = _parse()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    works = _works(options)
    print(f"{len(works)} runs from seed {seed}", flush=True)
    outcomes = []
    with a_server(options.server) as make_database:
        for number, work in enumerate(works):
            with make_database() if work != "travel" else nullcontext("") as server:
                items = options.items or ITEMS[work]
                outcomes.append(_run(work, seed + number, items, server, f"{number + 1}/{len(works)}"))
            if outcomes[-1].problems and options.stop:
                break
    print(_table(outcomes))
    bad = [outcome for outcome in outcomes if outcome.problems]
    for outcome in bad:
        print(f"\nFAILED {attack.describe(outcome)}")
    return 1 if bad else 0


def _works(options: argparse.Namespace) -> list[str]:
    """The work of each run: those that were asked for in turn, or as many of each as there are in `RUNS`."""
    chosen = [options.work] if options.work else list(WORKS)
    runs = options.runs or (1 if options.seed is not None else None)
    if runs is not None:
        return [chosen[number % len(chosen)] for number in range(runs)]
    return [work for work in chosen for _ in range(RUNS[work])]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, help="the first seed; alone: this one run")
    parser.add_argument("--runs", type=int, help=f"how many seeds, one after the other (default {_told(RUNS)})")
    parser.add_argument("--items", type=int, help=f"items of the source (default {_told(ITEMS)})")
    parser.add_argument("--work", choices=sorted(WORKS), help="only this kind of work (default: all)")
    parser.add_argument(
        "--server",
        action=argparse.BooleanOptionalAction,
        help="ledger, mixed: write into a PostgreSQL of its own, too (default: where one can be started)",
    )
    parser.add_argument("--stop", action="store_true", help="stop at the first run that fails")
    return parser.parse_args()


def _run(work: str, seed: int, items: int, server: str, number: str) -> Outcome:
    print(f"[{number}] seed {seed}: {draw(work, seed, items, server=server)}", flush=True)
    deadline_s = max(attack.LONG_DEADLINE_S, items * attack.DEADLINE_PER_ITEM_S)
    outcome = attack.run(work, seed, items, server=server, deadline_s=deadline_s)
    verdict = f"FAILED: {'; '.join(outcome.problems)}" if outcome.problems else "ok"
    print(
        f"        {outcome.seconds:.1f} s, {outcome.lives} lives, killed {_told(outcome.kills)}; in the last life "
        f"{outcome.replayed} batches replayed, {outcome.restarts} workers restarted; {verdict}",
        flush=True,
    )
    return outcome


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items())) or "nothing"


def _table(outcomes: list[Outcome]) -> str:
    kills = sum((outcome.kills for outcome in outcomes), Counter[str]())
    rows = [
        ("runs", f"{len(outcomes)}, {sum(bool(outcome.problems) for outcome in outcomes)} failed"),
        ("lives", str(sum(outcome.lives for outcome in outcomes))),
        *((f"killed: {kind}", str(count)) for kind, count in sorted(kills.items())),
        ("batches replayed, last lives", str(sum(outcome.replayed for outcome in outcomes))),
        ("workers restarted, last lives", str(sum(outcome.restarts for outcome in outcomes))),
        ("killed in a run", _span([sum(outcome.kills.values()) for outcome in outcomes])),
        ("longest run", f"{max(outcome.seconds for outcome in outcomes):.1f} s"),
        ("worker killed to replay ordered", _spread([s for outcome in outcomes for s in outcome.recovery_s])),
        ("supervisor killed to all gone", _spread([s for outcome in outcomes for s in outcome.orphans_s])),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(["", *(f"  {name: <{width}}  {value}" for name, value in rows)])


def _span(counts: list[int]) -> str:
    return f"least {min(counts)}, median {statistics.median(counts):.0f}, most {max(counts)}"


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return "not seen"
    return f"median {statistics.median(seconds) * 1000:.0f} ms, most {max(seconds) * 1000:.0f} ms, n={len(seconds)}"


if __name__ == "__main__":
    sys.exit(main())
