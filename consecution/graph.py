"""What `|` means: nodes, functions, lists and groups become edges, routers and names.

A chain is drawn from the ends of what stands left to the beginnings of what stands right. A list right of
`|` is a broadcast; with a bare function in it, a route by that function. `Broadcast`, `Route` and `Merge`
say the same in words, and nest.

Everything here works on the links that nodes hold (``_upstream_nodes``, ``_downstream_nodes``) and starts
nothing.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from consecution.errors import GraphError, text_of

if TYPE_CHECKING:
    from consecution.nodes import Node

Member = Any
"""What may stand in a chain: a node, a function, a group, or a list of these."""


class Group:
    """Several nodes that stand in a chain together. `Broadcast`, `Merge` and `Route` are its kinds."""

    def __init__(self, members: Iterable[Member], *, name: str | None = None) -> None:
        self.members: list[Node | Group] = [as_member(member) for member in as_list(members, type(self).__name__)]
        self.name = name
        self._stands_behind: str | None = None
        self._prefix = ""

    def __iter__(self) -> Iterator[Node | Group]:
        return iter(self.members)

    def __or__(self, other: Member) -> Group:
        lead_into(self, other)
        return self

    def __ror__(self, other: Member) -> Node | Group:
        # What was left is the chain's beginning now; this group has become its inside.
        left = as_left(other)
        lead_into(left, self)
        return left

    def copy(self, prefix: str) -> Group:
        """A copy of the whole chain that begins with this group, as `Node.copy` makes one of a node's."""
        copied: Group = copy_chain(self, prefix)
        return copied

    def __mul__(self, replicas: int) -> Group:
        raise GraphError(
            f"{self} * {replicas}: only a node has replicas; write them at the nodes inside: [a * {replicas}, b]"
        )

    __rmul__ = __mul__

    def by(self, key_function: Any) -> Group:
        """Refused: only a node is grouped by key."""
        raise GraphError(f"{self}.by(...): only a node is grouped by key; write it at the nodes inside: [a.by(f), b]")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.members})"


class Broadcast(Group):
    """Every item goes to each of the members: ``a | Broadcast([b, c])`` is ``a | [b, c]``.

    Inside a `Route` it is one choice, called ``name`` ('broadcast'): a node that passes its items on to all.
    """

    @functools.cached_property
    def entry(self) -> Node:
        """The node by which a route reaches all members."""
        from consecution.nodes import Map

        entry = Map(pass_on, self.name or "broadcast")
        if self.name is None:
            entry._stem = entry.name
        for beginning in _beginnings(self):
            _attach(entry, beginning)
        return entry


class Merge(Group):
    """What the members push flows together: ``Merge([b, c]) | d`` is ``[b, c] | d``."""


class Route(Group):
    """Each item goes to one of the members.

    ``by(item)`` returns a member's name or index; without it items go round robin. ``a | Route([b, c], f)``
    is ``a | [b, c, f]``. A member that is a list or `Merge` offers each of its nodes as a choice, another
    route the choice to be routed once more.
    """

    def __init__(
        self,
        members: Iterable[Member],
        by: Callable[[Any], str | int] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(members, name=name)
        if by is not None:
            check_function(by, f"Route(..., by={by!r})", "a function that returns a member's name or index")
        self.choose = by


def pass_on(item: Any) -> Any:
    """The item itself."""
    return item


# -- what may stand where ------------------------------------------------------------------------


def as_list(members: Any, where: str) -> list[Any]:
    """The members of a list or group. GraphError where it is no list, is empty, or holds something twice."""
    if isinstance(members, (str, bytes)) or not hasattr(members, "__iter__"):
        raise GraphError(f"{where}: expected a list of nodes, found {members!r}")
    found = list(members)
    if not found:
        raise GraphError(f"{where}: the list of nodes is empty; put at least one node into it")
    _check_each_once(found, where)
    return found


def _check_each_once(members: list[Any], where: str) -> None:
    from consecution.nodes import Node

    times = Counter(id(member) for member in members if isinstance(member, (Node, Group, list, tuple)))
    for member in members:
        if times[id(member)] > 1:
            raise GraphError(
                f"{where}: {member} stands in it {times[id(member)]} times; for replicas multiply each node, "
                'not the list: [b * 2, c * 2]; to use it again under other names, copy it: [b, b.copy("second_")]'
            )


def as_member(member: Member) -> Node | Group:
    """A node or group is itself, a bare function becomes a node, a list a group; GraphError for all else."""
    from consecution.nodes import Node, node_from_function

    if isinstance(member, (Node, Group)):
        return member
    if isinstance(member, type) and issubclass(member, Node):
        raise GraphError(f"{member.__name__} is a class of nodes, not a node: write {member.__name__}(...)")
    if callable(member):
        return node_from_function(member)
    if isinstance(member, (str, bytes)) or not hasattr(member, "__iter__"):
        raise GraphError(
            f"Don't know what to do with {member!r}.  It's not a node, and it's not iterable; a pipeline is made "
            "of nodes, functions, and lists of them."
        )
    return _as_group(as_list(member, "a list right of |"))


def as_left(member: Member) -> Node | Group:
    """The same for what stands left of `|`, where a function in a list has nothing to route to."""
    from consecution.nodes import Node

    if isinstance(member, (Node, Group, str, bytes)) or callable(member) or not hasattr(member, "__iter__"):
        return as_member(member)
    listed = as_list(member, "a list left of |")
    routers = [inner for inner in listed if _is_bare_function(inner)]
    if routers:
        raise GraphError(
            f"a list left of |: {_name_of(routers[0])} is a bare function, which in a list is its router; if it "
            f"is a step, write Map({_name_of(routers[0])})"
        )
    return Merge([as_left(inner) for inner in listed])


def _as_group(listed: list[Any]) -> Group:
    """A list is a route by the bare function in it; without one it is as good as its members."""
    routers = [member for member in listed if _is_bare_function(member)]
    if not routers:
        return Merge(listed)
    names = ", ".join(map(_name_of, routers))
    if len(routers) == len(listed):
        raise GraphError(
            f"a list right of |: the bare function in it ({names}) routes between the nodes beside it, and there "
            "are none; if it is a step, wrap it: Map(function)"
        )
    if len(routers) > 1:
        raise GraphError(
            f"a list right of |: one bare function may stand in it, its router; found {names}; wrap those that "
            "are steps: Map(function)"
        )
    return Route([member for member in listed if not _is_bare_function(member)], routers[0])


def _is_bare_function(member: Any) -> bool:
    from consecution.nodes import Node

    if isinstance(member, type) and issubclass(member, Node):
        return False
    return callable(member) and not isinstance(member, Node)


def check_function(function: Any, where: str, expected: str) -> None:
    """GraphError for what cannot be called with an item, and for async functions."""
    if not callable(function):
        raise GraphError(f"{where}: expected {expected}, found {type(function).__name__}")
    if is_async(function):
        raise GraphError(
            f"{where}: {name_of_callable(function)} is async, and only a step of its own may be: write it between two "
            f"|, as it is or as AsyncMap({name_of_callable(function)})"
        )


def is_async(function: Any) -> bool:
    """Whether calling it makes a coroutine, or an async generator."""
    forms = forms_of(function)
    return any(inspect.iscoroutinefunction(form) or inspect.isasyncgenfunction(form) for form in forms)


def forms_of(function: Callable[..., Any]) -> tuple[Callable[..., Any], ...]:
    """The function, and where it is an object that can be called, the method that is then run."""
    return function, type(function).__call__


def name_of_callable(function: Callable[..., Any]) -> str:
    """The name a node or router gets from its function: ``lambda`` for a lambda, a class's for an object."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    return "lambda" if name == "<lambda>" else str(name)


def _name_of(member: Any) -> str:
    return name_of_callable(member) if _is_bare_function(member) else str(member)


# -- drawing edges -------------------------------------------------------------------------------


_Beginning: TypeAlias = "Node | _Junction"


@dataclass(frozen=True, slots=True, eq=False)
class _Junction:
    """A route with its choices looked up: they must be known before the first edge is drawn."""

    route: Route
    choices: tuple[_Beginning, ...]


def lead_into(left: Node | Group, right: Member) -> None:
    """What ``left | right`` does; ``left`` stands for the chain of both from now on, and ``right`` for nothing."""
    from consecution.nodes import Node

    member = as_member(right)
    inside: list[Node | Group] = [member] if isinstance(member, Node) else [member, *flatten(member)]
    for used in inside:
        check_unused(used)
    connect(left, member)
    for used in inside:
        used._stands_behind = str(left)


def check_unused(right: Node | Group) -> None:
    """GraphError for a chain that stands behind something already: its beginning is not its own any more."""
    if right._stands_behind is not None:
        raise GraphError(
            f"{right} stands in a graph already, behind {right._stands_behind}. Where the chain that it begins is to "
            'stand in several places, let copies stand there: .copy("left_"), .copy("right_"); where several nodes '
            "are to lead into it, write them as a list: [a, b] | ..."
        )


def connect(lefts: Member, rights: Member) -> None:
    """Draw the edges from every end of ``lefts`` to every beginning of ``rights``.

    GraphError, a ValueError, for double names, loops, and what makes no pipeline.
    """
    ends = exposed(as_left(lefts), "right")
    beginnings = _beginnings(as_member(rights))
    name_apart(*ends)
    for end in ends:
        for beginning in beginnings:
            _attach(end, beginning)


def _beginnings(member: Node | Group) -> tuple[_Beginning, ...]:
    """Where edges into a member arrive, each once: at its first nodes, and at routes."""
    if isinstance(member, Route):
        return (_Junction(member, _each_once(map(_choices, member))),)
    if isinstance(member, Group):
        return _each_once(map(_beginnings, member))
    return tuple(exposed(member, "left"))


def _choices(member: Node | Group) -> tuple[_Beginning, ...]:
    """What a route chooses between: each beginning of a member, but a broadcast is one choice."""
    if isinstance(member, Broadcast):
        return (member.entry,)
    if isinstance(member, Merge):
        return _each_once(map(_choices, member))
    return _beginnings(member)


def _each_once(found: Iterable[Iterable[_Beginning]]) -> tuple[_Beginning, ...]:
    return tuple(dict.fromkeys(itertools.chain.from_iterable(found)))


def _attach(left: Node, right: _Beginning) -> None:
    if not isinstance(right, _Junction):
        left.add_downstream(right)
        return
    from consecution.nodes import RouterNode

    route = right.route
    suffix = "round_robin" if route.choose is None else name_of_callable(route.choose)
    router = RouterNode(route.name or f"{left.name}.{suffix}", route.choose)
    router._suffix = None if route.name else suffix
    left.add_downstream(router)
    for choice in right.choices:
        _attach(router, choice)
    if route._prefix:
        router._called = {end: end.name.removeprefix(route._prefix) for end in router._end_points}


def exposed(member: Member, pointing: str) -> list[Node]:
    """The nodes at which a member may be connected: its ends ('right') or its beginnings ('left')."""
    if pointing not in ("left", "right"):
        raise ValueError('pointing must be "left" or "right"')
    found: dict[Node, None] = {}
    for node in flatten(member):
        for walked in walk(node, "up" if pointing == "left" else "down", "breadth_first", sideways=False):
            links = walked._upstream_nodes if pointing == "left" else walked._downstream_nodes
            if not links:
                found.setdefault(walked)
    return list(found)


def flatten(member: Member) -> list[Node]:
    """All nodes of a nested list or group, in order."""
    from consecution.nodes import Node

    made = as_member(member)
    if isinstance(made, Node):
        return [made]
    return [node for inner in made for node in flatten(inner)]


def replace(old: Node, new: Node) -> None:
    """Put ``new`` in the place of ``old``, in its place among its neighbours too. ``old`` is cut off."""
    for up in old._upstream_nodes:
        up._replace_downstream(old, new)
    for down in old._downstream_nodes:
        down._replace_upstream(old, new)
    new._upstream_nodes = old._upstream_nodes + new._upstream_nodes
    new._downstream_nodes = old._downstream_nodes + new._downstream_nodes
    old._upstream_nodes, old._downstream_nodes = [], []
    new._stands_behind, old._stands_behind = old._stands_behind, None
    for name, output in old._leading_outputs():
        _hand_on(output, new._own_output(name))
    if old._failed_edge is not None and old._failed_edge._downstream_nodes:
        _hand_on(old._failed_edge, new._own_failed_edge())


def _hand_on(edge: Node, new: Node) -> None:
    """The handlers behind a side edge are those of another node's from now on."""
    handlers, edge._downstream_nodes = edge._downstream_nodes, []
    for handler in handlers:
        handler._upstream_nodes = [node for node in handler._upstream_nodes if node is not edge]
        new.add_downstream(handler)


def copy_chain(member: Node | Group, prefix: str) -> Any:
    """The copy of a node or group, in a copy of everything that is connected to it; see `Node.copy`."""
    from consecution.nodes import SideEdge
    from consecution.producer import Producer

    if not isinstance(prefix, str) or not prefix:
        raise GraphError(f"{member}.copy({prefix!r}): expected a text to put before the names of the nodes")
    nodes = list(dict.fromkeys(near for node in flatten(member) for near in walk(node, "both", "breadth_first")))
    producers = [node for node in nodes if isinstance(node, Producer)]
    if producers:
        raise GraphError(
            f"{member}.copy({prefix!r}): the chain is part of a graph that begins with {producers[0]}; keep a chain "
            "that is used several times apart, and put only copies of it into graphs"
        )
    twins = {node: _twin_of(node, prefix) for node in nodes if not isinstance(node, SideEdge)}
    for node in nodes:
        if isinstance(node, SideEdge):
            twins[node] = node._beside(twins[node._upstream_nodes[0]])
    for node, twin in twins.items():
        twin._relink(node, twins)
    return _copy_member(member, twins, prefix)


def _twin_of(node: Node, prefix: str) -> Node:
    try:
        twin = copy.deepcopy(node._detached_copy())
    except Exception as error:
        raise GraphError(
            f"{node}.copy({prefix!r}): what the node holds cannot be copied ({text_of(error)}); make "
            "it in begin(), or make the chain in a function that is called once for each place"
        ) from error
    twin._led_outputs = ()
    twin.name = prefix + node.name
    twin._stem = None if node._stem is None else prefix + node._stem
    return twin


def _copy_member(member: Node | Group, twins: dict[Node, Node], prefix: str) -> Node | Group:
    from consecution.nodes import Node

    if isinstance(member, Node):
        return twins[member]
    group = copy.copy(member)
    group.members = [_copy_member(inner, twins, prefix) for inner in member.members]
    group.name = None if member.name is None else prefix + member.name
    group._prefix = prefix + member._prefix
    group._stands_behind = None
    return group


# -- names ---------------------------------------------------------------------------------------


def name_apart(*members: Node) -> None:
    """Before the graphs of some nodes become one: new names for nodes that did not get theirs from the user.

    A name the user gave stays; of equal names made from functions the left one stays: f, f_2, f_3.
    """
    nodes = list(dict.fromkeys(node for member in members for node in walk(member, "both", "depth_first")))
    taken = {node.name for node in nodes if node._stem is None}
    for node in nodes:
        if node._stem is None:
            continue
        if node.name in taken:
            node.rename(_free_name(node._stem, taken))
        taken.add(node.name)


def _free_name(stem: str, taken: set[str]) -> str:
    if stem not in taken:
        return stem
    number = 2
    while f"{stem}_{number}" in taken:
        number += 1
    return f"{stem}_{number}"


def check_names(node: Node) -> None:
    """GraphError where two nodes share a name."""
    counts = Counter(n.name for n in walk(node, "both", "depth_first"))
    doubles = [name for name, count in counts.items() if count > 1]
    if doubles:
        raise GraphError(f"\n\nNode names must be unique.  Duplicates {doubles} found.")


# -- walking -------------------------------------------------------------------------------------


def children_of(node: Node) -> list[Node]:
    """The nodes right after this one; last its side edges, those that lead somewhere: outputs, and the failed edge."""
    edges: list[Node] = [edge for _, edge in node._leading_outputs()]
    if node._failed_edge is not None and node._failed_edge._downstream_nodes:
        edges.append(node._failed_edge)
    return [*node._downstream_nodes, *edges] if edges else node._downstream_nodes


def flows_into(node: Node) -> list[Node]:
    """The nodes right after this one that pushed items come to."""
    return [*node._downstream_nodes, *(edge for _, edge in node._leading_outputs())]


def walk(node: Node, direction: str, how: str, *, sideways: bool = True) -> list[Node]:
    """All nodes that can be reached, in the order they are met. ValueError for another word.

    ``sideways`` False: on the way down no side edges are taken.
    """
    if how not in ("depth_first", "breadth_first"):
        raise ValueError(f"'how' argument must be one of ['depth_first', 'breadth_first'], found {how!r}")
    if direction not in ("up", "down", "both"):
        raise ValueError(f"direction must be 'up', 'down' or 'both', found {direction!r}")
    met: dict[Node, None] = {}
    waiting = deque([node])
    add = waiting.appendleft if how == "breadth_first" else waiting.append
    while waiting:
        current = waiting.pop()
        if current in met:
            continue
        met[current] = None
        ups = current._upstream_nodes if direction != "down" else []
        downs = (children_of(current) if sideways else current._downstream_nodes) if direction != "up" else []
        for neighbor in (*ups, *downs):
            if neighbor not in met:
                add(neighbor)
    return list(met)


def tops_of(node: Node) -> list[Node]:
    """All nodes of the graph that nothing flows into: first those above this one, from left to right as drawn."""
    found: dict[Node, None] = {}
    met: set[Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current not in met:
            met.add(current)
            waiting.extend(reversed(current._upstream_nodes))
            if not current._upstream_nodes:
                found.setdefault(current)
    found.update(dict.fromkeys(other for other in walk(node, "both", "breadth_first") if not other._upstream_nodes))
    return list(found)


def check_cycles(node: Node) -> None:
    """GraphError where a node would come after itself."""
    above = set(walk(node, "up", "depth_first"))
    below = set(walk(node, "down", "depth_first")) - {node}
    if above & below:
        raise GraphError("\n\nYour graph is not acyclic.  It has loops.")


def sort_topologically(tops: Sequence[Node]) -> list[Node]:
    """These nodes and all below them, parents before children, otherwise breadth first as drawn."""
    return _sort(tops, depth_first=False)


def sort_top_down(tops: Sequence[Node]) -> list[Node]:
    """The same nodes, parents before children, otherwise each branch as deep as it goes before the next."""
    return _sort(tops, depth_first=True)


def _sort(tops: Sequence[Node], *, depth_first: bool) -> list[Node]:
    """A node's turn has come when it has been arrived at from all its parents."""
    below = dict.fromkeys(node for top in tops for node in walk(top, "down", "breadth_first"))
    waits_for = Counter([*tops, *(child for node in below for child in children_of(node))])
    arrivals = deque(reversed(tops) if depth_first else tops)
    ordered: list[Node] = []
    while arrivals:
        node = arrivals.pop() if depth_first else arrivals.popleft()
        waits_for[node] -= 1
        if not waits_for[node]:
            ordered.append(node)
            children = children_of(node)
            arrivals.extend(reversed(children) if depth_first else children)
    if len(ordered) < len(below):
        raise GraphError("\n\nYour graph is not acyclic.  It has loops.")
    return ordered
