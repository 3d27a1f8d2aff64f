"""A node that brings together what branches, or streams, have to say about the same key."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self

from consecution import graph
from consecution.errors import GraphError
from consecution.nodes import Node, RouterNode, check_seconds
from consecution.protocol.values import Labelled
from consecution.stateful import KeyedNode
from consecution.states import MISSING, Key

TICKS = 4
"""So many times in its time a join looks for keys that have waited too long."""
ITEM = 2
"""Where in what waits the item is; before it stand the time and the number."""
UNNUMBERED = -1
"""Nobody counts the keys."""

Waiting = dict[str, list[tuple[float, int, Any]]]
"""By branch, what waits: since when, how many keys had begun to wait by then, and the item."""


class Join(KeyedNode):
    """Waits, for each key, until every branch has delivered an item, and pushes them together.

    ``Join(key, prices=prices, ratings=ratings) | store`` draws the edges from the ends of both chains by itself; a
    branch is a node, a side edge (``split["late"]``), or a list of nodes, of one source or of several. ``key``
    is a function of an item, or a dict with one for each branch. What is pushed is a dict, branch → item, or what
    ``combine(**items)`` makes of it. Of several items of a branch the first goes with the first of the others.

    What finds no partner goes to the output "unmatched", as a dict of what there is: at the end of the stream; once it
    has waited for ``timeout_s`` (and at most a quarter longer; not in `Pipeline.consume`), whatever else of its key
    has come and gone; or once ``limit`` keys have begun to wait after it came, in this replica. It is dropped where
    nothing is connected to that output. In ``robust`` what waits is durable.

    Of a batch all items of one branch come before those of the next: let ``limit`` be greater than ``batch_size``.
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
        self._line: _Line | None = None
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

    def _detached_copy(self) -> Self:
        twin = super()._detached_copy()
        twin._branch_of, twin._line = {}, None
        return twin

    def _processor_from(self, above: Node) -> Callable[[Any], Any]:
        process, branch = self._item_processor(), self._branch_from(above)
        return lambda item: process(Labelled(branch, item))

    # -- items, each with the label of its branch ------------------------------------------------

    def key(self, item: Labelled) -> Key:
        return self._keys[item.label](item.item)

    def initial_state(self) -> Any:
        """Of each branch what waits: since when, how many keys had begun to by then, and the item.

        One of the states that wait tells how many keys have begun to wait so far; where it has no item that does, by
        "begun". So what the limit lets go of follows from the states alone, whatever this replica remembers.
        """
        return {"waiting": {}}

    def begin(self) -> None:
        self._line = None

    def process(self, item: Labelled) -> None:
        """Never do all branches have items that wait: the last one to come takes the others along."""
        if self._limit is not None:
            self._line_now()  # before the state changes that it is made of
        waiting = _waiting_in(self.state)
        if item.label in waiting or len(waiting) < len(self._keys) - 1:
            self._wait(waiting, item)
            return
        items = {branch: waiting[branch][0][ITEM] if branch in waiting else item.item for branch in self._keys}
        made = items if self._combine is None else self._combine(**items)
        _take_firsts(waiting)
        self.push(made)
        if not waiting:
            self._forget(self.key(item))

    # -- what waits ------------------------------------------------------------------------------

    def _wait(self, waiting: Waiting, item: Labelled) -> None:
        since_s, number, line = time.time(), UNNUMBERED, self._line
        if line is not None:
            key = MISSING if waiting else self.key(item)
            if self._limit is not None:
                number = line.number_for(key)
            if key is not MISSING:
                line.add(key, _Place(since_s, number))
        waiting.setdefault(item.label, []).append((since_s, number, item.item))
        if self._limit is not None:
            self._let_go_of_due(-math.inf)

    def _line_now(self) -> _Line:
        """The line that the states make; what was remembered of it is worth nothing once something was taken back."""
        if self._line is None or self._states.roll_backs != self._roll_backs_seen:
            self._roll_backs_seen = self._states.roll_backs
            if self._limit is not None:
                self._number_anew()
            self._line = _Line(self.states())
        return self._line

    def _number_anew(self) -> None:
        """Give numbers in the order of the times, where the states do not have those of one count.

        They are of a join without a limit, of an older release, or of several replicas.
        """
        found = sorted(((_oldest(state), key) for key, state in self.states() if _waiting_in(state)), key=_place_of)
        numbers = [place.number for place, _ in found]
        if UNNUMBERED not in numbers and numbers == sorted(numbers):
            return
        for number, (_, key) in enumerate(found, 1):
            state = self._states.find(key)
            state.pop("begun", None)
            for items in _waiting_in(state).values():
                items[:] = [(since_s, number, item) for since_s, _, item in items]

    def _let_go_of_due(self, until_s: float) -> None:
        """Let go of what has waited since then, or longer; and of what too many keys have begun to wait after."""
        line = self._line_now()
        last_number = -math.inf if self._limit is None else line.begun - self._limit
        while (due := line.pop_due(until_s, last_number)) is not None:
            place, key = due
            state = self._states.look(key)
            if state is MISSING or not state["waiting"]:
                continue
            if _oldest(state) == place:
                self._let_go_of_firsts(self._states.find(key))
            if state["waiting"]:
                line.add(key, _oldest(state))
            else:
                self._forget(key)

    def _let_go_of_firsts(self, state: dict[str, Any]) -> None:
        firsts = _take_firsts(_waiting_in(state))
        self.push({branch: firsts[branch] for branch in self._keys if branch in firsts}, to="unmatched")

    def _forget(self, key: Key) -> None:
        """Nothing of this key waits; if its state told how many have begun to, another one has to."""
        self._states.remove(key)
        line = self._line
        if self._limit is None or line is None or key != line.teller:
            return
        line.teller = self._first_that_waits(line)
        if line.teller is MISSING:
            line.begun = 0
        else:
            self._states.find(line.teller)["begun"] = line.begun

    def _first_that_waits(self, line: _Line) -> Key:
        while line.first is not MISSING:
            state = self._states.look(line.first)
            if state is not MISSING and state["waiting"]:
                return line.first
            line.pop()
        return MISSING

    def on_timer(self) -> None:
        """Let go of what has waited too long."""
        assert self._patience_s is not None
        self._let_go_of_due(time.time() - self._patience_s)

    def _has_timer(self) -> bool:
        return self._patience_s is not None

    def end(self) -> None:
        for key in [key for key, _ in self.states()]:
            state = self._states.get(key)
            while _waiting_in(state):
                self._let_go_of_firsts(state)
            self._states.remove(key)


class _Place(NamedTuple):
    """Where in the line a key stands: since when its oldest item waits, and how many keys had begun to by then."""

    since_s: float
    number: int


class _Line:
    """The keys that wait, the longest first, as the states have it. Some may not wait any more, or not as long."""

    def __init__(self, states: Iterable[tuple[Key, Any]]) -> None:
        self.begun = 0
        """So many keys have begun to wait, since none did."""
        self.teller: Key = MISSING
        """The key whose state tells that."""
        self._heap: list[tuple[_Place, int, Key]] = []
        self._keys: set[Key] = set()
        self._tickets = itertools.count()
        for key, state in states:
            if _waiting_in(state):
                self.add(key, _oldest(state))
                self._listen(key, state)

    def _listen(self, key: Key, state: dict[str, Any]) -> None:
        told = max(number for items in state["waiting"].values() for _, number, _ in items)
        told = max(told, state.get("begun", 0))
        if told >= self.begun:
            self.begun, self.teller = told, key

    def number_for(self, key: Key) -> int:
        """The number of an item: this key begins to wait with it; MISSING: its key does so already."""
        if key is not MISSING:
            self.begun += 1
            self.teller = key
        return self.begun

    def add(self, key: Key, place: _Place) -> None:
        """A key that stands in the line stays where it is until it is popped: that is early enough."""
        if key not in self._keys:
            self._keys.add(key)
            heapq.heappush(self._heap, (place, next(self._tickets), key))

    @property
    def first(self) -> Key:
        """The key that has waited longest; MISSING where there is none."""
        return self._heap[0][2] if self._heap else MISSING

    def pop(self) -> tuple[_Place, Key]:
        place, _, key = heapq.heappop(self._heap)
        self._keys.remove(key)
        return place, key

    def pop_due(self, until_s: float, last_number: float) -> tuple[_Place, Key] | None:
        """The first, if it has waited since then, or its number is not above that one."""
        if not self._heap:
            return None
        place = self._heap[0][0]
        return self.pop() if place.since_s <= until_s or place.number <= last_number else None


def _waiting_in(state: dict[str, Any]) -> Waiting:
    """What waits under a key. Of a state that has one time for all of it, each item gets that."""
    if "since_s" in state:
        since_s = state.pop("since_s")
        for items in state["waiting"].values():
            items[:] = [(since_s, UNNUMBERED, item) for item in items]
    waiting: Waiting = state["waiting"]
    return waiting


def _oldest(state: dict[str, Any]) -> _Place:
    """The place of the oldest item; the first of a branch is its oldest, and they leave together."""
    return min(_Place(items[0][0], items[0][1]) for items in _waiting_in(state).values())


def _place_of(found: tuple[_Place, Key]) -> _Place:
    return found[0]


def _take_firsts(waiting: Waiting) -> dict[str, Any]:
    """The first item of each branch that has any; they wait no longer."""
    firsts = {branch: items.pop(0)[ITEM] for branch, items in waiting.items()}
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
