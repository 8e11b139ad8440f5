"""The plans that a search has seen, the one that is chosen, and why the others are not."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cloister.base.sizes import human_bytes
from cloister.errors import PlanError
from cloister.planner.goals import Goals, Objective
from cloister.planner.plan_search import CostedPlan

TIE = 0.03
"""Plans whose times differ by less are equally fast: measurements are no better."""
COLUMNS = (
    "", "plan", "trusted ms", "worker ms", "latency ms", "hides", "checks", "pads", "traffic",
    "memory", "why",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class PlanFrontier:
    """Plans that meet the goals but for the time, the cheapest first.

    Raises   PlanError where none is fast enough
    """

    model: str
    goals: Goals
    plans: tuple[CostedPlan, ...]

    def __post_init__(self) -> None:
        if not self.plans:
            raise PlanError(
                "no plan of this model meets the goals: a worker computes none of its nodes under "
                "these policies"
            )
        key = self.goals.objective
        ordered = sorted(self.plans, key=lambda one: (one.objective_ms(key), one.name))
        object.__setattr__(self, "plans", tuple(ordered))
        limit = self.goals.max_trusted_ms
        if not self._in_time:
            best = min(self.plans, key=lambda one: one.cost.trusted_ms)
            raise PlanError(
                f"--max-trusted-ms {limit:g}: no plan that meets the other goals is that fast; the "
                f"fastest is {best.name} with {best.cost.trusted_ms:.2f} ms"
            )

    @cached_property
    def chosen(self) -> CostedPlan:
        """The cheapest plan in time; of plans that are equally fast, the one that protects most."""
        least = min(self._ms(one) for one in self._in_time)
        equal = [one for one in self._in_time if self._ms(one) <= (1 + TIE) * least]
        return min(
            equal,
            key=lambda one: (
                -len(one.hidden_nodes), -len(one.checked_nodes), one.pad_bytes, self._ms(one),
            ),
        )  # fmt: skip

    @cached_property
    def best(self) -> tuple[CostedPlan, ...]:
        """Plans that no other one is as good as in every respect and better in one."""
        return tuple(
            one
            for one in self.plans
            if one is self.chosen or not any(_dominates(other, one) for other in self.plans)
        )

    @property
    def _in_time(self) -> list[CostedPlan]:
        limit = self.goals.max_trusted_ms
        return [one for one in self.plans if limit is None or one.cost.trusted_ms <= limit]

    def _ms(self, one: CostedPlan) -> float:
        return one.objective_ms(self.goals.objective)

    def why(self, one: CostedPlan) -> str:
        """Why a plan is chosen, or is not."""
        limit, what = self.goals.max_trusted_ms, _WHAT[self.goals.objective]
        least = min(self._ms(other) for other in self._in_time)
        if one is self.chosen:
            if self._ms(one) <= least:
                return f"chosen: the least {what}"
            return f"chosen: within {TIE:.0%} of the least {what}, and protects most"
        if limit is not None and one.cost.trusted_ms > limit:
            return f"{one.cost.trusted_ms - limit:.2f} ms above --max-trusted-ms"
        more = self._ms(one) - self._ms(self.chosen)
        trade = _difference(one, self.chosen)
        if self._ms(one) <= (1 + TIE) * least:
            pads = " and needs more pads" if one.pad_bytes > self.chosen.pad_bytes else ""
            return f"equally fast; {trade or f'protects no more{pads}'}"
        return f"{more:.2f} ms more {what}" + (f"; {trade}" if trade else "")

    def rows(self, shown: Sequence[CostedPlan]) -> list[tuple[object, ...]]:
        """Under COLUMNS."""
        return [
            (
                "*" if one is self.chosen else "",
                one.name,
                one.cost.trusted_ms,
                one.cost.worker_ms,
                one.cost.latency_ms,
                f"{len(one.hidden_nodes)}/{len(one.protections)}",
                f"{len(one.checked_nodes)}/{len(one.protections)}",
                human_bytes(one.pad_bytes),
                human_bytes(one.traffic_bytes),
                human_bytes(one.memory_bytes),
                self.why(one),
            )
            for one in shown
        ]

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        goals = self.goals
        return {
            "model": self.model,
            "goals": {
                "hide_input": goals.hide_input,
                "integrity": goals.integrity,
                "max_trusted_ms": goals.max_trusted_ms,
                "objective": goals.objective.value,
            },
            "chosen": {**self._plain(self.chosen), "nodes": self._nodes()},
            "plans": [self._plain(one) for one in self.plans],
        }

    def _plain(self, one: CostedPlan) -> dict[str, object]:
        return {
            "policy": one.policy,
            "until": None if one.split is None else list(one.split.until),
            "inside": sorted(one.inside),
            "trusted_ms": one.cost.trusted_ms,
            "estimated_ms": one.cost.estimated_ms,
            "worker_ms": one.cost.worker_ms,
            "module_ms": one.cost.module_ms,
            "latency_ms": one.cost.latency_ms,
            "hidden_nodes": len(one.hidden_nodes),
            "checked_nodes": len(one.checked_nodes),
            "pad_bytes": one.pad_bytes,
            "traffic_bytes": one.traffic_bytes,
            "memory_bytes": one.memory_bytes,
            "frontier": one in self.best,
            "chosen": one is self.chosen,
            "why": self.why(one),
        }

    def _nodes(self) -> list[dict[str, object]]:
        return [
            {
                "nodes": list(step.nodes),
                "protection": step.protection.name,
                "trusted_ms": step.trusted_ms,
                "worker_ms": step.worker_ms,
                "measured": step.measured,
            }
            for step in self.chosen.cost.steps
        ]

    def notes(self) -> list[str]:
        """What a reader of the figures must know."""
        shown = f"{len(self.plans)} plans were costed, {len(self.best)} of them on the frontier"
        part = self.chosen.cost.estimated_ms / max(self.chosen.cost.trusted_ms, 1e-9)
        return [
            shown,
            "trusted ms: processor time of the trusted process for one input, pads made before; "
            f"{1 - part:.0%} of the chosen plan's was measured on steps of the same shape",
            "worker ms: measured with the worker of this run for linear layers, modelled by their "
            "work for open segments; latency ms: both, one after the other",
        ]


_WHAT = {Objective.LATENCY: "latency", Objective.THROUGHPUT: "trusted time"}


def _dominates(one: CostedPlan, other: CostedPlan) -> bool:
    mine, theirs = _figures(one), _figures(other)
    no_worse = all(a <= b for a, b in zip(mine, theirs, strict=True))
    protects = other.hidden_nodes <= one.hidden_nodes and other.checked_nodes <= one.checked_nodes
    better = mine != theirs or (other.hidden_nodes, other.checked_nodes) != (
        one.hidden_nodes, one.checked_nodes,
    )  # fmt: skip
    return no_worse and protects and better


def _figures(one: CostedPlan) -> tuple[float, ...]:
    return (
        one.cost.trusted_ms, one.cost.latency_ms, one.pad_bytes, one.traffic_bytes,
        one.memory_bytes,
    )  # fmt: skip


def _difference(one: CostedPlan, chosen: CostedPlan) -> str:
    """What a plan protects more and less than the chosen one."""
    parts = []
    for verb, mine, theirs in (
        ("hides", one.hidden_nodes, chosen.hidden_nodes),
        ("checks", one.checked_nodes, chosen.checked_nodes),
    ):
        if more := len(mine - theirs):
            parts.append(f"{verb} {more} nodes more")
        if less := len(theirs - mine):
            parts.append(f"{verb} {less} nodes less")
    return ", ".join(parts)
