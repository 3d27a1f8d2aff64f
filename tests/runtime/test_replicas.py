from __future__ import annotations

import threading
from typing import Any

import pytest

from consecution import GlobalState, Node, Pipeline
from consecution.errors import ShippingError
from consecution.options import Options
from consecution.plan import make_plan
from consecution.protocol.values import TaskIndex
from consecution.runtime.replicas import make_replicas


class Keeps(Node):
    def __init__(self, name: str, kept: Any = None) -> None:
        super().__init__(name)
        self.kept = kept

    def process(self, item: Any) -> None:
        self.push(item)


def replicas_of(*nodes: Any, global_state: Any = None) -> dict[TaskIndex, Any]:
    top = nodes[0]
    for node in nodes[1:]:
        top = top | node
    pipeline = Pipeline(top, global_state=global_state)
    return make_replicas(make_plan(pipeline.top_node, Options.of(), has_iterable=True), pipeline)  # type: ignore[return-value]


def test_the_first_replica_is_the_users_own_object_and_the_others_are_copies() -> None:
    kept = Keeps("a", [1])

    made = replicas_of(kept * 3, Keeps("b"))

    assert sorted(made) == [1, 2, 3, 4]
    assert made[TaskIndex(1)] is kept
    assert [made[TaskIndex(task)].kept for task in (1, 2, 3)] == [[1]] * 3
    assert len({id(made[TaskIndex(task)].kept) for task in (1, 2, 3)}) == 3


def test_every_replica_shares_the_global_state_and_the_pipeline() -> None:
    state = GlobalState(total=0)

    made = replicas_of(Keeps("a") * 2, global_state=state)

    assert all(node.global_state is state for node in made.values())
    assert len({id(node.pipeline) for node in made.values()}) == 1


def test_a_copy_does_not_drag_the_graph_along() -> None:
    made = replicas_of(Keeps("a") * 2, Keeps("b", threading.Lock()))

    assert made[TaskIndex(2)].name == "a"
    assert not made[TaskIndex(2)]._downstream_nodes


def test_what_cannot_be_copied_is_named_with_the_remedy() -> None:
    with pytest.raises(ShippingError, match=r"a.* \* 2: .*its attribute 'kept' cannot be copied .*begin\(\)") as caught:
        replicas_of(Keeps("a", threading.Lock()) * 2)

    assert (caught.value.node, caught.value.attribute) == ("a", "kept")


def test_one_replica_need_not_be_copied() -> None:
    assert len(replicas_of(Keeps("a", threading.Lock()))) == 1


def test_a_node_that_cannot_be_copied_as_a_whole_is_named() -> None:
    class Refuses(Keeps):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("there is only one of me")

    with pytest.raises(ShippingError, match=r"it cannot be copied \(RuntimeError: there is only one") as caught:
        replicas_of(Refuses("a") * 2)

    assert caught.value.attribute == ""
