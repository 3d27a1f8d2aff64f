"""Who is told what, and when, after a start and after deaths."""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from consecution.protocol.recovery import Order, OrderReplay, Recovery, StartWorker, WireWorkers
from consecution.protocol.values import WorkerIndex

A, B, C = WorkerIndex(0), WorkerIndex(1), WorkerIndex(2)


def started(recovery: Recovery) -> list[Order]:
    """Start all three; returns the orders of the last."""
    recovery.begin()
    recovery.started(A, "a1")
    recovery.started(B, "b1")
    return recovery.started(C, "c1")


def settled() -> Recovery:
    recovery = Recovery([A, B, C])
    started(recovery)
    for task in (A, B, C):
        recovery.switched(task, 1)
    return recovery


def test_all_are_wired_once_the_last_is_there() -> None:
    recovery = Recovery([A, B, C])

    assert recovery.begin() == [StartWorker(A), StartWorker(B), StartWorker(C)]
    assert recovery.started(A, "a1") == []
    assert recovery.started(B, "b1") == []
    assert recovery.started(C, "c1") == [WireWorkers(1, (A, B, C), {A: "a1", B: "b1", C: "c1"})]
    assert not recovery.settled


def test_the_replay_waits_for_the_last_to_switch() -> None:
    recovery = Recovery([A, B, C])
    started(recovery)

    assert recovery.switched(A, 1) == []
    assert recovery.switched(B, 1) == []
    assert not recovery.settled
    assert recovery.switched(C, 1) == [OrderReplay(1)]
    assert recovery.settled


def test_a_replay_is_ordered_once() -> None:
    recovery = settled()

    assert recovery.switched(C, 1) == []


def test_after_a_death_all_are_wired_anew_and_asked_anew() -> None:
    recovery = settled()

    assert recovery.died(B) == [StartWorker(B)]
    assert recovery.started(B, "b2") == [WireWorkers(2, (A, B, C), {A: "a1", B: "b2", C: "c1"})]
    assert recovery.switched(A, 2) == []
    assert recovery.switched(C, 2) == []
    assert recovery.switched(B, 2) == [OrderReplay(2)]


def test_nothing_is_settled_while_one_is_dead() -> None:
    """The supervisor told a dead task to end, and waited for ever for its answer."""
    recovery = settled()

    recovery.died(B)

    assert not recovery.settled


def test_an_answer_to_an_older_wiring_does_not_count() -> None:
    recovery = settled()
    recovery.died(B)
    recovery.started(B, "b2")

    assert recovery.switched(A, 1) == []
    recovery.switched(B, 2)
    recovery.switched(C, 2)

    assert not recovery.settled


def test_what_the_dead_had_answered_does_not_count() -> None:
    recovery = Recovery([A, B, C])
    started(recovery)
    recovery.switched(B, 1)
    recovery.died(B)

    assert recovery.switched(A, 1) == []
    assert recovery.switched(C, 1) == []
    assert recovery.switched(B, 1) == [], "the last words of the dead"
    assert not recovery.settled


def test_nobody_waits_for_the_retired() -> None:
    recovery = Recovery([A, B, C])
    started(recovery)
    recovery.switched(A, 1)
    recovery.switched(B, 1)

    assert recovery.retired(C) == [OrderReplay(1)]
    assert recovery.settled


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 4), st.randoms(use_true_random=False))
def test_any_history_of_deaths_ends_with_all_wired_alike_before_the_last_replay(count: int, rng: Any) -> None:
    workers = [WorkerIndex(n) for n in range(count)]
    recovery = Recovery(workers)
    alive: dict[WorkerIndex, str] = {}
    wired: dict[WorkerIndex, dict[WorkerIndex, str]] = {}
    to_switch: deque[tuple[WorkerIndex, int, dict[WorkerIndex, str]]] = deque()
    to_start: list[WorkerIndex] = []
    births = deaths = 0

    def carry_out(orders: list[Order]) -> None:
        for order in orders:
            if isinstance(order, StartWorker):
                assert order.worker not in alive, "two incarnations at a time"
                to_start.append(order.worker)
            elif isinstance(order, WireWorkers):
                assert set(order.workers) == set(workers)
                to_switch.extend((worker, order.version, order.endpoints) for worker in order.workers)
            else:
                assert all(wired[worker] == alive for worker in workers), "a replay before all have switched"

    carry_out(recovery.begin())
    for _ in range(60):
        act = rng.randrange(3)
        if act == 0 and to_start:
            births += 1
            worker = to_start.pop(rng.randrange(len(to_start)))
            alive[worker] = f"{worker}.{births}"
            carry_out(recovery.started(worker, alive[worker]))
        elif act == 1 and to_switch:
            worker, version, endpoints = to_switch.popleft()
            if worker in alive and endpoints[worker] == alive[worker]:
                wired[worker] = endpoints
                carry_out(recovery.switched(worker, version))
        elif act == 2 and alive and deaths < 6 and rng.random() < 0.3:
            deaths += 1
            worker = rng.choice(sorted(alive))
            del alive[worker]
            wired.pop(worker, None)
            carry_out(recovery.died(worker))
    while to_start or to_switch:
        if to_start:
            births += 1
            worker = to_start.pop()
            alive[worker] = f"{worker}.{births}"
            carry_out(recovery.started(worker, alive[worker]))
        else:
            worker, version, endpoints = to_switch.popleft()
            if endpoints[worker] == alive[worker]:
                wired[worker] = endpoints
                carry_out(recovery.switched(worker, version))

    assert recovery.settled
