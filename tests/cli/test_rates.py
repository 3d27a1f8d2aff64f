"""What two looks at a run say of its nodes."""

from __future__ import annotations

from typing import Any

import pytest

from consecution.cli.rates import rates_between, who_holds_back
from consecution.runtime.outside import Sight

ZERO = {"items_in": 0, "items_out": 0, "failed": 0, "frames": 0, "busy_s": 0.0, "commit_s": 0.0, "waited_s": 0.0}


def task(name: str, **counts: Any) -> dict[str, Any]:
    return {"task": name, "node": name.rpartition(".")[0], "pid": 7, **ZERO, "waiting": 0, **counts}


def sight(seconds: float, *tasks: dict[str, Any], state: str = "running", pending: int = 0) -> Sight:
    counts = {"seconds": seconds, "pending": pending, "pending_below": 0, "tasks": tasks}
    return Sight("state", True, state, {**counts, "sources": [{"source": "producer"}]}, 7)


def test_rates_are_per_second_and_summed_over_the_tasks_of_a_node() -> None:
    before = sight(10.0, task("a.0", items_in=100, items_out=50), task("a.1", items_in=10))
    now = sight(12.0, task("a.0", items_in=300, items_out=60), task("a.1", items_in=30, failed=4))

    (found,) = rates_between(before, now)

    assert (found.node, found.replicas) == ("a", 2)
    assert (found.in_per_s, found.out_per_s, found.failed_per_s) == (110.0, 5.0, 2.0)


def test_a_node_is_as_busy_as_its_busiest_task() -> None:
    before = sight(0.0, task("a.0"), task("a.1"))
    now = sight(2.0, task("a.0", busy_s=0.2), task("a.1", busy_s=1.0, commit_s=0.8))

    (found,) = rates_between(before, now)

    assert (found.busy, found.commit, found.load) == (0.5, 0.4, 0.9)


def test_a_commit_that_began_before_is_not_more_than_all_of_the_time() -> None:
    (found,) = rates_between(sight(0.0, task("a.0")), sight(1.0, task("a.0", commit_s=5.0)))

    assert (found.commit, found.load) == (1.0, 1.0)


def test_queue_and_latency_come_from_the_time_that_frames_have_waited() -> None:
    before = sight(0.0, task("a.0"))
    now = sight(2.0, task("a.0", frames=10, waited_s=6.0, busy_s=1.0))

    (found,) = rates_between(before, now)

    assert (found.queue, found.latency_s) == (3.0, 0.7)


def test_frames_in_an_inbox_wait_too() -> None:
    (found,) = rates_between(sight(0.0, task("a.0")), sight(2.0, task("a.0", frames=10, waited_s=2.0, waiting=5)))

    assert (found.queue, found.latency_s) == (6.0, 1.2)


def test_the_latency_of_a_source_is_the_whole_way_of_its_batches() -> None:
    before = sight(0.0, task("producer.0"))
    (found,) = rates_between(before, sight(1.0, task("producer.0", frames=4, waited_s=2.0, busy_s=0.5)))

    assert (found.is_source, found.queue, found.latency_s) == (True, 0.0, 0.5)


def test_without_frames_there_is_no_latency() -> None:
    assert rates_between(sight(0.0, task("a.0")), sight(1.0, task("a.0")))[0].latency_s is None


def test_of_another_run_in_between_nothing_is_told() -> None:
    assert rates_between(sight(9.0, task("a.0", items_in=5)), sight(1.0, task("a.0"))) == []


SOURCE = task("producer.0")


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (
            sight(1.0, SOURCE, task("a.0", busy_s=0.9, frames=1)),
            "a: its busiest task spends 90% of its time at its own",
        ),
        (
            sight(1.0, SOURCE, task("b.0", commit_s=0.8, frames=1)),
            "b: its busiest task spends 80% of its time at commits",
        ),
        (sight(1.0, SOURCE, task("a.0", busy_s=0.1, frames=1)), "nothing: the source has no more to give just now"),
        (
            sight(1.0, SOURCE, task("a.0", waited_s=9.0, frames=9), pending=9),
            "a: 9 frames wait for it, and it is not busy",
        ),
        (sight(1.0, SOURCE, state="paused"), "the run is paused: `consecution resume state` lets it go on"),
    ],
)
def test_it_says_who_holds_the_flow_back(now: Sight, said: str) -> None:
    before = sight(0.0, SOURCE, task("a.0"), task("b.0"))

    assert who_holds_back(now, rates_between(before, now)).startswith(said)
