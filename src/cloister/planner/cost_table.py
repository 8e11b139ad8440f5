"""The measured costs of a model on one machine, and what they predict for a program.

The trusted time of a program is the sum of its steps' times, of the time that Python takes for each
of them, and of the time that it takes for a request. All figures are milliseconds for one input, at
one batch size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import geometry, is_linear
from cloister.plan.protection import ENCLAVE, MODULE, OPEN, Protection
from cloister.planner.step_shape import StepShape, estimated_ms, step_shape
from cloister.ring.linear import Geometry
from cloister.trusted.program.steps import (
    Exchange,
    Fused,
    Local,
    Module,
    Program,
    Segment,
    Step,
)

MODULE_CALL_MS = 0.05
"""Processor time of handing an input to a module's process: two messages over a socket."""
NS_PER_ELEMENT = 0.5
"""Of a node that is not linear in ONNX Runtime, for each number that it makes."""
FLOAT_BYTES = 4


class LocalTimes(Protocol):
    """Processor time of nodes that ONNX Runtime computes inside."""

    def ms(self, step: Local) -> float:
        """Milliseconds for one input."""
        ...


@dataclass(frozen=True)
class StepCost:
    """What one step costs.

    nodes      the names of the nodes that it computes
    measured   whether a step of its shape was timed; otherwise the figure is an estimate
    """

    nodes: tuple[str, ...]
    protection: Protection
    trusted_ms: float
    worker_ms: float = 0.0
    module_ms: float = 0.0
    measured: bool = True


@dataclass(frozen=True)
class ProgramCost:
    """What a program costs for one input: its steps, and what Python takes for the request."""

    steps: tuple[StepCost, ...]
    request_ms: float

    @property
    def trusted_ms(self) -> float:
        """Processor time of the trusted process, pads made before."""
        return self.request_ms + sum(step.trusted_ms for step in self.steps)

    @property
    def worker_ms(self) -> float:
        """Time waited for the worker's answers."""
        return sum(step.worker_ms for step in self.steps)

    @property
    def module_ms(self) -> float:
        """Time waited for the processes of hidden modules."""
        return sum(step.module_ms for step in self.steps)

    @property
    def latency_ms(self) -> float:
        """Time until an input is answered: nothing of it overlaps with one lane."""
        return self.trusted_ms + self.worker_ms + self.module_ms

    @property
    def estimated_ms(self) -> float:
        """The part of the trusted time that was not measured on steps of the same shape."""
        return sum(step.trusted_ms for step in self.steps if not step.measured)


@dataclass(frozen=True)
class SegmentCost:
    """Of an open segment: processor time for its message, and for each byte of it and its answer.

    worker_factor   the worker's time for it, over that of ONNX Runtime inside as `FloatCost` has it
    """

    message_ms: float
    byte_ms: float
    worker_factor: float = 1.0


@dataclass(frozen=True)
class FloatCost:
    """What float32 nodes take in ONNX Runtime, by their work."""

    mac_ms: float
    element_ms: float = 1e-6 * NS_PER_ELEMENT

    @classmethod
    def of(cls, graph: Graph, total_ms: float) -> "FloatCost":
        """Rates at which a whole model takes so long."""
        macs, elements = _float_work(graph, graph.nodes)
        # Memory and arithmetic overlap, so the elements never account for more than a half.
        element_ms = min(1e-6 * NS_PER_ELEMENT, total_ms / 2 / max(elements, 1))
        return cls((total_ms - element_ms * elements) / max(macs, 1), element_ms)

    def ms(self, graph: Graph, nodes: Sequence[Node]) -> float:
        """Of these nodes."""
        macs, elements = _float_work(graph, nodes)
        return self.mac_ms * macs + self.element_ms * elements


@dataclass(frozen=True)
class CostTable:
    """Costs of one model, its plans and one machine, at a batch size.

    steps        trusted time of fused steps, by shape, with the exchange before
    rates        for shapes that were not measured
    exchanges    the worker's time for a linear map, by its geometry and whether it is blinded
    request_ms   that Python takes for a request, and for each of its steps (`step_ms`)
    module_ms    of the hidden end in its process
    """

    batch: int
    steps: Mapping[StepShape, float]
    rates: Mapping[str, float]
    exchanges: Mapping[tuple[Geometry, bool], float]
    local: LocalTimes
    floats: FloatCost
    segment: SegmentCost
    request_ms: float
    step_ms: float
    module_ms: float = 0.0
    _sources: dict[tuple[object, ...], StepShape] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._sources.update({shape.source: shape for shape in self.steps})

    def predict(self, program: Program) -> ProgramCost:
        """What a program costs."""
        stored: set[tuple[str, bool]] = set()
        costs = [self._cost(program, step, stored) for step in program.steps]
        return ProgramCost(tuple(costs), self.request_ms + self.step_ms * len(costs))

    def fused_ms(self, shape: StepShape) -> float:
        """Trusted time of a fused step.

        A shape that was not measured takes as long as one that reads and computes the same, and
        the difference of what both write at the fitted rates.
        """
        if shape in self.steps:
            return self.steps[shape]
        estimate = estimated_ms(shape, self.rates)
        near = self._sources.get(shape.source)
        if near is None:
            return estimate
        return max(self.steps[near] + estimate - estimated_ms(near, self.rates), 0.2 * estimate)

    def exchange_ms(self, shape: Geometry, *, hidden: bool) -> float:
        """The worker's time: a blinded request takes two products and a plain one takes one."""
        if (shape, hidden) in self.exchanges:
            return self.exchanges[shape, hidden]
        if (shape, not hidden) in self.exchanges:
            return self.exchanges[shape, not hidden] * (2.0 if hidden else 0.5)
        return self.floats.mac_ms * shape.macs * (2 if hidden else 1)

    def _cost(self, program: Program, step: Step, stored: set[tuple[str, bool]]) -> StepCost:
        plan = program.plan
        if isinstance(step, Fused):
            shape = step_shape(plan, step, stored)
            if step.stored:
                part = program.slices.get(step.epilogue.value)
                name = part.whole if part else step.epilogue.value
                stored.add((name, step.channels_first))
            own = () if step.node is None else (plan.linear_nodes[step.node].node,)
            return StepCost(
                (*own, *step.epilogue.covered),
                shape.answer or ENCLAVE,
                self.fused_ms(shape),
                measured=shape in self.steps,
            )
        if isinstance(step, Exchange):
            linear = plan.linear_nodes[step.node]
            hidden = step.protection.hidden
            worker_ms = self.exchange_ms(linear.linear.geometry, hidden=hidden)
            return StepCost((linear.node,), step.protection, 0.0, worker_ms)
        nodes = tuple(node.name for node in step.nodes)
        if isinstance(step, Local):
            return StepCost(nodes, ENCLAVE, self.local.ms(step))
        if isinstance(step, Module):
            return StepCost(nodes, MODULE, MODULE_CALL_MS, module_ms=self.module_ms, measured=False)
        return self._segment(plan.graph, step, nodes)

    def _segment(self, graph: Graph, step: Segment, nodes: tuple[str, ...]) -> StepCost:
        nbytes = segment_bytes(graph, step)
        return StepCost(
            nodes,
            OPEN,
            self.segment.message_ms + self.segment.byte_ms * nbytes,
            self.segment.worker_factor * self.floats.ms(graph, step.nodes),
        )


def segment_bytes(graph: Graph, step: Segment) -> int:
    """What a segment's message and answer hold for one input."""
    return FLOAT_BYTES * sum(elements(graph, value) for value in (*step.inputs, *step.outputs))


def _float_work(graph: Graph, nodes: Sequence[Node]) -> tuple[int, int]:
    linear = [node for node in nodes if is_linear(graph, node)]
    macs = sum(geometry(graph, node).macs for node in linear)
    others = [node for node in nodes if node not in linear]
    return macs, sum(elements(graph, value) for node in others for value in node.outputs)


def elements(graph: Graph, value: str) -> int:
    """Numbers of a value for one input; 0 where its shape is not known."""
    known = graph.types.get(value)
    return 0 if known is None else math.prod(size or 1 for size in known.shape)
