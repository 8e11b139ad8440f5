"""What a plan sends out, what stays and why, and what it is likely to gain: one line.

Nothing is measured here. The times are those of one core of an AMD EPYC (Zen 5): of fused steps and
exchanges (step_shape.py), of Python, and of ONNX Runtime for the nodes inside and for the model as
a whole. The worker is taken to be an accelerator, and pads to be made before: then the trusted
core's time limits how many inputs are answered.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from cloister.errors import CloisterError
from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import integer, is_linear, why_inside
from cloister.plan.cost import PlanCost
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.protection import EVERYWHERE, Protection
from cloister.planner.cost_table import (
    NS_PER_ELEMENT,
    CostTable,
    FloatCost,
    SegmentCost,
    elements,
)
from cloister.planner.stand_in import stand_in, zero_maps
from cloister.planner.step_shape import DEFAULT_RATES
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.steps import Local, Program

FLOPS_PER_MS = 200e6
"""Of float32 layers in ONNX Runtime, as of VGG16's and ResNet-152's."""
WEIGHT_BYTES_PER_MS = 24e6
"""Of a dense layer's weights, which are read from memory once for each message."""
BLOCK, PICTURES = 16, (1, 3, 4)
"""Channels that ONNX Runtime computes at once, and those of a picture, which stay as they are."""
FLOAT_BYTES = 4
IN_A_SESSION = 1.25
"""What a step takes there, over what the same step takes alone: its data come from other cores."""
REQUEST_MS, STEP_MS, PADS_MS = 0.25, 0.001, 0.0008
"""Of Python, for a request, for each of its steps, and for the pads of each of its inputs."""
RUN_MS = 0.02
"""Of one call of ONNX Runtime."""
BATCHES = tuple(2**i for i in range(11))
CLEAR_GAIN = 1.2
"""Below, times as rough as these say nothing."""
NAMED = 3
LEAST_SHARE = 0.05
"""Of the arithmetic, from which on a node that stays inside is named."""


@dataclass(frozen=True)
class Inside:
    """The nodes that stay inside.

    cheaper    linear nodes, which the plan keeps because to send them would cost more
    operators  of the nodes that are not linear, the most frequent first
    largest    the node with most of the arithmetic, its share, and why no worker computes it
    """

    nodes: int
    cheaper: int
    operators: tuple[str, ...]
    largest: tuple[str, float, str] | None


@dataclass(frozen=True)
class ExpectedGain:
    """A plan in short.

    share        of the arithmetic that workers compute, of `flops` for one input
    own_ms       what one core takes for the model as it is, one input at a time; None: no estimate
    trusted_ms   what the trusted core takes under the plan
    from_batch   the smallest batch from which on the trusted core does less under the plan than for
                 the model as it is; None: none of `BATCHES`, or no estimate
    pads         whether it needs pads
    free_sizes   of the model's inputs, besides the batch: they count as 1 until they are numbers
    """

    policy: str
    share: float
    flops: int
    inside: Inside
    own_ms: float | None = None
    trusted_ms: float | None = None
    from_batch: int | None = None
    pads: bool = False
    free_sizes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.free_sizes and self.policy not in EVERYWHERE:
            named = " ".join(f"--dim {name}=SIZE" for name in self.free_sizes)
            return (
                f"{self.policy}: what a worker computes follows from the model's free sizes "
                f"({', '.join(self.free_sizes)}); give {named} to see it"
            )
        return f"{self.policy}: {self._sent()}{self._staying()}. {self._speed()}"

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON, and the line."""
        return {**asdict(self), "line": str(self)}

    def _sent(self) -> str:
        share = "none" if self.share == 0 else _percent(self.share)
        return f"a worker computes {share} of the arithmetic ({_flops(self.flops)} for an input)"

    def _staying(self) -> str:
        inside = self.inside
        if not inside.nodes or self.policy in EVERYWHERE:
            return ""
        shown = ", ".join(inside.operators[:NAMED])
        more = ", ..." if len(inside.operators) > NAMED else ""
        others = inside.nodes - inside.cheaper
        reasons = {
            "to send them would cost more": inside.cheaper,
            f"no worker computes them ({shown}{more})": others,
        }
        kinds = [f"{count} because {why}" for why, count in reasons.items() if count]
        text = f"; nodes stay inside: {' and '.join(kinds)}"
        if inside.largest is not None:
            name, share, why = inside.largest
            text += f", above all {name} with {_percent(share)}: {why}"
        return text

    def _speed(self) -> str:
        if self.share == 0 and self.policy not in EVERYWHERE:
            return "There is nothing to send; the enclave policy runs the model inside"
        if self.share == 0:
            return "It is as fast as running the model yourself"
        if self.own_ms is None or self.trusted_ms is None:
            return "Its speed is not estimated; measure it with `cloister bench inference`"
        gain = self.own_ms / self.trusted_ms
        found = "Likely slower than"
        if gain >= CLEAR_GAIN:
            found = f"Likely {gain:.2g} times as fast as"
        elif gain > 1 / CLEAR_GAIN:
            found = "Likely about as fast as"
        pads = " and pads made before" if self.pads else ""
        return (
            f"{found} running the model yourself: {_ms(self.trusted_ms)} instead of "
            f"{_ms(self.own_ms)} for an input. {self._pays()} (an estimate for one core, with an "
            f"accelerator as worker{pads}; measure it with `cloister bench inference`)"
        )

    def _pays(self) -> str:
        """From which batch on protection pays."""
        if self.from_batch is None:
            return "At no batch does the trusted side do less than the plain run"
        return f"From batch {self.from_batch} on, the trusted side does less than the plain run"


def expected_gain(
    graph: Graph,
    policy: str,
    protections: Mapping[str, Protection],
    cost: PlanCost,
    *,
    split: PlannedSplit | None = None,
) -> ExpectedGain:
    """What a plan of these protections gains.

    cost   of the same protections (`estimate`)
    """
    flops = sum(node.flops for node in cost.nodes)
    sent = sum(node.flops for node in cost.nodes if protections[node.node].on_worker)
    found = ExpectedGain(
        policy,
        sent / flops if flops else 0.0,
        flops,
        _inside(graph, protections, cost, flops),
        pads=any(p.on_worker and p.hidden for p in protections.values()),
        free_sizes=graph.free_sizes,
    )
    if not sent or graph.free_sizes or any(node.is_module for node in graph.nodes):
        return found
    try:
        times = _Times(graph, policy, protections, cost, split)
    except CloisterError:
        return found
    batch = graph.batch or 1
    several = BATCHES if graph.batch is None and graph.separable else (batch,)
    faster = (n for n in several if times.own_ms(n) > times.trusted_ms(n))
    return ExpectedGain(
        found.policy, found.share, found.flops, found.inside,
        own_ms=times.own_ms(batch), trusted_ms=times.trusted_ms(batch),
        from_batch=next(faster, None), pads=found.pads,
    )  # fmt: skip


def _inside(
    graph: Graph, protections: Mapping[str, Protection], cost: PlanCost, flops: int
) -> Inside:
    staying = [n for n in graph.nodes if not protections[n.name].on_worker and not n.is_module]
    cheaper = [node for node in staying if is_linear(graph, node)]
    others = [node for node in staying if node not in cheaper]
    work = {one.node: one.flops for one in cost.nodes}
    largest = max(others, key=lambda node: work[node.name], default=None)
    named = None
    if largest is not None and work[largest.name] > LEAST_SHARE * flops:
        name = f"{largest.name!r} ({largest.op})"
        named = name, work[largest.name] / flops, why_inside(graph, largest)
    operators = tuple(op for op, _ in Counter(node.op for node in others).most_common())
    return Inside(len(staying), len(cheaper), operators, named)


class _Times:
    """Estimated processor time for an input, at any batch size."""

    def __init__(
        self,
        graph: Graph,
        policy: str,
        protections: Mapping[str, Protection],
        cost: PlanCost,
        split: PlannedSplit | None,
    ) -> None:
        self._graph = graph
        self._costs = {node.node: node for node in cost.nodes}
        plan = stand_in(graph, policy, protections, zero_maps(graph), split=split)
        self._program: Program = compile_plan(plan)
        self._pads_ms = PADS_MS if plan.hidden_nodes else 0.0

    def own_ms(self, batch: int) -> float:
        """Of the model in ONNX Runtime."""
        return RUN_MS / batch + sum(self._node_ms(node, batch) for node in self._graph.nodes)

    def trusted_ms(self, batch: int) -> float:
        """Of the trusted side under the plan."""
        once = {"step", "exchange"}
        rates = {
            name: IN_A_SESSION * rate / (batch if name in once else 1)
            for name, rate in DEFAULT_RATES.items()
        }
        table = CostTable(
            batch=batch,
            steps={},
            rates=rates,
            exchanges={},
            local=_LocalEstimate(self, batch),
            floats=FloatCost(2 / FLOPS_PER_MS),
            segment=SegmentCost(0.15 / batch, 1e-6),
            request_ms=REQUEST_MS / batch + self._pads_ms,
            step_ms=STEP_MS / batch,
        )
        return table.predict(self._program).trusted_ms

    def local_ms(self, step: Local, batch: int) -> float:
        """Of nodes inside, in ONNX Runtime."""
        return RUN_MS / batch + sum(self._node_ms(node, batch) for node in step.nodes)

    def _node_ms(self, node: Node, batch: int) -> float:
        cost = self._costs[node.name]
        computing = cost.flops * _in_blocks(self._graph, node) / FLOPS_PER_MS
        if cost.kind != "linear":
            made = sum(elements(self._graph, value) for value in node.outputs)
            computing += 1e-6 * NS_PER_ELEMENT * made
        return max(computing, FLOAT_BYTES * cost.parameters / WEIGHT_BYTES_PER_MS / batch)


def _in_blocks(graph: Graph, node: Node) -> float:
    """How many times its work a convolution is: ONNX Runtime computes whole blocks of channels."""
    weights = graph.constants.get(node.inputs[1]) if node.op == "Conv" else None
    if weights is None or integer(node, "group", 1) != 1:
        return 1.0
    made, read = (float(-(-n // BLOCK) * BLOCK / n) for n in weights.shape[:2])
    return made if weights.shape[1] in PICTURES else made * read


@dataclass(frozen=True)
class _LocalEstimate:
    times: _Times
    batch: int

    def ms(self, step: Local) -> float:
        """See LocalTimes."""
        return self.times.local_ms(step, self.batch)


def _percent(share: float) -> str:
    percent = 100 * share
    if percent < 0.1:
        return "less than 0.1 %"
    return f"{percent:.1f} %" if percent < 99.95 else "nearly all"


def _flops(flops: int) -> str:
    for size, unit in ((1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP")):
        if flops >= size:
            return f"{flops / size:.1f} {unit}"
    return f"{flops} FLOP"


def _ms(ms: float) -> str:
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1g} ms" if ms < 1 else f"{ms:.1f} ms"
