"""Measured ratios beside Slalom's published ones, drawn from results of `inference`.

Every bar says how many times less CPU time the trusted process spends than plain float32 on the
same core. Slalom's ratios are against running everything inside SGX on one core of its machine, so
the two kinds of bars answer the same question on different machines.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import matplotlib
import typer
from matplotlib.figure import Figure

from cloister.errors import InputError

PUBLISHED = {
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
OURS, THEIRS = "#1f6f8b", "#d9a441"
HEADING = (
    "How many times less CPU time inside the trusted runtime\nthan plain float32 on the same core"
)


def measure(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT.json...", help="Of `inference --json`.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.svg|FILE.png")] = Path("ratios.svg"),
) -> list[dict[str, object]]:
    """Draw one bar per model and policy, and return what was drawn; the last result counts."""
    rows = [row for path in results for row in read_results(path)]
    latest = {(Path(row["model"]).stem, row["policy"]): row["ratio"] for row in rows}
    if not latest:
        raise InputError("no results of `python -m benchmarks inference` to draw")
    models = list(dict.fromkeys(model for model, _ in latest))
    order = list(LABELS)
    drawn = sorted(latest, key=lambda pair: (models.index(pair[0]), order.index(pair[1])))
    bars = [
        {"model": model, "policy": policy, "ratio": latest[model, policy]}
        | {"published": published(model, policy)}
        for model, policy in drawn
    ]
    draw(bars, caption=_caption(rows), path=out)
    return bars


def read_results(path: Path) -> list[Mapping[str, object]]:
    """The results in a file; files of other benchmarks hold none.

    Raises   InputError when the file is missing or no JSON
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a result ({error})") from None
    rows = document.get("results", [document]) if isinstance(document, dict) else []
    return [row for row in rows if _is_result(row)]


def _is_result(row: Mapping[str, object]) -> bool:
    ratio = row.get("ratio")
    known = isinstance(row.get("model"), str) and row.get("policy") in LABELS
    return known and isinstance(ratio, int | float) and math.isfinite(ratio) and ratio > 0


def published(model: str, policy: str) -> tuple[float, float] | None:
    """Slalom's ratio of a model, lowest and highest; None where it gives none."""
    family = next((name for name in PUBLISHED if model.startswith(name)), "")
    return PUBLISHED.get(family, {}).get(policy)


def _caption(rows: Sequence[Mapping[str, object]]) -> str:
    """The machine and the setting, when they are one."""
    if len({(row.get("cpu"), row.get("threads"), row.get("batch")) for row in rows}) > 1:
        return "several machines or settings: see the result files"
    first = rows[0]
    random = all(str(row.get("weights")).startswith("random") for row in rows)
    return (
        f"{first.get('cpu')} ({first.get('isa')}), threads: {first.get('threads')}, "
        f"batch {first.get('batch')}{', random weights' if random else ''}"
    )


def draw(bars: Sequence[Mapping[str, object]], *, caption: str, path: Path) -> None:
    """Measured and published ratios in pairs, one pair per model and policy."""
    places, top = [], 0.0
    for i, bar in enumerate(bars):
        top += 0.6 if i and bar["model"] != bars[i - 1]["model"] else 0.0
        places.append(top)
        top += 1.0
    with matplotlib.rc_context({"svg.hashsalt": "cloister", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 1.8 + 0.5 * top), layout="constrained")
        axes = figure.add_subplot()
        ours = axes.barh(places, [bar["ratio"] for bar in bars], 0.38, color=OURS)
        axes.bar_label(ours, [f"{bar['ratio']:.1f}x" for bar in bars], padding=4, weight="bold")
        known = [(y, bar["published"]) for y, bar in zip(places, bars, strict=True)]
        known = [(y + 0.4, *pair) for y, pair in known if pair]
        lefts = [low if low < high else 0.0 for _, low, high in known]
        widths = [high - left for left, (*_, high) in zip(lefts, known, strict=True)]
        theirs = axes.barh([y for y, *_ in known], widths, 0.38, left=lefts, color=THEIRS)
        texts = [f"{a:g}x to {b:g}x" if a < b else f"{b:g}x" for _, a, b in known]
        axes.bar_label(theirs, texts, padding=4)
        axes.axvline(1.0, color="grey", linestyle=":")
        names = [f"{bar['model']}: {LABELS[bar['policy']]}" for bar in bars]
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.margins(x=0.15, y=0.02)
        axes.set_title(HEADING, loc="left", weight="bold")
        axes.set_xlabel(caption)
        axes.spines[["top", "right"]].set_visible(False)
        keys = {
            "Cloister, measured": ours,
            "Slalom, published (in SGX, on its own machine)": theirs,
            "1x: no gain": axes.lines[0],
        }
        figure.legend(
            list(keys.values()), list(keys), frameon=False, loc="outside lower center", ncols=3
        )
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
