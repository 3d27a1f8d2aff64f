"""The books of a run: what its origins have emitted, completed, given up, and still have open."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from consecution.plan import Plan
from consecution.protocol.origin import FailureEntry, Origin, OriginCounts
from consecution.runtime.origin_host import origin_limits
from consecution.runtime.relocation import origins_of
from consecution.runtime.state import StateDir


@dataclass(frozen=True, slots=True)
class Books:
    """``source`` counts items of the stream; what ends in ``below`` is what durable nodes answer for."""

    source: OriginCounts
    failed_below: int = 0
    pending_below: int = 0
    handled_below: int = 0

    @classmethod
    def of(cls, source: OriginCounts, below: Iterable[OriginCounts]) -> Books:
        listed = list(below)
        pending = sum(c.pending + c.own_retries for c in listed)
        return cls(source, sum(c.failed for c in listed), pending, sum(c.handled for c in listed))

    @property
    def pending(self) -> int:
        """Everything that is open anywhere."""
        return self.source.pending + self.pending_below


def read_books(state: StateDir, plan: Plan, told: OriginCounts) -> tuple[Books, list[FailureEntry]]:
    """What the journals say, and their failed items: right even after an abort. ``told`` says what ran again."""
    counts: list[OriginCounts] = []
    failures: list[FailureEntry] = []
    for journal in state.journals(origins_of(plan)):
        counts.append(Origin(origin_limits(plan.options), journal.restore()).counts())
        failures += journal.failures(plan.options.keep_failed)
    source = replace(counts[0], replayed=told.replayed, abandoned=told.abandoned)
    return Books.of(source, counts[1:]), failures
