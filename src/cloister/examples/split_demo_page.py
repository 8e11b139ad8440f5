"""The page of the demo of splits: what a worker reconstructs, and the model run split."""

from pathlib import Path

from cloister.audit import input as input_audit
from cloister.audit.page import Section, page, paragraph, table
from cloister.base.sizes import human_bytes
from cloister.examples.digits_page import claims_table, save_page
from cloister.examples.split_demo import SplitOutcome, SplitRun
from cloister.plan.claims import Role, Verb

LEAD = (
    "A small network tells odd digits from even ones. Its first layers run under one-time pads; "
    "what follows the split runs in the clear. This page shows what a worker reconstructs of the "
    "digits at each split, and then runs the network at one of them."
)
COLUMNS = (
    "policy", "answers as in the clear", "to the worker, per input", "from the worker, per input",
    "trusted ms per input",
)  # fmt: skip
COST = (
    "A network this small costs less than the messages about it: the table shows what is sent and "
    "what is checked, not a speed-up."
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
        ("the split of the runs below", _where(outcome)),
    ]


def run_rows(outcome: SplitOutcome) -> list[tuple[str, ...]]:
    """Rows for `COLUMNS`."""
    return [
        (
            run.name,
            f"{run.same} of {outcome.inputs}",
            human_bytes(run.report.bytes_to_worker / outcome.inputs),
            human_bytes(run.report.bytes_from_worker / outcome.inputs),
            f"{run.report.trusted_ms / outcome.inputs:.3f}",
        )
        for run in outcome.runs
    ]


def _where(outcome: SplitOutcome) -> str:
    name = ",".join(outcome.until)
    if outcome.accepted:
        return f"after {name!r}, which the audit accepts"
    return f"after {name!r}, the deepest one, although the audit accepts none"


def _page(outcome: SplitOutcome) -> str:
    report = outcome.audit.report
    last = outcome.runs[-1].plan if not outcome.accepted else outcome.runs[1].plan
    return page(
        "Where a model may be split",
        LEAD,
        [
            Section("The story", table(("", ""), facts(outcome))),
            Section("The model run split", _runs(outcome)),
            *input_audit.split_sections(report, last.claims(), outcome.audit.gallery),
            Section("Claims of the plan that checks every layer", _claims(outcome.runs[1])),
        ],
    )


def _runs(outcome: SplitOutcome) -> str:
    learns = [
        (run.name, one.about, one.text, one.assumes or str(one.strength))
        for run in outcome.runs
        for verb in Verb
        for one in run.claims.of(Role.WORKER, verb)
    ]
    return (
        table(COLUMNS, run_rows(outcome))
        + paragraph(COST, kind="soft")
        + table(("policy", "the worker", "", "assuming, or how sure"), learns)
    )


def _claims(run: SplitRun) -> str:
    return claims_table(run.claims)
