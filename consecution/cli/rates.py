"""From two looks at a run to what it does per second, and which node holds the flow back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from consecution.runtime.outside import Sight

BUSY = 0.7
"""A task that spends this share of its time at work, or more, is what the others wait for."""


@dataclass(frozen=True, slots=True)
class NodeRates:
    """One node between two looks. Items per second; ``busy`` and ``commit`` are the shares of its busiest task's time.

    ``queue`` is how many frames waited in front of it, on the average; ``latency_s`` how long a frame took from being
    sent to it until the node was done with it; of a source, a batch from being read until it was completely processed.
    None: no frame came.
    """

    node: str
    replicas: int
    is_source: bool
    in_per_s: float
    out_per_s: float
    failed_per_s: float
    busy: float
    commit: float
    queue: float
    latency_s: float | None

    @property
    def load(self) -> float:
        """The share of its time that its busiest task is at work."""
        return min(1.0, self.busy + self.commit)


def rates_between(before: Sight, now: Sight) -> list[NodeRates]:
    """What each node did between two looks at the same run, in the order of the plan."""
    span_s = now.counts["seconds"] - before.counts["seconds"]
    old = {task["task"]: task for task in before.counts.get("tasks", ())}
    sources = {source["source"] for source in now.counts.get("sources", ())}
    by_node: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for task in now.counts.get("tasks", ()):
        if task["task"] in old:
            by_node.setdefault(task["node"], []).append((old[task["task"]], task))
    if span_s <= 0:
        return []
    return [_rates_of(node, pairs, span_s, is_source=node in sources) for node, pairs in by_node.items()]


def _rates_of(
    node: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]], span_s: float, *, is_source: bool
) -> NodeRates:
    def grown(name: str) -> float:
        return float(sum(max(0, new[name] - old[name]) for old, new in pairs))

    def share(name: str, pair: tuple[dict[str, Any], dict[str, Any]]) -> float:
        return float(max(0.0, pair[1][name] - pair[0][name])) / span_s

    busiest = max(pairs, key=lambda pair: share("busy_s", pair) + share("commit_s", pair))
    frames, waiting = grown("frames"), sum(new["waiting"] for _, new in pairs)
    latency_s = None
    if frames and is_source:
        latency_s = grown("waited_s") / frames
    elif frames:
        latency_s = (grown("waited_s") + grown("busy_s") + waiting * span_s) / frames
    return NodeRates(
        node,
        len(pairs),
        is_source,
        grown("items_in") / span_s,
        grown("items_out") / span_s,
        grown("failed") / span_s,
        min(1.0, share("busy_s", busiest)),
        min(1.0, share("commit_s", busiest)),
        0.0 if is_source else grown("waited_s") / span_s + waiting,
        latency_s,
    )


def who_holds_back(sight: Sight, rates: list[NodeRates]) -> str:
    """A sentence: which node the others wait for, and why it is that one."""
    if sight.state in ("paused", "pausing"):
        return f"the run is {sight.state}: `consecution resume {sight.state_dir}` lets it go on"
    if not rates:
        return "nothing is known yet"
    busiest = max(rates, key=lambda found: found.load)
    if busiest.load >= BUSY:
        what = "commits" if busiest.commit > busiest.busy else "its own work"
        return f"{busiest.node}: its busiest task spends {busiest.load:.0%} of its time at {what}"
    below = [found for found in rates if not found.is_source and found.latency_s is not None]
    if not sight.open or not below:
        return "nothing: the source has no more to give just now"
    slowest = max(below, key=lambda found: found.latency_s or 0.0)
    if slowest.queue >= 1:
        return f"{slowest.node}: {slowest.queue:,.0f} frames wait for it, and it is not busy: it waits for something"
    return "nothing: the source has no more to give just now"
