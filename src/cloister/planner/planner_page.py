"""A search drawn: its plans by their times, and the chosen plan node by node.

The page holds no script and loads nothing.
"""

import html
import math
from collections.abc import Sequence
from pathlib import Path

from cloister.base import files
from cloister.errors import printable
from cloister.pages.page import Section, page, paragraph, table
from cloister.plan.protection import BY_NAME
from cloister.planner.frontier import COLUMNS, PlanFrontier
from cloister.planner.goals import Objective
from cloister.planner.plan_search import CostedPlan

POLICY_COLOURS = {
    "slalom": "#2f6f5e", "blinded": "#7aa36b", "origami": "#b8772c", "origami-prefix": "#d9a441",
    "origami-none": "#c9b27a", "verified": "#5b7fb5", "enclave": "#6b4a8a", "open": "#a2402f",
}  # fmt: skip
PROTECTION_COLOURS = {
    "blinded+verified": "#2f6f5e", "blinded": "#7aa36b", "verified": "#5b7fb5", "open": "#a2402f",
    "enclave": "#6b4a8a", "module": "#1d2329",
}  # fmt: skip
GREY = "#5c6670"
WIDTH, HEIGHT = 900, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 20, 44
STRIP_HEIGHT = 150
TICKS = 5


def planner_page(found: PlanFrontier) -> str:
    """The whole document."""
    chosen = found.chosen
    notes = "".join(paragraph(line, kind="soft") for line in found.notes())
    header = ("", "plan", *COLUMNS[2:])
    rows = [tuple(_text(cell) for cell in row) for row in found.rows(found.best)]
    return page(
        f"plans of {printable(found.model)}",
        f"{chosen.name}: trusted {chosen.cost.trusted_ms:.2f} ms, latency "
        f"{chosen.cost.latency_ms:.1f} ms for one input",
        [
            Section("the plans by their times", scatter(found)),
            Section("the chosen plan, node by node", strip(chosen)),
            Section("the frontier", table(header, rows)),
            Section("how to read it", notes),
        ],
    )


def write_planner_page(found: PlanFrontier, path: Path) -> None:
    """Write the page, or the two pictures alone if the file is an .svg.

    Raises   OSError
    """
    text = planner_page(found)
    if path.suffix == ".svg":
        text = _picture(
            _scatter_marks(found)
            + f'<g transform="translate(0 {HEIGHT})">{_strip_marks(found.chosen)}</g>',
            HEIGHT + STRIP_HEIGHT,
        )
    files.replace(path, text.encode(), private=False)


def scatter(found: PlanFrontier) -> str:
    """Every plan by its trusted time and its latency; the chosen one is ringed."""
    return _picture(_scatter_marks(found), HEIGHT)


def strip(plan: CostedPlan) -> str:
    """The nodes of a plan in their order, coloured by protection; bars are their trusted times."""
    return _picture(_strip_marks(plan), STRIP_HEIGHT)


def _picture(marks: str, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'style="height: auto" font-family="system-ui, sans-serif" font-size="12">{marks}</svg>\n'
    )


def _scatter_marks(found: PlanFrontier) -> str:
    top_x = _round_top(max(one.cost.trusted_ms for one in found.plans))
    top_y = _round_top(max(one.cost.latency_ms for one in found.plans))

    def place(one: CostedPlan) -> tuple[float, float]:
        x = LEFT + one.cost.trusted_ms / top_x * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - one.cost.latency_ms / top_y * (HEIGHT - TOP - BOTTOM)

    marks = [_axes(top_x, top_y)]
    if (limit := found.goals.max_trusted_ms) is not None and limit < top_x:
        x = LEFT + limit / top_x * (WIDTH - LEFT - RIGHT)
        marks.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" '
            f'stroke="{PROTECTION_COLOURS["open"]}" stroke-dasharray="4 3"/>'
        )
    for one in found.plans:
        x, y = place(one)
        colour, best = POLICY_COLOURS[one.policy], one in found.best
        title = html.escape(
            printable(
                f"{one.name}: trusted {one.cost.trusted_ms:.2f} ms, latency "
                f"{one.cost.latency_ms:.1f} ms; {found.why(one)}"
            )
        )
        marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{6 if best else 4}" fill="{colour}" '
            f'style="fill:{colour}" fill-opacity="{0.9 if best else 0.35}">'
            f"<title>{title}</title></circle>"
        )
    x, y = place(found.chosen)
    marks.append(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="11" fill="none" stroke="{GREY}" stroke-width="2"/>'
        f'<text x="{x:.1f}" y="{y - 16:.1f}" text-anchor="middle" fill="{GREY}">'
        f"{html.escape(printable(found.chosen.name))}</text>"
    )
    policies = list(dict.fromkeys(one.policy for one in found.plans))
    marks.append(_legend(policies, POLICY_COLOURS, HEIGHT - 6))
    return "".join(marks)


def _round_top(most: float) -> float:
    """The end of an axis whose ticks are round numbers."""
    tick = 10.0 ** math.floor(math.log10(max(most, 1e-6) / TICKS))
    return TICKS * next(tick * step for step in (1, 2, 3, 4, 5, 10) if TICKS * tick * step >= most)


def _axes(top_x: float, top_y: float) -> str:
    marks = []
    for i in range(TICKS + 1):
        x = LEFT + i / TICKS * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - i / TICKS * (HEIGHT - TOP - BOTTOM)
        marks.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GREY}" '
            f'stroke-opacity="0.2"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="{GREY}">'
            f"{top_y * i / TICKS:.3g}</text>"
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle" fill="{GREY}">'
            f"{top_x * i / TICKS:.3g}</text>"
        )
    marks.append(
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - BOTTOM - 6}" text-anchor="end" fill="{GREY}">'
        f'trusted ms for one input</text><text x="{LEFT + 6}" y="{TOP + 4}" fill="{GREY}">'
        f"{Objective.LATENCY.value} ms</text>"
    )
    return "".join(marks)


def _strip_marks(plan: CostedPlan) -> str:
    steps = [step for step in plan.cost.steps if step.nodes]
    names = list(dict.fromkeys(name for step in steps for name in step.nodes))
    pitch = (WIDTH - LEFT - RIGHT) / max(len(names), 1)
    times: dict[str, float] = {}
    waits: dict[str, float] = {}
    for step in steps:
        # A step's time is shown at its first node: it computes all of its nodes in one pass.
        times[step.nodes[0]] = times.get(step.nodes[0], 0.0) + step.trusted_ms
        waits[step.nodes[0]] = waits.get(step.nodes[0], 0.0) + step.worker_ms
    top = max(times.values(), default=0.0) or 1.0
    base, marks = 92, []
    for i, name in enumerate(names):
        protection = plan.protections[name].name
        colour, ms = PROTECTION_COLOURS[protection], times.get(name, 0.0)
        x, height = LEFT + i * pitch, 72 * ms / top
        title = html.escape(
            printable(
                f"{name}: {protection}, trusted {ms:.3f} ms, worker {waits.get(name, 0.0):.2f} ms"
            )
        )
        marks.append(
            f"<g><title>{title}</title>"
            f'<rect x="{x:.2f}" y="{base}" width="{0.9 * pitch:.2f}" height="18" '
            f'style="fill:{colour}"/>'
            f'<rect x="{x:.2f}" y="{base - 4 - height:.2f}" width="{0.9 * pitch:.2f}" '
            f'height="{height:.2f}" style="fill:{colour}" fill-opacity="0.45"/></g>'
        )
    marks.append(
        f'<text x="{LEFT - 6}" y="24" text-anchor="end" fill="{GREY}">{top:.3g} ms</text>'
        f'<text x="{LEFT - 6}" y="{base + 13}" text-anchor="end" fill="{GREY}">nodes</text>'
    )
    used = [name for name in BY_NAME if name in {p.name for p in plan.protections.values()}]
    marks.append(_legend(used, PROTECTION_COLOURS, STRIP_HEIGHT - 10))
    return "".join(marks)


def _legend(names: Sequence[str], colours: dict[str, str], y: int) -> str:
    return "".join(
        f'<rect x="{LEFT + 130 * i}" y="{y - 9}" width="10" height="10" '
        f'style="fill:{colours[name]}"/>'
        f'<text x="{LEFT + 130 * i + 15}" y="{y}" fill="{GREY}">{name}</text>'
        for i, name in enumerate(names)
    )


def _text(cell: object) -> str:
    return f"{cell:.2f}" if isinstance(cell, float) else printable(str(cell))
