"""What a run tells about itself: while it runs, and at the end."""

from __future__ import annotations

import dataclasses
import html
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SHOWN_FAILURES = 10
WIDTH = 100
"""The most columns a printed report takes."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An item that was given up at a node. ``item`` is what the node was given (or made, if it could not
    be sent on); its ``repr`` where it could not be kept. ``attempts`` counts how often it was tried.

    Reports list them, and ``node.failed | handler`` brings them to a handler.
    """

    node: str
    item: Any
    error: str
    traceback: str
    attempts: int


@dataclass(frozen=True, slots=True)
class NodeCounts:
    """Items in and out of a node, summed over its replicas; ``failed`` counts every try that raised.

    After a replay an item counts again: these are what the node did, not what the stream held.
    """

    node: str
    replicas: int
    items_in: int
    items_out: int
    failed: int
    busy_s: float


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """The books of one source: ``emitted == completed + pending``. ``failed`` are items that it keeps as failed."""

    source: str
    emitted: int
    completed: int
    failed: int
    pending: int


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """What one task has done; counts and seconds are sums since the run began, so that two of them give rates.

    ``busy_s`` was spent in the node's code and in sending what it pushed, ``commit_s`` in commits. ``waited_s`` is how
    long its ``frames`` had been on their way or in its queue when it took them, all together. Of a source these are the
    batches that are completely processed, and the time since each was read. ``waiting`` frames lie in the inbox of a
    durable task; ``store_bytes`` is the size of its store on disk. ``pid`` is None where the task is no process's.
    """

    task: str
    node: str
    pid: int | None
    items_in: int
    items_out: int
    failed: int
    frames: int
    busy_s: float
    commit_s: float
    waited_s: float
    waiting: int = 0
    store_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """A run at one moment. ``emitted == completed + pending``, always; these count items of the sources, together.

    ``pending_below`` counts what durable nodes have pushed, or have to try again, and is not yet processed;
    ``handled`` what was given up at nodes with a failed edge, and is not among the ``failed``. ``sources`` has the
    books of each source. ``expected`` is how many items there will be in all, where every source knows that, and
    ``read_share`` how much of all they have read, from 0 to 1, where every one knows that. ``completed_before`` of the
    completed were so when this run began: an earlier one over the same state directory has seen to them.
    """

    state: str
    emitted: int
    completed: int
    failed: int
    pending: int
    replayed: int
    restarts: int
    seconds: float
    nodes: tuple[NodeCounts, ...]
    pending_below: int = 0
    handled: int = 0
    sources: tuple[SourceCounts, ...] = ()
    tasks: tuple[TaskCounts, ...] = ()
    expected: int | None = None
    read_share: float | None = None
    completed_before: int = 0

    @property
    def open(self) -> int:
        """Everything that is not yet completely processed, anywhere."""
        return self.pending + self.pending_below

    @property
    def items_per_s(self) -> float:
        """What this run completes."""
        return _rate(self.completed - self.completed_before, self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        of_all = "" if self.expected is None else f" of {self.expected:,}"
        parts = [
            f"{self.completed:,}{of_all} done",
            f"{self.items_per_s:,.0f}/s",
            f"{self.open:,} pending",
        ]
        if self.expected is None and self.read_share is not None:
            parts.insert(1, f"{100 * self.read_share:.0f} % read")
        for count, word in (
            (self.failed, "failed"),
            (self.handled, "handled as failed"),
            (self.replayed, "batches replayed"),
            (self.restarts, "restarts"),
        ):
            if count:
                parts.append(f"{count:,} {word}")
        return f"{self.state}: {', '.join(parts)}, {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Report:
    """A run that is over. ``emitted == completed + pending``; every item given up counts as ``failed``.

    Not so what went over a node's failed edge instead: it counts as ``handled``, and is completed, not failed.

    ``pending_below`` counts what durable nodes had pushed, or had to try again, and was not yet processed.

    ``replayed`` counts batches that ran again, ``restarts`` workers that were started again. ``confirmed``:
    the stream has ended and every item was completely processed; so it is False after a stop, also where nothing is
    left open, and None at ``robustness="none"``, where nobody can say.
    ``result`` is what the pipeline's own ``end()`` returned. ``completed_before`` of the completed were so when this
    run began, by earlier ones over the same state directory.
    """

    emitted: int
    completed: int
    failed: int
    pending: int
    replayed: int
    restarts: int
    confirmed: bool | None
    failures: tuple[Failure, ...]
    seconds: float
    nodes: tuple[NodeCounts, ...]
    mode: str
    robustness: str
    state_dir: str | None
    stopped: bool
    already_finished: bool
    result: Any = None
    pending_below: int = 0
    handled: int = 0
    sources: tuple[SourceCounts, ...] = ()
    completed_before: int = 0

    @property
    def open(self) -> int:
        """Everything that is not yet completely processed, anywhere."""
        return self.pending + self.pending_below

    @property
    def exit_code(self) -> int:
        """0: all completed; 1: some failed; 3: stopped with work pending."""
        if self.open:
            return 3
        return 1 if self.failed else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; failed items by their ``repr``."""
        listed = dataclasses.asdict(dataclasses.replace(self, failures=(), result=None))
        del listed["result"]
        listed["failures"] = [
            {**dataclasses.asdict(dataclasses.replace(f, item=None)), "item": _text_of(f.item)} for f in self.failures
        ]
        return listed

    @classmethod
    def from_dict(cls, listed: dict[str, Any], **changes: Any) -> Report:
        """The report that `to_dict` described; items stay texts."""
        values = {**listed, **changes}
        values["failures"] = tuple(Failure(**failure) for failure in listed["failures"])
        values["nodes"] = tuple(NodeCounts(**counts) for counts in listed["nodes"])
        values["sources"] = tuple(SourceCounts(**counts) for counts in listed.get("sources", ()))
        return cls(**values)

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, *, at_command_line: bool = False) -> str:
        """What is printed. Whoever is at the command line has no report to look into, but commands."""
        lines = [self._headline(), "", *self._totals(), "", *node_table(self.nodes)]
        if self.failures:
            lines += ["", *self._failure_list(self._place_of_failures(at_command_line))]
        return "\n".join([*lines, "", self._next_step(at_command_line)])

    def _place_of_failures(self, at_command_line: bool) -> str:
        if not at_command_line:
            return "report.failures"
        return f"`{self._list_command()}`" if self._keeps_failures else "the report that --json prints"

    @property
    def _keeps_failures(self) -> bool:
        return self.robustness == "robust" and self.state_dir is not None

    def _list_command(self) -> str:
        return f"consecution failed list {shlex.quote(self.state_dir or '')}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        parts = [f"<p><b>{_html(self._headline())}</b></p>"]
        if self.sources:
            heads = ("source", "emitted", "completed", "pending", "failed")
            rows = [(s.source, s.emitted, s.completed, s.pending, s.failed) for s in self.sources]
            parts.append(_html_table(heads, rows))
        nodes = [(n.node, n.replicas, n.items_in, n.items_out, n.failed, round(n.busy_s, 2)) for n in self.nodes]
        parts.append(_html_table(("node", "replicas", "items in", "items out", "raised", "busy s"), nodes))
        if self.failures:
            shown = [(f.node, f.attempts, _text_of(f.item), f.error) for f in self.failures[-SHOWN_FAILURES:]]
            parts.append(_html_table(("failed at", "tries", "item", "error"), shown))
        return "\n".join([*parts, f"<p>{_html(self._next_step())}</p>"])

    def _headline(self) -> str:
        if self.already_finished:
            return "This run was finished before; nothing was done now."
        verdict = {0: "All items completely processed", 1: "Finished, with failed items", 3: "Stopped"}[self.exit_code]
        if self.stopped:
            verdict = "Stopped before the end of the stream"
        rate = _rate(self.completed - self.completed_before, self.seconds)
        return f"{verdict} in {self.seconds:.2f} s ({rate:,.0f} items/s, {self.mode}, {self.robustness})"

    def _totals(self) -> list[str]:
        balance = "=" if self.emitted == self.completed + self.pending else "≠"
        confirmed = {None: "not asked for", True: "yes", False: "no"}[self.confirmed]
        below = f"   (and {self.pending_below:,} below)" if self.pending_below else ""
        handled = f"   handled {self.handled:,}" if self.handled else ""
        return [
            f"  emitted {self.emitted:,} {balance} completed {self.completed:,} + pending {self.pending:,}{below}",
            f"  failed {self.failed:,}{handled}   replayed batches {self.replayed:,}   restarts {self.restarts:,}   "
            f"confirmed: {confirmed}",
            *(self._source_table() if len(self.sources) > 1 else ()),
        ]

    def _source_table(self) -> list[str]:
        width = max(len("source"), *(len(s.source) for s in self.sources))
        head = f"  {'source': <{width}}     emitted  completed    pending     failed"
        rows = [
            f"  {s.source: <{width}}  {s.emitted:10,d} {s.completed:10,d} {s.pending:10,d} {s.failed:10,d}"
            for s in self.sources
        ]
        return ["", head, "  " + "-" * (len(head) - 2), *rows]

    def _failure_list(self, place: str) -> list[str]:
        lines = [f"  Failed items ({self.failed:,}):"]
        for failure in self.failures[-SHOWN_FAILURES:]:
            tries = tries_of(failure.attempts)
            lines.append("  - " + _shorten(f"at {failure.node} after {tries}: {_text_of(failure.item)}", WIDTH - 4))
            lines.append("      " + _shorten(failure.error, WIDTH - 6))
        shown, kept = min(len(self.failures), SHOWN_FAILURES), len(self.failures)
        if self.failed > kept:
            lines.append(f"  ... and {self.failed - shown:,} more; the last {kept:,} are in {place}")
        elif kept > shown:
            lines.append(f"  ... and {kept - shown:,} more, in {place}")
        return lines

    def _where_failures_are(self, place: str) -> str:
        kept = len(self.failures)
        if kept >= self.failed:
            return f"Each failed item's traceback is in {place}."
        listed = (
            f"The tracebacks of the last {kept:,} are in {place}" if kept else "No failed item was kept for the report"
        )
        if self._keeps_failures:
            return f"{listed}; `{self._list_command()}` lists all failed items."
        remedy = " or name a state_dir, which keeps all," if self.robustness == "robust" else ""
        return f"{listed}; raise keep_failed{remedy} to have more."

    def _next_step(self, at_command_line: bool = False) -> str:
        if self.already_finished:
            return "Start again from the beginning with fresh=True (--fresh), or use another state folder."
        if self.open and self.robustness == "robust":
            return f"{self.open:,} items are pending: run again with state_dir={self.state_dir!r} to go on."
        if self.pending:
            return f"{self.pending:,} items were lost with a worker; only robustness='robust' keeps them."
        if self.failed and self.robustness in ("none", "confirm"):
            return "Run with robustness='track' to learn which items failed, and why."
        if self.failed and at_command_line and self._keeps_failures:
            listed = f"`{self._list_command()}` lists the failed items"
            return f"{listed}; `failed show` has their tracebacks, `failed retry` puts them back."
        if self.failed:
            return self._where_failures_are(self._place_of_failures(at_command_line))
        if self.stopped and self.state_dir is not None:
            return f"What was taken is completely processed; run again with state_dir={self.state_dir!r} to go on."
        if self.stopped and self.robustness != "robust":
            return "What was taken is completely processed; with robustness='robust', a run can be gone on with."
        if self.stopped:
            return "What was taken is completely processed; with a state_dir, the next run would go on from here."
        return "Nothing is left to do."


def _rate(items: int, seconds: float) -> float:
    """Per second. A run that has only begun may not know yet what was done before it."""
    return max(0, items) / seconds if seconds > 0 else 0.0


def node_table(nodes: Sequence[NodeCounts]) -> list[str]:
    """What each node has done, a line for each, with a head."""
    width = max([len("node"), *(len(n.node) for n in nodes)])
    head = f"  {'node': <{width}}  replicas   items in  items out    raised   busy s"
    rows = [
        f"  {n.node: <{width}}  {n.replicas:8d} {n.items_in:10,d} {n.items_out:10,d} {n.failed:9,d} {n.busy_s:8.2f}"
        for n in nodes
    ]
    return [head, "  " + "-" * (len(head) - 2), *rows]


def _html(value: Any) -> str:
    return html.escape(f"{value:,}" if isinstance(value, (int, float)) else _shorten(value, WIDTH))


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["".join(f"<th>{_html(head)}</th>" for head in heads)]
    lines += ["".join(f"<td>{_html(value)}</td>" for value in row) for row in rows]
    return "\n".join(["<table>", *(f"<tr>{line}</tr>" for line in lines), "</table>"])


def _text_of(item: Any) -> str:
    if isinstance(item, str):
        return item
    try:
        return repr(item)
    except Exception as error:
        return f"<{type(item).__name__}, whose repr raises {type(error).__name__}>"


def tries_of(attempts: int) -> str:
    """So many tries, in words."""
    return "1 try" if attempts == 1 else f"{attempts} tries"


def _shorten(text: str, columns: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= columns else line[: columns - 3] + "..."
