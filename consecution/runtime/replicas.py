"""Makes the node objects that tasks run: the user's own for the first replica, copies for the others."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from consecution.errors import ShippingError, text_of
from consecution.nodes import Node
from consecution.plan import Plan
from consecution.protocol.values import TaskIndex


def make_replicas(plan: Plan, pipeline: Any) -> dict[TaskIndex, Node]:
    """Task → node, for all tasks but the source, where they share memory (inline, threads).

    The first replica is the object the user made, so that what it gathers can be looked at afterwards.
    ShippingError names the node, and the attribute, that cannot be copied.
    """
    made: dict[TaskIndex, Node] = {}
    for planned in plan.nodes:
        if planned.is_source:
            continue
        assert planned.node is not None
        for replica, task in enumerate(planned.tasks):
            node = planned.node if replica == 0 else _copy_node(planned.node)
            node._break_off()  # a run that was aborted may have left something gathered
            node.pipeline = pipeline
            node.global_state = pipeline.global_state
            made[TaskIndex(task)] = node
    return made


def share_nodes(nodes: dict[str, Node], plan: Plan, tasks: Sequence[TaskIndex]) -> dict[TaskIndex, Node]:
    """A node for each of a worker's tasks; where several are replicas of one node, the first has the one that came."""
    made: dict[TaskIndex, Node] = {}
    taken: set[str] = set()
    for task in tasks:
        name = plan.task(task).node
        if name not in nodes:
            continue  # the source's
        made[task] = _copy_with_pipeline(nodes[name]) if name in taken else nodes[name]
        taken.add(name)
    return made


def _copy_with_pipeline(node: Node) -> Node:
    twin = _copy_node(node)
    twin.pipeline, twin.global_state = node.pipeline, node.global_state
    return twin


def _copy_node(node: Node) -> Node:
    try:
        return copy.deepcopy(node._detached_copy())
    except Exception as error:
        attribute = _culprit(node)
        what = f"its attribute {attribute!r} cannot" if attribute else "it cannot"
        raise ShippingError(
            f"{node} * {node.replicas}: every replica needs a copy of the node, and {what} be copied "
            f"({text_of(error)}); open such things in begin(), which runs once in each replica",
            node=node.name,
            attribute=attribute,
        ) from error


def _culprit(node: Node) -> str:
    for name, value in vars(node._detached_copy()).items():
        try:
            copy.deepcopy(value)
        except Exception:
            return name
    return ""
