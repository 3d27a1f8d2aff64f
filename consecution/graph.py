"""What `|` means: nodes, lists and groups become edges, routers and names.

Everything here works on the links that nodes hold (``_upstream_nodes``, ``_downstream_nodes``) and starts
nothing.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from consecution.errors import GraphError

if TYPE_CHECKING:
    from consecution.nodes import Node

Member = Any
"""What may stand in a chain: a node, a function, a group, or a list of these."""


class Group:
    """Several nodes that stand in a chain together. `Broadcast`, `Merge` and `Route` are its kinds."""

    def __init__(self, members: Iterable[Member], *, name: str | None = None) -> None:
        self.members: list[Member] = [as_member(member) for member in as_list(members, type(self).__name__)]
        self.name = name

    def __iter__(self) -> Any:
        return iter(self.members)

    def __or__(self, other: Member) -> Group:
        connect(self, other)
        return self

    def __ror__(self, other: Member) -> Group:
        connect(other, self)
        return self

    def __mul__(self, replicas: int) -> Group:
        raise GraphError(
            f"{self} * {replicas}: only a node has replicas; write them at the nodes inside: [a * {replicas}, b]"
        )

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.members})"


class Broadcast(Group):
    """Every item goes to each of the members: ``a | Broadcast([b, c])`` is ``a | [b, c]``."""


class Merge(Group):
    """What the members push flows together: ``Merge([b, c]) | d`` is ``[b, c] | d``."""


class Route(Group):
    """Each item goes to one of the members.

    ``by(item)`` returns the member's name or index; None sends items round robin. ``a | Route([b, c], f)``
    is ``a | [b, c, f]``.
    """

    def __init__(
        self,
        members: Iterable[Member],
        by: Callable[[Any], str | int] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(members, name=name)
        if by is not None and not callable(by):
            raise GraphError(f"Route(..., by={by!r}): by must be a function of an item, or None for round robin")
        self.by = by


def as_list(members: Any, where: str) -> list[Any]:
    """The members of a list or group; GraphError where there is none, or it is no list."""
    if isinstance(members, (str, bytes)) or not hasattr(members, "__iter__"):
        raise GraphError(f"{where}: expected a list of nodes, found {members!r}")
    found = list(members)
    if not found:
        raise GraphError(f"{where}: the list of nodes is empty; put at least one node into it")
    return found


def as_member(member: Any) -> Member:
    """A bare function becomes a map node, a generator function a flat-map node."""
    from consecution.nodes import Node, node_from_function

    if isinstance(member, (Node, Group)):
        return member
    if callable(member) and not isinstance(member, type):
        return node_from_function(member)
    if isinstance(member, (str, bytes)) or not hasattr(member, "__iter__"):
        raise GraphError(
            f"Don't know what to do with {member!r}.  It's not a node, and it's not iterable; a pipeline is made "
            "of nodes, functions, and lists of them."
        )
    return as_right_member(member)


def connect(lefts: Member, rights: Member) -> None:
    """Draw the edges from every end of ``lefts`` to every beginning of ``rights``."""
    ends = exposed(lefts, "right")
    _connect_ends(ends, as_right_member(rights))


def as_right_member(rights: Member) -> Member:
    """What stands right of a `|`, as a node or a group. A list with a bare function is a route by it."""
    if callable(rights) or isinstance(rights, (Group, str, bytes)) or not hasattr(rights, "__iter__"):
        return as_member(rights)
    listed = as_list(rights, "right of |")
    routers = [member for member in listed if callable(member)]
    if not routers:
        return Broadcast(map(as_right_member, listed))
    if len(listed) == 1:
        return as_member(listed[0])
    if len(routers) > 1:
        raise GraphError(
            f"right of |: a list may hold one bare function, its router; found {len(routers)}: wrap those that "
            "are nodes as Map(function)"
        )
    return Route([as_right_member(member) for member in listed if not callable(member)], routers[0])


def _connect_ends(ends: list[Node], member: Member) -> None:
    if isinstance(member, (Broadcast, Merge)):
        for inner in member:
            _connect_ends(ends, inner)
        return
    _name_apart(ends, member)
    if isinstance(member, Route):
        _connect_route(ends, member.members, member.by, member.name)
        return
    beginnings = exposed(member, "left")
    for left in ends:
        for right in beginnings:
            left.add_downstream(right)


def _connect_route(
    ends: Sequence[Node], members: Iterable[Member], by: Callable[[Any], Any] | None, name: str | None
) -> None:
    from consecution.nodes import RouterNode

    targets = exposed(members, "left")
    for left in ends:
        suffix = name_of_callable(by) if by is not None else "round_robin"
        router = RouterNode(name or f"{left.name}.{suffix}", {node.name: node for node in targets}, by)
        left.add_downstream(router)
        for target in targets:
            router.add_downstream(target)


def _name_apart(ends: Sequence[Node], member: Member) -> None:
    """Give nodes that got their names from functions new ones where the graph has them already."""
    there = {node for end in ends for node in end.all_nodes}
    taken = {node.name for node in there}
    for node in dict.fromkeys(n for first in exposed(member, "left") for n in walk(first, "both", "depth_first")):
        if node in there:
            continue
        if node._named_by_function and node.name in taken:
            stem, number = node.name, 2
            while f"{stem}_{number}" in taken:
                number += 1
            node.rename(f"{stem}_{number}")
        taken.add(node.name)


def exposed(member: Member, pointing: str) -> list[Node]:
    """The nodes at which a member may be connected: its ends ('right') or its beginnings ('left')."""
    if pointing not in ("left", "right"):
        raise ValueError('pointing must be "left" or "right"')
    found: dict[Node, None] = {}
    for node in flatten(member):
        direction = "up" if pointing == "left" else "down"
        for walked in node.depth_first_walk(direction, as_ordered_list=True):
            links = walked._upstream_nodes if pointing == "left" else walked._downstream_nodes
            if not links:
                found.setdefault(walked)
    return list(found)


def flatten(member: Member) -> list[Node]:
    """All nodes of a nested list or group, in order."""
    from consecution.nodes import Node

    if isinstance(member, Node):
        return [member]
    if isinstance(member, Group):
        return [node for inner in member for node in flatten(inner)]
    if isinstance(member, (str, bytes)) or not hasattr(member, "__iter__"):
        made = as_member(member)
        return flatten(made)
    return [node for inner in as_list(member, "left of |") for node in flatten(inner)]


def name_of_callable(function: Callable[..., Any]) -> str:
    """The name a node or router gets from its function: ``lambda`` for a lambda, a class's for an object."""
    name = getattr(function, "__name__", type(function).__name__)
    return "lambda" if name == "<lambda>" else str(name)


def walk(node: Node, direction: str, how: str) -> list[Node]:
    """All nodes that can be reached, in the order they are met. ValueError for another word."""
    if how not in ("depth_first", "breadth_first"):
        raise ValueError("'how' argument must be one of ['depth_first', 'breadth_first']")
    if direction not in ("up", "down", "both"):
        raise ValueError("direction must be 'up', 'down' or 'both'")
    met: dict[Node, None] = {}
    waiting = deque([node])
    add = waiting.appendleft if how == "breadth_first" else waiting.append
    while waiting:
        current = waiting.pop()
        if current in met:
            continue
        met[current] = None
        ups = current._upstream_nodes if direction != "down" else []
        downs = current._downstream_nodes if direction != "up" else []
        for neighbor in (*ups, *downs):
            if neighbor not in met:
                add(neighbor)
    return list(met)


def check_names(node: Node) -> None:
    """GraphError where two nodes share a name."""
    counts = Counter(n.name for n in walk(node, "both", "depth_first"))
    doubles = [name for name, count in counts.items() if count > 1]
    if doubles:
        raise GraphError(f"\n\nNode names must be unique.  Duplicates {doubles} found.")


def check_cycles(node: Node) -> None:
    """GraphError where a node would come after itself."""
    above = set(walk(node, "up", "depth_first"))
    below = set(walk(node, "down", "depth_first")) - {node}
    if above & below:
        raise GraphError("\n\nYour graph is not acyclic.  It has loops.")


def sort_topologically(top_node: Node) -> list[Node]:
    """All nodes below ``top_node`` and itself, parents before children, otherwise in the order drawn."""
    waits = dict.fromkeys(walk(top_node, "down", "breadth_first"), 0)
    for node in waits:
        for child in node._downstream_nodes:
            waits[child] += 1
    ready = deque([top_node])
    ordered: list[Node] = []
    while ready:
        node = ready.popleft()
        ordered.append(node)
        for child in node._downstream_nodes:
            waits[child] -= 1
            if not waits[child]:
                ready.append(child)
    if len(ordered) < len(waits):
        raise GraphError("\n\nYour graph is not acyclic.  It has loops.")
    return ordered
