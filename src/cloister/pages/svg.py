"""Parts of inline SVG figures; colours are CSS values, which may be variables of the page."""

import html
from collections.abc import Sequence

Point = tuple[float, float]


def polyline(
    points: Sequence[Point], colour: str, *, dashed: bool = False, opacity: float = 1
) -> str:
    """A line through some points."""
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<polyline points="{text}" fill="none" style="stroke:{html.escape(colour)}" '
        f'opacity="{opacity}" stroke-width="1.6"{dashes}/>'
    )


def dot(x: float, y: float, colour: str, *, title: str = "") -> str:
    """A point, and what it says to readers who rest on it."""
    said = f"<title>{html.escape(title)}</title>" if title else ""
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="3"'
    return f'<circle {place} style="fill:{html.escape(colour)}">{said}</circle>'


def label(
    x: float, y: float, text: str, *, anchor: str = "start", colour: str = "currentColor"
) -> str:
    """A text; `anchor` says which end of it is at the place."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{html.escape(colour)}">'
        f"{html.escape(text)}</text>"
    )


def figure(drawing: str, *, width: int, height: int, title: str, caption: str, style: str) -> str:
    """A drawing with its title, for readers who cannot see it, and a caption; `style` of both."""
    return (
        f'<figure style="{html.escape(style)}"><svg viewBox="0 0 {width} {height}" '
        f'style="height:auto;font:12px sans-serif" role="img" aria-label="{html.escape(title)}">'
        f"<title>{html.escape(title)}</title>{drawing}</svg>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>\n"
    )
