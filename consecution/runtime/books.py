"""The books of a run: what its origins have emitted, completed, given up, and still have open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace

from consecution.plan import Plan
from consecution.protocol.origin import FailureEntry, Origin, OriginCounts
from consecution.protocol.values import TaskIndex
from consecution.runtime.origin_host import origin_limits
from consecution.runtime.relocation import origins_of
from consecution.runtime.state import StateDir


@dataclass(frozen=True, slots=True)
class Books:
    """``sources`` count items of the streams; what ends in ``below`` is what durable nodes answer for."""

    sources: Mapping[TaskIndex, OriginCounts]
    failed_below: int = 0
    pending_below: int = 0
    handled_below: int = 0

    @classmethod
    def of(cls, sources: Mapping[TaskIndex, OriginCounts], below: Iterable[OriginCounts]) -> Books:
        listed = list(below)
        pending = sum(c.pending + c.own_retries for c in listed)
        return cls(sources, sum(c.failed for c in listed), pending, sum(c.handled for c in listed))

    @property
    def total(self) -> OriginCounts:
        """All sources together."""
        return add_counts(self.sources.values())

    @property
    def pending(self) -> int:
        """Everything that is open anywhere."""
        return self.total.pending + self.pending_below


def add_counts(listed: Iterable[OriginCounts]) -> OriginCounts:
    """The counts of several origins as those of one."""
    rows = [[getattr(counts, field.name) for field in fields(OriginCounts)] for counts in listed]
    return OriginCounts(*(sum(column) for column in zip(*rows, strict=True))) if rows else NO_COUNTS


NO_COUNTS = OriginCounts(0, 0, 0, 0, 0, 0)


def completed_before(state: StateDir, plan: Plan) -> int:
    """How many items of the sources earlier runs have completed. Asked before a worker opens a journal."""
    limits = origin_limits(plan.options)
    return sum(Origin(limits, journal.restore()).counts().completed for journal in state.journals(state.sources))


def read_books(state: StateDir, plan: Plan, told: Mapping[TaskIndex, OriginCounts]) -> tuple[Books, list[FailureEntry]]:
    """What the journals say, and their failed items: right even after an abort. ``told`` says what ran again."""
    counts: list[OriginCounts] = []
    failures: list[FailureEntry] = []
    for journal in state.journals(origins_of(plan)):
        counts.append(Origin(origin_limits(plan.options), journal.restore()).counts())
        failures += journal.failures(plan.options.keep_failed)
    sources = {
        task: replace(read, replayed=told[task].replayed, abandoned=told[task].abandoned)
        for task, read in zip(map(TaskIndex, plan.source_tasks), counts, strict=False)
    }
    return Books.of(sources, counts[len(sources) :]), failures
