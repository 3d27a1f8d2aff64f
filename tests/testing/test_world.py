"""Random pipelines and random kills: what they promise to the schedules."""

from __future__ import annotations

from random import Random

import pytest

from consecution.protocol.values import Acks, TaskIndex
from consecution.testing import make_schedule
from consecution.testing.model import Expected
from consecution.testing.network import Network
from consecution.testing.world import VALUE_BITS, Kind, make_world, number_of


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
def test_what_is_expected_descends_from_the_source(seed: int) -> None:
    world = make_world(Random(seed), fickle=False, retries=1)
    items = [number << VALUE_BITS | 7 for number in range(5)]

    expected = Expected(world, items, unencodable=True)

    found = [*(item for _, item in expected.written), *(item for _, _, item in expected.given_up)]
    assert {number_of(item) for item in found} <= set(range(5))


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
