"""Line charts with named axes, as inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cloister.pages import svg

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 280, 64, 16, 16, 44
MARKS = 5
MOST_LABELS = 8


@dataclass(frozen=True)
class Series:
    """A line: its name, colour (a CSS value) and points in the units of the axes."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_axis: str,
    y_axis: str,
    ends: tuple[float, float] | None = None,
) -> str:
    """A figure of lines over whole numbers; points that are not finite are left out.

    ends   of the vertical axis; default: round numbers around the values
    """
    lines = [
        Series(one.name, one.colour, [p for p in one.points if all(map(math.isfinite, p))])
        for one in series
    ]
    xs = [x for one in lines for x, _ in one.points] or [0.0, 1.0]
    ys = [y for one in lines for _, y in one.points] or [0.0, 1.0]
    first, last = min(xs), max(xs)
    marks = _marks(*(ends or (min(ys), max(ys))))
    low, high = ends or (marks[0], marks[-1])

    def across(x: float) -> float:
        share = 0.5 if first == last else (x - first) / (last - first)
        return LEFT + 10 + share * (WIDTH - LEFT - RIGHT - 20)

    def up(y: float) -> float:
        share = (min(max(y, low), high) - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = []
    for mark in marks:
        edge = [(LEFT, up(mark)), (WIDTH - RIGHT, up(mark))]
        parts.append(svg.polyline(edge, "currentColor", opacity=0.2))
        parts.append(svg.label(LEFT - 6, up(mark) + 4, f"{mark:g}", anchor="end"))
    step = max(1, math.ceil((last - first) / MOST_LABELS))
    for x in range(math.ceil(first), math.floor(last) + 1, step):
        parts.append(svg.label(across(x), HEIGHT - BOTTOM + 16, str(x), anchor="middle"))
    parts.append(svg.label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_axis, anchor="middle"))
    parts.append(svg.label(LEFT, TOP - 4, y_axis))
    for one in lines:
        parts.append(svg.polyline([(across(x), up(y)) for x, y in one.points], one.colour))
        parts += [
            svg.dot(across(x), up(y), one.colour, title=f"{one.name}, {x_axis} {x:g}: {y:.4g}")
            for x, y in one.points
        ]
    return svg.figure(
        "".join(parts), width=WIDTH, height=HEIGHT, title=title, caption=title, style=""
    )


def _marks(low: float, high: float) -> list[float]:
    """Round numbers at equal distances, from at most `low` to at least `high`."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / MARKS))
    step = next(power * k for k in (1, 2, 5, 10) if power * k * MARKS >= span)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Multiples, not sums: 3 * 0.1 is nearer to 0.3.
    return [k * step for k in range(start, max(stop, start + 1) + 1)]
