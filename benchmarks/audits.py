"""Fills the tables and pictures of docs/audits from each audit's report.json and report.html."""

import base64
import html
import io
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageDraw

from benchmarks import ROOT
from cloister.audit.input.split_page import TITLES, original_criterion
from cloister.base import files
from cloister.errors import InputError
from cloister.plan import split_report
from cloister.plan.split_report import SplitReport
from cloister.plan.split_scores import ATTACKS, SplitScores

PAGE, REPORT, PICTURES = "README.md", "report.html", "pictures.png"
BEGIN, END = "<!-- From report.json, by `python -m benchmarks audits`: -->\n", "<!-- end -->\n"
WRAP = 100
SHOWN, SIDE, LABEL, TITLE, GAP = 3, 64, 110, 18, 10
"""Images of each attack in a picture, the length of their longer side, and room for texts."""

Folder = Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder of all audits.")]


def measure(folder: Folder = ROOT / "docs" / "audits") -> list[dict[str, object]]:
    """One row for each audit, after its page and the page of all were filled."""
    reports = {path.parent.name: split_report.load(path) for path in _reports(folder)}
    for name, report in reports.items():
        page = folder / name / PAGE
        fill(page, figures(report))
        files.replace(folder / name / PICTURES, pictures(folder / name / REPORT), private=False)
    fill(folder / PAGE, summary(reports))
    return [_row(name, report) for name, report in reports.items()]


def fill(page: Path, text: str) -> None:
    """Put generated text between a page's two marks.

    Raises   InputError
    """
    files.replace(page, filled(page.read_text(encoding="utf-8"), text).encode(), private=False)


def filled(page: str, text: str) -> str:
    """A page's text with the generated part.

    Raises   InputError
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise InputError(f"a page of an audit needs the lines {BEGIN.strip()} and {END.strip()}")
    return f"{head}{begin}{text}{end}{tail}"


def summary(reports: Mapping[str, SplitReport]) -> str:
    """The table of all audits, and what each says of the published criterion."""
    rows = [_row(name, report) for name, report in reports.items()]
    said = [
        textwrap.fill(f"- **{name}**: {original_criterion(report)}", WRAP, subsequent_indent="  ")
        for name, report in reports.items()
    ]
    linked = [{**row, "audit": f"[{row['audit']}]({row['audit']}/{PAGE})"} for row in rows]
    return "\n".join([_table(linked), "## The published claim", "", *said, ""])


def figures(report: SplitReport) -> str:
    """The tables of one audit."""
    settings = [
        {"": "model", " ": f"`{report.model}`, SHA-256 `{report.model_sha256}`"},
        {"": "images", " ": f"{report.images:,} attacked, {report.public:,} public, SHA-256 "
                            f"`{report.data_sha256}`"},
        {"": "seeds, effort", " ": f"{_seeds(report)}, {report.effort:g}"},
        {"": "processor time of the attacks", " ": f"{_cpu_s(report) / 60:,.0f} minutes"},
        {"": "report", " ": f"SHA-256 `{report.digest.hex()}`"},
    ]  # fmt: skip
    return "\n".join(
        [
            f"[report.html]({REPORT}) has curves, intervals and the gallery; "
            f"[report.json]({split_report.NAME}) every figure.",
            "",
            f"![A row for each split: originals and the first reconstructions]({PICTURES})",
            "",
            _table(settings),
            *textwrap.wrap(report.conclusion, WRAP),
            "",
            *textwrap.wrap(original_criterion(report), WRAP),
            "",
            *textwrap.wrap(
                f"Means of SSIM / explained / identified, by attack. A blind guess has SSIM "
                f"{report.blind_ssim:.3f}, explains 0% and identifies {report.chance:.0%}; the "
                f"thresholds are {report.limits['ssim']:.3f}, {report.limits['explained']:.0%} and "
                f"{report.limits['identification']:.0%}, for the upper ends of the intervals.",
                WRAP,
            ),
            "",
            _table([_scores(name, split) for name, split in _places(report)]),
            f"Processor seconds of {_seeds(report)} seeds:",
            "",
            _table([_spent(name, split) for name, split in _places(report)]),
        ]
    )  # fmt: skip


def _places(report: SplitReport) -> Iterator[tuple[str, SplitScores]]:
    yield "the input itself (control)", report.input_control
    for one in report.verdicts:
        yield f"`{one.split.name}`, {one.split.elements:,} numbers", one.split
    yield "under one-time pads (control)", report.blinded_control


def _scores(name: str, split: SplitScores) -> dict[str, str]:
    return {"split after": name} | {
        TITLES[one.attack]: f"{one.ssim.mean:.3f} / {one.explained.mean:.0%} / "
                            f"{one.identification.mean:.1%}"
        for one in split.attacks
    }  # fmt: skip


def _spent(name: str, split: SplitScores) -> dict[str, str]:
    return {"split after": name} | {TITLES[one.attack]: f"{one.cpu_s:,.0f}"
                                    for one in split.attacks}  # fmt: skip


def _row(name: str, report: SplitReport) -> dict[str, object]:
    accepted = report.accepted_split()
    strongest = max(report.splits[-1].attacks, key=lambda one: one.identification.mean)
    return {
        "audit": name,
        "splits": len(report.splits),
        "attacked / public": f"{report.images} / {report.public}",
        "seeds": _seeds(report),
        "effort": report.effort,
        "processor minutes": f"{_cpu_s(report) / 60:.0f}",
        "identified at the deepest split": f"{strongest.identification.mean:.1%} "
                                           f"({strongest.attack})",
        "accepted split": "none" if accepted is None else accepted.name,
    }  # fmt: skip


def _seeds(report: SplitReport) -> int:
    return min(one.seeds for _, split in _places(report) for one in split.attacks)


def _cpu_s(report: SplitReport) -> float:
    return sum(one.cpu_s for _, split in _places(report) for one in split.attacks)


def _table(rows: list[dict[str, object]] | list[dict[str, str]]) -> str:
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row.get(c, "") for c in columns] for row in rows)]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


# ---- pictures


def pictures(page: Path) -> bytes:
    """The first reconstructions of all splits in one PNG file: a row for each split.

    Raises   InputError for a page without pictures
    """
    places = list(_galleries(page.read_text(encoding="utf-8")))
    if not places:
        raise InputError(f"{page}: shows no reconstructions")
    width, height = _fitted(places[0][1]["original"][0]).size
    columns = ["original", *(TITLES[name] for name in ATTACKS)]
    step = SHOWN * width + GAP
    sheet = Image.new(
        "RGB", (LABEL + len(columns) * step, TITLE + len(places) * (height + 2)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for i, column in enumerate(columns):
        draw.text((LABEL + i * step, 3), column.split(" (")[0], "black")
    for j, (title, rows) in enumerate(places):
        top = TITLE + j * (height + 2)
        draw.text((2, top + height // 2 - 5), title, "black")
        for i, column in enumerate(columns):
            for k, picture in enumerate(rows.get(column, [])[:SHOWN]):
                sheet.paste(_fitted(picture), (LABEL + i * step + k * width, top))
    buffer = io.BytesIO()
    sheet.quantize(256).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _galleries(text: str) -> Iterator[tuple[str, dict[str, list[bytes]]]]:
    """Each split's short title, and its pictures by the row that shows them."""
    for part in text.split("<h3>")[1:]:
        title = html.unescape(part.partition("</h3>")[0])
        rows: dict[str, list[bytes]] = {}
        for label, data in re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)"',
                                      part):  # fmt: skip
            rows.setdefault(html.unescape(label), []).append(base64.b64decode(data))
        if "original" in rows:
            yield _short(title), rows


def _short(title: str) -> str:
    if "control" in title:
        return title.partition(" (")[0].removeprefix("The ").removeprefix("Under ")
    return title.partition(":")[0].lower()


def _fitted(picture: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    factor = SIDE / max(image.size)
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.NEAREST)


def _reports(folder: Path) -> list[Path]:
    found = sorted(folder.glob(f"*/{split_report.NAME}"))
    if not found:
        raise InputError(f"{folder}: holds no audit")
    return found
