"""A session's plan, and its plans for other sizes of the inputs.

A plan that was made from a model with free sizes is for the sizes of its calibration. Inputs of
other sizes get a plan of their own, with the same ranges, policy and precision. The last few are
kept.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from cloister.errors import PlanError
from cloister.graph.batch import bound_sizes
from cloister.graph.graph import BATCH, Graph
from cloister.plan.plan import Plan
from cloister.trusted.clips import ClipRule
from cloister.trusted.pads.source import PadSource

MOST_PLANS = 4
"""Plans that a session keeps, its own included."""

PadsOf = Callable[[Plan], PadSource | None]


@dataclass(frozen=True, eq=False)
class SizedPlan:
    """A plan, the source of its pads and the rule about values that it clips."""

    plan: Plan
    pads: PadSource | None
    clips: ClipRule


class SizedPlans:
    """The plans of a session, by the sizes of its inputs.

    pads_of   makes the source of a plan's pads
    alone     why there is no plan but `own`; None: others are made
    """

    def __init__(self, plan: Plan, pads_of: PadsOf, *, alone: str | None) -> None:
        self.own = SizedPlan(plan, pads_of(plan), ClipRule(plan))
        self.made = 1
        self._pads_of = pads_of
        self._alone = alone
        self._others: dict[tuple[int, ...], SizedPlan] = {}

    @property
    def kept(self) -> tuple[SizedPlan, ...]:
        """All plans that are there now."""
        return (self.own, *self._others.values())

    @property
    def inputs(self) -> Graph:
        """The model that says which inputs can be given."""
        return self.own.plan.template or self.own.plan.graph

    @property
    def batches(self) -> Graph:
        """The model that says how a batch is cut and joined."""
        return self.inputs if BATCH in self.own.plan.sizes else self.own.plan.graph

    def plan_for(self, feeds: Mapping[str, np.ndarray]) -> SizedPlan:
        """The plan for inputs of these sizes, made on first use.

        A plan that was not used for longest makes room for it.

        Raises   PlanError if the session has a plan for other sizes alone
        """
        own = self.own.plan
        if own.template is None:
            return self.own
        bound = bound_sizes(own.template, feeds)
        sizes = {symbol: bound[symbol] for symbol in own.sizes}
        if sizes == own.sizes:
            return self.own
        if self._alone is not None:
            raise PlanError(f"inputs of {_listed(sizes)}: {self._alone} {_listed(own.sizes)}")
        key = tuple(sizes.values())
        found = self._others.pop(key, None)
        if found is None:
            # Loaded where it is needed: running a plan needs nothing that makes plans.
            plan: Plan = importlib.import_module("cloister.plan.policies").for_sizes(own, sizes)
            found = SizedPlan(plan, self._pads_of(plan), ClipRule(plan))
            self.made += 1
            while len(self.kept) >= MOST_PLANS:
                _erase(self._others.pop(next(iter(self._others))))
        # The last one is the one used last.
        self._others[key] = found
        return found

    def close(self) -> None:
        """Overwrite what is left of spent pads."""
        for one in self.kept:
            _erase(one)


def _erase(sized: SizedPlan) -> None:
    if sized.pads is not None:
        sized.pads.erase()


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())
