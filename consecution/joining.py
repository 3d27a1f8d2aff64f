"""A node that brings together what branches, or streams, have to say about the same key."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from consecution import graph
from consecution.errors import GraphError
from consecution.nodes import Node, RouterNode, check_seconds
from consecution.protocol.values import Labelled
from consecution.stateful import KeyedNode
from consecution.states import Key

TICKS = 4
"""So many times in its time a join looks for keys that have waited too long."""


class Join(KeyedNode):
    """Waits, for each key, until every branch has delivered an item, and pushes them together.

    ``Join(key, prices=prices, ratings=ratings) | store`` draws the edges from the ends of both chains by itself; a
    branch is a node, a side edge (``split["late"]``), or a list of nodes, of one source or of several. ``key``
    is a function of an item, or a dict with one for each branch. What is pushed is a dict, branch → item, or what
    ``combine(**items)`` makes of it. Of several items of a branch the first goes with the first of the others.

    What finds no partner goes to the output "unmatched", as a dict of what there is: at the end of the stream; once it
    has waited for ``timeout_s`` (and at most a quarter longer; not in `Pipeline.consume`); or once ``limit`` keys
    have begun to wait after it, in this replica. It is dropped where nothing is connected to that output. In
    ``robust`` what waits is durable.
    """

    outputs = ("unmatched",)

    def __init__(
        self,
        key: Callable[[Any], Key] | Mapping[str, Callable[[Any], Key]],
        name: str | None = None,
        *,
        combine: Callable[..., Any] | None = None,
        timeout_s: float | None = None,
        limit: int | None = None,
        **branches: Any,
    ) -> None:
        super().__init__(name or "join")
        self._stem = None if name else self.name
        self._keys = _keys_of(self, key, tuple(branches))
        if combine is not None:
            graph.check_function(combine, f"{self}: combine", "a function with an argument for each branch")
        if limit is not None and (type(limit) is not int or limit < 1):
            raise GraphError(f"{self}: limit={limit!r}: expected a whole number of 1 or more")
        self._combine = combine
        self._limit = limit
        self._patience_s = timeout_s
        if timeout_s is not None:
            check_seconds(timeout_s, f"{self}: timeout_s={timeout_s!r}")
            self.every(timeout_s / TICKS)
        self._order: deque[tuple[float, Key]] | None = None
        self._roll_backs_seen = 0
        self._branch_of: dict[Node, str] = {}
        for branch, member in branches.items():
            for end in _ends_of(self, branch, member):
                if end in self._branch_of:
                    raise GraphError(f"{self}: the branches {self._branch_of[end]!r} and {branch!r} both end at {end}")
                self._branch_of[end] = branch
        for end in self._branch_of:
            end.add_downstream(self)
        self._stands_behind = "its branches"

    # -- the graph -------------------------------------------------------------------------------

    def _branch_from(self, above: Node) -> str:
        if above not in self._branch_of:
            raise GraphError(
                f"{self}: {above} leads into it and is no branch of it; name it: Join(..., {above.name}={above.name})"
            )
        return self._branch_of[above]

    def _replace_upstream(self, old: Node, new: Node) -> None:
        super()._replace_upstream(old, new)
        if old in self._branch_of:
            self._branch_of[new] = self._branch_of.pop(old)

    def _relink(self, node: Node, twins: Mapping[Node, Node]) -> None:
        super()._relink(node, twins)
        assert isinstance(node, Join)
        self._branch_of = {twins[above]: branch for above, branch in node._branch_of.items()}

    def _detached_copy(self) -> Node:
        twin = super()._detached_copy()
        assert isinstance(twin, Join)
        twin._branch_of, twin._order = {}, None
        return twin

    def _processor_from(self, above: Node) -> Callable[[Any], Any]:
        process, branch = self._item_processor(), self._branch_from(above)
        return lambda item: process(Labelled(branch, item))

    # -- items, each with the label of its branch ------------------------------------------------

    def key(self, item: Labelled) -> Key:
        return self._keys[item.label](item.item)

    def initial_state(self) -> Any:
        return {"since_s": None, "waiting": {}}

    def begin(self) -> None:
        self._order = None

    def process(self, item: Labelled) -> None:
        """Never do all branches have items that wait: the last one to come takes the others along."""
        state = self.state
        waiting: dict[str, list[Any]] = state["waiting"]
        if item.label in waiting or len(waiting) < len(self._keys) - 1:
            waiting.setdefault(item.label, []).append(item.item)
            if state["since_s"] is None:
                self._begin_to_wait(state, self.key(item))
            return
        items = {branch: waiting[branch][0] if branch in waiting else item.item for branch in self._keys}
        made = items if self._combine is None else self._combine(**items)
        _take_firsts(waiting)
        self.push(made)
        if waiting:
            self._begin_to_wait(state, self.key(item))
        else:
            self._states.remove(self.key(item))

    # -- what waits ------------------------------------------------------------------------------

    def _begin_to_wait(self, state: dict[str, Any], key: Key) -> None:
        state["since_s"] = time.time()
        if self._limit is None and self._patience_s is None:
            return
        if self._order is not None:
            self._order.append((state["since_s"], key))
        if self._limit is not None:
            order = self._line()
            while len(order) > self._limit:
                self._give_up(*order.popleft())

    def _line(self) -> deque[tuple[float, Key]]:
        """Since when keys wait, the longest first. Some may not wait any more; none that waits is missing."""
        if self._order is None or self._states.roll_backs != self._roll_backs_seen:
            self._roll_backs_seen = self._states.roll_backs
            waiting = [(state["since_s"], key) for key, state in self.states()]
            self._order = deque(sorted(waiting, key=lambda pair: pair[0]))
        return self._order

    def _give_up(self, since_s: float, key: Key) -> None:
        """This key has waited long enough, if it is still the same that waits."""
        state = self._states.find(key)
        if state is not None and state["since_s"] == since_s:
            self._let_go(key, state)

    def _let_go(self, key: Key, state: dict[str, Any]) -> None:
        while state["waiting"]:
            firsts = _take_firsts(state["waiting"])
            self.push({branch: firsts[branch] for branch in self._keys if branch in firsts}, to="unmatched")
        self._states.remove(key)

    def on_timer(self) -> None:
        """Let go of the keys that have waited too long."""
        assert self._patience_s is not None
        order, until_s = self._line(), time.time() - self._patience_s
        while order and order[0][0] <= until_s:
            self._give_up(*order.popleft())

    def _has_timer(self) -> bool:
        return self._patience_s is not None

    def end(self) -> None:
        for key in [key for key, _ in self.states()]:
            self._let_go(key, self._states.get(key))


def _take_firsts(waiting: dict[str, list[Any]]) -> dict[str, Any]:
    """The first item of each branch that has any; they wait no longer."""
    firsts = {branch: items.pop(0) for branch, items in waiting.items()}
    for branch in firsts:
        if not waiting[branch]:
            del waiting[branch]
    return firsts


def _keys_of(join: Join, key: Any, branches: tuple[str, ...]) -> dict[str, Callable[[Any], Key]]:
    """The key function of each branch, in the order of the branches."""
    if len(branches) < 2:
        raise GraphError(f"{join}: expected two branches or more: Join(key, left=node, right=node)")
    if not isinstance(key, Mapping):
        key = dict.fromkeys(branches, key)
    if set(key) != set(branches):
        raise GraphError(f"{join}: there are keys for {sorted(key)}, and branches {sorted(branches)}; give each one")
    for branch in branches:
        graph.check_function(key[branch], f"{join}: the key of {branch!r}", "a function that returns an item's key")
    return {branch: key[branch] for branch in branches}


def _ends_of(join: Join, branch: str, member: Any) -> Iterator[Node]:
    """The nodes at which a branch ends. A function would be a new node that nothing flows into."""
    listed = member if isinstance(member, (list, tuple)) else [member]
    for part in listed:
        if not isinstance(part, (Node, graph.Group)) or isinstance(part, RouterNode):
            raise GraphError(f"{join}: {branch}={part!r}: expected a node of the graph, or a list of them")
    yield from graph.exposed(graph.as_left(member), "right")


__all__ = ["Join"]
