"""Nodes alone: identity, replicas, copies, and how they run over a frame."""

from __future__ import annotations

import builtins
import functools
import io
import math
import operator
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consecution.batching import BatchNode
from consecution.errors import GraphError, MissingExtraError, WorkerError
from consecution.nodes import AsyncMap, Chunk, Filter, FlatMap, GroupByNode, Map, Node, node_from_function
from consecution.pipeline import Pipeline
from consecution.producer import Producer
from consecution.sink import Sink


class Twice(Node):
    """Pushes twice, and fails between the two at every item that is a multiple of 5."""

    def process(self, item: int) -> None:
        self.push(item)
        if item % 5 == 0:
            raise ValueError(item)
        self.push(-item)


class Yielding(Node):
    def process(self, item: int) -> Iterator[int]:  # type: ignore[override]
        yield item


class YieldingAsync(Node):
    async def process(self, item: int) -> Any:
        yield item


class YieldingAtTheEnd(Node):
    def process(self, item: int) -> None: ...

    def end(self) -> Iterator[int]:  # type: ignore[override]
        yield 1


class YieldingBatch(BatchNode):
    def process_batch(self, items: list[int]) -> Iterator[int]:
        yield from items


class YieldingSink(Sink):
    def write(self, batch_id: Any, items: list[int]) -> Iterator[int]:  # type: ignore[override]
        yield from items


def run_frames(node: Node, *frames: list[Any]) -> tuple[list[Any], list[tuple[Any, str]]]:
    """What an engine does: what came out, and the items that failed, with the error's type."""
    out: list[Any] = []
    failed: list[tuple[Any, str]] = []
    node._push_into(out)
    for items in frames:
        cursor = iter(items)
        while operator.length_hint(cursor):
            try:
                node._process_frame(cursor, out)
            except (Exception, SystemExit) as error:
                failed.append((items[len(items) - operator.length_hint(cursor) - 1], type(error).__name__))
    return out, failed


def run_items(node: Node, items: list[Any]) -> tuple[list[Any], list[tuple[Any, str]]]:
    """The same, item by item, as `process` alone says it."""
    out: list[Any] = []
    failed: list[tuple[Any, str]] = []
    for item in items:
        mark = len(out)
        node._push_into(out)
        try:
            node.process(item)
        except (Exception, SystemExit) as error:
            del out[mark:]
            failed.append((item, type(error).__name__))
    return out, failed


def fussy(item: int) -> int:
    if item % 5 == 0:
        raise ValueError(item)
    if item % 7 == 0:
        sys.exit(item)
    return item % 3


def fussy_generator(item: int) -> Iterator[int]:
    yield item
    yield fussy(item)


# -- identity ------------------------------------------------------------------------------------


def test_nodes_are_equal_only_to_themselves_and_sorted_by_name() -> None:
    a, other, b = Node("a"), Node("a"), Node("b")
    assert a == a
    assert a != other
    assert a != "a"
    assert len({a, other, a}) == 2
    assert sorted([b, a]) == [a, b]
    assert hash(a) == id(a)


def test_a_node_prints_as_its_name() -> None:
    assert f"{Node('a')} {Node('b')!r}" == "N(a) N(b)"


def test_keyword_arguments_become_attributes() -> None:
    assert Node("a", limit=3).limit == 3  # type: ignore[attr-defined]


def test_a_node_cannot_be_indexed_with_a_node_and_says_what_was_meant() -> None:
    with pytest.raises(ValueError, match=r"You probably meant\nN\(a\) \| \[N\(b\)\]"):
        Node("a")[Node("b")]


def test_process_must_be_defined() -> None:
    with pytest.raises(NotImplementedError, match=r"'a'\nYou must define a \.process"):
        Node("a").process(1)


# -- replicas and keys ---------------------------------------------------------------------------


def test_a_node_is_multiplied_and_keyed_in_any_order() -> None:
    node = Node("a")
    assert (node.replicas, node.key_function) == (1, None)
    assert (node * 4).by(len) is node
    assert (node.replicas, node.key_function) == (4, len)
    assert (3 * node).replicas == 3


@pytest.mark.parametrize("count", [0, -1, 1025, True, 2.0, "2"])
def test_replicas_must_be_a_whole_number_in_range(count: Any) -> None:
    with pytest.raises(GraphError, match=r"N\(a\) \* .*whole number of replicas from 1 to 1024"):
        Node("a") * count


def test_a_key_function_must_be_callable() -> None:
    with pytest.raises(GraphError, match=r"N\(a\).by\('name'\): expected a function that returns an item's key"):
        Node("a").by("name")  # type: ignore[arg-type]


# -- frames --------------------------------------------------------------------------------------


class CountingMap(Map):
    def process(self, item: Any) -> None:
        self.push("called")
        super().process(item)


@given(st.lists(st.integers(-30, 30)))
@pytest.mark.parametrize(
    "make",
    [
        lambda: Twice("twice"),
        lambda: Map(fussy),
        lambda: Map(functools.partial(fussy)),
        lambda: Filter(fussy),
        lambda: FlatMap(fussy_generator),
        lambda: FlatMap(lambda item: [item, fussy(item)]),
        lambda: CountingMap(fussy),
        lambda: Chunk(3),
        lambda: Chunk(fussy),
    ],
    ids=["node", "map", "map in C", "filter", "flat map", "list", "subclass", "chunk", "chunk by"],
)
def test_a_frame_gives_what_item_by_item_gives(make: Callable[[], Node], items: list[int]) -> None:
    half = len(items) // 2
    assert run_frames(make(), items[:half], items[half:]) == run_items(make(), items)


@pytest.mark.parametrize("stops_at", [0, 1, 2])
def test_a_stop_iteration_of_the_function_does_not_end_the_frame_silently(stops_at: int) -> None:
    def stop(item: int) -> int:
        if item == stops_at:
            raise StopIteration
        return item

    for function, error in ((stop, "StopIteration"), (functools.partial(stop), "RuntimeError")):
        out, failed = run_frames(Map(function), [0, 1, 2])
        assert out == [item for item in (0, 1, 2) if item != stops_at]
        assert failed == [(stops_at, error)]
    assert run_frames(Filter(lambda item: stop(item) is not None), [0, 1, 2])[1] == [(stops_at, "StopIteration")]
    assert run_frames(FlatMap(lambda item: [stop(item)]), [0, 1, 2])[1] == [(stops_at, "StopIteration")]


def test_a_frame_leaves_alone_what_was_pushed_before_it() -> None:
    node = Twice("twice")
    out: list[Any] = ["before"]
    node._push_into(out)
    with pytest.raises(ValueError, match="5"):
        node._process_frame(iter([1, 5]), out)
    assert out == ["before", 1, -1]


@pytest.mark.parametrize("make", [lambda: Map(abs), lambda: Filter(abs), lambda: Twice("abs"), lambda: Chunk(1, "abs")])
def test_what_a_frame_takes_in_and_pushes_is_logged_too(
    make: Callable[[], Node], capsys: pytest.CaptureFixture[str]
) -> None:
    for what in ("input", "output"):
        node = make()
        node.log(what)
        out, _ = run_frames(node, [1, 2])
        lines = capsys.readouterr().out.splitlines()
        assert lines == [f"node_log,{what},abs,{item}" for item in ([1, 2] if what == "input" else out)]


class Unspeakable:
    def __str__(self) -> str:
        raise SystemExit("not a word")


def itself(item: Any) -> Any:
    return item


async def same(item: Any) -> Any:
    return item


class SameBatches(BatchNode):
    def process_batch(self, items: list[Any]) -> None:
        for item in items:
            self.push(item)


@pytest.mark.parametrize("what", ["input", "output"])
@pytest.mark.parametrize("make", [lambda: Map(itself, "n"), lambda: AsyncMap(same, "n"), lambda: SameBatches("n")])
def test_an_item_that_cannot_be_printed_is_logged_and_goes_through(
    make: Callable[[], Node], what: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    node, bad = make(), Unspeakable()
    node.log(what)
    got: list[Any] = []

    report = Pipeline(node | got.append).run([bad], mode="inline", robustness="track")

    assert (report.failed, got) == (0, [bad])
    assert f"node_log,{what},n,<Unspeakable, whose str raises SystemExit>\n" in capsys.readouterr().out


def test_what_standard_output_cannot_encode_is_logged_in_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    node = Map(str, "node")
    node.log("input")

    out, failed = run_frames(node, ["a", "\u20ac\udc80", "b"])

    assert (out, failed) == (["a", "\u20ac\udc80", "b"], [])
    assert written.getvalue().splitlines()[1] == rb"node_log,input,node,\u20ac\udc80"


def test_only_input_or_output_can_be_logged() -> None:
    with pytest.raises(ValueError, match=r"must be in \['input', 'output'\], found 'both'"):
        Node("a").log("both")  # type: ignore[arg-type]


# -- ready-made nodes ----------------------------------------------------------------------------


def test_a_function_is_checked_when_its_node_is_made() -> None:
    with pytest.raises(GraphError, match=r"Map\(7\): expected a function of an item, found int"):
        Map(7)  # type: ignore[arg-type]


def test_a_node_made_of_a_function_can_be_named() -> None:
    assert [n.name for n in (Map(abs, "m"), Filter(abs, "f"), FlatMap(abs, name="fm"), Chunk(2, "c"))] == [
        *("m", "f", "fm", "c"),
    ]


def test_a_generator_function_becomes_a_flat_map() -> None:
    assert type(node_from_function(fussy_generator)) is FlatMap
    assert type(node_from_function(fussy)) is Map


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "3", None])
def test_a_chunk_needs_a_size_or_a_function(size: Any) -> None:
    with pytest.raises(GraphError, match="expected a whole number of 1 or more, or a function"):
        Chunk(size)


def test_a_chunk_pushes_what_is_left_at_the_end() -> None:
    node = Chunk(2)
    out, _ = run_frames(node, [1, 2, 3])
    assert out == [[1, 2]]
    node.end()
    node.end()
    assert out == [[1, 2], [3]]


def test_a_chunk_by_a_function_holds_consecutive_items_of_one_value() -> None:
    node = Chunk(lambda item: item // 10)
    out, _ = run_frames(node, [1, 2, 11], [12, 3])
    node.end()
    assert out == [[1, 2], [11, 12], [3]]


# -- GroupByNode ---------------------------------------------------------------------------------


class Tens(GroupByNode):
    def key(self, item: int) -> int:
        return item // 10

    def process(self, batch: list[int]) -> None:
        self.push(batch)


def test_the_last_batch_is_handed_over_at_the_end() -> None:
    node = Tens("tens")
    out, _ = run_frames(node, [1, 2, 11], [12, 3])
    assert out == [[1, 2], [11, 12]]
    node.end()
    assert out == [[1, 2], [11, 12], [3]]


def test_wherever_end_is_overridden_the_last_batch_comes_before_it_and_once() -> None:
    class Ending(Tens):
        def end(self) -> None:
            super().end()
            self.push("end")

    class EndingTwice(Ending):
        def end(self) -> None:
            super().end()
            self.push("end again")

    class Mixin:
        push: Callable[[Any], Any]

        def end(self) -> None:
            self.push("mixed in")

    class Mixed(Mixin, Tens):
        pass

    expected = {Ending: ["end"], EndingTwice: ["end", "end again"], Mixed: ["mixed in"], Tens: []}
    for kind, said in expected.items():
        node = kind("tens")
        out, _ = run_frames(node, [1])
        node.end()
        assert out == [[1], *said]


def test_a_group_without_items_ends_with_an_empty_batch() -> None:
    node = Tens("tens")
    out, _ = run_frames(node)
    node.end()
    assert out == [[]]


def test_key_and_process_must_be_defined() -> None:
    with pytest.raises(NotImplementedError, match=r"\.key\(self, item\)"):
        GroupByNode("a").key(1)
    with pytest.raises(NotImplementedError, match=r"\.process\(self, batch\)"):
        GroupByNode("a").process([1])


# -- ends and copies -----------------------------------------------------------------------------


def test_nodes_that_do_something_at_the_end_say_so() -> None:
    class Ending(Node):
        def end(self) -> None: ...

    ending = [Ending("a"), Tens("b"), Chunk(2)]
    plain = [Node("a"), Map(abs), Filter(abs), FlatMap(abs)]
    assert [node._wants_end() for node in (*ending, *plain)] == [True] * 3 + [False] * 4


def test_a_detached_copy_has_the_attributes_but_no_place_in_a_graph() -> None:
    node = Tens("tens", limit=[1])
    pipeline = Pipeline(Node("a") | node.by(abs) * 3 | Node("b"))
    pipeline.begin()
    node._process_item(5)

    twin = node._detached_copy()
    assert (twin.name, twin.limit, twin.replicas, twin.key_function) == ("tens", [1], 3, abs)  # type: ignore[attr-defined]
    assert twin.all_nodes == {twin}
    assert not {"pipeline", "push", "global_state", "_process"} & set(vars(twin))
    assert twin._batch_ == []  # type: ignore[attr-defined]
    assert node._batch_ == [5]
    assert node.all_nodes == {node, pipeline["a"], pipeline["b"]}


def test_a_detached_copy_travels_without_the_rest_of_its_pipeline() -> None:
    node = Twice("twice")
    Pipeline(Node("a", lock=threading.Lock()) | node).begin()
    twin = pickle.loads(pickle.dumps(node._detached_copy()))
    assert run_frames(twin, [1, 5, 2]) == ([1, -1, 2, -2], [(5, "ValueError")])


# -- plots ---------------------------------------------------------------------------------------


class FakeDrawing:
    format = ""

    def __init__(self) -> None:
        self.rendered: list[tuple[str, str]] = []

    def render(self, name: str) -> None:
        self.rendered.append((name, self.format))


def test_a_plot_draws_nodes_and_edges() -> None:
    pytest.importorskip("graphviz")
    drawing = (Node("a") | [Node("b"), Node("c"), abs])._build_pydot_graph()
    assert [line.strip() for line in drawing.body] == [
        *("a [shape=rectangle]", '"a.abs" [shape=oval]', "b [shape=rectangle]", "c [shape=rectangle]"),
        *('a -> "a.abs"', '"a.abs" -> b', '"a.abs" -> c'),
    ]


def test_a_plot_goes_into_the_file_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = FakeDrawing()
    monkeypatch.setattr(Node, "_build_pydot_graph", lambda self: drawing)
    Node("a").plot()
    Node("a").plot("flow.pdf", "pdf")
    assert drawing.rendered == [("pipeline", "png"), ("flow", "pdf")]


def test_a_plot_knows_its_kinds() -> None:
    with pytest.raises(ValueError, match=r"kinds are supported: \('pdf', 'png'\); found 'bmp'"):
        Node("a").plot(kind="bmp")


def test_a_plot_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def import_without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "graphviz":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_without)
    with pytest.raises(MissingExtraError, match=r"consecution\[plot\]") as caught:
        Node("a").plot()
    assert caught.value.extra == "plot"


def test_a_plot_without_graphviz_says_where_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("no dot")

    drawing = FakeDrawing()
    drawing.render = fail  # type: ignore[method-assign]
    monkeypatch.setattr(Node, "_build_pydot_graph", lambda self: drawing)
    with pytest.raises(RuntimeError, match="no dot"):
        Node("a").plot()
    assert "apt-get install graphviz" in capsys.readouterr().err


def test_a_chunk_goes_at_the_fourth_tick_after_its_first_item() -> None:
    node = Chunk(3, timeout_s=8)
    out: list[Any] = []
    node._push_into(out)
    assert (node.timer_s, node._has_timer(), Chunk(3)._has_timer()) == (2.0, True, False)

    for _ in range(9):
        node.on_timer()  # nothing waits
    node._process_frame(iter([1, 2]), out)
    for _ in range(3):
        node.on_timer()
    assert out == []
    node.on_timer()
    assert out == [[1, 2]]

    node._process_frame(iter([3]), out)
    node.on_timer()
    node._process_frame(iter([4, 5, 6]), out)
    for _ in range(3):
        node.on_timer()
    assert out == [[1, 2], [3, 4, 5]]
    node.on_timer()
    assert out == [[1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("timeout_s", [0, -1, True, "5", math.inf])
def test_a_chunk_needs_a_time_of_more_than_nothing(timeout_s: Any) -> None:
    with pytest.raises(GraphError, match=r"timeout_s=.* expected a number of seconds greater than 0"):
        Chunk(3, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (Yielding, "process"),
        (YieldingAsync, "process"),
        (YieldingAtTheEnd, "end"),
        (YieldingBatch, "process_batch"),
        (YieldingSink, "write"),
    ],
)
def test_a_method_that_yields_is_refused_for_it_would_not_run(kind: type[Node], method: str) -> None:
    with pytest.raises(GraphError, match=rf"N\(it\): {kind.__name__}.{method} holds a yield.*self.push\(...\)"):
        kind("it")


# -- what is not there ---------------------------------------------------------------------------


class PushesInBegin(Node):
    def begin(self) -> None:
        self.push(1)


class ForgetsItsParent(Node):
    def __init__(self, name: str) -> None:
        self.longest = 5


@pytest.mark.parametrize("mode", ["inline", "thread"])
def test_a_push_in_begin_is_told_where_it_belongs(mode: Any) -> None:
    with pytest.raises(
        WorkerError, match=r"has no attribute 'push': nothing can be pushed in begin\(\).*in process\(\) or end\(\)"
    ):
        Pipeline(Producer([1]) | PushesInBegin("hasty")).run(mode=mode)


def test_a_constructor_that_forgets_the_parents_is_named() -> None:
    with pytest.raises(AttributeError, match=r"let the __init__ of ForgetsItsParent call super\(\).__init__\(name\)"):
        Pipeline(Producer([1]) | ForgetsItsParent("orphan"))


@pytest.mark.parametrize("node", [Twice("whole"), ForgetsItsParent("orphan")])
def test_of_other_names_that_are_not_there_python_says_what_it_says(node: Node) -> None:
    with pytest.raises(AttributeError, match=r"object has no attribute 'longets'$") as caught:
        node.longets  # type: ignore[attr-defined]

    assert (caught.value.name, caught.value.obj) == ("longets", node)
    assert not hasattr(node, "__set_state__")


def test_what_a_property_raises_is_told_as_it_is() -> None:
    class Lazy(Node):
        @property
        def total(self) -> Any:
            return self.connection.total  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match=r"^'Lazy' object has no attribute 'connection'$"):
        Lazy("lazy").total  # type: ignore[unused-coroutine, unused-ignore]
