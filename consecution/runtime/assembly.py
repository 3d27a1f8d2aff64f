"""Puts the pieces of a run together: which source, which store, which codecs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from consecution.options import Options
from consecution.plan import Plan
from consecution.producer import Producer
from consecution.protocol.origin import FailureEntry, Origin, OriginCounts, Restored
from consecution.protocol.step import Codec, Counts
from consecution.protocol.values import TaskIndex
from consecution.report import Failure, NodeCounts, Report, Status
from consecution.runtime.journal import Journal
from consecution.runtime.origin_host import (
    MemoryStore,
    OriginHost,
    Outbox,
    SourceHost,
    Store,
    failures_kept,
    origin_limits,
)
from consecution.runtime.wiring import make_dispatch
from consecution.source import Source

SOURCE_TASK = TaskIndex(0)
"""The source's one task comes first in every plan."""


def make_source(plan: Plan, iterable: Any) -> Source:
    """The source of a run: the iterable that was given, or the producer at the top of the graph."""
    if iterable is not None:
        return Producer(iterable).make_source()
    node = plan.node(plan.source_name).node
    assert isinstance(node, Producer)
    return node.make_source()


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
    source: Source,
    codecs: tuple[Codec, Codec | None],
    outbox: Outbox,
    *,
    journal_path: Path | None,
    epoch: str,
    now: Callable[[], float],
) -> SourceHost:
    """The source's task, its journal restored and its source not yet open."""
    codec, stored = codecs
    store, restored = make_store(plan.options, journal_path, origin=plan.source_name, epoch=epoch)
    host = OriginHost(
        SOURCE_TASK,
        Origin(origin_limits(plan.options), restored, now()),
        store,
        make_dispatch(plan, SOURCE_TASK, codec),
        codec,
        outbox,
        stored=stored,
        now=now,
    )
    return SourceHost(host, source, linger_s=plan.options.linger_ms / 1000)


def origin_namer(plan: Plan, epoch: str) -> Callable[[TaskIndex], str]:
    """Names of origins as sinks see them; two lives of a plan never share one."""
    return lambda task: f"{plan.task(task).name}@{epoch}"


def to_failure(plan: Plan, entry: FailureEntry) -> Failure:
    """A failure as the report shows it; an item that cannot be decoded here is shown by its repr."""
    failed = entry.failed
    item: Any = failed.shown
    payload = failed.payload
    if isinstance(payload, list):
        item = payload[0]
    elif payload is not None:
        try:
            item = pickle.loads(payload)[0]
        except Exception:
            item = failed.shown
    return Failure(plan.task(failed.task).node, item, failed.error, failed.traceback, entry.attempts)


def node_counts(plan: Plan, counts: dict[TaskIndex, Counts], emitted: int) -> tuple[NodeCounts, ...]:
    """Counts per node, summed over its tasks; the source's are the origin's."""
    listed = []
    for node in plan.nodes:
        if node.is_source:
            listed.append(NodeCounts(node.name, 1, emitted, emitted, 0, 0.0))
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


def make_status(
    plan: Plan,
    state: str,
    origin: OriginCounts,
    counts: dict[TaskIndex, Counts],
    *,
    seconds: float,
    restarts: int = 0,
    failed_elsewhere: int = 0,
) -> Status:
    """A status from what the hosts counted."""
    return Status(
        state=state,
        emitted=origin.emitted,
        completed=origin.completed,
        failed=origin.failed + failed_elsewhere,
        pending=origin.pending,
        replayed=origin.replayed,
        restarts=restarts,
        seconds=seconds,
        nodes=node_counts(plan, counts, origin.emitted),
    )


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
        replayed=status.replayed,
        restarts=status.restarts,
        confirmed=None if options.robustness == "none" else confirmed and not status.failed and not status.pending,
        failures=tuple(to_failure(plan, entry) for entry in failures[max(0, len(failures) - options.keep_failed) :]),
        seconds=status.seconds,
        nodes=status.nodes,
        mode=options.mode,
        robustness=options.robustness,
        state_dir=None if state_dir is None else str(state_dir),
        stopped=stopped,
        already_finished=False,
        result=result,
    )
