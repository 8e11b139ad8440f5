"""`cloister bench figure`: measured ratios beside Slalom's published ones, as an SVG drawing.

Every bar says how many times less CPU time the trusted process spends than plain float32 on the
same core. Slalom's ratios are against running everything inside SGX on one core of its machine, so
the two kinds of bars answer the same question on different machines.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated

import typer

from cloister.base import files
from cloister.cli.console import out
from cloister.errors import InputError

MAX_FILE_BYTES = 16 * 2**20
FAMILIES = ("vgg16", "mobilenet_v1", "resnet")
PUBLISHED: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "vgg16": {"verified": (20.3, 20.3), "blinded": (13.0, 13.0), "slalom": (10.7, 10.7)},
    "mobilenet_v1": {"verified": (6.4, 6.4), "blinded": (5.0, 5.0), "slalom": (4.1, 4.1)},
    "resnet": {"verified": (6.0, 20.0), "slalom": (4.0, 11.0)},
}
"""Lowest and highest ratio (Slalom, arXiv:1806.03287, section 4); the ResNets only as a range."""
LABELS = {
    "slalom": "private + verified",
    "blinded": "private",
    "verified": "verified",
    "enclave": "all inside",
    "open": "no protection",
}
ORDER = ("slalom", "blinded", "verified", "enclave", "open")

WIDTH, LEFT, RIGHT, TOP = 860, 250, 70, 112
BAR, GAP, GROUP_GAP, TITLE = 15, 5, 20, 24
OURS, THEIRS, INK, FAINT, PAPER = "#1f6f8b", "#d9a441", "#22313a", "#dfe5e8", "#ffffff"
HEADING = "How many times less CPU time inside the trusted runtime"
FONT = "Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Bar:
    """One measured ratio and the published range it stands beside, if there is one."""

    model: str
    policy: str
    ratio: float
    published: tuple[float, float] | None


def figure(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT.json...", help="Of `bench inference --json`.")
    ],
    output: Annotated[Path, typer.Option("--out", metavar="FILE.svg", help="The drawing.")] = Path(
        "ratios.svg"
    ),
) -> None:
    """Draw the ratios of saved results beside those that Slalom published."""
    rows = [row for path in results for row in read_results(path)]
    write_figure(rows, output)
    out().print(f"{output}: {len(bars(rows))} ratios")


def read_results(path: Path) -> list[Mapping[str, object]]:
    """The results in a file; files of other benchmarks hold none.

    Raises   InputError when the file is missing or no JSON
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path}: too large for a result")
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a result ({type(error).__name__})") from None
    rows = document.get("results", [document]) if isinstance(document, dict) else []
    rows = rows if isinstance(rows, list) else []
    return [row for row in rows if isinstance(row, dict) and _is_result(row)]


def _is_result(row: Mapping[str, object]) -> bool:
    ratio = row.get("ratio")
    texts = isinstance(row.get("model"), str) and row.get("policy") in ORDER
    if not isinstance(ratio, int | float) or isinstance(ratio, bool):
        return False
    return texts and 0 < ratio < 1e6


def bars(rows: Sequence[Mapping[str, object]]) -> list[Bar]:
    """One bar per model and policy, the last result winning; models in the order they came."""
    latest: dict[tuple[str, str], Bar] = {}
    for row in rows:
        model, policy = Path(str(row["model"])).stem, str(row["policy"])
        ratio = row["ratio"]
        if isinstance(ratio, int | float):
            latest[model, policy] = Bar(model, policy, float(ratio), published(model, policy))
    models = list(dict.fromkeys(model for model, _ in latest))
    return sorted(latest.values(), key=lambda b: (models.index(b.model), ORDER.index(b.policy)))


def published(model: str, policy: str) -> tuple[float, float] | None:
    """Slalom's ratio of a model, lowest and highest; None where it gives none."""
    family = next((name for name in FAMILIES if model.startswith(name)), "")
    return PUBLISHED.get(family, {}).get(policy)


def write_figure(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write the drawing.

    Raises   InputError when there is nothing to draw
    """
    drawn = bars([row for row in rows if _is_result(row)])
    if not drawn:
        raise InputError("no results of `cloister bench inference` to draw")
    files.replace(path, draw(drawn, caption=_caption(rows)).encode(), private=False)


def _caption(rows: Sequence[Mapping[str, object]]) -> str:
    """The machine, when it is one."""
    for key in ("cpu", "threads", "batch"):
        if len({str(row.get(key)) for row in rows}) > 1:
            return "several machines or settings: see the result files"
    first = rows[0]
    count, batch = first.get("threads"), first.get("batch")
    isa = {str(row.get("isa")) for row in rows}
    threads = "1 thread" if count == 1 else f"{count} threads"
    weights = {str(row.get("weights")) for row in rows}
    random = ", random weights" if all(text.startswith("random") for text in weights) else ""
    return f"{first.get('cpu')} ({', '.join(sorted(isa))}), {threads}, batch {batch}{random}"


def draw(drawn: Sequence[Bar], *, caption: str) -> str:
    """The bars as an SVG document of fixed width; its height follows from their number."""
    highest = max(max(bar.ratio, *(bar.published or (0.0,))) for bar in drawn)
    step = _step(highest)
    top = step * int(highest / step + 1)
    scale = (WIDTH - LEFT - RIGHT) / top
    body: list[str] = []
    y = TOP
    model = None
    for bar in drawn:
        if bar.model != model:
            y += GROUP_GAP if model is not None else 0
            body.append(_text(24, y + 14, bar.model, size=15, weight="bold"))
            y, model = y + TITLE, bar.model
        body += _pair(bar, y, scale)
        y += (2 if bar.published else 1) * (BAR + 1) + GAP
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 58}" '
            f'width="{WIDTH}" height="{y + 58}" font-family="{FONT}" fill="{INK}" role="img">',
            "<title>Ratio of float32 time to trusted time, measured and published</title>",
            f'<rect width="{WIDTH}" height="{y + 58}" fill="{PAPER}"/>',
            *_heading(caption),
            *_grid(top, step, scale, y),
            *body,
            "</svg>\n",
        ]
    )


def _step(highest: float) -> float:
    """Distance of grid lines: 1, 2 or 5 times a power of ten, at most ten of them."""
    steps = (m * 10.0**e for e in range(-2, 7) for m in (1, 2, 5))
    return next(step for step in steps if highest / step <= 10)


def _heading(caption: str) -> list[str]:
    return [
        _text(24, 34, HEADING, size=19, weight="bold"),
        _text(24, 56, "than plain float32 inference on the same core", size=14),
        _text(24, 76, caption, size=12, colour="#5b6b74"),
        *_key(24, 96, OURS, "Cloister, measured"),
        *_key(190, 96, THEIRS, "Slalom, published (in SGX, on its own machine; ResNets: a range)"),
    ]  # fmt: skip


def _key(x: float, y: float, colour: str, text: str) -> list[str]:
    swatch = f'<rect x="{x}" y="{y - 10}" width="12" height="12" rx="2" fill="{colour}"/>'
    return [swatch, _text(x + 18, y, text, size=12)]


def _grid(top: float, step: float, scale: float, bottom: int) -> list[str]:
    lines = []
    for i in range(round(top / step) + 1):
        x = LEFT + i * step * scale
        lines.append(
            f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom + 6}" stroke="{FAINT}"/>'
        )
        lines.append(_text(x, bottom + 24, f"{i * step:g}x", size=11, anchor="middle"))
    # The line at which protection costs as much as it saves.
    x = LEFT + scale
    lines.append(
        f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom + 6}" stroke="#9aa8af" '
        'stroke-dasharray="3 3"/>'
    )
    lines.append(_text(x, bottom + 42, "1x: no gain", size=11, anchor="middle", colour="#5b6b74"))
    return lines


def _pair(bar: Bar, y: int, scale: float) -> list[str]:
    label = LABELS[bar.policy]
    found = [
        _text(LEFT - 12, y + 12, label, size=13, anchor="end"),
        _rect(0.0, bar.ratio, y, scale, OURS),
        _text(LEFT + bar.ratio * scale + 6, y + 12, f"{bar.ratio:.1f}x", size=12, weight="bold"),
    ]
    if bar.published:
        low, high = bar.published
        y += BAR + 1
        found.append(_rect(0.0 if low == high else low, high, y, scale, THEIRS))
        text = f"{high:g}x" if low == high else f"{low:g}x to {high:g}x"
        found.append(_text(LEFT + high * scale + 6, y + 12, text, size=12))
    return found


def _rect(low: float, high: float, y: int, scale: float, colour: str) -> str:
    x, width = LEFT + low * scale, max((high - low) * scale, 1.0)
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2" fill="{colour}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int,
    anchor: str = "start",
    weight: str = "normal",
    colour: str = INK,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}" fill="{colour}" stroke="{PAPER}" stroke-width="3" '
        f'paint-order="stroke">{escape(text)}</text>'
    )
