"""A graph that can be run: item by item in this thread (`consume`), or by an engine (`run`, `start`)."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from consecution import graph
from consecution.errors import ConsecutionError, GraphError, UsageError
from consecution.nodes import Node
from consecution.options import Options
from consecution.producer import Producer, check_beginnings

if TYPE_CHECKING:
    import os

    from consecution.engine import Running
    from consecution.plan import Plan
    from consecution.report import Report, Status

RULE = "-" * 68


class RunOptions(TypedDict, total=False):
    """What may be said about a run, for editors and type checkers; `Options` checks it.

    `consecution.options.SETTINGS` has the defaults, units and meanings.
    """

    mode: Literal["inline", "thread", "process"]
    robustness: Literal["none", "confirm", "track", "robust"]
    state_dir: str | os.PathLike[str] | None
    workers: int | Literal["per-task", "auto"]
    on_error: Literal["retry", "park", "stop"]
    retries: int
    retry_delay_s: float
    timeout_s: float
    keep_failed: int
    max_pending: int
    max_pending_bytes: int
    batch_size: int
    linger_ms: float
    sync: Literal["power", "process"]
    fresh: bool
    drop_state: bool
    cache_bytes: int
    memory_limit_bytes: int
    affinity: Literal["auto", "off"]
    max_restarts: int
    stop_timeout_s: float
    log_format: Literal["text", "json"]
    progress: bool
    metrics_port: int | None
    metrics_host: str


class GlobalState:
    """A container for what all nodes of a pipeline share: keyword arguments become attributes and items.

    Inline and in threads all nodes share one. In process mode every worker has a copy: to set an attribute there is an
    error, and what a node changes inside of one (a list that it appends to) is seen by nobody else.
    """

    # The unusual first name lets keyword arguments contain "self".
    def __init__(_item_self, **kwargs: Any) -> None:
        for key, value in kwargs.items():
            setattr(_item_self, key, value)

    def __str__(_item_self) -> str:
        return f"GlobalState({', '.join(repr(key) for key in sorted(vars(_item_self)))})"

    __repr__ = __str__

    if TYPE_CHECKING:  # the keyword arguments, whatever they are

        def __getattr__(_item_self, name: str) -> Any: ...

    def __setitem__(_item_self, key: str, value: Any) -> None:
        setattr(_item_self, key, value)

    def __getitem__(_item_self, key: str) -> Any:
        return getattr(_item_self, key)


class _Sources:
    """``pipeline.sources``, which gives way: a subclass may keep something of its own under that name."""

    def __get__(self, pipeline: Pipeline, owner: type[Pipeline]) -> list[Producer]:
        return pipeline._producers()


class Pipeline:
    """The graph that ``node`` is part of, ready to run.

    It has one top node, or begins with several producers, which are ``sources``; ``top_node`` is the first of them.
    Inherit from it to do something before and after a stream: ``begin`` runs before the nodes' own,
    ``end`` after them, and what ``end`` returns is what `consume` returns.
    """

    top_node: Node
    sources = _Sources()
    """The producers that the pipeline begins with, as drawn; none where an iterable is to be given."""
    global_state: Any
    _node_repr: str
    _longest_node_name_len_: int

    def __init__(self, node: Node, global_state: Any = None) -> None:
        if not isinstance(node, Node):
            raise GraphError(
                f"Pipeline({node!r}): expected a node, the top of a graph; begin the chain with one node or Producer"
            )
        self._find_tops(node)
        self.global_state = GlobalState() if global_state is None else global_state
        self.initialize()

    def _find_tops(self, node: Node) -> None:
        tops = node.root_nodes
        check_beginnings(tops)
        self.top_node, self._tops = tops[0], tops

    def _producers(self) -> list[Producer]:
        return [top for top in self._tops if isinstance(top, Producer)]

    def _call_top_down(self, method_name: str) -> None:
        for node in graph.sort_top_down(self._tops):
            getattr(node, method_name)()

    def initialize(self, with_push: bool = False) -> None:
        """Make every node part of this pipeline; ``with_push`` also lets them push item by item."""
        self._is_running = False
        self._node_lookup: dict[str, Node] = {}
        nodes = self.top_node.walk("both", as_ordered_list=True)
        for node in nodes:
            self.initialize_node(node, with_push)
        self.top_node.top_down_make_repr()
        self._write_log_header()

    def _write_log_header(self) -> None:
        if any(node._logging for node in self.top_node.all_nodes):
            sys.stdout.write("node_log,what,node_name,item\n")

    def initialize_node(self, node: Node, with_push: bool = False) -> None:
        """Make one node part of this pipeline."""
        node.pipeline = self
        node.global_state = self.global_state
        self._node_lookup[node.name] = node
        node._process = node._item_processor()
        if with_push:
            node.push = node._push_function()

    # -- looking at it and changing it -----------------------------------------------------------

    def __getitem__(self, name: str) -> Node:
        try:
            return self._node_lookup[name]
        except KeyError:
            raise KeyError(f"No node named '{name}'") from None

    def __setitem__(self, name: str, replacement: Node) -> None:
        """Put a node in the place of the one that has its name. What is connected to it comes with it."""
        if not isinstance(replacement, Node):
            raise GraphError(f"pipeline[{name!r}] = {replacement!r}: expected a node")
        if name != replacement.name:
            raise ValueError(
                f"Replacement node must have the same name.  Expected {name!r}, found {replacement.name!r}."
            )
        replaced = self[name]
        if replacement is replaced:
            return
        graph.replace(replaced, replacement)
        graph.check_names(replacement)
        graph.check_cycles(replacement)
        self._find_tops(replacement)
        self.initialize_node(replacement)

    def __str__(self) -> str:
        return f"\nPipeline\n{RULE}\n{self._node_repr}{RULE}\n"

    __repr__ = __str__

    def plot(self, file_name: str = "pipeline", kind: str = "png") -> Pipeline:
        """Draw the graph into a file, as 'png' or 'pdf'. Needs Graphviz; notebooks draw by themselves."""
        self.top_node.plot(file_name, kind)
        return self

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """What a notebook shows: a drawing; where Graphviz is missing, a mermaid diagram, which most of them draw."""
        shown = {"text/plain": str(self)}
        svg = self._repr_svg_()
        if svg is not None:
            shown["image/svg+xml"] = svg
        else:
            with contextlib.suppress(ConsecutionError):
                shown["text/markdown"] = f"```mermaid\n{self._to_mermaid()}\n```"
        return shown

    def _to_mermaid(self) -> str:
        from consecution.plan import to_mermaid

        return to_mermaid(self.plan(None if self._producers() else (), mode="inline"))

    def _repr_svg_(self) -> Any:
        """None where Graphviz is missing."""
        try:
            drawing = self.top_node._build_pydot_graph()
            drawing.format = "svg"
            return drawing.pipe(encoding="utf-8")
        except (ImportError, RuntimeError, OSError):
            return None

    # -- hooks -----------------------------------------------------------------------------------

    def begin(self) -> Any:
        """Override it to do something before the nodes begin."""

    def end(self) -> Any:
        """Override it to do something after all nodes have ended; its result is that of `consume`."""

    def reset(self) -> Any:
        """Override it to do something after all nodes were reset."""

    def __getattribute__(self, name: str) -> Any:
        """`begin`, `end` and `reset` do the nodes' part too, wherever a subclass overrides them."""
        found = super().__getattribute__(name)
        wrap = _HOOKS.get(name)
        return found if wrap is None else wrap(self, found)

    def _call_user_begin(self) -> None:
        """Only what the user wrote, for engines that begin nodes elsewhere."""
        object.__getattribute__(self, "begin")()
        self._write_log_header()

    def _call_user_end(self) -> Any:
        return object.__getattribute__(self, "end")()

    # -- item by item ----------------------------------------------------------------------------

    def push(self, item: Any) -> None:
        """Process one item now; begins the pipeline if it is not running."""
        self._require_one_top("push(item)")
        if not self._is_running:
            self.begin()
        self.top_node._process(item)

    def consume(self, iterable: Iterable[Any] | None = None) -> Any:
        """Process each item in this thread, one after another; returns what ``end`` returns.

        Without an iterable the pipeline's Producer is read; of several one item each, in turn, until all have ended.
        An exception of a node ends it and comes out
        here; what nodes had gathered is forgotten, their ``end`` is not called, and the pipeline can be used again.
        """
        streams = self._own_streams() if iterable is None else self._only_stream(iterable)
        try:
            self.begin()
            if len(streams) > 1:
                _consume_in_turn(streams)
            else:
                ((top, items),) = streams
                process = _way_into(top)
                for item in items:
                    process(item)
            return self.end()
        except BaseException:
            self._break_off()
            raise

    def _break_off(self) -> None:
        self._is_running = False
        for node in self.top_node.all_nodes:
            node._break_off()

    def _own_streams(self) -> list[_Stream]:
        if not self._producers():
            raise UsageError(f"consume() without an iterable needs a Producer at the top; found {self.top_node}")
        return [(source, iter(source)) for source in self._producers()]

    def _only_stream(self, iterable: Iterable[Any]) -> list[_Stream]:
        self._require_one_top("consume(iterable)")
        return [(self.top_node, iterable)]

    def _require_one_top(self, what: str) -> None:
        if len(self._tops) > 1:
            raise UsageError(
                f"{what} goes to the one source; this pipeline has {', '.join(map(str, self._tops))}: make it one more "
                "of them, Producer(...), or use a pipeline with one source"
            )

    # -- in an engine ----------------------------------------------------------------------------

    def plan(self, iterable: Any = None, **options: Unpack[RunOptions]) -> Plan:
        """The plan of a run with these options; nothing is started."""
        from consecution.engine import with_shares_of_before
        from consecution.plan import make_plan

        asked = Options.of(**options)
        asked.check_that_none_is_in_vain()
        plan = make_plan(self.top_node, asked, has_iterable=iterable is not None)
        return with_shares_of_before(plan, self, iterable)

    def run(
        self,
        iterable: Any = None,
        *,
        on_status: Callable[[Status], None] | None = None,
        **options: Unpack[RunOptions],
    ) -> Report:
        """Run to the end of the stream and report.

        ``iterable`` takes the place of the pipeline's Producer. ``options`` are those of
        `consecution.pipeline.RunOptions`, which docs/options.md explains; OptionError names one that does not exist or
        cannot be. ``on_status`` is called about twice a second. In the main thread a first SIGINT or SIGTERM stops
        reading and finishes what is open, a second one stops at once; in ``robust`` nothing is lost either way.
        """
        from consecution import engine

        return engine.run(self, iterable, Options.of(**options), on_status=on_status)

    def start(self, iterable: Any = None, **options: Unpack[RunOptions]) -> Running:
        """Start a run and return at once; the options are those of `run`. See `consecution.engine.Running`."""
        from consecution import engine

        return engine.start(self, iterable, Options.of(**options))


_Stream = tuple[Node, Iterable[Any]]
"""What flows into a top node."""


def _way_into(top: Node) -> Callable[[Any], Any]:
    """Past a producer, into the node itself where it is another one."""
    return top.push if isinstance(top, Producer) else top._process


def _consume_in_turn(streams: list[_Stream]) -> None:
    """An item of each stream, again and again, as long as it has one."""
    waiting = deque((iter(items), _way_into(top)) for top, items in streams)
    while waiting:
        items, process = waiting.popleft()
        for item in itertools.islice(items, 1):
            process(item)
            waiting.append((items, process))


def _wrap_begin(pipeline: Pipeline, user_begin: Callable[[], Any]) -> Callable[[], None]:
    def begin() -> None:
        user_begin()
        for node in pipeline.top_node.all_nodes:
            vars(node).pop("push", None)  # left over from an earlier stream; nobody pushes in begin()
        pipeline._call_top_down("_begin")
        pipeline.initialize(with_push=True)
        pipeline._is_running = True

    return begin


def _wrap_end(pipeline: Pipeline, user_end: Callable[[], Any]) -> Callable[[], Any]:
    def end() -> Any:
        pipeline._call_top_down("end")
        pipeline._call_top_down("_close_loop")
        pipeline._is_running = False
        return user_end()

    return end


def _wrap_reset(pipeline: Pipeline, user_reset: Callable[[], Any]) -> Callable[[], Any]:
    def reset() -> Any:
        pipeline._call_top_down("reset")
        return user_reset()

    return reset


_HOOKS: dict[str, Callable[[Pipeline, Callable[[], Any]], Callable[[], Any]]] = {
    "begin": _wrap_begin,
    "end": _wrap_end,
    "reset": _wrap_reset,
}
