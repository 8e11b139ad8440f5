"""A plan as the parts that its program runs one after the other, each under one protection."""

from dataclasses import dataclass

from cloister.plan.protection import Protection
from cloister.planner.plan_search import CostedPlan


@dataclass(frozen=True)
class PlanPart:
    """Neighbouring steps under one protection."""

    protection: Protection
    nodes: tuple[str, ...]
    trusted_ms: float
    worker_ms: float

    @property
    def span(self) -> str:
        """Its first and last node, for people."""
        ends = dict.fromkeys((self.nodes[0], self.nodes[-1]))
        return " .. ".join(ends)


def plan_parts(plan: CostedPlan) -> list[PlanPart]:
    """The parts of a plan, in the order in which they run."""
    parts: list[PlanPart] = []
    for step in plan.cost.steps:
        nodes, last = step.nodes, parts[-1] if parts else None
        # A step that only writes the first request belongs to the part that follows.
        if last is not None and last.protection != step.protection and last.nodes:
            last = None
        if last is None:
            parts.append(PlanPart(step.protection, nodes, step.trusted_ms, step.worker_ms))
            continue
        parts[-1] = PlanPart(
            step.protection,
            tuple(dict.fromkeys((*last.nodes, *nodes))),
            last.trusted_ms + step.trusted_ms,
            last.worker_ms + step.worker_ms,
        )
    return [part for part in parts if part.nodes]
