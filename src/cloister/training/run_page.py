"""The page of a training run: its curves, what is spent, and what every party could learn."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cloister.pages.chart import Series, line_chart
from cloister.pages.page import Section, legend, page, paragraph, table
from cloister.plan.claims import Extent, Role, Statement

if TYPE_CHECKING:
    from cloister.training.training_run import TrainingOutcome

TRAIN, TEST = "var(--line-1)", "var(--line-2)"
LEAD = (
    "The model was trained on samples that stayed encrypted. This page holds figures of the run "
    "and no sample."
)
LEARNS = (
    "Derived from the messages that the run sends to each party. Whoever a line calls trusted is "
    "assumed to be so."
)


def run_page(outcome: "TrainingOutcome") -> str:
    """The whole document."""
    return page(
        f"{outcome.model} on {outcome.dataset}, encrypted",
        LEAD,
        [
            Section("Result", "".join(_result(outcome))),
            Section("Curves", _curves(outcome)),
            Section("What is spent", "".join(_spent(outcome))),
            Section("What the training server could learn", "".join(_server(outcome))),
            Section("Who learns what, and can do what", _claims(outcome)),
            Section("Settings", _settings(outcome)),
        ],
    )


def _result(outcome: "TrainingOutcome") -> Iterator[str]:
    if outcome.of_model is not None:
        found = outcome.of_model
        said = f"After {found.epoch} epochs: loss {found.loss:.4g}"
        if found.train_quality is not None:
            said += f", {_quality(outcome, found.train_quality)} on the training samples"
        if found.test_quality is not None:
            said += f", {_quality(outcome, found.test_quality)} on the encrypted test samples"
        yield paragraph(f"{said}.")
    for remark in outcome.remarks:
        yield paragraph(remark, kind="caution")


def _quality(outcome: "TrainingOutcome", value: float) -> str:
    return f"R2 {value:.3f}" if outcome.has_numbers else f"{value:.1%} right"


def _curves(outcome: "TrainingOutcome") -> str:
    losses = [(float(one.epoch), one.loss) for one in outcome.epochs]
    train = [
        (float(one.epoch), one.train_quality)
        for one in outcome.epochs
        if one.train_quality is not None
    ]
    test = [
        (float(one.epoch), one.test_quality)
        for one in outcome.epochs
        if one.test_quality is not None
    ]
    name = "R2" if outcome.has_numbers else "accuracy"
    lines = [Series("training", TRAIN, train), Series("encrypted test", TEST, test)]
    return legend([(one.name, one.colour, False) for one in lines]) + (
        '<div class="figures">'
        + line_chart(
            [Series("training", TRAIN, losses)], title="Loss by epoch", x_axis="epoch",
            y_axis="loss",
        )
        + line_chart(
            lines, title=f"{name[:1].upper()}{name[1:]} by epoch", x_axis="epoch", y_axis=name,
            ends=(0.0, 1.0),
        )
        + "</div>\n"
    )  # fmt: skip


def _spent(outcome: "TrainingOutcome") -> Iterator[str]:
    spent = outcome.spent
    if spent is None:
        yield paragraph("The authority was away at the end; ask it: cloister authority budget.")
        return
    if spent.mode == "paper":
        yield paragraph("Mode paper: nothing bounds what a server learns.", kind="bad")
    bits = "no limit" if spent.bits_allowed is None else f"{spent.bits_allowed:,}"
    yield table(
        ("of one sample", "spent at most", "allowed", "in all"),
        [
            ("independent functions", str(spent.rank_max), str(spent.rank_allowed), str(spent.dim)),
            ("bits", f"{spent.bits_max:,}", bits, ""),
        ],
    )
    targets = (
        "targets, as parts of their ranges" if outcome.has_numbers else "labels, under secret names"
    )
    yield paragraph(
        "The ledger counts what servers were given by all runs so far: of "
        f"{spent.labels_released:,} of {spent.samples:,} samples the {targets}.",
        kind="soft",
    )


def _server(outcome: "TrainingOutcome") -> Iterator[str]:
    kinds = {Extent.NOTHING: "good", Extent.BOUNDED: "caution", Extent.EVERYTHING: "bad"}
    found = [one for one in outcome.claims.statements if one.role is Role.SERVER]
    for one in found:
        yield paragraph(_said(one), kind=kinds[one.extent])
    if not found:
        yield paragraph(
            "There is none: this process was a trusted runtime, which sees everything.", kind="good"
        )


def _said(one: Statement) -> str:
    assumed = f" (assuming: {one.assumes})" if one.assumes else ""
    text = f"{one.text[:1].upper()}{one.text[1:]}"
    return f"It {one.verb}, of {one.about}: {one.extent}. {text}{assumed}."


def _claims(outcome: "TrainingOutcome") -> str:
    rows = [
        (str(one.role), str(one.verb), one.about, str(one.extent), one.text, one.assumes)
        for one in outcome.claims.statements
    ]
    header = ("who", "", "about", "how much", "in words", "assuming")
    return table(header, rows) + paragraph(LEARNS, kind="soft")


def _settings(outcome: "TrainingOutcome") -> str:
    settings = vars(outcome.settings).items()
    rows = [(name.replace("_", " "), str(value)) for name, value in settings if value is not None]
    return table(("", ""), rows)
