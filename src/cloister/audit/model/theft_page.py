"""The page of `cloister audit model`: a figure, a table for every split, settings and limits."""

from collections.abc import Sequence

from cloister.audit.model.theft_report import (
    SWEET,
    HeadRecovery,
    ModelTheftReport,
    SplitTheft,
    Theft,
)
from cloister.pages import svg
from cloister.pages.page import Section, page, paragraph, table
from cloister.pages.svg import dot, label, polyline

LEAD = (
    "A thief has the exposed layers in the clear, knows the architecture of the hidden ones, asks "
    "the model, and trains a copy. This page says what these attacks got, on these data."
)
LIMITS = (
    "These figures are empirical. They hold for the attacks named here: exposed layers kept and "
    "hidden layers, or a linear probe in their place, trained by Adam on the answers; linear "
    "hidden parts solved; three architectures from scratch. Of several attacks the best one is "
    "shown. A thief with more data of the same kind, a better architecture, augmented or crafted "
    "queries, or an exact attack on several hidden layers gets more. A large figure proves theft; "
    "a small one proves no protection."
)
SHIFT = (
    "The thief chooses the values that enter the hidden part, as a host can that runs the exposed "
    "layers, unless a plan has them checked. "
    "Softmax forgets what all logits of a sample have in common, so weights are recovered up to a "
    "vector that is added to those of all classes: the answers are the same."
)
LABELS = (
    "Labels alone give no equations, so no exact recovery was tried. A thief finds boundaries "
    "between classes by bisection, with many queries for each."
)
INTERVALS = (
    "Means over the seeds with 95 % intervals by Student's t. The seeds differ in queries, initial "
    "weights and order; the evaluated samples are the same."
)
MEMBERSHIP = (
    "Area under the ROC curve with a 95 % interval after Hanley and McNeil; 0.5 is a guess. The "
    "attacks read the model's own answers, which are the same for every split. In the table of "
    "splits the loss threshold is applied to the surrogates of the largest budget instead."
)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 340, 52, 150, 16, 44
COLOURS = ("#1f6fb4", "#c8501e", "#2f8f5e", "#8a4fb0", "#b08a1e", "#5c6670")


def theft_page(report: ModelTheftReport) -> str:
    """The whole document."""
    sections = [
        Section("Verdict", paragraph(report.verdict, kind="warn") + _unfinished(report)),
        Section("Figure", figure(report)),
        Section("Accuracy of the surrogates", _accuracies(report)),
        Section("Fidelity: agreement with the model", _fidelities(report)),
        *(
            Section(f"Split: {_layers(one.hidden_layers)} hidden", _split(report, one))
            for one in report.splits
        ),
        Section("Exact recovery", _recoveries(report)),
        Section("Membership inference", _membership(report)),
        Section("Settings", _settings(report)),
        Section("Limits", paragraph(LIMITS)),
    ]
    return page(f"What a thief gets of {report.model}", LEAD, sections)


def figure(report: ModelTheftReport) -> str:
    """Accuracy by hidden layers, a line for each query budget, between the two bounds."""
    places = [one.hidden_layers for one in report.splits]
    parts: list[str] = []
    for share in (0, 25, 50, 75, 100):
        y = _y(share / 100)
        parts.append(polyline([(LEFT, y), (WIDTH - RIGHT, y)], "currentColor", opacity=0.2))
        parts.append(label(LEFT - 8, y + 4, f"{share} %", anchor="end"))
    for place in places:
        parts.append(label(_x(place, places), HEIGHT - BOTTOM + 18, str(place), anchor="middle"))
    parts.append(label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "hidden layers", anchor="middle"))
    y = _y(report.victim_accuracy)
    parts.append(polyline([(LEFT, y), (WIDTH - RIGHT, y)], "currentColor", dashed=True))
    labels = [(y, "the model itself", "currentColor")]
    for i, queries in enumerate(report.settings.queries):
        colour = COLOURS[i % len(COLOURS)]
        thefts = [(one.hidden_layers, one.thefts[i]) for one in report.splits]
        points = [(_x(place, places), _y(theft.accuracy.mean)) for place, theft in thefts]
        parts.append(polyline(points, colour))
        parts += [_bar(_x(place, places), theft, colour) for place, theft in thefts]
        bound = _y(report.black_box(queries))
        parts.append(polyline([(LEFT, bound), (WIDTH - RIGHT, bound)], colour, dashed=True))
        labels.append((bound, f"{queries} queries", colour))
    parts += _labels(labels)
    caption = (
        "Accuracy of the surrogates on the evaluated samples. Dashed: the best black-box "
        "surrogate with as many queries, and the model itself."
    )
    title = "accuracy of the surrogates by hidden layers"
    return svg.figure(
        "".join(parts), width=WIDTH, height=HEIGHT, title=title, caption=caption,
        style="width:46rem",
    )  # fmt: skip


def _x(place: int, places: Sequence[int]) -> float:
    first, last = places[0], places[-1]
    share = 0.5 if first == last else (place - first) / (last - first)
    return LEFT + 24 + share * (WIDTH - LEFT - RIGHT - 48)


def _y(accuracy: float) -> float:
    return HEIGHT - BOTTOM - min(max(accuracy, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)


def _bar(x: float, theft: Theft, colour: str) -> str:
    """A dot with its interval."""
    found = theft.accuracy
    point = dot(x, _y(found.mean), colour)
    if found.low is None or found.high is None:
        return point
    return point + polyline([(x, _y(found.low)), (x, _y(found.high))], colour)


def _labels(labels: Sequence[tuple[float, str, str]]) -> list[str]:
    """Texts at the right end, moved apart where they would overlap."""
    placed, last = [], -100.0
    for y, text, colour in sorted(labels):
        last = max(y + 4, last + 14)
        placed.append(label(WIDTH - RIGHT + 6, last, text, colour=colour))
    return placed


def _unfinished(report: ModelTheftReport) -> str:
    if report.seeds_done == report.settings.seeds:
        return ""
    return paragraph(
        f"The time was used up: {report.seeds_done} of {report.settings.seeds} seeds are done. The "
        "same command goes on."
    )


def _layers(count: int) -> str:
    return f"{count} layer" if count == 1 else f"{count} layers"


def _accuracies(report: ModelTheftReport) -> str:
    header, rows = report.accuracy_table()
    explained = (
        "gain: accuracy at the largest budget, divided by that of the best black-box surrogate; "
        f"up to {SWEET:g} the exposed layers are called useless to a thief."
    )
    return (
        table(header, rows) + paragraph(explained, kind="soft") + paragraph(INTERVALS, kind="soft")
    )


def _fidelities(report: ModelTheftReport) -> str:
    header = ["hidden layers", *(f"{q} queries" for q in report.settings.queries)]
    rows = [
        *((str(one.hidden_layers), one.thefts) for one in report.splits),
        *((f"black box: {one.architecture}", one.thefts) for one in report.black_boxes),
    ]
    return table(header, [[name, *(str(t.fidelity) for t in thefts)] for name, thefts in rows])


def _split(report: ModelTheftReport, split: SplitTheft) -> str:
    header = ["queries", "best attack", "accuracy", "fidelity", "black box", "ratio"]
    rows = [
        (
            str(theft.queries), theft.attack, str(theft.accuracy), str(theft.fidelity),
            f"{report.black_box(theft.queries):.1%}", f"{report.ratio(split, theft.queries):.2f}",
        )
        for theft in split.thefts
    ]  # fmt: skip
    said = (
        f"Hidden from node {split.first!r} on: {split.hidden_parameters:,} of "
        f"{report.parameters:,} weights."
    )
    inferred = split.thefts[-1].membership
    if inferred is not None:
        said += f" Membership by the surrogates of the largest budget: AUC {inferred.mean:.3f}."
    return paragraph(said) + table(header, rows)


def _recoveries(report: ModelTheftReport) -> str:
    if report.settings.answers == "label":
        return paragraph(LABELS)
    found = [(one.hidden_layers, one.recovery) for one in report.splits if one.recovery]
    if not found:
        return paragraph("No hidden part here is linear up to its softmax.")
    header = ("hidden layers", "features", "queries", "rank", "weights off by", "logits off by",
              "fidelity")  # fmt: skip
    return table(header, [_recovery(count, one) for count, one in found]) + paragraph(SHIFT)


def _recovery(count: int, found: HeadRecovery) -> tuple[str, ...]:
    weights = "not determined" if found.weights_error is None else f"{found.weights_error:.1e}"
    return (
        str(count), f"{found.features:,}", f"{found.queries:,}",
        f"{found.rank:,} of {found.features + 1:,}", weights, f"{found.logits_error:.1e}",
        f"{found.fidelity:.1%}",
    )  # fmt: skip


def _membership(report: ModelTheftReport) -> str:
    if not report.membership:
        return paragraph("Not attempted: give the model's training data with --members.")
    header = ("attack", "AUC", "interval", "members found at 1 % false positives")
    rows = [
        (one.attack, f"{one.auc:.3f}", f"{one.low:.3f} to {one.high:.3f}",
         f"{one.at_low_false_positives:.1%}")
        for one in report.membership
    ]  # fmt: skip
    return table(header, rows) + paragraph(MEMBERSHIP, kind="soft")


def _settings(report: ModelTheftReport) -> str:
    settings = report.settings
    own = "samples of the thief's own" if report.own else "half of the data, without their classes"
    rows = [
        ("model", f"{report.model}: {_layers(report.layers)}, {report.parameters:,} weights"),
        ("SHA-256 of the model", report.model_sha256),
        ("SHA-256 of the data", report.data_sha256),
        ("the thief's queries from", f"{report.thief_samples:,} {own}"),
        ("evaluated on", f"{report.evaluated:,} samples"),
        ("answers", settings.answers),
        ("seeds", f"{report.seeds_done} of {settings.seeds}: 0 to {settings.seeds - 1}"),
        ("training", f"{settings.steps} steps of {settings.batch}, Adam, learning rate "
                     f"{settings.learning_rate:g}, cosine"),
        ("versions", ", ".join(f"{name} {number}" for name, number in report.versions.items())),
    ]  # fmt: skip
    return table(("", ""), rows)
