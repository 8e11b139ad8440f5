"""The page of the demo of splits: what a worker reconstructs, and what each split saves."""

from pathlib import Path

from cloister.audit import input as input_audit
from cloister.base.sizes import human_bytes
from cloister.examples.digits_page import claims_table, save_page
from cloister.examples.split_demo import SplitOutcome
from cloister.pages.page import Section, page, paragraph, table

LEAD = (
    "A small network tells odd digits from even ones. Its first layers run under one-time pads; "
    "what follows the split runs in the clear. This page shows what a worker reconstructs of the "
    "digits at each split, and what the split saves."
)
COLUMNS = (
    "split after", "integrity", "layers hidden from the worker", "answers as in the clear",
    "sent per input", "received per input", "trusted ms per input",
)  # fmt: skip
NOTES = (
    "Integrity full: every layer that the worker computes is checked. Prefix: those before the "
    "split; the worker runs the rest whole, in one message, and its answer is believed. None: no "
    "layer is checked, as in the published method. A worker that does not follow the protocol then "
    "adds errors to its blinded answers and reads hidden values in the clear after the split, "
    "whatever an audit says of it.",
    "A network this small costs less than the messages about it: the table shows what is sent and "
    "what is checked, not a speed-up.",
)


def write_split_page(outcome: SplitOutcome, folder: Path) -> Path:
    """Write the page; its path.

    Raises   InputError when the folder cannot be written
    """
    return save_page(_page(outcome), folder)


def facts(outcome: SplitOutcome) -> list[tuple[str, str]]:
    """Rows (name, value) for people."""
    report = outcome.audit.report
    return [
        ("digits", f"{report.images} attacked, {report.public:,} that the attacker has"),
        ("accuracy in the clear", f"{outcome.accuracy:.1%} on the attacked digits"),
        ("the audit", report.conclusion),
    ]


def run_rows(outcome: SplitOutcome) -> list[tuple[str, ...]]:
    """Rows for `COLUMNS`."""
    return [
        (
            run.until or "none: policy slalom",
            run.integrity,
            f"{run.hidden_layers} of {len(outcome.runs[0].plan.linear_nodes)}",
            f"{run.same} of {outcome.inputs}",
            human_bytes(run.report.bytes_to_worker / outcome.inputs),
            human_bytes(run.report.bytes_from_worker / outcome.inputs),
            f"{run.report.trusted_ms / outcome.inputs:.3f}",
        )
        for run in outcome.runs
    ]


def _page(outcome: SplitOutcome) -> str:
    report = outcome.audit.report
    saved = table(COLUMNS, run_rows(outcome)) + "".join(
        paragraph(note, kind="soft") for note in NOTES
    )
    return page(
        "Where a model may be split",
        LEAD,
        [
            Section("The network and its digits", table(("", ""), facts(outcome))),
            *input_audit.split_sections(report, outcome.claims, outcome.audit.gallery),
            Section("The network run at every split", saved),
            Section("Claims of the plan that follows the audit", claims_table(outcome.claims)),
        ],
    )
