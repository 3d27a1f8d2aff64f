"""The simulator itself, and the schedules every run of the tests goes through.

``CONSECUTION_SCHEDULES=1000000 CONSECUTION_SEED=7 pytest tests/testing`` runs more of them, or others;
``python -m consecution.testing`` is the same as a command, with progress.
"""

from __future__ import annotations

import os

import pytest

from consecution.protocol.origin import Origin
from consecution.testing import Simulation, Summary, run_schedule, run_schedules
from consecution.testing.outside import Database
from consecution.testing.scene import Parts
from consecution.testing.schedule import DURABLE_PLACES, HAS_ENDED, OUTSIDE_PLACES
from consecution.testing.world import Keeping, Pace, World

SCHEDULES = int(os.environ.get("CONSECUTION_SCHEDULES", "10000"))
SEED = int(os.environ.get("CONSECUTION_SEED", "0"))
PARTS = 10


@pytest.mark.timeout(120 + SCHEDULES // 100)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_promise_is_kept_whatever_dies(part: int) -> None:
    first, last = SEED + SCHEDULES * part // PARTS, SEED + SCHEDULES * (part + 1) // PARTS

    summary = run_schedules(last - first, first)

    assert not summary.failed, "\n".join(
        f"python -m consecution.testing --trace {outcome.seed}: {outcome.problem}" for outcome in summary.failed
    )
    assert (summary.schedules, summary.batches > 0) == (last - first, last > first)


def test_a_frame_that_comes_while_a_durable_task_gives_credits_back_has_its_own_credit() -> None:
    """One of a million schedules had it: the sender, in the same worker, had waited for this very credit."""
    assert run_schedule(305007128).problem is None


def test_the_same_seed_gives_the_same_schedule() -> None:
    for seed in range(SEED, SEED + 30):
        first, second = run_schedule(seed, tracing=True), run_schedule(seed, tracing=True)

        assert first == second
        assert first.events


def test_schedules_are_of_every_kind() -> None:
    simulations = [Simulation(seed) for seed in range(300)]
    schedules = [simulation.schedule for simulation in simulations]
    summary = Summary()

    for simulation in simulations:
        summary.add(simulation.run())

    assert any(not s.robust for s in schedules)
    assert any(s.together for s in schedules)
    assert any(s.fickle for s in schedules)
    assert any(s.unencodable for s in schedules)
    assert any(s.lose for s in schedules)
    assert any(s.stop_at_step for s in schedules)
    assert any(kill.everything for s in schedules for kill in s.kills)
    assert any(kill.place == "origin.committed" for s in schedules for kill in s.kills)
    assert any(s.scene.disks[0].given_up for s in simulations)
    given_up = [(s.scene.world, entry.failed.task) for s in simulations for entry in s.scene.disks[0].given_up]
    assert any(world.node_of[task].stops for world, task in given_up), "no item stopped its run"
    assert any(s.scene.disks[0].head.next_seq > len(s.scene.items[0]) for s in simulations), "no retries"
    assert {len(s.scene.world.sources) for s in simulations} == {1, 2, 3}
    assert {node.pace for s in simulations for node in s.scene.world.nodes} == {*Pace}
    assert summary.deaths > 300
    assert summary.executions > summary.batches > 300


def test_durable_schedules_are_of_every_kind() -> None:
    simulations = [Simulation(seed) for seed in range(0, 300, 2)]
    nodes = [node for simulation in simulations for node in simulation.scene.world.nodes]
    kills = [kill for simulation in simulations for kill in simulation.schedule.kills]

    for simulation in simulations:
        simulation.run()

    oracles = [oracle for s in simulations for oracle in s.scene.durable_oracles.values()]
    disks = [disk for s in simulations for disk in s.scene.durable_disks.values()]
    databases = [outside for s in simulations for outside in s.scene.outside.values() if isinstance(outside, Database)]
    assert {node.keeping for node in nodes} == {None, *Keeping}
    assert {kill.place for kill in kills} == {"", HAS_ENDED, *DURABLE_PLACES, *OUTSIDE_PLACES}
    assert any(kill.power_cut for kill in kills)
    assert any(node.durable and len(node.tasks) > 2 for node in nodes)
    assert any(durable_below_durable(s.scene.world) for s in simulations)
    assert any(oracle.decided_count for oracle in oracles), "no outputs"
    assert any(disk.ended for disk in disks)
    assert any(disk.given_up for disk in disks), "no failed inputs"
    assert any(oracle.ticked_items for s in simulations for oracle in s.scene.durable_oracles.values()), "no ticks"
    assert any(oracle.own_retry_count for oracle in oracles), "no retries of failed inputs"
    assert any(database.rows for database in databases)


def durable_below_durable(world: World) -> bool:
    """Whether a durable node's outputs go on to another one, with or without stateless ones between."""
    below = {node.index: {edge.target for edge in node.edges()} for node in world.nodes}
    for index in reversed(below):
        below[index] |= {far for near in below[index] for far in below[near]}
    return any(node.durable and any(world.nodes[far].durable for far in below[node.index]) for node in world.nodes)


def test_an_error_in_the_code_under_test_is_a_problem_with_its_traceback() -> None:
    class Broken(Origin):
        def room(self, left: float = 0.0) -> int:
            raise ZeroDivisionError("no room")

    outcome = run_schedule(SEED, Parts(origin=Broken))

    assert outcome.problem is not None
    assert "ZeroDivisionError: no room" in outcome.problem


def test_a_summary_counts_and_keeps_what_went_wrong() -> None:
    class Silent(Origin):
        def acked(self, ack: object, now_s: float) -> None:
            pass

    heard: list[int] = []

    summary = run_schedules(20, SEED, Parts(origin=Silent), on_outcome=lambda s, outcome: heard.append(outcome.seed))

    assert heard == list(range(SEED, SEED + 20))
    assert summary.schedules == 20
    assert summary.failed
    assert str(summary).startswith("20 schedules, ")
    assert str(summary).endswith(f"{len(summary.failed)} wrong")
