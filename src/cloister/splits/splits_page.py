"""The page of a sweep: stacked bars for each split, the table, and the model's constants.

One self-contained HTML page without scripts.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.base import files
from cloister.base.sizes import human_bytes
from cloister.errors import InputError
from cloister.pages.page import Section, page, paragraph, table
from cloister.splits.split_cost import SplitCost, SplitSweep
from cloister.splits.tee_model import TEES, constants

PAGE_NAME = "index.html"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 300, 60, 10, 16, 56
TICKS = 4
GREY = "#7a8793"
COLOURS = {
    "open part": "#7a8793",
    "trusted compute": "#2f8f78",
    "TEE overhead": "#c0503c",
    "transition": "#d39a35",
    "set-up": "#8a6fb0",
    "load": "#4a78b5",
    "first inference": "#2f8f78",
}


@dataclass(frozen=True)
class Bar:
    """The phases of one split, from the bottom up, in milliseconds."""

    label: str
    phases: dict[str, float]

    @property
    def total_ms(self) -> float:
        """Height of the bar."""
        return sum(self.phases.values())


def write_page(sweep: SplitSweep, folder: Path) -> Path:
    """Write the page; its path.

    Raises   InputError when the folder cannot be written
    """
    path = folder / PAGE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.replace(path, splits_page(sweep).encode(), private=False)
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror}; choose another folder") from error
    return path


def splits_page(sweep: SplitSweep) -> str:
    """The whole page."""
    lead = (
        f"{sweep.model}: what it costs to hide the last layers, for every number of them, with the "
        f"engine {sweep.engine}. Parameters that are not hidden are public."
    )
    return page(
        "Splits",
        lead,
        [
            Section("Every inference", bars(_warm(sweep), "one inference when warm")),
            Section("The first inference", bars(_cold(sweep), "start of an engine")),
            Section("What each split hides and needs", _hidden(sweep)),
            Section("Milliseconds, with 95 % intervals of the medians", _times(sweep)),
            Section("If the engine were SGX: modelled, not measured", _modelled(sweep)),
            Section("What to know", "".join(paragraph(note) for note in sweep.notes())),
        ],
    )


def bars(shown: Sequence[Bar], what: str) -> str:
    """Stacked bars as an inline picture; negative phases, which are noise, are not drawn."""
    if not shown:
        return paragraph("nothing is hidden")
    top = max(max(bar.total_ms for bar in shown), 1e-9)
    pitch = (WIDTH - LEFT - RIGHT) / len(shown)
    marks = [_tick(top * i / TICKS, top) for i in range(TICKS + 1)]
    marks += [_bar(bar, LEFT + i * pitch, pitch, top) for i, bar in enumerate(shown)]
    marks.append(_legend(list(dict.fromkeys(name for bar in shown for name in bar.phases))))
    label = html.escape(f"stacked bars: milliseconds of {what}, by the number of hidden layers")
    return (
        '<figure style="width:100%;margin-right:0">'
        f'<svg style="height:auto" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" '
        f'font-family="sans-serif" font-size="11">{"".join(marks)}</svg>'
        f"<figcaption>Milliseconds of {html.escape(what)}, by the number of hidden layers."
        "</figcaption></figure>\n"
    )


def _warm(sweep: SplitSweep) -> list[Bar]:
    return [
        Bar(
            str(one.layers),
            {
                "open part": one.warm.open.median,
                "trusted compute": one.warm.compute.median,
                "TEE overhead": max(one.warm.overhead.median, 0.0),
                "transition": one.warm.transition.median,
            },
        )
        for one in sweep.splits
    ]


def _cold(sweep: SplitSweep) -> list[Bar]:
    return [
        Bar(
            str(one.layers),
            {
                "set-up": one.cold.setup.median,
                "load": one.cold.load.median,
                "first inference": one.cold.first.median,
            },
        )
        for one in sweep.splits
        if one.cold is not None
    ]


# ---- the picture


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)


def _tick(value: float, top: float) -> str:
    y = _y(value, top)
    return (
        f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{GREY}" opacity=".3"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="{GREY}">{value:.3g}</text>'
    )


def _bar(bar: Bar, x: float, pitch: float, top: float) -> str:
    marks, below = [], 0.0
    for name, value in bar.phases.items():
        y, height = _y(below + value, top), value / top * (HEIGHT - TOP - BOTTOM)
        below += value
        marks.append(
            f'<rect x="{x + pitch * 0.2:.1f}" y="{y:.1f}" width="{pitch * 0.6:.1f}" '
            f'height="{height:.2f}" style="fill:{COLOURS[name]}">'
            f"<title>{bar.label} hidden: {name} {value:.4g} ms</title></rect>"
        )
    middle = x + pitch / 2
    marks.append(
        f'<text x="{middle:.1f}" y="{_y(below, top) - 4:.1f}" text-anchor="middle" fill="{GREY}">'
        f"{below:.3g}</text>"
        f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle" fill="{GREY}">'
        f"{bar.label}</text>"
    )
    return "".join(marks)


def _legend(names: Sequence[str]) -> str:
    y = HEIGHT - 14
    return "".join(
        f'<rect x="{LEFT + 150 * i}" y="{y - 9}" width="10" height="10" '
        f'style="fill:{COLOURS[name]}"/>'
        f'<text x="{LEFT + 150 * i + 15}" y="{y}" fill="{GREY}">{name}</text>'
        for i, name in enumerate(names)
    )


# ---- the tables


def _hidden(sweep: SplitSweep) -> str:
    header = (
        "hidden layers", "first", "parameters", "share", "FLOPs", "share", "entering",
        "module's memory", "resident, measured", "thief's gain",
    )  # fmt: skip
    return table(header, (_hidden_row(one, sweep) for one in sweep.splits))


def _hidden_row(one: SplitCost, sweep: SplitSweep) -> tuple[str, ...]:
    gain = "not measured" if one.gain is None else f"{one.gain:.2f}"
    hidden, memory = one.hidden, one.memory
    if hidden is None or memory is None:
        return ("0", "", "0", "0%", "0", "0%", "", "", "", gain)
    return (
        str(hidden.layers),
        hidden.first,
        f"{hidden.parameters:,}",
        f"{hidden.parameters / max(sweep.parameters, 1):.1%}",
        f"{hidden.flops:,}",
        f"{hidden.flops / max(sweep.flops, 1):.1%}",
        human_bytes(hidden.entering),
        human_bytes(memory.module),
        "not known" if memory.resident is None else human_bytes(memory.resident),
        gain,
    )


def _times(sweep: SplitSweep) -> str:
    header = (
        "hidden layers", "open", "compute", "overhead", "transition", "warm", "set-up", "load",
        "first", "cold",
    )  # fmt: skip
    rows = []
    for one in sweep.splits:
        warm, cold = one.warm, one.cold
        shown = [warm.open, warm.compute, warm.overhead, warm.transition, warm.total]
        shown += [] if cold is None else [cold.setup, cold.load, cold.first, cold.total]
        cells = [f"{m.median:.3g} ({m.low:.3g} to {m.high:.3g})" for m in shown]
        rows.append((str(one.layers), *cells, *[""] * (len(header) - 1 - len(cells))))
    return table(header, rows)


def _modelled(sweep: SplitSweep) -> str:
    header = ("hidden layers", "TEE", "transition ms", "memory ms", "paging ms", "added ms")
    rows = [
        (
            str(one.layers), name, f"{m.transition_ms:.4f}", f"{m.memory_ms:.4f}",
            f"{m.paging_ms:.4f}", f"{m.total_ms:.4f}",
        )
        for one in sweep.splits
        for name, m in (one.modelled or {}).items()
    ]  # fmt: skip
    sources = table(
        ("TEE", "constant", "value", "source"),
        ((tee, name, f"{value:,.6g}", source) for tee, name, value, source in constants()),
    )
    titles = "; ".join(f"{name}: {tee.title}" for name, tee in TEES.items())
    return table(header, rows) + paragraph(titles, kind="soft") + sources
