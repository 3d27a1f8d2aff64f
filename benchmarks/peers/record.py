"""What a contest found: every run, and the machine, kept as JSON; and the figures that come of it."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contest import ROOT
from benchmarks.peers.field import CONTESTANTS, OURS, WORKS, Contestant, Work
from benchmarks.peers.race import Run


@dataclass(frozen=True, slots=True)
class Figure:
    """The runs of one contestant at one work, summed up; in items a second, or in ms where ``work.is_rate`` is not.

    ``second`` is the 99th percentile of latency, and the most output that came twice after a kill.
    """

    contestant: Contestant
    work: Work
    size: int
    by_round: dict[int, float]
    second: float
    lost: int
    startup_s: float
    others: float | None

    @property
    def median(self) -> float:
        return statistics.median(self.by_round.values())

    @property
    def least(self) -> float:
        return min(self.by_round.values())

    @property
    def most(self) -> float:
        return max(self.by_round.values())

    @property
    def ours(self) -> bool:
        return self.contestant.tool is OURS

    @property
    def robust(self) -> bool:
        """One of ours that keeps every promise."""
        return self.ours and self.contestant.options.get("robustness") == "robust"

    def times_as_good(self, other: Figure) -> float:
        """The median over the rounds that both ran: how many times as fast, or as short a wait."""
        rounds = self.by_round.keys() & other.by_round.keys()
        pairs = [(self.by_round[n], other.by_round[n]) for n in rounds] or [(self.median, other.median)]
        ratios = [mine / its if self.work.is_rate else its / mine for mine, its in pairs]
        # Of two rounds, twice as good and half as good is level: the mean of ratios is the geometric one.
        return math.sqrt(statistics.median_low(ratios) * statistics.median_high(ratios))

    def is_ahead_of(self, other: Figure) -> bool:
        """In the rounds that both ran, and by the medians too: a round that went oddly well is not enough."""
        better = self.median > other.median if self.work.is_rate else self.median < other.median
        return better and self.times_as_good(other) > 1


def value(run: Run) -> float:
    """The figure of one run: items a second, the median latency in ms, or ms until output flowed again (inf: never)."""
    if run.work == "latency":
        return float(run.told["p50_ms"])
    if run.work == "kill":
        again_s = run.told["flows_again_s"]
        return math.inf if again_s is None else float(again_s) * 1000
    return run.rate


def _second(runs: list[Run]) -> float:
    names = {"latency": "p99_ms", "kill": "doubled"}
    name = names.get(runs[0].work)
    return statistics.median(run.told[name] for run in runs) if name else 0.0


@dataclass(slots=True)
class Record:
    when: str
    commit: str
    machine: str
    rounds: int
    divisor: int
    missing: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    @classmethod
    def begin(cls, rounds: int, divisor: int, missing: list[str]) -> Record:
        now = datetime.datetime.now(datetime.UTC)
        return cls(f"{now:%d %B %Y, %H:%M UTC}".lstrip("0"), _commit(), machine(), rounds, divisor, missing)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Record:
        told: dict[str, Any] = json.loads(path.read_text())
        return cls(**{**told, "runs": [Run(**run) for run in told["runs"]]})

    def figures(self, work: Work) -> list[Figure]:
        """The best first."""
        found = [figure for c in CONTESTANTS if (figure := self._figure(c, work)) is not None]
        return sorted(found, key=lambda figure: figure.median, reverse=work.is_rate)

    def _figure(self, contestant: Contestant, work: Work) -> Figure | None:
        runs = [r for r in self.runs if (r.contestant, r.work) == (contestant.name, work.name) and not r.failure]
        if not runs:
            return None
        others = [run.others for run in runs if run.others is not None]
        return Figure(
            contestant,
            work,
            runs[0].size,
            {run.round: value(run) for run in runs},
            _second(runs),
            max(run.told.get("lost", 0) for run in runs),
            statistics.median(run.startup_s or 0.0 for run in runs),
            max(others) if others else None,
        )

    def works(self) -> list[Work]:
        """Those that anybody has done."""
        done = {run.work for run in self.runs}
        return [work for work in WORKS if work.name in done]

    def failures(self) -> dict[tuple[str, str], str]:
        """(contestant, work) → why it has no figure in some round."""
        return {(run.contestant, run.work): run.failure for run in self.runs if run.failure}


def figure_text(figure: Figure, *, unit: bool = True) -> str:
    """The median, short, for people."""
    work = figure.work
    if work.is_rate:
        return short(figure.median) + (f" {work.unit}/s" if unit else "")
    suffix = " ms" if unit else ""
    if work.name == "latency":
        return f"{_millis(figure.median)} / {_millis(figure.second)}{suffix}"
    flows = f"{figure.median:,.0f}{suffix}" if math.isfinite(figure.median) else "never"
    return flows + (f", {figure.lost} lost" if figure.lost else "")


def _millis(ms: float) -> str:
    return f"{ms:.2f}" if ms < 10 else f"{ms:,.0f}"


def short(rate: float) -> str:
    """Three digits."""
    for unit, divisor in (("M", 1e6), ("k", 1e3)):
        if rate >= divisor:
            return f"{rate / divisor:.3g} {unit}" if rate < 999.5 * divisor else f"{rate / divisor:,.0f} {unit}"
    return f"{rate:.3g}"


def machine() -> str:
    """Cores, processor, memory, system, Python: what a reader needs to compare."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [f"{os.cpu_count()} cores", _processor(), f"{memory_gib:.0f} GiB of memory"]
    system = f"{platform.system()} {platform.release().partition('-')[0]}"
    return ", ".join([*filter(None, parts), system, f"{platform.python_implementation()} {platform.python_version()}"])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
