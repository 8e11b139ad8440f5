"""A caller's choice of a split: named, or the one that an audit's report accepts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import InputError, PlanError
from cloister.graph.graph import Graph
from cloister.graph.ops.linear_nodes import is_linear
from cloister.graph.split import nodes_before, split_at
from cloister.plan import split_report
from cloister.plan.plan import Plan
from cloister.plan.planned_split import PlannedSplit, SplitEvidence
from cloister.plan.protection import INTEGRITY, SPLITTING, hiding, outer_policy
from cloister.plan.split_report import SplitReport
from cloister.plan.split_scores import SplitScores

AUTO = "auto"
FAMILY = INTEGRITY["full"]
"""The policy whose name stands for all that split a model; `--integrity` chooses one of them."""


def choose_split(
    model: Graph,
    until: str | Sequence[str],
    report: SplitReport | None,
    *,
    audited: Graph | None = None,
) -> PlannedSplit | None:
    """Where the plan is split; None where the report accepts no split of this model.

    until     names of nodes, in a text with commas or as texts; or "auto"
    audited   the model that the report has to name, if it is not `model`: of a model with a hidden
              end, the whole one

    Raises   PlanError for a report of another model, or one that does not accept the split,
             InputError for a split that the model does not have
    """
    if report is not None:
        report.require_model(audited or model)
    if until == AUTO:
        if report is None:
            raise PlanError(
                "no split is chosen: name the last node before it (--until NODE, until=), or give "
                "a report of `cloister audit input` (--audit, audit=)"
            )
        accepted = report.accepted_split()
        if accepted is None or not _has_layers_after(model, accepted):
            return None
        return planned(accepted, report)
    names = until.split(",") if isinstance(until, str) else until
    split = split_at(model, names)
    if report is None:
        return PlannedSplit(split.until)
    return planned(report.require_accepted(split.until), report)


def planned(scores: SplitScores, report: SplitReport) -> PlannedSplit:
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


def split_line(split: PlannedSplit) -> str:
    """Where a plan is split, for people."""
    return f"split after {','.join(split.until)}"


@dataclass(frozen=True)
class SplitChoice:
    """Where a plan is split (None: nowhere), the audit that accepts it, and a line that says so."""

    split: PlannedSplit | None
    report: SplitReport | None
    line: str


@dataclass(frozen=True)
class SplitRequest:
    """A caller's options about a split; None leaves one to the plan, or else to the default.

    until       names of nodes with commas between them, or "auto"
    integrity   a name in INTEGRITY
    audit       a report that has to accept the split
    """

    until: str | None = None
    integrity: str | None = None
    audit: Path | None = None

    def policy(self, named: str | None) -> str | None:
        """The policy that a caller means who names this one; None where the caller names none.

        Raises   InputError for options that say nothing about the policy, or contradict it
        """
        outer = None if named is None else outer_policy(named) or named
        if named is None or outer not in SPLITTING:
            for option, given in (
                ("--until", self.until), ("--integrity", self.integrity), ("--audit", self.audit),
            ):  # fmt: skip
                if given is not None:
                    raise InputError(f"{option}: goes with --policy {FAMILY}; leave it out")
            return named
        if self.integrity is None:
            return named
        wanted = INTEGRITY[self.integrity]
        if outer not in (FAMILY, wanted):
            raise InputError(
                f"--integrity {self.integrity}: is policy {wanted}, and --policy {named} is "
                "another one; leave one of them out"
            )
        return wanted if outer == named else hiding(wanted)

    def choose(self, policy: str, model: Graph, *, audited: Graph | None = None) -> SplitChoice:
        """Where a policy splits a model; see `choose_split`."""
        if (outer_policy(policy) or policy) not in SPLITTING:
            return SplitChoice(None, None, "")
        report = None if self.audit is None else split_report.load(self.audit)
        until = AUTO if self.until is None else self.until
        split = choose_split(model, until, report, audited=audited)
        if split is None:
            return SplitChoice(
                None, report, "the audit accepts no split, so all layers are blinded"
            )
        return SplitChoice(split, report, split_line(split))

    def confirm(self, plan: Plan, *, what: str, pinned: bool) -> None:
        """Go on only with a plan of this split and this audit; `what` begins the message.

        A plan that nothing pins chooses no split for the caller, who has to name it.

        The float32 weights that a report names are not in a plan, so its model is not compared.

        Raises   InputError, PlanError
        """
        split = plan.split
        if not pinned and split is not None and self.until is None and self.audit is None:
            named = ",".join(split.until)
            raise InputError(
                f"{what}: is split at {named!r}, which is its writer's choice; say --until "
                f"{named}, or pin the plan with --digest"
            )
        if self.until == AUTO:
            raise InputError("--until auto: the plan has its split already; leave it out")
        if self.until is not None:
            wanted = split_at(plan.graph, self.until.split(",")).until
            if split is None or wanted != split.until:
                found = "is not split" if split is None else f"is split at {','.join(split.until)}"
                raise PlanError(f"{what}: {found}, and --until {self.until} is wanted")
        if self.audit is not None:
            report = split_report.load(self.audit)
            evidence = None if split is None else split.evidence
            if split is None or evidence is None or evidence.report != report.digest:
                found = "no audit" if evidence is None else f"report {evidence.report.hex()[:16]}"
                raise PlanError(
                    f"{what}: names {found}, and --audit {self.audit} is report "
                    f"{report.digest.hex()[:16]}"
                )
            if split != planned(report.require_accepted(split.until), report):
                raise PlanError(f"{what}: tells other figures of its audit than the report has")


def _has_layers_after(model: Graph, scores: SplitScores) -> bool:
    """Whether a split leaves layers to a worker: those after it may be hidden."""
    names = {node.name for node in model.nodes}
    if not names.issuperset(scores.until):
        return False
    before = nodes_before(model, scores.until)
    return any(node.name not in before and is_linear(model, node) for node in model.nodes)
