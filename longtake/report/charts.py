"""Line charts as SVG text, so that a page needs nothing beside itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#3366cc", "#dc3912", "#109618", "#990099", "#ff9900", "#0099c6", "#dd4477", "#66aa00")
WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 36


def line_chart(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str) -> str:
    """One SVG with a line a name and a legend below; colours by the order of the names.

    Args:
        lines: name -> (x, y) of equal length.
        x_label, y_label: of the axes.
    """
    points = [(x, y) for xs, ys in lines.values() for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    if not points:
        return ""
    across, up = _ticks([x for x, _ in points]), _ticks([y for _, y in points])
    (x0, x1), (y0, y1) = (across[0], across[-1]), (up[0], up[-1])

    def place(x: float, y: float) -> str:
        px = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        py = HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
        return f"{px:.1f},{py:.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)}">']
    for y in up:
        at = place(x0, y).split(",")[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at}" text-anchor="end" dy="0.32em">{y:.10g}</text>')
    for x in across:
        at = place(x, y0).split(",")[0]
        parts.append(f'<text x="{at}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{x:.10g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    for i, (xs, ys) in enumerate(lines.values()):
        path = " ".join(place(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="2"/>'
        )
    legend = " ".join(
        f'<span><i style="background:{COLOURS[i % len(COLOURS)]}"></i>{escape(name)}</span>'
        for i, name in enumerate(lines)
    )
    return f'{"".join(parts)}</svg><div class="legend">{legend}</div>'


def _ticks(values: Sequence[float]) -> list[float]:
    """Three to seven round numbers, a step of 1, 2 or 5 times a power of ten apart, around all values."""
    low, high = min(values), max(values)
    rough = (high - low) / 4 or abs(high) / 4 or 1.0
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [i * step for i in range(first, max(last, first + 1) + 1)]
