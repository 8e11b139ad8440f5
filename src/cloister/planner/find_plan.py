"""From a model and a user's goals to the plans that meet them: measure, search, choose."""

from collections.abc import Callable, Sequence
from functools import partial

from cloister.errors import InputError, UnsupportedError
from cloister.graph.graph import Graph
from cloister.graph.hidden import HiddenSplit
from cloister.graph.legality import require_supported
from cloister.graph.part import made_by, part
from cloister.graph.split import split_at
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.protection import OPEN, SPLITTING
from cloister.plan.split_choice import planned
from cloister.plan.split_report import SplitReport
from cloister.planner.calibration import DEFAULT_REPEATS, calibrate
from cloister.planner.frontier import PlanFrontier
from cloister.planner.goals import Goals, InputHiding
from cloister.planner.local_times import MeasuredLocals
from cloister.planner.plan_search import PlanSearch
from cloister.trusted.program.steps import Local

Stages = Callable[[str, int, int], None]


def find_plan(
    model: Graph,
    goals: Goals,
    *,
    hidden: HiddenSplit | None = None,
    audit: SplitReport | None = None,
    batch: int = 1,
    workers: Sequence[str] | None = None,
    repeats: int = DEFAULT_REPEATS,
    progress: Stages = lambda *_: None,
) -> PlanFrontier:
    """The plans of a model that meet some goals, and the one to take.

    hidden    the model in two parts, if its end is to be hidden
    audit     of its splits; goals that hide inputs empirically need one
    batch     inputs for each message; a model of fixed batch takes its own
    workers   addresses of the workers that the plan is for; None: a local one

    Raises   InputError for goals without what they need, PlanError for an audit of another model
             and where no plan is fast enough, UnsupportedError for a model that cannot be measured
    """
    require_supported(model)
    empirical = goals.hide_input is InputHiding.EMPIRICAL
    if empirical != (audit is not None):
        raise InputError(
            "--hide-input empirical: needs --audit, a report of `cloister audit input`"
            if empirical
            else "--audit: goes with --hide-input empirical; leave it out"
        )
    batch = batch if model.batch is None else model.batch
    graph = model if hidden is None else hidden.named(bytes(32))
    outside = model if hidden is None else _before(hidden)
    splits = () if audit is None else accepted_splits(graph, audit, audited=model)
    table = calibrate(
        outside,
        goals.protections,
        splits=splits,
        segments=any(_opens(policy) for policy in goals.policies),
        batch=batch,
        module_ms=0.0 if hidden is None else _module_ms(hidden, batch),
        workers=workers,
        repeats=repeats,
        progress=partial(progress, "measuring"),
    )
    search = PlanSearch(
        graph, goals, table.predict, table.floats.mac_ms, splits=splits, batch=batch
    )
    return PlanFrontier(model.name, goals, tuple(search.plans(partial(progress, "searching"))))


def accepted_splits(
    graph: Graph, audit: SplitReport, *, audited: Graph
) -> tuple[PlannedSplit, ...]:
    """Every split that an audit accepts, the shallowest first; those of a hidden end are left out.

    Raises   PlanError for an audit of another model
    """
    audit.require_model(audited)
    first = audit.accepted_split()
    found = []
    for scores in audit.splits if first is not None else ():
        if first is None or scores.depth < first.depth:
            continue
        try:
            split_at(graph, scores.until)
        except InputError:
            continue  # no layer that a worker computes is left after it
        found.append(planned(audit.require_accepted(scores.until), audit))
    return tuple(found)


def _opens(policy: str) -> bool:
    """Whether a policy leaves nodes open."""
    return policy == "open" or (policy in SPLITTING and SPLITTING[policy].after == OPEN)


def _before(hidden: HiddenSplit) -> Graph:
    """The nodes outside a hidden end as a model of their own."""
    module = next(node for node in hidden.outer.nodes if node.is_module)
    nodes = tuple(node for node in hidden.outer.nodes if node is not module)
    if not nodes:
        raise UnsupportedError(
            "--hide-weights: all layers are hidden, so that no plan is left to choose; hide fewer, "
            "or give --policy enclave with --last"
        )
    made = made_by(nodes)
    kept = [value for value in (*module.inputs, *hidden.outer.outputs) if value in made]
    return part(hidden.outer, nodes, hidden.outer.inputs, tuple(dict.fromkeys(kept)))


def _module_ms(hidden: HiddenSplit, batch: int) -> float:
    """What the hidden end takes in ONNX Runtime; a compiled module takes about as long."""
    inside = hidden.hidden
    step = Local(inside.nodes, inside.inputs, inside.outputs)
    return MeasuredLocals(inside, batch).ms(step)
