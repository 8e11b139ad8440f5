"""A caller's choice of a split: named, or the one that an audit's report accepts."""

from collections.abc import Sequence

from cloister.errors import PlanError
from cloister.graph.graph import Graph
from cloister.graph.split import split_at
from cloister.plan.planned_split import PlannedSplit, SplitEvidence
from cloister.plan.split_report import SplitReport, SplitScores

AUTO = "auto"


def choose_split(
    model: Graph, until: str | Sequence[str], report: SplitReport | None
) -> PlannedSplit | None:
    """Where the plan is split; None where the report accepts no split.

    until   names of nodes, in a text with commas or as texts; or "auto"

    Raises   PlanError for a report of another model, or one that does not accept the split,
             InputError for a split that the model does not have
    """
    if report is not None:
        report.require_model(model)
    if until == AUTO:
        if report is None:
            raise PlanError(
                "until='auto': the split follows from an audit; give audit=, a report of `cloister "
                "audit input`, or name a node"
            )
        accepted = report.accepted_split()
        return None if accepted is None else _planned(accepted, report)
    names = until.split(",") if isinstance(until, str) else until
    split = split_at(model, names)
    if report is None:
        return PlannedSplit(split.until)
    return _planned(report.require_accepted(split.until), report)


def _planned(scores: SplitScores, report: SplitReport) -> PlannedSplit:
    """A split with what the report measured there: of each figure, the strongest attack's."""
    return PlannedSplit(
        scores.until,
        SplitEvidence(
            report=report.digest,
            attacks=tuple(one.attack for one in scores.attacks),
            data=report.data,
            data_sha256=report.data_sha256,
            images=report.images,
            candidates=report.candidates,
            identification=max(one.identification.high for one in scores.attacks),
            ssim=max(one.ssim.high for one in scores.attacks) - report.blind_ssim,
            explained=max(one.explained.high for one in scores.attacks),
        ),
    )
