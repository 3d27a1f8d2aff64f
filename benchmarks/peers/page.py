"""The result for people: tables, the generated part of ``docs/performance.md``, and where others are ahead."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers import chart
from benchmarks.peers.field import CONTESTANTS, Contestant, Work
from benchmarks.peers.race import Run
from benchmarks.peers.record import Figure, Record, figure_text, value

BEGIN = "<!-- written by make bench-peers: do not edit between here -->"
END = "<!-- and here -->"
CHART = "performance.svg"
SAME = 1.1
"""What differs by less than this factor is called level: it is within what the machine's speed drifts."""


def write(record: Record, path: Path) -> None:
    """Put the result between the markers of the page, and the chart beside it. What stands around it stays."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} has no place for the result: expected the lines {BEGIN!r} and {END!r}")
    path.write_text(f"{before}{BEGIN}\n\n{tables(record)}\n\n{END}{after}")
    path.with_name(CHART).write_text(chart.draw(record))


def tables(record: Record) -> str:
    """Everything, as Markdown; where others are ahead comes first."""
    parts = [_head(record), *_ahead(record), f"![all works, each contestant's median and spread]({CHART})"]
    parts += ["### Medians", _overview(record), "### Each work"]
    parts += [_details(record, work) for work in record.works()]
    return "\n\n".join([*parts, *_scaling(record), *_failed(record), _versions()])


def _head(record: Record) -> str:
    fewer = f", one in {record.divisor} of the items" if record.divisor > 1 else ""
    missing = "".join(f" Without {reason}" for reason in record.missing)
    return (
        f"Measured {record.when}, commit {record.commit}, {record.rounds} round{'s' * (record.rounds > 1)}{fewer}, on "
        f"{record.machine}.{missing}"
    )


def _ahead(record: Record) -> list[str]:
    """Who beats the best of ours in robust, work by work; and then where nobody does."""
    lost, won = [], []
    for work in record.works():
        figures = record.figures(work)
        ours = next((found for found in figures if found.robust), None)
        others = [found for found in figures if not found.ours]
        if ours is None or not others:
            continue
        whole = [other for other in others if other.lost <= ours.lost]  # who loses items is not ahead, however quick
        better = [other for other in whole if other.is_ahead_of(ours)]
        told = f"- **{work.title}**: {ours.contestant.name} {figure_text(ours)}; "
        if better:
            lost.append(told + "ahead: " + ", ".join(_beside(other, ours) for other in better))
        else:
            won.append(told + "next: " + _beside((whole or others)[0], ours))
    late = _late_ahead(record)
    return [
        "### Where others are ahead of us",
        "\n".join(lost + late) or "Nowhere in this run.",
        "### Where we are ahead",
        "\n".join(won) or "Nowhere in this run.",
    ]


def _late_ahead(record: Record) -> list[str]:
    """Latency has two figures; this is about the 99th percentile."""
    figures = sorted(
        (f for w in record.works() if w.name == "latency" for f in record.figures(w)), key=lambda f: f.second
    )
    ours = next((found for found in figures if found.robust), None)
    better = [f for f in figures if not f.ours and ours is not None and f.second < ours.second]
    if ours is None or not better:
        return []
    named = ", ".join(f"{f.contestant.name} {f.second:.1f} ms" for f in better)
    return [f"- **the 99th percentile of that latency**: {ours.contestant.name} {ours.second:.1f} ms; ahead: {named}"]


def _beside(other: Figure, ours: Figure) -> str:
    return f"{other.contestant.name} {figure_text(other)} ({_factor(other.times_as_good(ours))})"


def _factor(ratio: float) -> str:
    """How many times as good."""
    if 1 / SAME < ratio < SAME:
        return "level"
    return f"{ratio:.2f} ×" if ratio < 10 else f"{ratio:,.0f} ×"


def _overview(record: Record) -> str:
    works = record.works()
    found = {(f.contestant.name, work.name): f for work in works for f in record.figures(work)}
    failed = record.failures()
    rows = []
    for contestant in CONTESTANTS:
        cells = [_cell(found.get((contestant.name, w.name)), (contestant.name, w.name) in failed) for w in works]
        if any(cell != "-" for cell in cells):
            rows.append([contestant.name, *cells])
    return _table([["", *(f"{work.name}{_unit(work)}" for work in works)], *rows])


def _unit(work: Work) -> str:
    return f", {work.unit}/s" if work.is_rate else ", p50 / p99 ms" if work.name == "latency" else ", ms"


def _cell(figure: Figure | None, failed: bool) -> str:
    if figure is None:
        return "failed" if failed else "-"
    text = figure_text(figure, unit=False)
    return f"**{text}**" if figure.robust else text


def figure(run: Run) -> str:
    """One run, as it is told while the contest goes on."""
    if run.work == "latency":
        return f"p50 {value(run):.2f} ms, p99 {run.told['p99_ms']:.2f} ms"
    if run.work == "kill":
        flows = "never" if run.told["flows_again_s"] is None else f"{value(run):,.0f} ms"
        return f"{flows}, {run.told['lost']} lost, {run.told['doubled']} twice"
    return f"{value(run):,.0f}/s"


def _details(record: Record, work: Work) -> str:
    figures = record.figures(work)
    last = {"latency": "p99", "kill": "twice"}.get(work.name, "")
    head = ["", "median", "least", "most", *([last] if last else []), "runs", "N", "start-up s", "others' cores"]
    rows = [[f.contestant.name, *_detail(f, last)] for f in figures]
    unit = f"{work.unit}/s" if work.is_rate else "ms, less is better"
    return f"**{work.title}** ({work.name}; {unit})\n\n{_table([head, *rows])}"


def _detail(f: Figure, last: str) -> list[str]:
    show = (lambda n: f"{n:,.0f}") if f.work.is_rate or f.work.name == "kill" else (lambda n: f"{n:.2f}")
    others = "?" if f.others is None else f"{f.others:.2f}"
    lost = f", {f.lost} lost" if f.lost else ""
    shown = [show(f.median) + lost, show(f.least), show(f.most), *([show(f.second)] if last else [])]
    return [*shown, str(len(f.by_round)), f"{f.size:,}", f"{f.startup_s:.2f}", others]


def _scaling(record: Record) -> list[str]:
    """What a second worker brings where Python burns CPU."""
    figures = [figure for work in record.works() if work.name == "cpu" for figure in record.figures(work)]
    pairs = [(one, two) for one in figures for two in figures if _same_but_workers(one.contestant, two.contestant)]
    rows = [[two.contestant.name, f"{two.times_as_good(one):.2f}"] for one, two in pairs]
    return ["**Two workers against one** (cpu)", _table([["", "times as fast"], *rows])] if rows else []


def _same_but_workers(one: Contestant, two: Contestant) -> bool:
    same = [{**contestant.options, "workers": 0} for contestant in (one, two)]
    counts = [contestant.options.get("workers", contestant.workers) for contestant in (one, two)]
    return one.tool == two.tool and same[0] == same[1] and counts == [1, 2]


def _failed(record: Record) -> list[str]:
    """What gave no figure, and why, in one line each."""
    lines = [f"- {who}, {work}: {failure.splitlines()[-1]}" for (who, work), failure in record.failures().items()]
    return ["**Failed**", "\n".join(lines)] if lines else []


def _versions() -> str:
    tools = dict.fromkeys(c.tool for c in CONTESTANTS)
    named = ", ".join(f"{tool.name.removesuffix(' ' + tool.version)} {tool.version}" for tool in tools if tool.version)
    return f"Versions: {named}."


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "| --- |" + " ---: |" * (len(rows[0]) - 1))
    return "\n".join(lines)
