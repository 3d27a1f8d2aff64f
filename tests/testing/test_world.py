"""Random pipelines and random kills: what they promise to the schedules."""

from __future__ import annotations

from random import Random

import pytest

from consecution.protocol.values import Acks, BatchId, TaskIndex
from consecution.testing import make_schedule
from consecution.testing.model import Expected
from consecution.testing.network import Network
from consecution.testing.outside import TORN, Database, File, Log
from consecution.testing.violation import Violation
from consecution.testing.world import (
    VALUE_BITS,
    Grouping,
    Keeping,
    Kind,
    make_durable_world,
    make_world,
    number_of,
    with_sources,
)


@pytest.mark.parametrize("seed", range(50))
def test_every_node_is_reached_and_leads_to_a_sink(seed: int) -> None:
    world = make_world(Random(seed), fickle=False, retries=1)

    reached = {0} | {edge.target for node in world.nodes for edge in node.edges()}
    assert reached == {node.index for node in world.nodes}
    for node in world.nodes:
        targets = [edge.target for edge in node.edges()]
        assert all(target > node.index for target in targets)
        assert bool(targets) != (node.kind is Kind.SINK)
    edges = [edge.index for node in world.nodes for edge in node.edges()]
    assert edges == list(range(world.edge_count))
    assert world.tasks == tuple(range(len(world.tasks)))


@pytest.mark.parametrize("seed", range(50))
def test_a_durable_world_has_durable_nodes_that_a_plan_could_have(seed: int) -> None:
    world = make_durable_world(Random(seed), fickle=False, retries=1)

    durable = [node for node in world.nodes if node.durable]
    assert world.durable_tasks == {task for node in durable for task in node.tasks} != set()
    assert not world.nodes[0].durable
    for node in world.nodes:
        assert node.durable or not node.wants_end
        assert node.keeping is not Keeping.STATE or len(node.tasks) == 1 or node.grouping is Grouping.KEYED
    assert world.drain_stages == [list(node.tasks) for node in durable] == world.end_stages


@pytest.mark.parametrize("seed", range(50))
def test_what_is_expected_descends_from_the_source(seed: int) -> None:
    world = with_sources(make_world(Random(seed), fickle=False, retries=1), Random(seed))
    items = {task: [10 * task + number << VALUE_BITS | 7 for number in range(5)] for task in world.sources}

    expected = Expected(world, items, unencodable=True)

    found = [*(item for _, item in expected.written), *(item for _, _, item in expected.given_up)]
    assert {number_of(item) for item in found} <= {10 * task + number for task in world.sources for number in range(5)}


@pytest.mark.parametrize("seed", range(50))
def test_further_sources_come_first_and_the_graph_keeps_its_shape(seed: int) -> None:
    alone = make_durable_world(Random(seed), fickle=False, retries=1)

    world = with_sources(alone, Random(seed))

    more = len(world.sources) - 1
    assert world.sources == tuple(range(1 + more))
    assert [node.index for node in world.nodes] == list(range(len(world.nodes)))
    assert world.tasks == tuple(range(len(world.tasks)))
    edges = [edge for node in world.nodes for edge in node.edges()]
    assert sorted(edge.index for edge in edges) == list(range(world.edge_count))
    assert all(edge.target > node.index for node in world.nodes for edge in node.edges())
    assert not any(world.nodes[edge.target].reads for edge in edges)
    for before, after in zip(alone.nodes[1:], world.nodes[1 + more :], strict=True):
        assert (before.kind, before.keeping, before.wants_end) == (after.kind, after.keeping, after.wants_end)
        assert [edge.target + more for edge in before.edges()] == [edge.target for edge in after.edges()]


def acks(number: int) -> Acks:
    return Acks(TaskIndex(number), [])


def quiet_network(seed: int) -> Network:
    rng = Random(seed)
    schedule = make_schedule(seed, rng, 3, robust=True, fickle=False, retries=0)
    network = Network(schedule, rng)
    network.calm = True
    return network


@pytest.mark.parametrize("seed", range(20))
def test_a_calm_network_keeps_the_order_of_each_connection(seed: int) -> None:
    network = quiet_network(seed)
    network.bind("a")
    for number in range(10):
        network.send("b", "a", acks(number))
        network.send("c", "a", acks(100 + number))

    network.release()
    found = []
    while (message := network.take("a")) is not None:
        assert isinstance(message, Acks)
        found.append(message.sender)

    assert [n for n in found if n < 100] == list(range(10))
    assert [n for n in found if n >= 100] == list(range(100, 110))


def test_the_dead_get_nothing_and_of_what_they_sent_a_first_part_arrives() -> None:
    lengths = set()
    for seed in range(40):
        network = quiet_network(seed)
        network.bind("a")
        network.bind("b")
        for number in range(3):
            network.send("b", "a", acks(number))

        network.died("b")
        network.send("a", "b", acks(9))
        network.release()

        found = []
        while (message := network.take("a")) is not None:
            assert isinstance(message, Acks)
            found.append(message.sender)
        assert found == list(range(len(found)))
        lengths.add(len(found))

    assert lengths == {0, 1, 2, 3}


# -- what sinks write to -------------------------------------------------------------------------


def test_a_file_keeps_what_is_safe_and_some_of_the_rest() -> None:
    kept = set()
    for seed in range(60):
        file = File()
        file.content += [1, 2]
        file.flush()
        file.content += [3, 4]

        file.died(Random(seed), power_cut=True)

        kept.add(tuple(file.content))
        file.cut_to(2)
        file.check([1, 2])

    assert kept == {(1, 2), (1, 2, TORN), (1, 2, 3), (1, 2, 3, TORN), (1, 2, 3, 4)}


def test_a_file_that_is_shorter_than_what_was_committed_is_noticed() -> None:
    with pytest.raises(Violation, match="holds 0 items, 1 were committed"):
        File().cut_to(1)


def test_a_database_forgets_the_open_transaction_of_the_dead() -> None:
    database = Database()
    database.begin()
    database.write([1])
    database.commit(1, ("redo",))
    database.begin()
    database.write([2])

    database.died(Random(0), power_cut=False)

    database.check([1])
    assert database.mark == (1, ("redo",))


def test_a_log_takes_a_repeat_only_of_the_same_execution() -> None:
    log = Log()
    log.write(BatchId("source", 3, 1, (0,)), [1, 2])
    log.write(BatchId("source", 3, 1, (0,)), [2])
    log.check([1, 2])

    with pytest.raises(Violation, match="after generation 1"):
        log.write(BatchId("source", 3, 2, (0,)), [1, 2])
    with pytest.raises(Violation, match="never got them"):
        log.check([9])
