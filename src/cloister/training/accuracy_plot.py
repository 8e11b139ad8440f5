"""The learning curve as a picture: SVG text, or PNG drawn with Pillow.

It shows accuracy, or of numbers the mean coefficient of determination, which is cut at 0.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw

from cloister.base import files
from cloister.errors import InputError
from cloister.training.checkpoint import EpochResult

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 400, 56, 16, 40, 44
GREY, TRAIN, TEST = "#888888", "#1f6fb4", "#c8501e"
Point = tuple[float, float]


class Line(NamedTuple):
    """A polyline with dots."""

    name: str
    colour: str
    points: list[Point]


def check_name(path: Path) -> None:
    """Refuse a file name that ends neither in .svg nor in .png.

    Raises   InputError
    """
    if path.suffix.lower() not in (".svg", ".png"):
        raise InputError(f"{path}: the curve is written as .svg or .png")


def write_curve(history: Sequence[EpochResult], path: Path, *, title: str) -> None:
    """Accuracy or fit by epoch, on the training and the encrypted test split.

    Raises   InputError for a file name that ends neither in .svg nor in .png
    """
    check_name(path)
    write = _write_svg if path.suffix.lower() == ".svg" else _write_png
    write(history, path, title)


def _lines(history: Sequence[EpochResult]) -> list[Line]:
    last = max((result.epoch for result in history), default=1)

    def place(epoch: int, quality: float) -> Point:
        across = (epoch - 1) / max(1, last - 1)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - max(0.0, quality) * (HEIGHT - TOP - BOTTOM),
        )

    train = [(result.epoch, result.train_quality) for result in history]
    test = [(result.epoch, result.test_quality) for result in history]
    return [
        Line(
            f"{name} {_measure(history)}", colour, [place(x, y) for x, y in points if y is not None]
        )
        for name, colour, points in (("training", TRAIN, train), ("encrypted test", TEST, test))
    ]


def _measure(history: Sequence[EpochResult]) -> str:
    return "R2" if any(result.train_fit is not None for result in history) else "accuracy"


def _grid() -> list[tuple[float, str]]:
    return [
        (HEIGHT - BOTTOM - share / 100 * (HEIGHT - TOP - BOTTOM), f"{share} %")
        for share in (0, 25, 50, 75, 100)
    ]


def _write_svg(history: Sequence[EpochResult], path: Path, title: str) -> None:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
    ]
    for y, label in _grid():
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{GREY}" opacity=".4"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for i, line in enumerate(_lines(history)):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in line.points)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="2"/>'
        )
        for x, y in line.points:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.colour}"/>')
        x, y = LEFT + 160 * i, HEIGHT - 12
        parts.append(f'<text x="{x}" y="{y}" fill="{line.colour}">{line.name}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 12}" text-anchor="end">epochs</text>')
    files.replace(path, "\n".join([*parts, "</svg>\n"]).encode(), private=False)


def _write_png(history: Sequence[EpochResult], path: Path, title: str) -> None:
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    draw.text((LEFT, 12), title, fill="black")
    for y, label in _grid():
        draw.line((LEFT, y, WIDTH - RIGHT, y), fill="#dddddd")
        draw.text((10, y - 6), label, fill="black")
    for i, line in enumerate(_lines(history)):
        draw.line(line.points, fill=line.colour, width=2)
        for x, y in line.points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=line.colour)
        draw.text((LEFT + 160 * i, HEIGHT - 22), line.name, fill=line.colour)
    draw.text((WIDTH - RIGHT - 42, HEIGHT - 22), "epochs", fill="black")
    with files.replacing(path, private=False) as file:
        image.save(file, "PNG")
