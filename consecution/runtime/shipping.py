"""Sends nodes to worker processes: what each worker gets, and what cannot be sent."""

from __future__ import annotations

import dataclasses
import enum
import functools
import io
import os
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dill

from consecution.error_policy import ErrorPolicy
from consecution.errors import ReadOnlyError, ShippingError, text_of
from consecution.nodes import Node
from consecution.plan import EdgePlan, NodePlan, Outlet, Plan
from consecution.protocol.values import TaskIndex
from consecution.runtime.main_module import NAME_IN_WORKERS, know_script_by_all_names, stand_in, stand_in_for_main
from consecution.source import Source


@dataclass(frozen=True, slots=True)
class Shipment:
    """What one worker gets: its part of the plan, its nodes by name, the sources it reads, the global state.

    ``main_module`` is the module that stands in for the main one, where one does.
    """

    plan: Plan
    nodes: dict[str, Node]
    sources: dict[TaskIndex, Source]
    global_state: Any
    main_classes: dict[str, type] = dataclasses.field(default_factory=dict)
    main_module: str | None = None


class Parcel:
    """A shipment in a file without a name. Every incarnation of a task reads it through a descriptor of its own.

    So starting a worker never waits until that worker has read it, which it does after importing the main module.
    """

    def __init__(self, blob: bytes) -> None:
        self._file = tempfile.TemporaryFile(prefix="consecution-")
        self._file.write(blob)
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()


def read_parcel(parcel: Any) -> bytes:
    """The shipment in a parcel, which is closed; whoever shares the file does not notice."""
    fd = parcel.fileno()
    size_bytes = os.fstat(fd).st_size
    parts: list[bytes] = []
    while size_bytes > (read := sum(map(len, parts))):
        parts.append(os.pread(fd, size_bytes - read, read))
    parcel.close()
    return b"".join(parts)


class FrozenGlobalState:
    """A worker's copy of the global state: it can be read, not written."""

    def __init__(self, state: Any) -> None:
        object.__setattr__(self, "_state", state)

    def __getattr__(self, name: str) -> Any:
        if name == "_state":
            raise AttributeError(name)
        return getattr(self._state, name)

    def __getitem__(self, name: Any) -> Any:
        return self._state[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise _read_only(name)

    def __delattr__(self, name: str) -> None:
        raise _read_only(name)

    def __setitem__(self, name: Any, value: Any) -> None:
        raise _read_only(name)

    def __delitem__(self, name: Any) -> None:
        raise _read_only(name)

    def __repr__(self) -> str:
        return f"{self._state!r} (read only in a worker)"


def _read_only(name: Any) -> ReadOnlyError:
    return ReadOnlyError(
        f"global_state {name!r}: in process mode every worker has a copy of its own that is read only, because "
        "no other worker would see the change; push the value to a node that gathers it, or run with "
        "mode='inline' or 'thread'"
    )


class WorkerPipeline:
    """Stands for the pipeline in a worker: nodes find the global state here, and nothing else."""

    def __init__(self, global_state: Any) -> None:
        self.global_state = global_state

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"pipeline.{name}: in process mode a node runs in a worker, which has no pipeline, only "
            "self.global_state; do this in the process that called run(), or in mode='thread'"
        )


def ship(plan: Plan, tasks: Sequence[TaskIndex], global_state: Any, sources: dict[TaskIndex, Source]) -> bytes:
    """The shipment of the worker that hosts these tasks, as bytes.

    ShippingError names the node and the attribute that cannot be sent.
    """
    names = {plan.task(task).node for task in tasks}
    planned = [node for node in plan.nodes if node.name in names]
    nodes = _copies_of(planned)
    shipment = Shipment(_plan_for(plan, planned), nodes, sources, global_state, _main_classes(), stand_in())
    try:
        return _dumps_with_classes(shipment)
    except Exception as error:
        culprit = _find_culprit(plan, planned, nodes)
        raise _explain(culprit, _copies_of([culprit]).get(culprit.name), global_state, error) from error


def _copies_of(planned: Sequence[NodePlan]) -> dict[str, Node]:
    return {n.name: n.node._detached_copy() for n in planned if not n.is_source and n.node is not None}


def _find_culprit(plan: Plan, planned: Sequence[NodePlan], nodes: dict[str, Node]) -> NodePlan:
    """Whose failed edge cannot be sent, for that goes to every worker; else the first of these that cannot."""
    for node in plan.nodes:
        if node.failed_outlets and not can_ship((node.error_policy, node.failed_outlets)):
            return node
    return next((n for n in planned if not _can_ship_alone(plan, n, nodes.get(n.name))), planned[0])


def _can_ship_alone(plan: Plan, planned: NodePlan, node: Node | None) -> bool:
    return can_ship((_plan_for(plan, [planned]), node))


def _dumps_with_classes(shipment: Shipment) -> bytes:
    try:
        return _dumps(shipment)
    except Exception:
        if not shipment.main_classes:
            raise
        classes = {name: value for name, value in shipment.main_classes.items() if can_ship(value)}
        return _dumps(dataclasses.replace(shipment, main_classes=classes))


def _main_classes() -> dict[str, type]:
    """What items may be made of: where the main module itself cannot be imported, its classes travel with the node.

    In one shipment, so that the node and the items that come later speak of the same class.
    """
    if not main_travels():
        return {}
    return {
        name: value
        for name, value in list(vars(sys.modules["__main__"]).items())
        if issubclass(type(value), type) and value.__module__ == "__main__" and value.__qualname__ == name
    }


def unship(blob: bytes) -> Shipment:
    """The shipment in these bytes, its nodes given a pipeline and a read-only global state.

    Only in a worker: its main module takes up the classes that were sent along.
    """
    shipment: Shipment = _loads(blob)
    vars(sys.modules["__main__"]).update(shipment.main_classes)
    if shipment.main_module is None:
        know_script_by_all_names()
    else:
        stand_in_for_main(shipment.main_module)
    state = FrozenGlobalState(shipment.global_state)
    for node in shipment.nodes.values():
        node.pipeline = WorkerPipeline(state)  # type: ignore[assignment]
        node.global_state = state
    return shipment


def main_travels() -> bool:
    """Whether the main module is no file that workers could import: a notebook, a prompt, ``-c``, standard input."""
    main = sys.modules.get("__main__")
    if getattr(main, "__spec__", None) is not None:
        return False
    file = getattr(main, "__file__", None)
    return file is None or not os.path.exists(file)


def can_ship(value: Any) -> bool:
    """Whether a value can be sent to a worker at all."""
    try:
        _dumps(value)
    except Exception:
        return False
    return True


def _dumps(value: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # dill warns where what it writes could not be read again.
        warnings.simplefilter("error", dill.PicklingWarning)
        if main_travels():
            _MainPickler(file, protocol=5, byref=False, recurse=True).dump(value)
        else:
            _ScriptPickler(file, protocol=5, byref=False, recurse=False).dump(value)
    return file.getvalue()


class _Unpickler(dill.Unpickler):  # type: ignore[misc]
    """dill's, but for what is said of a script that does not define something when it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except AttributeError as error:
            if module not in ("__main__", NAME_IN_WORKERS):
                raise
            raise ShippingError(
                f"a worker imports your script, and finds no {name!r} in it: define it at the top, above "
                "`if __name__ == '__main__':`, or in a module of its own"
            ) from error


def _loads(blob: bytes) -> Any:
    unpickler = _Unpickler(io.BytesIO(blob))
    # What dill takes for the main module is the fork server's; the script was imported after that.
    unpickler._main = sys.modules["__main__"]
    return unpickler.load()


NOT_COPIED = (
    io.IOBase,
    type(threading.Lock()),
    type(threading.RLock()),
)
"""A copy of these in another process is another thing; dill would make one without a word."""


class _Pickler(dill.Pickler):  # type: ignore[misc]
    """dill's, but for what must not be copied."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> Any:
        if isinstance(obj, NOT_COPIED):
            raise TypeError(f"cannot pickle {type(obj).__name__!r} object")
        return super().save(obj, save_persistent_id)


class _MainPickler(_Pickler):
    """Sends what a notebook or a prompt has defined, with the globals it uses."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> Any:
        if isinstance(obj, enum.EnumMeta) and obj.__module__ == "__main__" and id(obj) not in self.memo:
            return self._save_enum(obj)
        return super().save(obj, save_persistent_id)

    def _save_enum(self, obj: Any) -> None:
        """dill would name it: an enumeration refers to itself by its members."""
        own = set(obj.__members__) | set(vars(enum.Enum)) | set(vars(enum.Flag))
        extra = {name: value for name, value in vars(obj).items() if name not in own and not name.startswith("_")}
        members = {name: member.value for name, member in obj.__members__.items()}
        made_of = (type(obj), obj.__name__, obj.__bases__, members)
        self.save_reduce(_make_enum, made_of, extra, state_setter=_set_all, obj=obj)


def _make_enum(kind: Any, name: str, bases: tuple[type, ...], members: dict[str, Any]) -> type:
    space = kind.__prepare__(name, bases)
    space["__module__"] = "__main__"
    for member, value in members.items():
        space[member] = value
    made: type = kind(name, bases, space)
    return made


def _set_all(made: type, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        setattr(made, name, value)


NAMED = (type, types.FunctionType, functools._lru_cache_wrapper)


class _ScriptPickler(_Pickler):
    """Names what stands at the top of a script: every worker imports it, and there has one of each."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> Any:
        if isinstance(obj, NAMED) and id(obj) not in self.memo and _is_at_top_of_main(obj):
            return self.save_global(obj, name=obj.__qualname__)
        return super().save(obj, save_persistent_id)


def _is_at_top_of_main(value: Any) -> bool:
    if value.__module__ != "__main__" or "<" in value.__qualname__:
        return False
    found: Any = sys.modules["__main__"]
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value


def _plan_for(plan: Plan, hosted: Sequence[NodePlan]) -> Plan:
    """The plan without the other nodes and their functions: a worker gets only its own, and all failed edges.

    Whoever answers for a failed item sends it there, and what cannot be sent is treated as the failed edge's node says.
    """
    names = {planned.name for planned in hosted}
    nodes = tuple(dataclasses.replace(n, node=None) if n.name in names else _for_others(n) for n in plan.nodes)
    own = {edge.index for planned in hosted for outlet in planned.outlets for edge in _edges_of(outlet)}
    edges = tuple(e if e.failed or e.index in own else dataclasses.replace(e, key_function=None) for e in plan.edges)
    return dataclasses.replace(plan, nodes=nodes, edges=edges)


def _for_others(node: NodePlan) -> NodePlan:
    policy = node.error_policy if node.failed_outlets else ErrorPolicy()
    return dataclasses.replace(node, node=None, outlets=(), key_function=None, error_policy=policy)


def _edges_of(outlet: Outlet) -> list[EdgePlan]:
    if isinstance(outlet, EdgePlan):
        return [outlet]
    return [edge for branch in outlet.outlets for inner in branch for edge in _edges_of(inner)]


def _explain(planned: NodePlan, node: Node | None, global_state: Any, error: Exception) -> ShippingError:
    reason = text_of(error)
    if node is not None:
        for name, value in vars(node).items():
            if not can_ship(value):
                return ShippingError(
                    f"N({planned.name}): its attribute {name!r} ({type(value).__name__}) cannot be sent to a worker "
                    f"process ({reason}); make it in begin(), which runs in the worker, or run with mode='thread'",
                    node=planned.name,
                    attribute=name,
                )
    if not can_ship(global_state):
        names = [name for name, value in _vars_of(global_state).items() if not can_ship(value)]
        which = f" {names[0]!r}" if names else ""
        return ShippingError(
            f"global_state{which} cannot be sent to a worker process ({reason}); leave it out, or run with "
            "mode='thread'",
            node=planned.name,
            attribute=names[0] if names else "",
        )
    return ShippingError(
        f"N({planned.name}): it, or a function on its way out (router, key), cannot be sent to a worker process "
        f"({reason}); define it at the top of a module, or run with mode='thread'",
        node=planned.name,
    )


def _vars_of(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(value, "__dict__", {})
    return found
