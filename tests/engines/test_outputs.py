"""Named outputs over every engine: what is pushed to a name goes where that name leads, and only there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consecution import Failure, KeyedNode, Map, Node, Pipeline, Producer, Sink
from consecution.errors import GraphError
from consecution.plan import describe, to_mermaid
from tests.engines.nodes import Collect, collected
from tests.engines.running import EngineRun

MODES = ("inline", "thread", "process")
LEVELS = ("none", "robust")


class Sorting(Node):
    """Sends odd items to 'odd', every tenth also to 'tens', and all on as they are."""

    def process(self, item: int) -> None:
        if item % 2:
            self.push(item, to="odd")
        if item % 10 == 0:
            self.push(-item, to="tens")
        self.push(item)


class Totals(KeyedNode):
    """Durable: what it pushes waits in its journal."""

    outputs = ("rest", "nowhere")

    def key(self, item: int) -> int:
        return item % 3

    def process(self, item: int) -> None:
        self.state["sum"] = self.state.get("sum", 0) + item
        self.push(item, to="nowhere")
        if item == 13:
            raise ValueError("no thirteens")

    def end(self) -> None:
        for key, state in self.states():
            self.push((key, state["sum"]), to="rest")


class Lost(Node):
    """Pushes to a name that nobody knows."""

    def process(self, item: int) -> None:
        self.push(item)
        if item == 3:
            self.push(item, to="lost")


def parity(item: int) -> str:
    return "even" if item % 2 == 0 else "odd"


def refuse_sevens(item: int) -> str:
    if item == 7:
        raise LookupError("no way for sevens")
    return parity(item)


def same(item: Any) -> Any:
    return item


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Any:
    return request.param


class Run(EngineRun):
    def sink(self, name: str) -> Collect:
        return Collect(name, self.folder / name)

    def items(self, name: str) -> list[Any]:
        return collected(self.folder / name)


@pytest.fixture
def run(mode: str, tmp_path: Path) -> Run:
    return Run(mode, tmp_path)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("workers", ["per-task", 2])
def test_items_go_where_their_names_lead_and_only_there(run: Run, level: str, workers: Any) -> None:
    if workers == 2 and run.mode != "process":
        pytest.skip("only processes are shared")
    sorting, totals = Sorting("sorting"), Totals("totals")
    sorting["odd"] | totals
    totals["rest"] | run.sink("totals_out")
    sorting["tens"] | [run.sink("tens"), Map(same, "again") | run.sink("tens_again")]
    chain = Producer(list(range(100))) | sorting | run.sink("all")

    report = run(chain, robustness=level, workers=workers)

    assert sorted(run.items("all")) == list(range(100))
    assert sorted(run.items("tens")) == sorted(run.items("tens_again")) == [-item for item in range(90, -1, -10)]
    kept = [item for item in range(100) if item % 2 and (item != 13 or level == "none")]
    assert sorted(run.items("totals_out")) == [(key, sum(i for i in kept if i % 3 == key)) for key in range(3)]
    assert (report.emitted, report.completed, report.pending, report.failed) == (100, 100, 0, 1)


def test_outputs_may_be_routed_and_what_fails_there_is_the_item_that_was_pushed(run: Run) -> None:
    sorting = Sorting("sorting")
    sorting["odd"] | [run.sink("even"), run.sink("odd"), refuse_sevens]
    sorting.failed | Map(brief, "brief") | run.sink("given_up")
    report = run(Producer([1, 2, 7, 12]) | sorting | run.sink("all"))

    assert sorted(run.items("odd")) == [1]
    assert sorted(run.items("all")) == [1, 2, 7, 12]
    assert run.items("given_up") == [("sorting", 7, "LookupError: no way for sevens")]
    assert (report.handled, report.failed) == (1, 0)


def brief(failure: Failure) -> tuple[str, Any, str]:
    return failure.node, failure.item, failure.error


def test_a_name_that_nothing_is_connected_to_fails_the_item_with_the_remedy(run: Run) -> None:
    report = run(Producer([1, 3, 5]) | Lost("losing") | run.sink("all"), robustness="track")

    assert run.items("all") == [1, 5]
    (failure,) = report.failures
    assert failure.item == 3
    assert failure.error == (
        "GraphError: N(losing): push(..., to='lost'): it has no output of that name, it has none; connect one, "
        'losing["lost"] | handler, or, if it may lead nowhere, declare it in the class: outputs = ("lost",)'
    )


class Dying(Node):
    """Kills its worker at the first item it ever gets, after pushing to a name."""

    def __init__(self, name: str, token: Path) -> None:
        super().__init__(name)
        self.token = token

    def process(self, item: int) -> None:
        self.push(item, to="side")
        if not self.token.exists():
            self.token.touch()
            os._exit(3)


def test_items_on_named_outputs_outlive_a_worker(tmp_path: Path) -> None:
    run = Run("process", tmp_path)
    dying = Dying("dying", tmp_path / "token")
    dying["side"] | run.sink("side")

    report = run(Producer(list(range(50))) | dying)

    assert run.items("side") == list(range(50))
    assert report.restarts == 1


# -- item by item, and the graph -----------------------------------------------------------------


def gathering(into: list[Any], name: str) -> Node:
    return Map(into.append, name)


def test_consume_goes_the_same_ways() -> None:
    main: list[Any] = []
    odd: list[Any] = []
    tens: list[Any] = []
    sorting = Sorting("sorting")
    sorting["odd"] | gathering(odd, "odd")
    sorting["tens"] | [gathering(tens, "even"), gathering([], "other"), parity_of_tens]
    Pipeline(sorting | gathering(main, "main")).consume([1, 2, 10])

    assert (main, odd, tens) == ([1, 2, 10], [1], [-10])
    with pytest.raises(GraphError, match=r'losing\["lost"\] \| handler'):
        Pipeline(Lost("losing") | gathering([], "end")).consume([3])


def parity_of_tens(item: int) -> str:
    return "even"


def test_what_is_pushed_to_an_output_is_logged_too(capsys: pytest.CaptureFixture[str]) -> None:
    sorting = Sorting("sorting")
    sorting["odd"] | gathering([], "odd")
    sorting.log("output")
    Pipeline(sorting | gathering([], "main")).consume([1])

    assert capsys.readouterr().out.splitlines()[-2:] == ["node_log,output,sorting,1"] * 2


def test_what_follows_a_node_does_not_follow_its_outputs() -> None:
    sorting = Sorting("sorting")
    sorting["odd"] | Map(same, "odd")
    pipeline = Pipeline(sorting | Map(same, "next"))

    assert [node.name for node in pipeline["odd"]._upstream_nodes] == ["sorting[odd]"]
    assert [node.name for node in pipeline["next"]._upstream_nodes] == ["sorting"]
    assert pipeline["odd"]._downstream_nodes == []


def test_a_replaced_or_renamed_node_keeps_its_outputs() -> None:
    sorting = Sorting("sorting")
    sorting["odd"] | Map(same, "odd")
    pipeline = Pipeline(Producer([1]) | sorting | Map(same, "next"))
    pipeline["sorting"] = Sorting("sorting")

    assert pipeline["sorting"]["odd"]._downstream_nodes == [pipeline["odd"]]
    pipeline["sorting"].rename("sorter")
    assert pipeline["odd"]._upstream_nodes[0].name == "sorter[odd]"


def test_the_plan_shows_outputs() -> None:
    sorting = Sorting("sorting")
    sorting["odd"] | Map(same, "odd")
    plan = Pipeline(sorting | Map(same, "next")).plan([1])

    assert "sorting -> odd      single   output odd" in describe(plan)
    assert 'n1 -->|"odd"| n3' in to_mermaid(plan)
    assert plan.signature != Pipeline(Sorting("sorting") | [Map(same, "odd"), Map(same, "next")]).plan([1]).signature


@pytest.mark.parametrize(
    "make", [lambda: Producer([1]), lambda: Map(same), lambda: Sink("s"), lambda: Sorting("s")["a"]]
)
def test_what_pushes_to_no_name_has_no_outputs(make: Callable[[], Node]) -> None:
    with pytest.raises(GraphError, match="has no outputs: its methods do not call"):
        make()["late"]


def test_the_plan_refuses_replicas_of_an_output() -> None:
    sorting = Sorting("sorting")
    sorting["odd"] * 2 | Map(same, "odd")
    with pytest.raises(GraphError, match="an output is part of the node before it; give replicas to the node after it"):
        Pipeline(sorting).plan([1])


def test_a_class_that_declares_its_outputs_has_no_others() -> None:
    with pytest.raises(GraphError, match=r"N\(t\)\['lat'\]: expected one of the outputs that Totals declares: 'rest'"):
        Totals("t")["lat"]
