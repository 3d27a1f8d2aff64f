"""The chart: for each work a panel with a line for each contestant, its median and its spread on a logarithmic axis."""

from __future__ import annotations

import math
from html import escape

from benchmarks.peers.field import Work
from benchmarks.peers.record import Figure, Record, figure_text

WIDTH = 860
NAME_WIDTH = 190
VALUE_WIDTH = 110
ROW = 19
PANEL_HEAD = 44
PANEL_GAP = 14
LEFT, RIGHT = NAME_WIDTH, WIDTH - VALUE_WIDTH
OURS, OTHERS, GRID, TEXT = "#c2410c", "#64748b", "#e2e8f0", "#1e293b"


def draw(record: Record) -> str:
    """An SVG document."""
    parts: list[str] = []
    y = PANEL_GAP
    for work in record.works():
        figures = record.figures(work)
        parts.append(_panel(work, figures, y))
        y += PANEL_HEAD + ROW * len(figures) + PANEL_GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{TEXT}">\n'
        f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(work: Work, figures: list[Figure], y: int) -> str:
    top, bottom = y + PANEL_HEAD, y + PANEL_HEAD + ROW * len(figures)
    unit = f"{work.unit}/s, more is better" if work.is_rate else "ms, less is better"
    if work.name == "latency":
        unit += "; filled p50, hollow p99"
    low, high = _decades(figures)
    lines = [f'<text x="8" y="{y + 16}" font-weight="600">{escape(work.title)}</text>']
    lines.append(f'<text x="{WIDTH - 8}" y="{y + 16}" text-anchor="end" fill="{OTHERS}">{escape(unit)}</text>')
    for power in range(low, high + 1):
        x = _x(10.0**power, low, high)
        lines.append(f'<line x1="{x:.1f}" y1="{top - 6}" x2="{x:.1f}" y2="{bottom}" stroke="{GRID}"/>')
        place = f'x="{x:.1f}" y="{top - 10}" text-anchor="middle" font-size="10" fill="{OTHERS}"'
        lines.append(f"<text {place}>{_tick(power)}</text>")
    lines += [_row(figure, top + ROW * n + ROW // 2, low, high) for n, figure in enumerate(figures)]
    return "\n".join(lines)


def _points(figure: Figure) -> list[float]:
    found = [figure.least, figure.median, figure.most]
    return [*found, figure.second] if figure.work.name == "latency" else found


def _decades(figures: list[Figure]) -> tuple[int, int]:
    """The powers of ten around everything."""
    points = [point for figure in figures for point in _points(figure) if 0 < point < math.inf] or [1.0]
    low, high = math.floor(math.log10(min(points))), math.ceil(math.log10(max(points)))
    return low, max(high, low + 1)


def _x(number: float, low: int, high: int) -> float:
    """Where a number is; what has no place on the axis (0, never) is at its end."""
    at = math.log10(min(max(number, 10.0**low), 10.0**high))
    return LEFT + (RIGHT - LEFT) * (at - low) / (high - low)


def _tick(power: int) -> str:
    if power < 3:
        return f"{10.0**power:g}"
    return f"{10 ** (power % 3)}{' kMG'[power // 3]}".replace(" ", "")


def _row(figure: Figure, y: int, low: int, high: int) -> str:
    color = OURS if figure.ours else OTHERS
    weight = ' font-weight="600"' if figure.ours else ""
    least, median, most = (_x(n, low, high) for n in (figure.least, figure.median, figure.most))
    parts = [
        f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end" fill="{color}"{weight}>'
        f"{escape(figure.contestant.name)}</text>",
        f'<line x1="{least:.1f}" y1="{y}" x2="{most:.1f}" y2="{y}" stroke="{color}" stroke-width="3" opacity="0.45"/>',
        f'<circle cx="{median:.1f}" cy="{y}" r="4.5" fill="{color}"/>',
    ]
    if figure.work.name == "latency":
        x = _x(figure.second, low, high)
        parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="#ffffff" stroke="{color}" stroke-width="1.5"/>')
    parts.append(
        f'<text x="{RIGHT + 10}" y="{y + 4}" fill="{color}"{weight}>{escape(figure_text(figure, unit=False))}</text>'
    )
    return "\n".join(parts)
