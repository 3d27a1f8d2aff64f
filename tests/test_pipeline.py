"""Pipelines in the calling thread: begin, items, end; and what they hand to an engine."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import consecution
from consecution import engine
from consecution.errors import GraphError, OptionError, UsageError
from consecution.graph import Broadcast, Route
from consecution.nodes import Chunk, GroupByNode, Node
from consecution.options import SETTINGS, Options
from consecution.pipeline import GlobalState, Pipeline, RunOptions
from consecution.producer import Producer


class Pass(Node):
    def process(self, item: Any) -> None:
        self.push(item)


class Keep(Node):
    """Keeps what it gets in the global state."""

    def process(self, item: Any) -> None:
        self.global_state.kept.append((self.name, item))


class Calls(Node):
    """Writes down what is called when."""

    def begin(self) -> None:
        self.global_state.append(f"begin {self.name}")

    def process(self, item: Any) -> None:
        self.global_state.append(f"{self.name} {item}")
        self.push(item)

    def end(self) -> None:
        self.global_state.append(f"end {self.name}")

    def reset(self) -> None:
        self.global_state.append(f"reset {self.name}")


class CallingPipeline(Pipeline):
    def begin(self) -> None:
        self.global_state.append("begin")

    def end(self) -> int:
        self.global_state.append("end")
        return 42

    def reset(self) -> str:
        self.global_state.append("reset")
        return "anew"


def parity(item: int) -> str:
    return "odd" if item % 2 else "even"


def kept_by(node: Node, items: Any = range(4)) -> list[tuple[str, Any]]:
    pipeline = Pipeline(node, GlobalState(kept=[]))
    pipeline.consume(items)
    kept: list[tuple[str, Any]] = pipeline.global_state.kept
    return kept


# -- consuming -----------------------------------------------------------------------------------


def test_hooks_run_from_the_top_down_and_the_users_end_gives_the_result() -> None:
    a, b, c, d = (Calls(name) for name in "abcd")
    pipeline = CallingPipeline(a | [b, c] | d, global_state=[])
    assert pipeline.consume(["x"]) == 42
    assert pipeline.global_state == [
        *("begin", "begin a", "begin b", "begin c", "begin d"),
        *("a x", "b x", "d x", "c x", "d x"),
        *("end a", "end b", "end c", "end d", "end"),
    ]


def test_reset_runs_the_nodes_and_then_the_users() -> None:
    pipeline = CallingPipeline(Calls("a") | Calls("b"), global_state=[])
    assert pipeline.reset() == "anew"
    assert pipeline.global_state == ["reset a", "reset b", "reset"]


def test_items_take_every_way_of_the_graph() -> None:
    assert kept_by(Pass("a") | [Keep("b"), Keep("c")], [1, 2]) == [("b", 1), ("c", 1), ("b", 2), ("c", 2)]
    assert kept_by(Pass("a") | [Keep("even"), Keep("odd"), parity]) == [
        *(("even", 0), ("odd", 1), ("even", 2), ("odd", 3)),
    ]
    assert kept_by(Pass("a") | Route([Keep("b"), Keep("c")])) == [("b", 0), ("c", 1), ("b", 2), ("c", 3)]


def test_a_route_may_lead_to_routes_and_broadcasts() -> None:
    chain = Pass("a") | Route(
        [Route([Keep("b"), Keep("c")]), Broadcast([Keep("d"), Keep("e")])], by=lambda item: item % 2
    )
    assert kept_by(chain, [0, 2, 4, 1]) == [("b", 0), ("c", 2), ("b", 4), ("d", 1), ("e", 1)]


def test_functions_groups_and_chunks_work_item_by_item() -> None:
    class Tens(GroupByNode):
        def key(self, item: int) -> int:
            return item // 10

        def process(self, batch: list[int]) -> None:
            self.push(tuple(batch))

    def both_signs(item: int) -> Iterator[int]:
        yield item
        yield -item

    chain = Pass("a") | both_signs | abs | Tens("tens") | Chunk(2) | Keep("kept")
    assert kept_by(chain, [1, 2, 11, 21]) == [
        *(("kept", [(1, 1, 2, 2), (11, 11)]), ("kept", [(21, 21)])),
    ]


def test_a_bad_route_names_the_good_ones() -> None:
    pipeline = Pipeline(Pass("a") | [Pass("b"), Pass("c"), lambda item: "d"])
    with pytest.raises(ValueError, match=r"Router node a\.lambda .*'d'.  Valid route paths are \['b', 'c'\]\."):
        pipeline.consume([1])


def test_a_node_connected_after_the_pipeline_was_made_takes_part() -> None:
    pipeline = Pipeline(Pass("a"), GlobalState(kept=[]))
    pipeline["a"].add_downstream(Keep("b"))
    pipeline.consume([1])
    assert pipeline.global_state.kept == [("b", 1)]
    assert str(pipeline["b"]) == "N(b)"


def test_items_can_be_pushed_one_by_one() -> None:
    pipeline = CallingPipeline(Calls("a"), global_state=[])
    pipeline.push(1)
    pipeline.push(2)
    assert pipeline.end() == 42
    assert pipeline.global_state == ["begin", "begin a", "a 1", "a 2", "end a", "end"]
    pipeline.push(3)
    assert pipeline.global_state[-3:] == ["begin", "begin a", "a 3"]


def test_a_producer_is_read_where_no_iterable_is_given() -> None:
    pipeline = Pipeline(Producer([1, 2]) | Keep("b"), GlobalState(kept=[]))
    pipeline.consume()
    pipeline.consume([3])
    assert pipeline.global_state.kept == [("b", 1), ("b", 2), ("b", 3)]


def test_without_producer_and_iterable_there_is_nothing_to_consume() -> None:
    with pytest.raises(UsageError, match=r"needs a Producer at the top; found N\(a\)"):
        Pipeline(Pass("a")).consume()


# -- errors, and afterwards ----------------------------------------------------------------------


def test_nobody_pushes_in_begin_not_even_the_second_time(capsys: pytest.CaptureFixture[str]) -> None:
    class Hasty(Node):
        hasty = False

        def begin(self) -> None:
            if self.hasty:
                self.push(1)

    class HastyAtOnce(Hasty):
        hasty = True

    with pytest.raises(AttributeError, match=r"(?s)Error in .begin\(\) method of 'a' node.*--> self.push\(1\)"):
        Pipeline(HastyAtOnce("a") | Pass("b")).begin()
    node = Hasty("a")
    pipeline = Pipeline(node | Pass("b"))
    pipeline.consume([])
    node.hasty = True
    with pytest.raises(AttributeError, match="That is not allowed"):
        pipeline.consume([])
    assert "AttributeError" in capsys.readouterr().err


class Failing(Calls):
    fails_in = ""

    def begin(self) -> None:
        self.fail_in("begin")
        super().begin()

    def process(self, item: Any) -> None:
        self.fail_in("process")
        super().process(item)

    def end(self) -> None:
        self.fail_in("end")
        super().end()

    def fail_in(self, where: str) -> None:
        if where == self.fails_in:
            raise ArithmeticError(where)


@pytest.mark.parametrize("where", ["begin", "process", "end"])
def test_after_an_exception_the_pipeline_works_as_if_new(where: str) -> None:
    failing = Failing("b")
    pipeline = CallingPipeline(Calls("a") | [failing, Calls("c")] | Calls("d") | Chunk(3), global_state=[])
    pipeline.consume([5])
    expected = list(pipeline.global_state)

    failing.fails_in = where
    with pytest.raises(ArithmeticError, match=where):
        pipeline.consume([1, 2, 3, 4])

    failing.fails_in = ""
    pipeline.global_state.clear()
    assert pipeline.consume([5]) == 42
    assert pipeline.global_state == expected


def test_what_was_gathered_before_an_exception_is_forgotten() -> None:
    class Pairs(GroupByNode):
        def key(self, item: int) -> int:
            return 1 // item

        def process(self, batch: list[int]) -> None:
            self.push(batch)

    pipeline = Pipeline(Pairs("pairs") | Chunk(5) | Keep("kept"), GlobalState(kept=[]))
    with pytest.raises(ZeroDivisionError):
        pipeline.consume([2, 1, 2, 0])
    pipeline.consume([3])
    assert pipeline.global_state.kept == [("kept", [[3]])]


def test_an_exception_of_the_iterable_breaks_it_off_too() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    pipeline = CallingPipeline(Calls("a"), global_state=[])
    with pytest.raises(OSError, match="gone"):
        pipeline.consume(broken())
    pipeline.push(2)
    assert pipeline.global_state[-3:] == ["begin", "begin a", "a 2"]


def test_a_pipeline_is_made_of_one_graph_with_one_top() -> None:
    with pytest.raises(ValueError, match=r"remove one of the following input nodes \[N\(a\), N\(b\)\]"):
        Pipeline([Node("a"), Node("b")] | Node("c"))
    with pytest.raises(GraphError, match="expected a node, the top of a graph"):
        Pipeline(Broadcast([Node("a")]))  # type: ignore[arg-type]


# -- state ---------------------------------------------------------------------------------------


def test_global_state_is_read_and_written_as_attributes_and_items() -> None:
    state = GlobalState(a=1, self=2)
    state["b"] = 3
    assert (state.a, state["self"], state.b) == (1, 2, 3)
    assert str(state) == repr(state) == "GlobalState('a', 'b', 'self')"


@pytest.mark.parametrize("falsy", [[], {}, 0, ""])
def test_a_falsy_global_state_is_kept(falsy: Any) -> None:
    pipeline = Pipeline(Node("a"), global_state=falsy)
    assert pipeline.global_state is falsy
    assert pipeline["a"].global_state is falsy


def test_without_one_every_pipeline_has_a_global_state_of_its_own() -> None:
    assert isinstance(Pipeline(Node("a")).global_state, GlobalState)


# -- nodes by name -------------------------------------------------------------------------------


def test_a_node_is_found_by_its_name() -> None:
    pipeline = Pipeline(Node("a") | [Node("b"), Node("c"), parity])
    assert pipeline["a.parity"] in pipeline.top_node.all_nodes
    with pytest.raises(KeyError, match="No node named 'd'"):
        pipeline["d"]


@pytest.mark.parametrize("name", ["a", "even", "odd", "last"])
def test_a_node_is_replaced_wherever_it_stands(name: str) -> None:
    class Louder(Node):
        def process(self, item: int) -> None:
            self.push(item + 100)

    pipeline = Pipeline(
        Pass("a") | [Pass("even"), Pass("odd"), parity] | Pass("last") | Keep("kept"), GlobalState(kept=[])
    )
    text = str(pipeline)
    pipeline[name] = Louder(name)
    pipeline.consume([0, 1])
    louder = {"a": [100, 101], "even": [100, 1], "odd": [0, 101], "last": [100, 101]}[name]
    assert pipeline.global_state.kept == [("kept", item) for item in louder]
    assert str(pipeline) == text
    assert isinstance(pipeline[name], Louder)
    assert pipeline.top_node is pipeline["a"]


def test_a_replacement_keeps_its_index_in_a_route() -> None:
    pipeline = Pipeline(Pass("a") | Route([Keep("b"), Keep("c")], lambda item: 0), GlobalState(kept=[]))
    pipeline["b"] = Keep("b")
    pipeline.consume([1])
    assert pipeline.global_state.kept == [("b", 1)]


def test_a_replacement_brings_what_follows_it() -> None:
    pipeline = Pipeline(Pass("a") | Pass("b") | Keep("c"), GlobalState(kept=[]))
    pipeline["b"] = Pass("b") | Keep("d")
    pipeline.consume([1])
    assert sorted(pipeline.global_state.kept) == [("c", 1), ("d", 1)]


def test_what_cannot_replace_a_node_is_refused() -> None:
    pipeline = Pipeline(Node("a") | Node("b"))
    with pytest.raises(ValueError, match=r"must have the same name\.  Expected 'a', found 'c'"):
        pipeline["a"] = Node("c")
    with pytest.raises(GraphError, match="expected a node"):
        pipeline["a"] = abs  # type: ignore[assignment]
    with pytest.raises(KeyError):
        pipeline["c"] = Node("c")


# -- looking at it -------------------------------------------------------------------------------


def test_a_pipeline_prints_an_edge_per_line() -> None:
    rule = "-" * 68
    pipeline = Pipeline(Node("a") | [Node("c"), Node("b"), parity] | Node("last"))
    assert str(pipeline) == repr(pipeline)
    assert str(pipeline).split("\n") == [
        *("", "Pipeline", rule),
        "       a | a.parity",
        "a.parity | [b, c]",
        "       c | last",
        "       b | last",
        *(rule, ""),
    ]


def test_logged_nodes_print_comma_separated_lines_under_a_header(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = Pipeline(Pass("a") | [Pass("b"), Pass("c")])
    pipeline["a"].log("output")
    pipeline["b"].log("input")
    pipeline.consume([7, 8])
    assert capsys.readouterr().out.splitlines() == [
        "node_log,what,node_name,item",
        *("node_log,output,a,7", "node_log,input,b,7", "node_log,output,a,8", "node_log,input,b,8"),
    ]


def test_nothing_is_printed_where_nobody_logs(capsys: pytest.CaptureFixture[str]) -> None:
    Pipeline(Pass("a") | Pass("b")).consume([1])
    assert capsys.readouterr().out == ""


def test_a_plot_is_the_top_nodes_and_returns_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(Node, "plot", lambda self, *args: drawn.append((self.name, *args)))
    pipeline = Pipeline(Node("a") | Node("b"))
    assert pipeline.plot("flow", "pdf") is pipeline
    assert drawn == [("a", "flow", "pdf")]


def test_a_notebook_shows_a_drawing_or_a_mermaid_diagram(monkeypatch: pytest.MonkeyPatch) -> None:
    class Drawing:
        format = ""

        def pipe(self, encoding: str) -> str:
            return f"<{self.format}>"

    monkeypatch.setattr(Node, "_build_pydot_graph", lambda self: Drawing())
    pipeline = Pipeline(Node("a") | Node("b"))
    assert pipeline._repr_mimebundle_() == {"text/plain": str(pipeline), "image/svg+xml": "<svg>"}

    def fail(self: Any, encoding: str) -> str:
        raise RuntimeError("no dot")

    monkeypatch.setattr(Drawing, "pipe", fail)
    assert pipeline._repr_svg_() is None
    diagram = pipeline._repr_mimebundle_()["text/markdown"]
    assert diagram.startswith("```mermaid\nflowchart LR\n")
    assert '["a"]' in diagram
    assert '["b"]' in diagram


# -- engines -------------------------------------------------------------------------------------


def test_run_and_start_hand_checked_options_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(engine, "run", lambda *args, on_status: seen.append((*args, on_status)))
    monkeypatch.setattr(engine, "start", lambda *args: seen.append(args))
    pipeline = Pipeline(Pass("a"))
    pipeline.run([1], mode="inline", retries=7, on_status=print)
    pipeline.start(robustness="none")
    assert seen == [
        (pipeline, [1], Options.of(mode="inline", retries=7), print),
        (pipeline, None, Options.of(robustness="none")),
    ]


def test_options_are_checked_before_anything_starts() -> None:
    pipeline = Pipeline(Pass("a"))
    for method in (pipeline.run, pipeline.start, pipeline.plan):
        with pytest.raises(OptionError, match="did you mean 'retries'"):
            method([1], retrys=3)  # type: ignore[call-arg]


def test_a_plan_can_be_looked_at_without_starting() -> None:
    plan = Pipeline(Pass("a") * 2 | Keep("b")).plan([1], mode="thread")
    assert [node.name for node in plan.nodes] == ["source", "a", "b"]
    assert plan.options.mode == "thread"


def test_editors_are_told_of_every_option_there_is() -> None:
    assert list(RunOptions.__annotations__) == [setting.name for setting in SETTINGS]


def test_engines_call_what_the_user_wrote_without_the_nodes_part() -> None:
    pipeline = CallingPipeline(Calls("a"), global_state=[])
    pipeline._call_user_begin()
    assert pipeline._call_user_end() == 42
    assert pipeline.global_state == ["begin", "end"]


# -- the package ---------------------------------------------------------------------------------


def test_every_public_name_can_be_imported() -> None:
    for name in consecution.__all__:
        assert getattr(consecution, name).__name__ == name
        assert name in dir(consecution)
    with pytest.raises(AttributeError, match="no attribute 'Nodes'"):
        consecution.Nodes


def test_what_is_read_without_running_names_the_same_as_what_is_found() -> None:
    """A type checker or an editor takes ``from consecution import *`` from a list that stands there, or not at all."""
    tree = ast.parse(Path(consecution.__file__).read_text(encoding="utf-8"))
    (listed,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and "__all__" in names_of(node)
    ]
    imported = [
        alias.asname
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]

    assert listed == sorted(imported) == sorted(consecution._HOMES)


def names_of(node: ast.Assign) -> list[str]:
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def test_the_modules_of_0_2_0_are_there_after_an_import() -> None:
    code = "import consecution as c; c.nodes.GroupByNode, c.pipeline.GlobalState, c.utils.Clock, c.__version__"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_composing_a_pipeline_loads_no_machinery() -> None:
    code = (
        "import sys; from consecution import Pipeline, Map, Route, Producer, GlobalState; "
        "Pipeline(Producer([1]) | Map(abs)).consume(); "
        "print(sorted({'zmq', 'lmdb', 'msgpack', 'dill', 'multiprocess', 'graphviz'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert told.stdout == "[]\n"


@pytest.mark.parametrize("outputs", ["ab", 7, {"a": 1}, Pass.process, property(len)])
def test_names_that_0_2_0_left_to_its_users_are_theirs(outputs: Any) -> None:
    class Reading(Pipeline):
        def begin(self) -> None:
            self.sources = ["a.csv"]  # type: ignore[assignment]

        def end(self) -> Any:
            return self.sources

    writing = type("Writing", (Pass,), {"outputs": outputs})("writing")
    pipeline = Reading(writing | Keep("keep"), global_state=GlobalState(kept=[]))

    assert pipeline.consume([1, 2]) == ["a.csv"]
    assert pipeline.global_state.kept == [("keep", 1), ("keep", 2)]
    assert pipeline.run([3], mode="inline", robustness="none").result == ["a.csv"]
