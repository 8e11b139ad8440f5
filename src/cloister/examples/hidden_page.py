"""The page of the demo of hidden layers: what the customer gets, and what a thief gets."""

from pathlib import Path

from cloister.audit.input.exposure import stretched
from cloister.base.sizes import human_bytes
from cloister.examples.digits_page import claims_table, save_page
from cloister.examples.hidden_demo import SOLD_QUERIES, HiddenOutcome
from cloister.pages.page import Section, page, paragraph, png, table

HONEST = (
    "Here the content key is a file on the customer's machine, and whoever reads it opens the "
    "bundle. `cloister demo attested` releases it to machines that prove themselves.",
    "Without attested hardware, the owner of the machine can read the memory of the process that "
    "runs the module.",
    "No encryption hides what answers give away. The number of queries bounds it; a host that "
    "puts back an old copy of the counter's file has the queries again.",
)
"""What the demonstration does not show."""
CHART_WIDTH, CHART_HEIGHT, BAR_WIDTH = 600, 220, 60


def write_hidden_page(outcome: HiddenOutcome, folder: Path) -> Path:
    """Write the page; its path.

    Raises   InputError when the folder cannot be written
    """
    return save_page(_page(outcome), folder)


def facts(outcome: HiddenOutcome) -> list[tuple[str, str]]:
    """Rows (name, value) for people."""
    hidden, whole = outcome.weights
    header = outcome.header
    same = int((outcome.answers == outcome.vendor_answers).sum())
    return [
        ("hidden", f"{hidden:,} of {whole:,} weights, one module"),
        ("bundle", f"{human_bytes(outcome.bundle_bytes)}, version {header.version}"),
        ("others see", f"the open layers, and that the hidden part has {header.hidden_bytes:,} B"),
        ("digits of the customer", f"{len(outcome.answers)}, {same} answered as by the vendor"),
        ("the vendor's accuracy", f"{outcome.vendor_accuracy:.1%} on held-out digits"),
    ]


def search_rows(outcome: HiddenOutcome) -> list[tuple[str, str, str]]:
    """Rows (place, bytes, hidden words found); the last one shows that the search works."""
    found = (*outcome.searches, outcome.control)
    return [(one.place, f"{one.nbytes:,}", f"{one.hidden_words:,}") for one in found]


def theft_rows(outcome: HiddenOutcome) -> list[tuple[str, str, str, str]]:
    """Rows (answers, accuracy, fidelity, whether the counter lets a thief have them)."""
    return [
        (
            f"{theft.queries:,}",
            f"{theft.accuracy:.1%}",
            f"{theft.fidelity:.1%}",
            "collected" if theft.allowed else "refused by the counter",
        )
        for theft in outcome.thefts
    ]


def _page(outcome: HiddenOutcome) -> str:
    return page(
        "Hidden layers",
        "A vendor sealed the last layers of a classifier. A customer ran it on digits of its own, "
        "searched for the weights, and let a thief collect answers.",
        [
            Section("The sale", table(("", ""), facts(outcome))),
            Section("The customer's digits", _pictures(outcome)),
            Section("The search for the weights", _search(outcome)),
            Section("Attempts without the vendor", _attempts(outcome)),
            Section("What a thief still gets", _theft(outcome)),
            Section("What this does not show", "".join(map(paragraph, HONEST))),
            Section("Claims and their assumptions", claims_table(outcome.claims)),
        ],
    )


def _pictures(outcome: HiddenOutcome) -> str:
    rows: list[tuple[str | bytes, ...]] = [
        ("the customer's input", *(png(one) for one in stretched(outcome.images[:, 0]))),
        ("answer", *map(str, outcome.answers)),
    ]
    return table([""] * (len(outcome.answers) + 1), rows)


def _search(outcome: HiddenOutcome) -> str:
    note = "Words of two neighbouring weights, at every byte offset. The last row is the vendor's "
    note += "own folder, where the same search finds them."
    columns = ("searched", "bytes", "hidden words found")
    return table(columns, search_rows(outcome)) + paragraph(note, kind="soft")


def _attempts(outcome: HiddenOutcome) -> str:
    return "".join(
        paragraph(f"{one.attempt}:") + paragraph(f"BundleError: {one.error}", kind="warn")
        for one in outcome.refusals
    )


def _theft(outcome: HiddenOutcome) -> str:
    columns = ("answers", "accuracy of the surrogate", "same answer as the vendor", "")
    note = "A surrogate (a support vector machine of scikit-learn) was trained on answers to "
    note += "digits of the same writers. The rows that the counter refused were measured with the "
    note += "vendor's own model."
    return (
        _chart(outcome)
        + table(columns, theft_rows(outcome))
        + paragraph(note, kind="soft")
        + paragraph(f"The vendor sold {SOLD_QUERIES} answers. The next question raised:")
        + paragraph(f"BudgetError: {outcome.stopped}", kind="warn")
    )


def _chart(outcome: HiddenOutcome) -> str:
    """Accuracy by the number of answers; bars that the counter refused are faint."""
    step = CHART_WIDTH // len(outcome.thefts)
    bars = "".join(
        f'<rect x="{step * i}" y="{CHART_HEIGHT * (1 - theft.accuracy):.1f}" width="{BAR_WIDTH}" '
        f'height="{CHART_HEIGHT * theft.accuracy:.1f}" opacity="{1 if theft.allowed else 0.3}"/>'
        for i, theft in enumerate(outcome.thefts)
    )
    caption = "Accuracy of the surrogate by answers: " + ", ".join(
        f"{theft.queries} ({theft.accuracy:.0%})" for theft in outcome.thefts
    )
    return (
        f'<figure><svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" preserveAspectRatio="none" '
        f'role="img" aria-label="{caption}">{bars}</svg><figcaption>{caption}; faint: refused by '
        "the counter</figcaption></figure>\n"
    )
