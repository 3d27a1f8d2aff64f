"""Random graphs for Hypothesis, with a plain interpreter that says what they should answer."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from hypothesis import strategies as st

from consecution import Broadcast, Filter, FlatMap, Map, Node, Route, Sink

PRIME = 997
"""Items stay below it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node. ``kind`` is a name in `KINDS`."""

    name: str
    kind: str
    replicas: int = 1
    keyed: bool = False


@dataclass(frozen=True, slots=True)
class Fan:
    """Branches side by side; ``by`` is one of all, name, index."""

    branches: tuple[Chain, ...]
    by: str


Chain: TypeAlias = "tuple[Step | Fan, ...]"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a graph makes of a stream: what comes out at its ends, and which items fail at which node."""

    items: Counter[int]
    failed: Counter[tuple[str, int]]


def affine(item: int) -> int:
    return (item * 3 + 1) % PRIME


def is_even(item: int) -> bool:
    return item % 2 == 0


def twice(item: int) -> Iterator[int]:
    yield item
    yield (item + 5) % PRIME


def picky(item: int) -> int:
    if item % 5 == 0:
        raise ValueError(f"{item} is a multiple of 5")
    return item


def key_of(item: int) -> int:
    return item % 11


class Swarm(Node):
    """Pushes no, one or two items."""

    def process(self, item: int) -> None:
        for number in range(item % 3):
            self.push((item + number) % PRIME)


class Sum(Node):
    """Pushes one number, when the stream ends."""

    def begin(self) -> None:
        self.sum = 0

    def process(self, item: int) -> None:
        self.sum += item

    def end(self) -> None:
        self.push(self.sum % PRIME)


KINDS: dict[str, tuple[Callable[[str], Node], Callable[[int], Any]]] = {
    "affine": (lambda name: Map(affine, name), lambda item: [affine(item)]),
    "even": (lambda name: Filter(is_even, name), lambda item: [item] if is_even(item) else []),
    "twice": (lambda name: FlatMap(twice, name), lambda item: list(twice(item))),
    "picky": (lambda name: Map(picky, name), lambda item: [picky(item)]),
    "swarm": (Swarm, lambda item: [(item + number) % PRIME for number in range(item % 3)]),
    "sum": (Sum, lambda item: []),
}
"""Kind → how to make the node, and what it pushes for an item."""


@dataclass(frozen=True, slots=True)
class Chooser:
    """A router: spreads items over its ways, but for the multiples of 13, which have none."""

    ways: tuple[str, ...]
    by: str

    def __call__(self, item: int) -> str | int:
        if item % 13 == 0:
            raise LookupError(f"{item} is a multiple of 13")
        index = item // 7 % len(self.ways)
        return index if self.by == "index" else self.ways[index]


def chooser_of(fan: Fan) -> Chooser:
    return Chooser(tuple(branch[0].name for branch in fan.branches if isinstance(branch[0], Step)), fan.by)


@st.composite
def chains(draw: Callable[[Any], Any], *, ends: bool = True, deepest: int = 2, most_replicas: int = 3) -> Chain:
    """A graph's nodes but for source and sink. ``ends``: some do something when the stream ends."""
    numbers = itertools.count()
    kinds = st.sampled_from([kind for kind in KINDS if ends or kind != "sum"])

    def step() -> Step:
        kind = draw(kinds)
        replicas = 1 if kind == "sum" else draw(st.integers(1, most_replicas))
        return Step(f"n{next(numbers)}", kind, replicas, draw(st.booleans()))

    def fan(depth: int) -> Fan:
        branches = tuple(chain(depth - 1) for _ in range(draw(st.integers(1, 3))))
        return Fan(branches, draw(st.sampled_from(["all", "name", "index"])))

    def chain(depth: int) -> Chain:
        more = draw(st.lists(st.booleans(), min_size=depth, max_size=2))
        return (step(), *(fan(depth) if depth and is_fan else step() for is_fan in more))

    return chain(deepest)


streams = st.builds(
    lambda first, stride, length: [(first + stride * place) % PRIME for place in range(length)],
    first=st.integers(0, PRIME - 1),
    stride=st.integers(1, 20),
    length=st.sampled_from([60, 20, 5, 1, 0]),
)


def build(chain: Chain, sink: Sink) -> Node:
    """The graph as a user would write it, with a sink at the end."""
    graph: Any = _build_chain(chain)
    node: Node = graph | sink
    return node


def _build_chain(chain: Chain) -> Any:
    built: Any = _build(chain[0])
    for following in chain[1:]:
        built = built | _build(following)
    return built


def _build(part: Step | Fan) -> Any:
    if isinstance(part, Fan):
        members = [_build_chain(branch) for branch in part.branches]
        return Broadcast(members) if part.by == "all" else Route(members, chooser_of(part))
    node = KINDS[part.kind][0](part.name)
    return (node.by(key_of) if part.keyed else node) * part.replicas


Flow: TypeAlias = "list[tuple[str, list[int]]]"
"""The items on their way, with the node they come from."""


def answer(chain: Chain, stream: list[int]) -> Answer:
    """What should come out, found without the package: node after node, all items at once."""
    failed: Counter[tuple[str, int]] = Counter()
    ends = _follow(chain, [("source", stream)], failed)
    return Answer(Counter(item for _, items in ends for item in items), failed)


def _follow(chain: Chain, flow: Flow, failed: Counter[tuple[str, int]]) -> Flow:
    for part in chain:
        if isinstance(part, Step):
            flow = [(part.name, _pass(part, [item for _, items in flow for item in items], failed))]
        else:
            ways = [flow] * len(part.branches) if part.by == "all" else _share(part, flow, failed)
            flow = [
                end for branch, way in zip(part.branches, ways, strict=True) for end in _follow(branch, way, failed)
            ]
    return flow


def _pass(step: Step, items: list[int], failed: Counter[tuple[str, int]]) -> list[int]:
    made: list[int] = []
    for item in items:
        try:
            made += KINDS[step.kind][1](item)
        except ValueError:
            failed[step.name, item] += 1
    return [sum(items) % PRIME] if step.kind == "sum" else made


def _share(fan: Fan, flow: Flow, failed: Counter[tuple[str, int]]) -> list[Flow]:
    chooser = chooser_of(fan)
    ways: list[Flow] = [[(name, []) for name, _ in flow] for _ in fan.branches]
    for place, (name, items) in enumerate(flow):
        for item in items:
            try:
                chosen = chooser(item)
            except LookupError:
                failed[name, item] += 1
            else:
                way = chosen if isinstance(chosen, int) else chooser.ways.index(chosen)
                ways[way][place][1].append(item)
    return ways
