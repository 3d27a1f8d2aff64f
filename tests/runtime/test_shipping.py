"""Sending nodes: what travels by name, what by value, what not at all.

Main modules of all kinds are made up here; `tests/engines/test_process.py` starts real programs.
"""

from __future__ import annotations

import functools
import os
import pickle
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from consecution import GlobalState, Node, Pipeline, Producer, Route
from consecution.errors import ReadOnlyError, ShippingError
from consecution.plan import Plan
from consecution.protocol.values import TaskIndex
from consecution.runtime import shipping
from consecution.runtime.shipping import Parcel, can_ship, main_travels, read_parcel, ship, unship

MAIN = """
import enum, functools
from dataclasses import dataclass

@dataclass
class Item:
    n: int

class Color(enum.Enum):
    RED = 1
    CRIMSON = 1

    def shout(self):
        return self.name + "!"

class Outer:
    class Inner:
        pass

def helper(n):
    return n + 1

@functools.cache
def cached(n):
    return helper(n)

def wrap(function):
    @functools.wraps(function)
    def wrapper(n):
        return function(n) * 10
    return wrapper

@wrap
def wrapped(n):
    return helper(n)

anonymous = lambda n: helper(n) * 2

def make():
    offset = 5
    def inner(n):
        return helper(n) + offset
    return inner
"""

Main = Callable[..., types.ModuleType]


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Main:
    """Put a main module of this text in the place of pytest's; as a script, it lies in a file."""

    def make(text: str = MAIN, *, script: bool) -> types.ModuleType:
        module = types.ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", module)
        if script:
            path = tmp_path / "script.py"
            path.write_text(text)
            module.__file__ = str(path)
        exec(compile(text, "main", "exec"), vars(module))
        return module

    return make


def arrive(value: Any, into: str | None = None) -> Any:
    """What becomes of a value in a worker, whose main module is another one: the script, or nothing yet."""
    blob = shipping._dumps(value)
    sent_from = sys.modules["__main__"]
    sys.modules["__main__"] = there = types.ModuleType("__main__")
    try:
        if into is not None:
            exec(into, vars(there))
        return shipping._loads(blob), there
    finally:
        sys.modules["__main__"] = sent_from


def plan_of(node: Any, **options: Any) -> tuple[Pipeline, Plan]:
    pipeline = Pipeline(Producer(range(3)) | node)
    return pipeline, pipeline.plan(mode="process", **options)


def sent(node: Any, global_state: Any = None) -> bytes:
    pipeline, plan = plan_of(node)
    return ship(plan, [TaskIndex(1)], pipeline.global_state if global_state is None else global_state, {})


# -- scripts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Item", "Color", "helper", "cached", "wrapped", "Outer"])
def test_what_stands_at_the_top_of_a_script_is_named(main: Main, name: str) -> None:
    module = main(script=True)

    found, there = arrive(getattr(module, name), into=MAIN)

    assert found is getattr(there, name)


def test_a_class_in_a_class_is_named_too(main: Main) -> None:
    found, there = arrive(main(script=True).Outer.Inner, into=MAIN)

    assert found is there.Outer.Inner


@pytest.mark.parametrize(("name", "expected"), [("anonymous", 8), ("made", 9)])
def test_other_functions_of_a_script_travel_and_find_what_they_call(main: Main, name: str, expected: int) -> None:
    module = main(script=True)
    module.made = module.make()  # type: ignore[attr-defined]

    found, there = arrive(getattr(module, name), into=MAIN)

    assert found(3) == expected
    assert found.__globals__ is vars(there)


def test_objects_of_a_script_are_of_the_worker_s_classes(main: Main) -> None:
    module = main(script=True)

    (item, color, cached), there = arrive([module.Item(3), module.Color.RED, functools.partial(module.cached, 3)], MAIN)

    assert type(item) is there.Item
    assert color is there.Color.RED
    assert cached() == 4


def test_what_hides_behind_another_name_travels_by_value(main: Main) -> None:
    module = main(script=True)
    hidden = module.helper
    module.helper = "something else"  # type: ignore[attr-defined]

    found, _ = arrive(hidden, into=MAIN)

    assert found(3) == 4


# -- notebooks -----------------------------------------------------------------------------------


def shipment_in_worker(node: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, types.ModuleType]:
    blob = sent(node)
    there = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", there)
    return unship(blob), there


def test_classes_of_a_notebook_travel_with_every_node_so_that_items_can_be_read(
    main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = main(script=False)
    items = pickle.dumps([module.Item(3), module.Color.RED])

    _, there = shipment_in_worker(lambda item: item, monkeypatch)

    item, color = pickle.loads(items)
    assert (type(item), item.n) == (there.Item, 3)
    assert color is there.Color.RED is there.Color.CRIMSON
    assert color.shout() == "RED!"
    assert pickle.loads(pickle.dumps(item)) == item


def test_a_node_of_a_notebook_and_its_items_speak_of_the_same_class(
    main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MAIN + "\nfrom consecution import Node\n"
    text += "class Check(Node):\n    def process(self, item):\n        return type(item) is Item\n"
    module = main(text, script=False)
    items = pickle.dumps([module.Item(3)])

    shipment, _ = shipment_in_worker(module.Check("check"), monkeypatch)

    assert shipment.nodes["check"].process(pickle.loads(items)[0])


def test_a_class_that_cannot_travel_does_not_hold_up_the_others(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    text = MAIN + "\nimport threading\nclass Locked:\n    lock = threading.Lock()\n"
    main(text, script=False)

    _, there = shipment_in_worker(lambda item: item, monkeypatch)

    assert hasattr(there, "Item")
    assert not hasattr(there, "Locked")


def test_functions_of_a_notebook_travel_with_what_they_call(main: Main) -> None:
    module = main(script=False)
    module.made = module.make()  # type: ignore[attr-defined]

    (anonymous, made, cached), _ = arrive([module.anonymous, module.made, module.cached])

    assert (anonymous(3), made(3), cached(3)) == (8, 9, 4)


def test_what_could_not_be_read_again_is_refused_at_once(main: Main) -> None:
    text = "class Point:\n    pass\nPoint.ORIGIN = Point()\n"

    assert not can_ship(main(text, script=False).Point)


@pytest.mark.parametrize(
    ("attributes", "travels"),
    [
        ({}, True),
        ({"__file__": "<stdin>"}, True),
        ({"__file__": __file__}, False),
        ({"__spec__": pytest.__spec__}, False),
    ],
    ids=["notebook", "standard input", "script", "module"],
)
def test_a_main_module_travels_where_no_worker_can_import_it(
    attributes: dict[str, Any], travels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("__main__")
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, "__main__", module)

    assert main_travels() is travels


# -- what cannot be sent -------------------------------------------------------------------------


@pytest.fixture
def unshippable() -> Iterator[dict[str, Any]]:
    with open(os.devnull) as text, open(os.devnull, "rb") as binary, socket.socket() as connection:
        yield {
            "text file": text,
            "binary file": binary,
            "socket": connection,
            "lock": threading.Lock(),
            "reentrant lock": threading.RLock(),
            "event": threading.Event(),
            "generator": (i for i in range(3)),
            "thread": threading.Thread(),
            "deep inside": {"a": [1, threading.Lock()]},
        }


KINDS = ["text file", "binary file", "socket", "lock", "reentrant lock", "event", "generator", "thread", "deep inside"]


class Holder(Node):
    """Holds something."""

    def __init__(self, name: str, held: Any) -> None:
        super().__init__(name)
        self.fine = 1
        self.held = held


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_names_node_and_attribute_and_the_remedy(kind: str, unshippable: dict[str, Any]) -> None:
    held = unshippable[kind]

    with pytest.raises(ShippingError) as caught:
        sent(Holder("holder", held))

    assert (caught.value.node, caught.value.attribute) == ("holder", "held")
    assert f"N(holder): its attribute 'held' ({type(held).__name__})" in str(caught.value)
    assert "make it in begin()" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_names_what_is_wrong_in_the_global_state(kind: str, unshippable: dict[str, Any]) -> None:
    state = GlobalState(fine=1, bad=unshippable[kind])

    with pytest.raises(ShippingError, match="global_state 'bad' cannot be sent") as caught:
        sent(Node("node"), state)

    assert caught.value.attribute == "bad"


def test_a_router_that_cannot_be_sent_is_spoken_of() -> None:
    lock = threading.Lock()
    node = Node("top")
    pipeline = Pipeline(Producer(range(3)) | node | Route([Node("a"), Node("b")], by=lambda item: lock and 0))
    plan = pipeline.plan(mode="process")

    with pytest.raises(ShippingError, match=r"N\(top\): it, or a function on its way out \(router, key\)"):
        ship(plan, [TaskIndex(1)], pipeline.global_state, {})


@pytest.mark.parametrize(("on", "found"), [("rule", "its attribute 'error_policy'"), ("edge", "it, or a function on")])
def test_a_failed_edge_that_cannot_be_sent_is_spoken_of_by_its_nodes_name(on: str, found: str) -> None:
    lock = threading.Lock()
    node = Node("top").on_error((lambda error, item: lock and "park") if on == "rule" else "park")
    node.failed | [Node("a"), Node("b"), (lambda failure: lock and 0) if on == "edge" else len]
    pipeline = Pipeline(Producer(range(3)) | node)

    with pytest.raises(ShippingError, match=rf"N\(top\): {found}"):
        ship(pipeline.plan(mode="process"), [TaskIndex(0)], pipeline.global_state, {})


# -- what a worker gets --------------------------------------------------------------------------


def test_a_worker_gets_only_its_own_node_and_functions() -> None:
    lock = threading.Lock()
    pipeline = Pipeline(Producer(range(3)) | Node("a") | Holder("b", lock))
    plan = pipeline.plan(mode="process")

    shipment = unship(ship(plan, [TaskIndex(1)], pipeline.global_state, {}))

    assert [(name, node.name) for name, node in shipment.nodes.items()] == [("a", "a")]
    assert [planned.node for planned in shipment.plan.nodes] == [None] * 3
    assert shipment.plan.signature == plan.signature


def test_the_global_state_can_be_read_and_not_written() -> None:
    shipment = unship(sent(Node("node"), GlobalState(rate=7)))
    node = shipment.nodes["node"]

    assert (node.global_state.rate, node.global_state["rate"]) == (7, 7)
    for write in (
        lambda: setattr(node.global_state, "rate", 8),
        lambda: node.global_state.__setitem__("rate", 8),
        lambda: delattr(node.global_state, "rate"),
        lambda: node.global_state.__delitem__("rate"),
    ):
        with pytest.raises(ReadOnlyError, match=r"global_state 'rate'.*read only.*push the value to a node"):
            write()
    assert node.global_state.rate == 7


def test_in_a_worker_there_is_no_pipeline_but_its_global_state() -> None:
    node = unship(sent(Node("node"), GlobalState(rate=7))).nodes["node"]

    assert node.pipeline.global_state.rate == 7
    with pytest.raises(AttributeError, match=r"pipeline\.push: in process mode a node runs in a worker"):
        node.pipeline.push


# -- parcels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [0, 1, 100_000, 5_000_000])
def test_a_parcel_can_be_read_again_and_again(size_bytes: int) -> None:
    content = os.urandom(size_bytes)
    parcel = Parcel(content)
    try:
        found = [read_parcel(open(os.dup(parcel.fileno()), "rb")) for _ in range(3)]
    finally:
        parcel.close()

    assert found == [content] * 3
