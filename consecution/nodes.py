"""What users write: nodes, and the nodes that come ready made."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import itertools
import math
import operator
import sys
import traceback
import types
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from consecution import graph
from consecution.calling import IN_PYTHON
from consecution.clock import Clock
from consecution.error_policy import Decide, ErrorPolicy
from consecution.errors import GraphError, MissingExtraError
from consecution.protocol.values import USER_ERRORS, Labelled
from consecution.routing import RouteChooser

if TYPE_CHECKING:
    from consecution.item_loop import ItemLoop
    from consecution.pipeline import Pipeline

MOST_REPLICAS = 1024
CHUNK_TICKS = 4
"""So many ticks make up the time of a chunk, and at the last it goes: it has waited for three of them, or more."""
BATCH = "batch"
"""Marks the list that a `GroupByNode` has failed at: tried again it is a batch, and no item."""
PLOT_KINDS = ("pdf", "png")
GRAPHVIZ_HELP = """

=========================================================
Graphviz could not draw the graph; is it installed?
http://www.graphviz.org/
On a mac:    brew install graphviz
On ubuntu:   apt-get install graphviz
=========================================================

"""


def check_seconds(seconds: Any, where: str, expected: str = "a number of seconds") -> None:
    """GraphError for what is no length of time, or no rate."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise GraphError(f"{where}: expected {expected} greater than 0")


class _Failed:
    """`Node.failed`. Assigning is allowed: a node with an attribute of its own of that name keeps it."""

    @overload
    def __get__(self, node: None, owner: type[Node]) -> _Failed: ...
    @overload
    def __get__(self, node: Node, owner: type[Node]) -> FailedEdge: ...
    def __get__(self, node: Node | None, owner: type[Node]) -> _Failed | FailedEdge:
        return self if node is None else node._own_failed_edge()


_SET_AT_FIRST = (
    "name",
    "clock",
    "_upstream_nodes",
    "_downstream_nodes",
    "_failed_edge",
    "_output_edges",
    "_stands_behind",
)
"""Attributes that `Node.__init__` makes."""


class Node:
    """A step of a pipeline. Inherit from it and define ``process(self, item)``.

    ``process`` is given one item at a time and calls ``self.push(item)`` for each item it makes: none,
    one or many; ``self.push(item, to="late")`` sends one to ``node["late"]`` instead. ``begin`` and ``end`` run once
    before the first and after the last item of a stream; pushing is possible everywhere but in ``begin``.
    Keyword arguments become attributes.

    ``process`` may be a coroutine (``async def``): then up to ``concurrency`` items are on their way at once. What
    they push keeps the order of the items. ``begin`` may be async as well, and ``close``, which is called last. Such
    a node keeps nothing: it has no ``end``, no timer and no state.

    In a run with several workers the replicas of a node share nothing: attributes are those of one replica, not of
    another, nor of the process that started the run. With ``workers=n`` a node that has no ``end`` and no `on_timer`,
    and something behind it, has n replicas unless ``node * m`` says otherwise: inherit from `StatefulNode` or
    `KeyedNode` where something is to be kept.
    """

    replicas: int = 1
    replicas_given: bool = False
    max_replicas: int | None = None
    stateless: bool = False
    """Say True where attributes change from batch to batch and it does not matter, as with a cache."""
    any_order: bool = False
    """Say True where it does not matter in which order a source's items come: `workers` may then split the source."""
    timer_s: float | None = None
    """How often `on_timer` is called, in seconds; None: never."""
    key_function: Callable[[Any], Any] | None = None
    error_policy: ErrorPolicy | None = None
    failed = _Failed()
    """Where items go that are given up here: ``node.failed | handler``. See `FailedEdge`."""
    outputs: tuple[str, ...] = ()
    """The names that ``self.push(item, to=name)`` may use, where the class says so. See `OutputEdge`."""
    concurrency: int = 100
    """Where ``process`` is async: so many items may be on their way at once, in each replica."""
    timeout_s: float | None = None
    """Where ``process`` is async: an item that takes longer fails; None: the run's own ``timeout_s``."""
    pipeline: Pipeline
    push: Callable[..., Any]
    global_state: Any
    _process: Callable[[Any], Any]
    _pass_on: Callable[..., Any]
    _stem: str | None = None
    """What a name is made from that the user did not give; the graph may number it: f, f_2."""
    _plot_shape = "rectangle"
    _may_push_by_name = False
    """Whether the class says that it has outputs, or does so in its code."""

    _is_async = False
    """Whether ``process`` is a coroutine."""
    _hooks: tuple[str, ...] = ("begin", "process", "end", "on_timer")
    """Methods that are called for what they do."""
    _item_loop: ItemLoop | None = None
    """Where the coroutines run; an engine provides it, `Pipeline.consume` makes one."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._may_push_by_name = (_are_names(cls.outputs) and bool(cls.outputs)) or _mentions_to(cls)
        cls._is_async = inspect.iscoroutinefunction(cls.process)

    def __init__(self, name: str, **kwargs: Any) -> None:
        for key, value in kwargs.items():
            setattr(self, key, value)
        self.name = name
        self.clock = Clock()
        self._upstream_nodes: list[Node] = []
        self._downstream_nodes: list[Node] = []
        self._failed_edge: FailedEdge | None = None
        self._output_edges: dict[str, OutputEdge] = {}
        self._led_outputs: tuple[str, ...] = ()
        self._logging: str | None = None
        self._stands_behind: str | None = None
        self._check_async()
        self._check_hooks()

    if not TYPE_CHECKING:  # who checks types is to go on telling of names that are not there

        def __getattr__(self, name: str) -> Any:
            """Called for what is not there: say why, where that is known."""
            if name == "push":
                why = "nothing can be pushed in begin(), nor before a stream; do it in process() or end()"
            elif name in _SET_AT_FIRST:
                why = f"let the __init__ of {type(self).__name__} call super().__init__(name) before all else"
            else:
                return object.__getattribute__(self, name)  # raises what Python does, or a property of the user's
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}: {why}", name=name, obj=self
            )

    def _check_hooks(self) -> None:
        """A method that yields would be called, run nothing of it, and every item be lost without a word."""
        for name in self._hooks:
            method = getattr(type(self), name)
            if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
                raise GraphError(
                    f"{self}: {type(self).__name__}.{name} holds a yield, and so a call would run nothing of it: write "
                    "it without; what a node makes of an item it passes on with self.push(...)"
                )

    def _check_async(self) -> None:
        kind = type(self).__name__
        if not self._is_async:
            if inspect.iscoroutinefunction(type(self).begin):
                raise GraphError(f"{self}: {kind}.begin is async, and process is not: make both async, or neither")
            return
        if self._is_durable():
            raise GraphError(
                f"{self}: {kind}.process is async, and a node with items on their way cannot keep anything; it has an "
                "end, a timer or a state: let an async node push what it found to a KeyedNode or StatefulNode"
            )
        if type(self.concurrency) is not int or self.concurrency < 1:
            raise GraphError(f"{self}: concurrency={self.concurrency!r}: expected a whole number of 1 or more")
        if self.timeout_s is not None:
            check_seconds(self.timeout_s, f"{self}: timeout_s={self.timeout_s!r}")

    # -- what users override ---------------------------------------------------------------------

    def process(self, item: Any) -> Any:
        """Called once for each item. Must be overridden; what it returns is ignored."""
        raise NotImplementedError(
            f"Error in node named {self.name!r}\nYou must define a .process(self, item) method on all nodes"
        )

    def begin(self) -> Awaitable[None] | None:
        """Called once before the first item, in the process that runs this replica. May not push.

        It is async where ``process`` is.
        """
        return None

    def end(self) -> None:
        """Called once after the last item of the stream, when all parents have ended. May push."""

    def on_timer(self) -> None:
        """Called every so many seconds while a run goes on: say how many with `every`. May push.

        In ``robust`` what it changes and pushes is one commit. Not called in `Pipeline.consume`, nor once the
        stream has ended or the run stops.
        """

    def reset(self) -> None:
        """Called by `Pipeline.reset`, for whatever should start anew."""

    # -- identity --------------------------------------------------------------------------------

    def __str__(self) -> str:
        return f"N({self.name})"

    __repr__ = __str__

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return hash(self) == hash(other) if isinstance(other, Node) else NotImplemented

    def __lt__(self, other: Node) -> bool:
        return self.name < other.name

    def __getitem__(self, key: Any) -> OutputEdge:
        """Where items go that are pushed to a name: ``node["late"] | handler``. See `OutputEdge`."""
        if isinstance(key, str) and self._may_push_by_name:
            return self._own_output(key)
        raise GraphError(
            f"\n\nYou cannot call __getitem__ on nodes.  You tried to call\n{self} [{key}]\n"
            f"which doesn't make sense.  You probably meant\n{self} | [{key}]\n"
            f"({type(self).__name__} has no outputs: its methods do not call self.push(item, to=name), nor does it "
            "declare outputs = (name,))\n"
        )

    def rename(self, name: str) -> None:
        """Give the node another name. Nobody looks whether it is free: `add_downstream` does."""
        self.name = name
        for node in graph.children_of(self):
            node._parent_renamed(self)

    def _parent_renamed(self, parent: Node) -> None:
        """For those whose own name holds that of their parent."""

    # -- composition -----------------------------------------------------------------------------

    def __or__(self, other: Any) -> Node:
        graph.lead_into(self, other)
        return self

    def __ror__(self, other: Any) -> Node:
        graph.check_unused(self)
        graph.connect(other, self)
        return self

    def copy(self, prefix: str) -> Node:
        """A copy of the whole chain that this node is part of, to be put into a graph beside it.

        ``clean = parse | check`` is one chain and can stand in one place; ``a | clean.copy("a_")`` and
        ``b | clean.copy("b_")`` are two. ``prefix`` comes before all names, so that they differ. What the nodes hold
        is copied too. Take copies of a chain that is kept apart: once it is part of a graph, that is the chain.
        """
        copied: Node = graph.copy_chain(self, prefix)
        return copied

    def __mul__(self, replicas: int) -> Node:
        """``node * n``: n replicas of this node share the work, whatever ``workers`` is."""
        if type(replicas) is not int or not 1 <= replicas <= MOST_REPLICAS:
            raise GraphError(f"{self} * {replicas!r}: expected a whole number of replicas from 1 to {MOST_REPLICAS}")
        self.replicas = replicas
        self.replicas_given = True
        return self

    __rmul__ = __mul__

    def by(self, key_function: Callable[[Any], Any]) -> Node:
        """Group the items that reach this node by key: one key always meets the same replica."""
        graph.check_function(key_function, f"{self}.by({key_function!r})", "a function that returns an item's key")
        self.key_function = key_function
        return self

    def every(self, seconds: float) -> Node:
        """Call `on_timer` every so many seconds, in each replica."""
        check_seconds(seconds, f"{self}.every({seconds!r})")
        self.timer_s = float(seconds)
        return self

    def on_error(
        self, action: str | Decide | None = None, *, retries: int | None = None, delay_s: float | None = None
    ) -> Node:
        """Say what becomes of an item that raises here: ``Parse("parse").on_error("retry", retries=5)``.

        ``action`` is "retry" (then, after ``retries`` more tries, it is given up), "park" (given up at once), "stop"
        (given up, and the run stops as after a request to drain, with an error), or a function of (error, item)
        that returns one of these, called where the exception was raised. The item is what this node was given,
        or, where a router behind it raises, or what a plain node behind it is grouped `by`, what it pushed. What is
        not said is as the run's options have it: ``on_error``, ``retries``, ``retry_delay_s``. Only ``robust`` can
        retry; elsewhere "retry" means "park".
        """
        self.error_policy = ErrorPolicy.of(str(self), action, retries, delay_s)
        return self

    def add_downstream(self, other: Node) -> None:
        """Connect a node after this one. GraphError for double names, loops, and what is no node."""
        if not isinstance(other, Node):
            raise GraphError(f"Trying to connect a non-node type: {other!r} after {self}")
        if self is other:
            raise GraphError(f"{self} can't be downstream to itself")
        graph.name_apart(self, other)
        self._downstream_nodes.append(other)
        other._upstream_nodes.append(self)
        try:
            graph.check_names(self)
            graph.check_cycles(self)
        except GraphError:
            self._downstream_nodes.pop()
            other._upstream_nodes.pop()
            raise

    def _own_failed_edge(self) -> FailedEdge:
        if self._failed_edge is None:
            self._failed_edge = FailedEdge(self)
        return self._failed_edge

    def _own_output(self, name: str) -> OutputEdge:
        declared = self._declared_outputs()
        if not name or (declared and name not in declared):
            raise GraphError(
                f"{self}[{name!r}]: expected one of the outputs that {type(self).__name__} declares: "
                f"{', '.join(map(repr, declared))}"
                if declared
                else f"{self}[{name!r}]: expected the name of an output"
            )
        if name not in self._output_edges:
            self._output_edges[name] = OutputEdge(self, name)
        return self._output_edges[name]

    def _declared_outputs(self) -> tuple[str, ...]:
        declared = type(self).outputs
        if _are_names(declared):
            return tuple(declared)
        raise GraphError(f"{type(self).__name__}.outputs: expected a tuple of names, found {declared!r}")

    def _leading_outputs(self) -> list[tuple[str, OutputEdge]]:
        """The named outputs that something is connected to, in the order they were first named."""
        return [(name, edge) for name, edge in self._output_edges.items() if edge._downstream_nodes]

    def remove_downstream(self, other: Node) -> None:
        """Disconnect a node; nothing happens if it is not connected."""
        self._downstream_nodes = [node for node in self._downstream_nodes if node is not other]
        other._upstream_nodes = [node for node in other._upstream_nodes if node is not self]
        other._stands_behind = None

    def _replace_downstream(self, old: Node, new: Node) -> None:
        self._downstream_nodes = [new if node is old else node for node in self._downstream_nodes]

    def _replace_upstream(self, old: Node, new: Node) -> None:
        self._upstream_nodes = [new if node is old else node for node in self._upstream_nodes]

    def _relink(self, node: Node, twins: Mapping[Node, Node]) -> None:
        """Take the neighbours, all of them copies, of the node that this is a copy of."""
        self._downstream_nodes = [twins[below] for below in node._downstream_nodes]
        self._upstream_nodes = [twins[above] for above in node._upstream_nodes]

    # -- walking ---------------------------------------------------------------------------------

    @property
    def top_node(self) -> Node:
        """The one node at the top of the graph; ValueError where there are several."""
        roots = self.root_nodes
        if len(roots) > 1:
            raise GraphError(f"You must remove one of the following input nodes {roots}")
        return roots[0]

    @property
    def root_nodes(self) -> list[Node]:
        """All nodes of the graph that nothing flows into."""
        return graph.tops_of(self)

    @property
    def terminal_node_set(self) -> set[Node]:
        """The ends below this node."""
        return {node for node in self.depth_first_walk("down") if not node._downstream_nodes}

    @property
    def initial_node_set(self) -> set[Node]:
        """The beginnings above this node; a graph under construction may have several."""
        return {node for node in self.depth_first_walk("up") if not node._upstream_nodes}

    @property
    def all_nodes(self) -> set[Node]:
        """Every node of the graph."""
        return set(graph.walk(self, "both", "depth_first"))

    def walk(self, direction: str = "both", how: str = "breadth_first", as_ordered_list: bool = False) -> Any:
        """The nodes reached going 'up', 'down' or 'both' ways; a set, or a list in the order met."""
        met = graph.walk(self, direction, how)
        return met if as_ordered_list else set(met)

    def depth_first_walk(self, direction: str = "both", as_ordered_list: bool = False) -> Any:
        """`walk`, depth first."""
        return self.walk(direction, "depth_first", as_ordered_list)

    def breadth_first_walk(self, direction: str = "both", as_ordered_list: bool = False) -> Any:
        """`walk`, breadth first."""
        return self.walk(direction, "breadth_first", as_ordered_list)

    def top_down_call(self, method_name: str) -> None:
        """Call the named method on this node and all below it, parents before children."""
        for node in graph.sort_top_down([self]):
            getattr(node, method_name)()

    def top_down_make_repr(self) -> None:
        """Write the text of the graph into the pipeline, a line per node, top down."""
        if not hasattr(self, "pipeline"):
            raise ValueError("top_down_make_repr can only be called for nodes in a pipeline")
        self.pipeline._longest_node_name_len_ = max(len(node.name) for node in self.all_nodes)
        self.pipeline._node_repr = ""
        for node in graph.sort_top_down(self.root_nodes):
            node._add_repr()

    def _add_repr(self) -> None:
        below = sorted(node.name for node in self._downstream_nodes)
        if below:
            shown = below[0] if len(below) == 1 else f"[{', '.join(below)}]"
            width = self.pipeline._longest_node_name_len_
            self.pipeline._node_repr += f"{self.name: >{width}s} | {shown}\n"

    def _get_exposed_slots(self, obj: Any, pointing: str) -> set[Node]:
        return set(graph.exposed(obj, pointing))

    # -- looking ---------------------------------------------------------------------------------

    def log(self, what: Literal["input", "output"]) -> None:
        """Print every item this node takes in ('input') or pushes ('output')."""
        if what not in ("input", "output"):
            raise ValueError(f"'what' argument must be in ['input', 'output'], found {what!r}")
        self._logging = what

    def _write_log(self, item: Any) -> None:
        """To be looked at takes no item down, whatever it is."""
        try:
            text = f"{item}"
        except USER_ERRORS as error:
            text = f"<{type(item).__name__}, whose str raises {type(error).__name__}>"
        line = f"node_log,{self._logging},{self.name},{text}\n"
        try:
            sys.stdout.write(line)
        except UnicodeEncodeError:
            sys.stdout.write(line.encode("ascii", "backslashreplace").decode())

    def _build_pydot_graph(self) -> Any:
        try:
            from graphviz import Digraph
        except ImportError as error:
            raise MissingExtraError(
                "plotting needs the graphviz package: pip install 'consecution[plot]'", extra="plot"
            ) from error
        drawing = Digraph(comment="pipeline")
        nodes = [node for node in graph.walk(self, "both", "breadth_first") if not isinstance(node, SideEdge)]
        for node in nodes:
            drawing.node(name=node.name, shape=node._plot_shape)
        for node in nodes:
            for below in node._downstream_nodes:
                drawing.edge(tail_name=node.name, head_name=below.name)
            for output, edge in node._leading_outputs():
                for below in edge._downstream_nodes:
                    drawing.edge(tail_name=node.name, head_name=below.name, label=output)
            for handler in node._failed_edge._downstream_nodes if node._failed_edge is not None else ():
                drawing.edge(tail_name=node.name, head_name=handler.name, label="failed", style="dashed")
        return drawing

    def plot(self, file_name: str = "pipeline", kind: str = "png") -> None:
        """Draw the graph into ``file_name``, as 'png' or 'pdf'. Needs Graphviz and its Python package.

        ValueError for another kind, MissingExtraError without the package, RuntimeError without Graphviz.
        """
        if kind not in PLOT_KINDS:
            raise ValueError(f"Only the following kinds are supported: {PLOT_KINDS}; found {kind!r}")
        drawing = self._build_pydot_graph()
        drawing.format = kind
        try:
            drawing.render(file_name.replace(f".{kind}", ""))
        except RuntimeError:
            sys.stderr.write(GRAPHVIZ_HELP)
            raise

    # -- item by item, in one thread (`Pipeline.consume`) ----------------------------------------

    def _logged_process(self, item: Any) -> None:
        if self._logging == "input":
            self._write_log(item)
        self.process(item)

    def _begin(self) -> None:
        try:
            if self._is_async:
                self._own_loop().call(self.begin)
            else:
                self.begin()
        except AttributeError as error:
            where = [at for at in traceback.extract_tb(error.__traceback__) if at.name != "__getattr__"][-1]
            traceback.print_exc()
            raise AttributeError(
                f"{error}\n\nError in .begin() method of '{self.name}' node.\n"
                "Are you trying to call .push() from inside the\n.begin() method?  That is not allowed.\n\n"
                f"file: {where.filename}, line{where.lineno}\n--> {where.line}\n\n"
            ) from error

    def _break_off(self) -> None:
        """The stream broke off with an exception: forget what was gathered. Items may come again."""
        self._close_loop()

    def _own_loop(self) -> ItemLoop:
        if self._item_loop is None:
            from consecution.item_loop import ItemLoop

            self._item_loop = ItemLoop(self, self.timeout_s)
        return self._item_loop

    def _close_loop(self) -> None:
        loop, self._item_loop = self._item_loop, None
        if loop is not None:
            close = getattr(self, "close", None)
            loop.close(close if inspect.iscoroutinefunction(close) else None)

    def _process_now(self, item: Any) -> None:
        """Wait for the coroutine of one item, and only then pass on what it has pushed."""
        if self._logging == "input":
            self._write_log(item)
        job = self._own_loop().run([item])
        if job.errors[0] is not None:
            raise job.errors[0]
        for made in job.outs[0] or ():
            if type(made) is Labelled:
                self._pass_on(made.item, to=made.label)
            else:
                self._pass_on(made)

    def _push_function(self) -> Callable[..., Any]:
        """What ``self.push`` is, item by item: as few calls as the nodes below allow."""
        below = [node._processor_from(self) for node in self._downstream_nodes]
        if len(below) == 1 and self._logging != "output" and not self._pushes_by_name() and not self._is_async:
            return below[0]

        def push(item: Any) -> None:
            for process in below:
                process(item)

        if self._pushes_by_name():
            edges = {name: edge._item_processor() for name, edge in self._leading_outputs()}
            push = self._by_name(push, lambda to, item: edges[to](item))
        push = self._logging_to(push) if self._logging == "output" else push
        return self._from_hand(push) if self._is_async else push

    def _from_hand(self, pass_on: Callable[..., Any]) -> Callable[..., Any]:
        from consecution.item_loop import push_from_hand

        self._pass_on = pass_on
        push: Callable[..., Any] = push_from_hand
        return self._by_name(push, lambda to, item: push(Labelled(to, item))) if self._pushes_by_name() else push

    def _processor_from(self, above: Node) -> Callable[[Any], Any]:
        """What takes an item that ``above`` pushes to this node."""
        return self._item_processor()

    # -- frame by frame, in an engine ------------------------------------------------------------

    def _item_processor(self) -> Callable[[Any], Any]:
        if self._is_async:
            return self._process_now
        return self.process if self._logging is None else self._logged_process

    def _process_frame(self, cursor: Iterator[Any], out: list[Any]) -> None:
        """Run the node over every item of ``cursor``; what it pushes lands in ``out``, in order.

        ``self.push`` adds to ``out`` already (`_push_into`). When an item raises, what it had pushed is taken back
        and the exception propagates; called again with the same cursor, the node goes on after that item.
        """
        if self._is_async:
            self._process_frame_async(cursor, out)
            return
        process = self._item_processor()
        mark = len(out)
        try:
            for item in cursor:
                process(item)
                mark = len(out)
        except BaseException:
            del out[mark:]
            raise

    def _process_frame_async(self, cursor: Iterator[Any], out: list[Any]) -> None:
        """Run all coroutines of the frame at the first call, and take in one result after another."""
        if self._frame_ahead is None or self._frame_ahead[0] is not cursor:
            items = list(copy.copy(cursor))
            self._log_input(items)
            self._push_from_hand()
            job = self._own_loop().run(items)
            self._frame_ahead = cursor, zip(job.outs, job.errors, strict=True)
        for made, error in self._frame_ahead[1]:
            next(cursor)
            if error is not None:
                raise error
            out.extend(made or ())
        self._frame_ahead = None

    def _push_from_hand(self) -> None:
        """Let ``self.push`` add to what the item pushes in whose coroutine it is called."""
        from consecution.item_loop import push_from_hand

        self._push_by(push_from_hand)

    def _log_input(self, items: list[Any]) -> None:
        for item in items if self._logging == "input" else ():
            self._write_log(item)

    _meet_gathered: Callable[[Any], None] | None = None
    """Where the worker may be about to die of it: called with what was gathered, as `_blame` gives it, before that is
    processed. Raises an error where it must not be."""

    def _blame(self, item: Any, error: BaseException) -> Any:
        """What has failed where ``error`` was raised at this item. The state may be as it was before the item."""
        return item

    def _before_end(self) -> None:
        """What an engine calls before ``end``; what it raises is a failure of what `_blame` says, and ends nothing."""

    _frame_ahead: tuple[Iterator[Any], Iterator[tuple[list[Any] | None, BaseException | None]]] | None = None

    def _push_into(self, out: list[Any]) -> None:
        """Let ``self.push`` add to ``out``; what is pushed to a name is labelled with it."""
        self._push_by(out.append)

    def _push_by(self, append: Callable[[Any], Any]) -> None:
        if self._pushes_by_name():
            push = self._by_name(append, lambda to, item: append(Labelled(to, item)))
            self.push = self._logging_to(push) if self._logging == "output" else push
        else:
            self.push = self._logging_to(append) if self._logging == "output" else append

    def _pushes_by_name(self) -> bool:
        """Whether ``self.push`` must know of names: anything else would slow down all who need none."""
        return bool(self._may_push_by_name or self._output_edges or self._led_outputs)

    def _by_name(self, push: Callable[[Any], Any], push_to: Callable[[str, Any], Any]) -> Callable[..., None]:
        leading = {*self._led_outputs, *(name for name, _ in self._leading_outputs())}
        known = {**dict.fromkeys(self._declared_outputs(), False), **dict.fromkeys(leading, True)}

        def push_by_name(item: Any, *, to: str | None = None) -> None:
            if to is None:
                push(item)
            elif to not in known:
                raise self._no_output(to, sorted(known))
            elif known[to]:
                push_to(to, item)

        return push_by_name

    def _no_output(self, to: str, known: list[str]) -> GraphError:
        has = f"it has {', '.join(map(repr, known))}" if known else "it has none"
        return GraphError(
            f"{self}: push(..., to={to!r}): it has no output of that name, {has}; connect one, "
            f'{self.name}["{to}"] | handler, or, if it may lead nowhere, declare it in the class: outputs = ("{to}",)'
        )

    def _logging_to(self, push: Callable[..., Any]) -> Callable[..., None]:
        def log_and_push(item: Any, **to: str) -> None:
            self._write_log(item)
            push(item, **to)

        return log_and_push

    def _wants_end(self) -> bool:
        """Whether something happens at the end of the stream."""
        return type(self).end is not Node.end

    def _is_durable(self) -> bool:
        """Whether ``robust`` keeps something for this node: what ``end`` does it does with what was gathered."""
        return self._wants_end() or self._has_timer()

    def _may_be_spread(self) -> bool:
        """Whether each worker may have a replica of its own, unasked: it keeps nothing, and ends nothing."""
        return not self._is_durable() and bool(self._downstream_nodes or self._leading_outputs())

    def _has_timer(self) -> bool:
        return type(self).on_timer is not Node.on_timer

    def _grouping_key(self) -> Callable[[Any], Any] | None:
        """The function by whose value items are grouped over the replicas; None: any replica will do."""
        return self.key_function

    def _detached_copy(self) -> Self:
        """A shallow copy without its place in a graph, to be shipped or made a replica of."""
        twin = copy.copy(self)
        for attribute in ("pipeline", "push", "global_state", "_process", "_pass_on", "_item_loop", "_frame_ahead"):
            twin.__dict__.pop(attribute, None)
        twin._upstream_nodes, twin._downstream_nodes, twin._failed_edge = [], [], None
        twin._led_outputs = (*self._led_outputs, *(name for name, _ in self._leading_outputs()))
        twin._output_edges, twin._stands_behind = {}, None
        return twin


def _are_names(outputs: Any) -> bool:
    """Whether an attribute of that name means ours; with any other value it is the class's own, as it was in 0.2.0."""
    return isinstance(outputs, (tuple, list)) and all(isinstance(name, str) for name in outputs)


def _mentions_to(kind: type) -> bool:
    """Whether the code of a class of nodes calls something with ``to=...``, as ``push`` would be."""
    own = [value for base in kind.__mro__ if base not in (Node, object) for value in vars(base).values()]
    functions = [inspect.unwrap(value) for value in own if isinstance(value, types.FunctionType)]
    return any(_has_to(getattr(function, "__code__", None)) for function in functions)


def _has_to(code: Any) -> bool:
    """Names of keyword arguments are constants of the code that calls."""
    constants = getattr(code, "co_consts", ())
    return any("to" in constant if type(constant) is tuple else _has_to(constant) for constant in constants)


class SideEdge(Node):
    """A way out of a node beside the usual one. It is no step of its own: engines make it part of that node."""

    def __init__(self, node: Node, name: str) -> None:
        super().__init__(name)
        self._stem = name
        self._upstream_nodes = [node]

    def _name_at(self, parent: Node) -> str:
        raise NotImplementedError

    def _beside(self, node: Node) -> SideEdge:
        """The same edge of another node."""
        raise NotImplementedError

    def _parent_renamed(self, parent: Node) -> None:
        self._stem = self._name_at(parent)
        self.rename(self._stem)


class OutputEdge(SideEdge):
    """Leads the items that a node pushes to a name to whoever wants them: ``parse["late"] | JsonLines("late", ...)``.

    Anything may follow that may follow a node; ``[parse["late"], store["late"]] | handler`` lets several share a
    handler. What is pushed without a name goes on as ever, and only that. A name that nothing is connected to is
    an error of the item that pushes to it, unless the class of the node declares it: ``outputs = ("late",)``. Then
    what is pushed to it is dropped, and no other name may be connected. A class that leaves pushing to others must
    declare its outputs.
    """

    def __init__(self, node: Node, output: str) -> None:
        self.output = output
        super().__init__(node, self._name_at(node))

    def _name_at(self, parent: Node) -> str:
        return f"{parent.name}[{self.output}]"

    def _beside(self, node: Node) -> OutputEdge:
        return node._own_output(self.output)

    def process(self, item: Any) -> None:
        """Only in `Pipeline.consume`; engines have no such step."""
        self.push(item)


class FailedEdge(SideEdge):
    """Leads the items that are given up at a node to whoever wants them: ``parse.failed | JsonLines("bad", ...)``.

    What arrives is a `Failure` per item: node, item, error, traceback, attempts. It comes instead of the entry in
    the failure store: after the retries, at once where ``on_error`` says "park", and for items that take their
    worker down. At "stop" the item is kept, and the run stops. Anything may follow that may follow a node, and
    several nodes may share a handler: ``[parse.failed, store.failed] | handler``. What fails further down is kept as
    failed; no failed edge takes it but its own node's.

    `Pipeline.consume` does without it.
    """

    def __init__(self, node: Node) -> None:
        super().__init__(node, self._name_at(node))

    def _name_at(self, parent: Node) -> str:
        return f"{parent.name}.failed"

    def _beside(self, node: Node) -> FailedEdge:
        return node._own_failed_edge()

    def process(self, item: Any) -> None:
        """Never called: nothing is pushed into it."""


class RouterNode(Node):
    """Sends each item to one of the nodes behind it: ``choose(item)`` is its name or index.

    Made by ``a | [b, c, function]`` and by `Route`; engines make it part of the node before it. Without
    ``choose`` items go round robin.
    """

    _plot_shape = "oval"
    _suffix: str | None = None
    """What follows the parent's name in this one's."""

    def __init__(self, name: str, choose: Callable[[Any], str | int] | None) -> None:
        super().__init__(name)
        self._stem = name
        self.choose = choose
        self._end_points: list[Node] = []
        self._called: dict[Node, str] = {}
        """What ``choose`` calls an end point whose name is another by now: that of a copy."""

    @property
    def _end_point_map(self) -> dict[str, Node]:
        """What an item may be sent to, by name, in the order of their indices."""
        return {self._called.get(node, node.name): node for node in self._end_points}

    def add_downstream(self, other: Node) -> None:
        """Connect a node after this one, as a choice more."""
        super().add_downstream(other)
        self._end_points.append(other)

    def _replace_downstream(self, old: Node, new: Node) -> None:
        super()._replace_downstream(old, new)
        self._end_points = [new if node is old else node for node in self._end_points]
        if old in self._called:
            self._called[new] = self._called.pop(old)

    def _relink(self, node: Node, twins: Mapping[Node, Node]) -> None:
        super()._relink(node, twins)
        assert isinstance(node, RouterNode)
        self._called = {twins[end]: called for called, end in node._end_point_map.items()}
        self._end_points = list(self._called)

    def _parent_renamed(self, parent: Node) -> None:
        if self._suffix is not None:
            self._stem = f"{parent.name}.{self._suffix}"
            self.rename(self._stem)

    def begin(self) -> None:
        self._chooser = RouteChooser(self.name, self.choose, tuple(self._end_point_map))
        self._ways = [node._processor_from(self) for node in self._end_points]

    def process(self, item: Any) -> None:
        self._ways[self._chooser.index_of(item)](item)


_RouterNode = RouterNode


class GroupByNode(Node):
    """Collects consecutive items of one key and hands them to ``process(batch)`` as a list.

    The last batch, empty where no item came, is handed over before ``end``, wherever that is overridden.

    In a run a batch whose ``process`` raises fails as one item, the list; the item that came after it begins the next
    batch all the same. `Pipeline.consume` ends with the exception.
    """

    _NO_KEY = object()
    _is_flushed_ = False
    """The last batch was handed over, and no item has come since."""
    _batch_failure_: _BatchFailure | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls.end, "_flushes"):
            cls.end = _flush_before(cls.end)  # type: ignore[assignment,method-assign]

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self._batch_: list[Any] = []
        self._previous_key: Any = self._NO_KEY

    def key(self, item: Any) -> Any:
        """The key of an item. Must be overridden."""
        raise NotImplementedError("you must define a .key(self, item) method on all GroupBy nodes.")

    def process(self, batch: list[Any]) -> Any:
        """Called with each batch of consecutive items of one key. Must be overridden."""
        raise NotImplementedError("You must define a .process(self, batch) method on all GroupBy nodes.")

    def _process_item(self, item: Any) -> None:
        if type(item) is Labelled:
            self.process(list(item.item))  # a batch that failed, and is tried again
            return
        key = self.key(item)
        if key == self._previous_key:
            self._batch_.append(item)
            return
        batch = self._batch_
        self._begin_batch_([item], key, is_flushed=False)
        if batch:
            self._try_batch_(batch)

    def _begin_batch_(self, batch: list[Any], key: Any, *, is_flushed: bool) -> None:
        self._batch_, self._previous_key, self._is_flushed_ = batch, key, is_flushed

    def _try_batch_(self, batch: list[Any]) -> None:
        given = batch.copy()
        try:
            if self._meet_gathered is not None:
                self._meet_gathered(Labelled(BATCH, given))
            self.process(batch)
        except BaseException as error:
            begun = functools.partial(
                self._begin_batch_, self._batch_, self._previous_key, is_flushed=self._is_flushed_
            )
            self._batch_failure_ = _BatchFailure(error, given, begun)
            raise

    def _blame(self, item: Any, error: BaseException) -> Any:
        """The batch, if it was that; it is given up, and the next one has begun, with the item if there is one."""
        failure, self._batch_failure_ = self._batch_failure_, None
        if failure is None or failure.error is not error:
            return item
        failure.begin_next()
        return Labelled(BATCH, failure.batch)

    def _logged_process(self, item: Any) -> None:
        if self._logging == "input":
            self._write_log(item)
        self._process_item(item)

    def _item_processor(self) -> Callable[[Any], Any]:
        return self._process_item if self._logging is None else self._logged_process

    def _wants_end(self) -> bool:
        return True

    def _before_end(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._is_flushed_:
            return
        batch = self._batch_
        self._begin_batch_([], self._NO_KEY, is_flushed=True)
        self._try_batch_(batch)

    def _begin(self) -> None:
        self._is_flushed_ = False
        super()._begin()

    def _break_off(self) -> None:
        self._begin_batch_([], self._NO_KEY, is_flushed=False)
        self._batch_failure_ = None

    def _detached_copy(self) -> Self:
        twin = super()._detached_copy()
        twin._break_off()
        return twin


@dataclasses.dataclass(frozen=True, slots=True)
class _BatchFailure:
    """A batch whose ``process`` raised, as it was given, and what begins the next one."""

    error: BaseException
    batch: list[Any]
    begin_next: Callable[[], None]


def _flush_before(end: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(end)
    def flush_and_end(self: GroupByNode) -> Any:
        # An override that calls super().end() comes here twice; the outermost flushes.
        if type(self).end is flush_and_end:
            self._flush()
        return end(self)

    flush_and_end._flushes = True  # type: ignore[attr-defined]
    return flush_and_end


GroupByNode.end = _flush_before(Node.end)  # type: ignore[assignment,method-assign]


class _FunctionNode(Node):
    """A node made of a function of one item."""

    def __init__(self, function: Callable[[Any], Any], name: str | None = None) -> None:
        graph.check_function(function, f"{type(self).__name__}({function!r})", "a function of an item")
        super().__init__(name or graph.name_of_callable(function))
        self._stem = None if name else self.name
        self._function = function

    def _has_own_loop(self, kind: type[_FunctionNode]) -> bool:
        """Whether the frame loop of ``kind`` may be used: no subclass changed process, nobody logs."""
        return type(self).process is kind.process and self._logging is None


class Map(_FunctionNode):
    """Pushes ``function(item)`` for every item."""

    def process(self, item: Any) -> None:
        self.push(self._function(item))

    def _process_frame(self, cursor: Iterator[Any], out: list[Any]) -> None:
        if not self._has_own_loop(Map):
            super()._process_frame(cursor, out)
            return
        function = self._function
        if isinstance(function, IN_PYTHON):
            for item in cursor:
                out.append(function(item))
            return
        expected = len(out) + operator.length_hint(cursor)
        out.extend(map(function, cursor))
        if len(out) + operator.length_hint(cursor) != expected:
            # To `extend` a StopIteration looks like the end of the items.
            raise RuntimeError(f"{self}: {graph.name_of_callable(function)} raised StopIteration")


class FlatMap(_FunctionNode):
    """Pushes every item of ``function(item)``, an iterable; a generator function is the usual case."""

    def process(self, item: Any) -> None:
        push = self.push
        for made in self._function(item):
            push(made)

    def _process_frame(self, cursor: Iterator[Any], out: list[Any]) -> None:
        if not self._has_own_loop(FlatMap):
            super()._process_frame(cursor, out)
            return
        function, extend, mark = self._function, out.extend, len(out)
        try:
            for item in cursor:
                extend(function(item))
                mark = len(out)
        except BaseException:
            del out[mark:]
            raise


class Filter(_FunctionNode):
    """Pushes the items for which ``function(item)`` is true."""

    def process(self, item: Any) -> None:
        if self._function(item):
            self.push(item)

    def _process_frame(self, cursor: Iterator[Any], out: list[Any]) -> None:
        if not self._has_own_loop(Filter):
            super()._process_frame(cursor, out)
            return
        function = self._function
        for item in cursor:
            if function(item):
                out.append(item)


class AsyncMap(Node):
    """Pushes what an async function makes of an item, or each item that an async generator function makes of it.

    Up to ``concurrency`` items are on their way at once; what they make keeps the order of the items. An item that
    takes longer than ``timeout_s`` fails (None: the run's own ``timeout_s``). An async function in a chain is one.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        name: str | None = None,
        *,
        concurrency: int = Node.concurrency,
        timeout_s: float | None = None,
    ) -> None:
        if not graph.is_async(function):
            raise GraphError(f"AsyncMap({function!r}): expected an async function of an item; for others there is Map")
        super().__init__(name or graph.name_of_callable(function), concurrency=concurrency, timeout_s=timeout_s)
        self._stem = None if name else self.name
        self._function = function
        self._makes_many = any(map(inspect.isasyncgenfunction, graph.forms_of(function)))

    async def process(self, item: Any) -> None:
        if not self._makes_many:
            self.push(await self._function(item))
            return
        async for made in self._function(item):
            self.push(made)


class Chunk(Node):
    """Pushes lists: of ``n`` items, or of consecutive items for which a function gives the same value.

    What is left at the end of the stream goes as a shorter list. So does what has waited for ``timeout_s``, counted
    from the first item of the list (not in `Pipeline.consume`, where no time passes).
    """

    def __init__(
        self, n_or_function: int | Callable[[Any], Any], name: str | None = None, *, timeout_s: float | None = None
    ) -> None:
        if callable(n_or_function):
            graph.check_function(n_or_function, "Chunk(...)", "a function of an item")
        elif type(n_or_function) is not int or n_or_function < 1:
            raise GraphError(
                f"Chunk({n_or_function!r}): expected a whole number of 1 or more, or a function of an item"
            )
        super().__init__(name or "chunk")
        self._stem = None if name else self.name
        self._by = n_or_function
        self._chunk: list[Any] = []
        self._value: Any = None
        self._ticks = 0
        self._times_out = timeout_s is not None
        if timeout_s is not None:
            check_seconds(timeout_s, f"Chunk({n_or_function!r}, timeout_s={timeout_s!r})")
            self.every(timeout_s / CHUNK_TICKS)

    def begin(self) -> None:
        self._break_off()

    def process(self, item: Any) -> None:
        if callable(self._by):
            self._begin_chunk_if_new(self._by(item))
        self._chunk.append(item)
        if len(self._chunk) == self._by:
            self._flush()

    def end(self) -> None:
        self._cut()
        if self._chunk:
            self._flush()

    def on_timer(self) -> None:
        """Ticks are counted, for a clock would not go on where a crash has stopped it."""
        self._cut()
        if self._chunk:
            self._ticks += 1
            if self._ticks == CHUNK_TICKS:
                self._flush()

    def _has_timer(self) -> bool:
        return self._times_out

    def _begin_chunk_if_new(self, value: Any) -> None:
        if self._chunk and value != self._value:
            self._flush()
        self._value = value

    def _flush(self) -> None:
        chunk, self._chunk, self._ticks = self._chunk, [], 0
        self.push(chunk)

    def _cut(self) -> None:
        """An earlier run with a greater ``n`` may have left more than goes into a list now."""
        if isinstance(self._by, int):
            while len(self._chunk) >= self._by:
                self.push(self._chunk[: self._by])
                del self._chunk[: self._by]

    def _break_off(self) -> None:
        self._chunk, self._value, self._ticks = [], None, 0

    def _detached_copy(self) -> Self:
        twin = super()._detached_copy()
        twin._break_off()
        return twin

    def _process_frame(self, cursor: Iterator[Any], out: list[Any]) -> None:
        self._cut()
        if not isinstance(self._by, int) or type(self).process is not Chunk.process or self._logging is not None:
            super()._process_frame(cursor, out)
            return
        while operator.length_hint(cursor):
            self._chunk.extend(itertools.islice(cursor, self._by - len(self._chunk)))
            if len(self._chunk) == self._by:
                self._flush()


def node_from_function(function: Callable[[Any], Any]) -> Node:
    """The node a bare function stands for: a flat-map if it is a generator function, else a map; or an async one."""
    if graph.is_async(function):
        return AsyncMap(function)
    makes_many = any(map(inspect.isgeneratorfunction, graph.forms_of(function)))
    return FlatMap(function) if makes_many else Map(function)


__all__ = [
    "AsyncMap",
    "Chunk",
    "FailedEdge",
    "Filter",
    "FlatMap",
    "GroupByNode",
    "Map",
    "Node",
    "OutputEdge",
    "RouterNode",
    "SideEdge",
    "node_from_function",
]
