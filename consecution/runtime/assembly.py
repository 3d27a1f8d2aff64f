"""Puts the pieces of a run together: which source, which store, which codecs."""

from __future__ import annotations

import functools
import io
import pickle
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from consecution.errors import StoppedByItemError
from consecution.nodes import Node
from consecution.options import Options
from consecution.pacing import RateLimit
from consecution.plan import Plan
from consecution.producer import Producer
from consecution.protocol.origin import FailureEntry, Origin, Restored
from consecution.protocol.poison import Guard
from consecution.protocol.step import Codec, Counts, is_poison
from consecution.protocol.values import Labelled, TaskIndex, unlabelled
from consecution.report import Failure, NodeCounts, Report, SourceCounts, Status, TaskCounts
from consecution.runtime.books import Books, add_counts
from consecution.runtime.durable_host import DurableHost
from consecution.runtime.failed_edges import PlannedFailedEdges
from consecution.runtime.journal import Journal
from consecution.runtime.origin_host import (
    MemoryStore,
    OnStop,
    OriginHost,
    Outbox,
    SourceHost,
    Store,
    failures_kept,
    origin_limits,
)
from consecution.runtime.paced_host import PacedTaskHost
from consecution.runtime.task_host import TaskHost
from consecution.runtime.wiring import make_dispatch
from consecution.source import Source


def source_tasks(plan: Plan) -> list[TaskIndex]:
    """The tasks that read; they come first in every plan."""
    return [TaskIndex(task) for task in plan.source_tasks]


def make_sources(plan: Plan, iterable: Any) -> dict[TaskIndex, Source]:
    """The sources of a run: the iterable that was given, or the producers at the top of the graph."""
    if iterable is not None:
        (task,) = source_tasks(plan)
        return {task: Producer(iterable).make_source()}
    made: dict[TaskIndex, Source] = {}
    for planned in plan.nodes:
        if isinstance(planned.node, Producer):
            made.update(zip(map(TaskIndex, planned.tasks), planned.node.make_shares(planned.replicas), strict=True))
    return made


def expected_items(sources: Mapping[TaskIndex, Source]) -> int | None:
    """How many items they give together; None where one of them does not know."""
    expected = [source.expected for source in sources.values()]
    return None if None in expected else sum(count for count in expected if count is not None)


def make_store(options: Options, journal_path: Path | None, *, origin: str, epoch: str) -> tuple[Store, Restored]:
    """The journal in ``robust``; otherwise memory, which in ``track`` keeps the failed items."""
    if options.robustness != "robust":
        return MemoryStore(failures_kept(options)), Restored()
    assert journal_path is not None
    journal = Journal(journal_path, origin=origin, epoch=epoch, sync=options.sync, create=False)
    try:
        return journal, journal.restore()
    except BaseException:
        journal.close()
        raise


def make_source_host(
    plan: Plan,
    task: TaskIndex,
    source: Source,
    codecs: tuple[Codec, Codec | None],
    outbox: Outbox,
    *,
    journal_path: Path | None,
    epoch: str,
    now: Callable[[], float],
    on_stop: OnStop | None = None,
    guard: Guard | None = None,
) -> SourceHost:
    """A source's task, its journal restored and its source not yet open."""
    codec, stored = codecs
    store, restored = make_store(plan.options, journal_path, origin=plan.sources[task], epoch=epoch)
    handlers = PlannedFailedEdges(plan, task, codec, stored)
    host = OriginHost(
        task,
        Origin(origin_limits(plan.options, plan.sharers(task), plan.workers_below(task)), restored, now(), handlers),
        store,
        make_dispatch(plan, task, codec),
        codec,
        outbox,
        stored=stored,
        now=now,
        on_stop=on_stop,
        judge=plan.node(plan.task(task).node).error_policy.judge,
        guard=guard,
        handlers=handlers,
        deciders=plan.deciders(task),
    )
    options = plan.options
    return SourceHost(
        host,
        source,
        linger_s=options.linger_ms / 1000,
        reads_ahead=options.robust or options.mode != "inline",
        notes=store.notes() if isinstance(store, Journal) else (),
        node_of=lambda task: plan.task(task).node,
    )


Host = TaskHost | DurableHost
"""A task that is no source, at work; both kinds have the same surface."""


def make_host(
    plan: Plan,
    task: TaskIndex,
    node: Node,
    codecs: tuple[Codec, Codec | None],
    outbox: Outbox,
    *,
    path: Path | None,
    epoch: str,
    lets_through: tuple[type[BaseException], ...] = (),
    on_stop: OnStop | None = None,
    guard: Guard | None = None,
    wake: Callable[[], None] | None = None,
) -> Host:
    """The host of a task; that of a durable one has its store at ``path``, and what that holds.

    ``wake`` is for tasks that have threads beside; None where there are to be none.
    """
    namer = origin_namer(plan, epoch)
    if not plan.node(plan.task(task).node).durable:
        return _task_host_of(node, wake)(
            plan,
            task,
            node,
            codecs[0],
            outbox,
            origin_name=namer,
            lets_through=lets_through,
            on_stop=on_stop,
            guard=guard,
        )
    assert path is not None
    codec, stored = codecs
    assert stored is not None
    return DurableHost(
        plan,
        task,
        node,
        (codec, stored),
        outbox,
        origin_name=namer,
        path=path,
        epoch=epoch,
        on_stop=on_stop,
        guard=guard,
    )


def _task_host_of(node: Node, wake: Callable[[], None] | None) -> Callable[..., TaskHost]:
    """The kind of host; asyncio is only loaded where it is needed."""
    if isinstance(node, RateLimit):
        return PacedTaskHost
    if not node._is_async:
        return TaskHost
    from consecution.runtime.async_host import AsyncTaskHost

    return functools.partial(AsyncTaskHost, wake=wake)


def end_stages(plan: Plan) -> list[list[TaskIndex]]:
    """The tasks that end one after another, node by node, parents first: all that push by themselves."""
    ends = [node for node in plan.nodes if node.wants_end or node.durable or node.timer_s is not None]
    return [[TaskIndex(t) for t in node.tasks] for node in ends]


def drain_stages(plan: Plan) -> list[list[TaskIndex]]:
    """The tasks that may still have something open when the sources have nothing: durable ones, and timers."""
    return [[TaskIndex(t) for t in node.tasks] for node in plan.nodes if node.durable or node.timer_s is not None]


def origin_namer(plan: Plan, epoch: str) -> Callable[[TaskIndex], str]:
    """Names of origins as sinks see them; two lives of a plan never share one."""
    return lambda task: f"{plan.task(task).name}@{epoch}"


def to_failure(plan: Plan, entry: FailureEntry) -> Failure:
    """A failure as the report shows it; an item that cannot be decoded here is shown by its repr.

    So is poison, unless it can be decoded without anybody's code but Python's: it has taken down enough already.
    """
    failed = entry.failed
    item: Any = failed.shown
    payload = failed.payload
    if isinstance(payload, list):
        item = payload[0]
    elif payload is not None:
        try:
            item = (_load_plain if is_poison(failed) else pickle.loads)(payload)[0]
        except Exception:
            item = failed.shown
    return Failure(plan.task(failed.task).node, unlabelled(item), failed.error, failed.traceback, entry.attempts)


def _load_plain(payload: bytes) -> list[Any]:
    items: list[Any] = _PlainUnpickler(io.BytesIO(payload)).load()
    return items


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (Labelled.__module__, Labelled.__qualname__):
            return Labelled  # of a join's item, or a batch: nobody's code, and the item is in it
        raise pickle.UnpicklingError(f"{module}.{name} is somebody's code")


def stop_error(plan: Plan, origin: TaskIndex, entry: FailureEntry, report: Report) -> StoppedByItemError:
    """What a run ends with that stopped for the sake of an item of this origin."""
    failed = entry.failed
    node = plan.task(failed.task).node
    after = "mend the node or the item, and run again"
    if report.state_dir is not None:
        name = plan.origin_name(origin)
        show = f"consecution failed show {shlex.quote(report.state_dir)} --id {shlex.quote(f'{name}:{entry.key}')}"
        after = f"the item is kept as failed (`{show}`); another run with this state_dir goes on without it"
    return StoppedByItemError(
        f"node {node!r} stopped the run at the item {failed.shown}: {failed.error}; what was open is finished; {after}",
        node=node,
        shown=failed.shown,
        report=report,
    )


def counts_now(host: Host | SourceHost) -> Counts:
    """What a task has done up to this moment, the frame in hand included. Any thread may ask."""
    counts, counted = host.counts, Counts()
    since_s = counts.since_s
    counted.frames, counted.waited_s = counts.frames, counts.waited_s
    counted.items_in, counted.items_out, counted.failed = counts.items_in, counts.items_out, counts.failed
    counted.read_share = counts.read_share
    counted.busy_s = counts.busy_s + (max(0.0, time.monotonic() - since_s) if since_s else 0.0)
    if isinstance(host, SourceHost):
        emitted = host.origin.counts().emitted
        counted.items_in = counted.items_out = emitted
        counted.commit_s = host.host.committed_s
    elif host.origin_host is not None:
        counted.commit_s = host.origin_host.committed_s
    if isinstance(host, DurableHost):
        counted.waiting = host.staged_count
    return counted


def task_counts(
    plan: Plan, counts: dict[TaskIndex, Counts], pids: dict[str, int], store_bytes: Mapping[TaskIndex, int]
) -> tuple[TaskCounts, ...]:
    """What each task has done, with its names."""
    listed = []
    for task in plan.tasks:
        found = counts.get(TaskIndex(task.index), Counts())
        listed.append(
            TaskCounts(
                task.name,
                task.node,
                pids.get(task.name),
                found.items_in,
                found.items_out,
                found.failed,
                found.frames,
                found.busy_s,
                found.commit_s,
                found.waited_s,
                found.waiting,
                store_bytes.get(TaskIndex(task.index), 0),
            )
        )
    return tuple(listed)


def node_counts(plan: Plan, counts: dict[TaskIndex, Counts], books: Books) -> tuple[NodeCounts, ...]:
    """Counts per node, summed over its tasks; a source's are its origins'."""
    listed = []
    for node in plan.nodes:
        if node.is_source:
            emitted = sum(books.sources[TaskIndex(task)].emitted for task in node.tasks)
            listed.append(NodeCounts(node.name, node.replicas, emitted, emitted, 0, 0.0))
            continue
        tasks = [counts[TaskIndex(index)] for index in node.tasks if TaskIndex(index) in counts]
        listed.append(
            NodeCounts(
                node.name,
                node.replicas,
                sum(c.items_in for c in tasks),
                sum(c.items_out for c in tasks),
                sum(c.failed for c in tasks),
                sum(c.busy_s for c in tasks),
            )
        )
    return tuple(listed)


def source_counts(plan: Plan, books: Books) -> tuple[SourceCounts, ...]:
    """The books of each source, summed over the tasks that read it."""
    listed = []
    for node in plan.nodes:
        if node.is_source:
            counts = add_counts(books.sources[TaskIndex(task)] for task in node.tasks)
            listed.append(SourceCounts(node.name, counts.emitted, counts.completed, counts.failed, counts.pending))
    return tuple(listed)


def make_status(
    plan: Plan,
    state: str,
    books: Books,
    counts: dict[TaskIndex, Counts],
    *,
    seconds: float,
    restarts: int = 0,
    pids: dict[str, int] | None = None,
    store_bytes: Mapping[TaskIndex, int] = MappingProxyType({}),
    expected: int | None = None,
    completed_before: int = 0,
) -> Status:
    """A status from what the hosts counted."""
    origin = books.total
    return Status(
        state=state,
        emitted=origin.emitted,
        completed=origin.completed,
        failed=origin.failed + books.failed_below,
        pending=origin.pending,
        pending_below=books.pending_below,
        replayed=origin.replayed,
        restarts=restarts,
        seconds=seconds,
        nodes=node_counts(plan, counts, books),
        handled=origin.handled + books.handled_below,
        sources=source_counts(plan, books),
        tasks=task_counts(plan, counts, pids or {}, store_bytes),
        expected=expected,
        read_share=_read_share(plan, counts),
        completed_before=completed_before,
    )


def _read_share(plan: Plan, counts: Mapping[TaskIndex, Counts]) -> float | None:
    """How much of all the sources have read together; None where one of them does not know."""
    tasks = [TaskIndex(task) for node in plan.nodes if node.is_source for task in node.tasks]
    shares = [counts[task].read_share for task in tasks if task in counts]
    known = [share for share in shares if share is not None]
    return sum(known) / len(tasks) if len(known) == len(tasks) else None


def make_report(
    plan: Plan,
    status: Status,
    failures: list[FailureEntry],
    *,
    confirmed: bool,
    stopped: bool,
    state_dir: Path | None,
    result: Any = None,
) -> Report:
    """The report of a run that is over. ``confirmed`` is None where nothing was to be confirmed."""
    options = plan.options
    return Report(
        emitted=status.emitted,
        completed=status.completed,
        failed=status.failed,
        pending=status.pending,
        pending_below=status.pending_below,
        replayed=status.replayed,
        restarts=status.restarts,
        confirmed=None if options.robustness == "none" else confirmed and not status.failed and not status.open,
        failures=tuple(to_failure(plan, entry) for entry in failures[max(0, len(failures) - options.keep_failed) :]),
        seconds=status.seconds,
        nodes=status.nodes,
        mode=options.mode,
        robustness=options.robustness,
        state_dir=None if state_dir is None else str(state_dir),
        stopped=stopped,
        already_finished=False,
        result=result,
        handled=status.handled,
        sources=status.sources,
        completed_before=status.completed_before,
    )
