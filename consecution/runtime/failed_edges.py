"""The failed edges of a graph as one origin uses them: what goes over them, and by which way."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from consecution.errors import GraphError
from consecution.plan import Plan
from consecution.protocol.dispatch import Credits, Dispatch, RouteOutlet
from consecution.protocol.step import Codec, Judge
from consecution.protocol.values import USER_ERRORS, FailedItem, TaskIndex, unlabelled
from consecution.report import Failure
from consecution.runtime.wiring import make_dispatch, make_outlets


class PlannedFailedEdges:
    """Those of a plan, for the origin of one task. ``stored`` encodes what the journal takes; None without one."""

    def __init__(self, plan: Plan, origin: TaskIndex, codec: Codec, stored: Codec | None = None) -> None:
        self._plan = plan
        self._origin = origin
        self._codec = codec
        self._encode = (stored or codec).encode
        self._leading = {task for node in plan.nodes if node.failed_outlets for task in node.tasks}
        self._dispatches: dict[str, Dispatch] = {}

    def leads_from(self, task: TaskIndex) -> bool:
        return task in self._leading

    def payload_of(self, given_up: list[tuple[FailedItem, int]]) -> Any:
        return self._encode([self._made_of(failed, attempts) for failed, attempts in given_up])

    def _made_of(self, failed: FailedItem, attempts: int) -> Any:
        node = self._plan.task(failed.task).node
        failure = Failure(node, failed.shown, failed.error, failed.traceback, attempts)
        payload = failed.payload
        if isinstance(payload, list):
            return replace(failure, item=unlabelled(payload[0]))
        return failure if payload is None else _Packed(failure, payload)

    def dispatch_of(self, task: TaskIndex) -> Dispatch:
        """The ways of the edge of this task's node; used by the origin itself, not by the task."""
        name = self._plan.task(task).node
        made = self._dispatches.get(name)
        if made is None:
            made = self._dispatches[name] = self._make_dispatch(name)
        return made

    def judge_of(self, task: TaskIndex) -> Judge:
        """The rule of this task's node: of what cannot take the way of its edge it decides, too."""
        return self._plan.node(self._plan.task(task).node).error_policy.judge

    def _make_dispatch(self, name: str) -> Dispatch:
        outlets = make_outlets(self._plan, self._origin, self._plan.node(name).failed_outlets)
        return make_dispatch(self._plan, self._origin, self._codec, outlets=outlets or (RouteOutlet(_Gone(name), ()),))

    @property
    def credits(self) -> list[Credits]:
        return [credits for dispatch in self._dispatches.values() for credits in dispatch.credits]


class _Gone:
    """The graph has changed since something failed on that edge: it fails again, and is kept."""

    ways = 0

    def __init__(self, name: str) -> None:
        self._name = name

    def split(self, items: Sequence[Any]) -> list[list[Any]]:
        raise GraphError(f"{self._name}.failed leads nowhere any more; connect a handler, or drop the item")


class _Packed:
    """A failure whose item is not touched before it has left the journal again."""

    def __init__(self, failure: Failure, payload: bytes) -> None:
        self._failure = failure
        self._payload = payload

    def __reduce__(self) -> Any:
        return _unpack, (self._failure, self._payload)


def _unpack(failure: Failure, payload: bytes) -> Failure:
    """With the item itself; where it cannot be had, with its ``repr``. A class that is not there stops us."""
    try:
        return replace(failure, item=unlabelled(pickle.loads(payload)[0]))
    except (AttributeError, ImportError):
        raise
    except USER_ERRORS:
        return failure
