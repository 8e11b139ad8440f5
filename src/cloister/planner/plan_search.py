"""The search for plans: policies, splits and the linear nodes that stay inside.

For every policy and split, nodes move inside and back as long as that makes the plan cheaper. Each
such plan is compiled to its program, whose steps have measured costs: a node that stays inside
saves an exchange, and may break a fused step in two. With few nodes that can move, every choice is
tried. A split changes what is cheaper for the nodes next to it alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

from cloister.errors import PlanError, UnsupportedError
from cloister.graph.graph import Graph, Node
from cloister.graph.ops.depthwise import depthwise_window
from cloister.graph.ops.linear_nodes import geometry, is_linear
from cloister.graph.split import split_at
from cloister.plan.cost import estimate
from cloister.plan.plan import Plan
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.policies import assign
from cloister.plan.protection import (
    ENCLAVE,
    EVERYWHERE,
    OUTSOURCED,
    SPLITTING,
    Protection,
    hiding,
)
from cloister.plan.quantised import QuantisedLinear
from cloister.planner.cost_table import ProgramCost
from cloister.planner.goals import Goals, Objective
from cloister.planner.stand_in import stand_in, zero_maps
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.steps import Program

EXACT = 6
"""Nodes that can move, up to which every choice of them is tried."""
FASTER = 3.0
"""By how much one node in ONNX Runtime may be faster than the model's average, at most."""

BORDER = 2
"""Nodes that can move, on each side of a split, for which the split may change what is cheaper."""
_POLICY_OF = {protection: policy for policy, protection in OUTSOURCED.items()}

Predict = Callable[[Program], ProgramCost]


@dataclass(frozen=True, eq=False)
class CostedPlan:
    """A plan that meets the goals, but perhaps for its time, and what it costs for one input.

    policy         of the nodes outside a hidden end
    inside         linear nodes that stay inside although the policy could send them out
    pad_bytes      of the images of pads, which are made before
    traffic_bytes  to and from workers
    memory_bytes   the trusted process's peak
    """

    policy: str
    split: PlannedSplit | None
    inside: frozenset[str]
    protections: Mapping[str, Protection]
    cost: ProgramCost
    pad_bytes: int
    traffic_bytes: int
    memory_bytes: int

    @property
    def name(self) -> str:
        """For people."""
        until = "" if self.split is None else f" until {','.join(self.split.until)}"
        kept = f", {len(self.inside)} linear inside" if self.inside else ""
        return f"{self.policy}{until}{kept}"

    def objective_ms(self, objective: Objective) -> float:
        """What the planner makes small."""
        slow = objective is Objective.LATENCY
        return self.cost.latency_ms if slow else self.cost.trusted_ms

    @property
    def hidden_nodes(self) -> frozenset[str]:
        """Nodes whose inputs no worker reads."""
        return frozenset(name for name, p in self.protections.items() if p.hidden)

    @property
    def checked_nodes(self) -> frozenset[str]:
        """Nodes of which no wrong answer passes."""
        return frozenset(
            name for name, p in self.protections.items() if p.checked or not p.on_worker
        )


@dataclass(frozen=True, eq=False)
class PlanSearch:
    """Everything that a search needs.

    graph      the model; its hidden end is one node that names any module
    predict    what a program costs (`CostTable.predict`)
    mac_ms     of a multiply-add in ONNX Runtime, on average
    splits     where plans may be split
    """

    graph: Graph
    goals: Goals
    predict: Predict
    mac_ms: float
    splits: Sequence[PlannedSplit] = ()
    batch: int = 1
    _maps: Mapping[str, QuantisedLinear] = field(init=False)
    _costs: dict[tuple[str, PlannedSplit | None, frozenset[str]], CostedPlan | None] = field(
        init=False, default_factory=dict
    )

    _found: dict[tuple[str, PlannedSplit | None, Objective], CostedPlan | None] = field(
        init=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "_maps", zero_maps(self.graph))

    def plans(self, progress: Callable[[int, int], None] | None = None) -> list[CostedPlan]:
        """The cheapest plan of every policy and split that meets the goals but for the time.

        With a limit of the trusted time, the plan of least trusted time is among them as well.
        """
        wanted = [self.goals.objective]
        if self.goals.max_trusted_ms is not None:
            wanted.append(Objective.THROUGHPUT)
        pairs = list(self._choices())
        found: list[CostedPlan] = []
        for i, (policy, split) in enumerate(pairs):
            if progress is not None:
                progress(i, len(pairs))
            for objective in dict.fromkeys(wanted):
                best = self._best(policy, split, objective)
                if best is not None and best not in found:
                    self.goals.require_met(self.graph, best.protections, split)
                    found.append(best)
        if progress is not None:
            progress(len(pairs), len(pairs))
        return found

    def costed(
        self, policy: str, split: PlannedSplit | None, inside: frozenset[str] | None
    ) -> CostedPlan | None:
        """A plan with its costs, whether it meets the goals or not; None where none is legal.

        inside   None: as the policy places nodes without a search
        """
        if inside is None:
            inside = self._usual(policy, split)
        key = (policy, split, inside)
        if key not in self._costs:
            try:
                self._costs[key] = self._costed(policy, split, inside)
            except (PlanError, UnsupportedError):
                self._costs[key] = None
        return self._costs[key]

    def _choices(self) -> Iterator[tuple[str, PlannedSplit | None]]:
        for policy in self.goals.policies:
            if policy in SPLITTING:
                yield from ((policy, split) for split in self.splits)
            else:
                yield policy, None

    def _best(
        self, policy: str, split: PlannedSplit | None, objective: Objective
    ) -> CostedPlan | None:
        key = (policy, split, objective)
        if key not in self._found:
            placed = self._placed if split is None else self._placed_around
            self._found[key] = placed(policy, split, objective)
        return self._found[key]

    def _placed(
        self, policy: str, split: PlannedSplit | None, objective: Objective
    ) -> CostedPlan | None:
        movable = self._movable(policy, split)
        if len(movable) <= EXACT:
            choices = (
                frozenset(chosen)
                for count in range(len(movable) + 1)
                for chosen in combinations(movable, count)
            )
            return _least((self.costed(policy, split, one) for one in choices), objective)
        starts = (self.costed(policy, split, one) for one in (None, frozenset[str]()))
        return _least((self._descended(one, movable, objective) for one in starts), objective)

    def _placed_around(
        self, policy: str, split: PlannedSplit | None, objective: Objective
    ) -> CostedPlan | None:
        """Each half as a plan without a split places it, and nodes next to the split anew."""
        if split is None or policy not in SPLITTING:
            return self._placed(policy, split, objective)
        halves, before = SPLITTING[policy], split_at(self.graph, split.until).before
        inside = {
            name
            for half, first in ((halves.before, True), (halves.after, False))
            if half in _POLICY_OF
            for name in self._inside(_POLICY_OF[half], objective)
            if (name in before) == first
        }
        movable = self._movable(policy, split)
        near = [name for name in movable if name in before][-BORDER:]
        near += [name for name in movable if name not in before][:BORDER]
        start = self.costed(policy, split, frozenset(inside))
        if start is None:  # all nodes of it would stay inside
            return self._placed(policy, split, objective)
        return self._descended(start, near, objective)

    def _inside(self, policy: str, objective: Objective) -> frozenset[str]:
        best = self._best(policy, None, objective)
        return frozenset() if best is None else best.inside

    def _descended(
        self, best: CostedPlan | None, movable: Sequence[str], objective: Objective
    ) -> CostedPlan | None:
        """Move nodes, one or two neighbours at a time, until no such move helps."""
        moves = [{name} for name in movable]
        moves += [set(pair) for pair in pairwise(movable)]
        improved = best is not None
        while best is not None and improved:
            improved = False
            for move in moves:
                other = self.costed(best.policy, best.split, best.inside ^ move)
                if other is not None and (
                    other.objective_ms(objective) < best.objective_ms(objective)
                ):
                    best, improved = other, True
        return best

    def _movable(self, policy: str, split: PlannedSplit | None) -> tuple[str, ...]:
        """Linear nodes that may be cheaper inside.

        A node that moves inside saves at most the steps that write its request and read its answer.
        It costs its multiply-adds, or its taps if it is depthwise.
        """
        if policy in EVERYWHERE:
            return ()
        outside = self.costed(policy, split, frozenset())
        if outside is None:
            return ()
        touching: dict[str, float] = {}
        program = self._compiled(policy, split, outside.protections)
        for step, cost in zip(program.steps, outside.cost.steps, strict=True):
            names = {program.linear[i].name for i in getattr(step, "sinks", ())}
            for name in names | set(cost.nodes[:1]):
                touching[name] = touching.get(name, 0.0) + cost.trusted_ms
        return tuple(
            node.name
            for node in program.linear
            if depthwise_window(self.graph, node) is not None
            or self.mac_ms * geometry(self.graph, node).macs / FASTER < touching[node.name]
        )

    def _usual(self, policy: str, split: PlannedSplit | None) -> frozenset[str]:
        given = assign(self.graph, self._full_name(policy), split=split)
        if policy in EVERYWHERE:
            return frozenset()
        return frozenset(node.name for node in self._linear() if given[node.name] == ENCLAVE)

    def _linear(self) -> list[Node]:
        return [node for node in self.graph.nodes if is_linear(self.graph, node)]

    def _full_name(self, policy: str) -> str:
        hidden = any(node.is_module for node in self.graph.nodes)
        return hiding(policy) if hidden else policy

    def _compiled(
        self, policy: str, split: PlannedSplit | None, protections: Mapping[str, Protection]
    ) -> Program:
        name = self._full_name(policy)
        plan: Plan = stand_in(self.graph, name, protections, self._maps, split=split)
        return compile_plan(plan)

    def _costed(
        self, policy: str, split: PlannedSplit | None, inside: frozenset[str]
    ) -> CostedPlan | None:
        everywhere = policy in EVERYWHERE
        protections = assign(
            self.graph, self._full_name(policy), split=split, inside=None if everywhere else inside
        )
        if not everywhere and not any(p.on_integers for p in protections.values()):
            return None
        program = self._compiled(policy, split, protections)
        sizes = estimate(self.graph, protections, batch=self.batch)
        return CostedPlan(
            policy=policy,
            split=split,
            inside=inside,
            protections=protections,
            cost=self.predict(program),
            pad_bytes=sizes.total("pad_bytes"),
            traffic_bytes=sizes.total("bytes_to_worker") + sizes.total("bytes_from_worker"),
            memory_bytes=sizes.trusted_memory_bytes,
        )


def _least(found: Iterable[CostedPlan | None], objective: Objective) -> CostedPlan | None:
    there = [one for one in found if one is not None]
    return min(there, key=lambda one: one.objective_ms(objective), default=None)
