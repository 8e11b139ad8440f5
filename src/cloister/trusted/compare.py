"""The error of a plan's fixed-point arithmetic against plain float32, layer by layer.

No worker and no secrets are involved: blinding and checking do not change a result, so the plan's
program is interpreted here without them.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from cloister.errors import PlanError
from cloister.graph.batch import batch_axis, bound_sizes, cut, joined, sample_count
from cloister.graph.graph import Graph
from cloister.graph.layout import from_channels_last
from cloister.graph.onnx.export import model_bytes
from cloister.graph.ops.linear_nodes import LAST_AXIS_OPS
from cloister.graph.ort_session import runtime_session
from cloister.graph.output_values import flat_arrays
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.plan.protection import VERIFIED
from cloister.plan.quantised import QuantisedLinear
from cloister.plan.samples import Samples, as_samples
from cloister.ring.linear import LinearMap
from cloister.ring.ring_map import RingMap
from cloister.ring.rounding import dequantise
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.step_interpreter import Crossed, Interpreter, ModuleFunction

BATCH = 8


@dataclass
class LayerComparison:
    """One linear layer: its widths, its bound, and how far its output is from float32.

    Errors are of the layer's output after everything before it was computed under the plan too.
    `relative_error` is the Euclidean norm of the error over that of the float32 output; `clipped`
    counts activations beyond the fixed-point range, of `activations` in all.
    """

    node: str
    weight_bits: float
    activation_bits: int
    bound: int
    headroom_bits: float
    max_error: float = 0.0
    relative_error: float = 0.0
    clipped: int = 0
    activations: int = 0


@dataclass
class HiddenComparison:
    """A hidden part: how far its module's outputs are from float32, on exact inputs."""

    node: str
    max_error: float = 0.0
    relative_error: float = 0.0


@dataclass(frozen=True)
class HiddenReference:
    """The hidden part of a plan as it was before it was hidden, and what computes it now.

    whole   the model that has it
    module  from a batch's inputs of the hidden part to its outputs
    """

    whole: Graph
    module: ModuleFunction


@dataclass(frozen=True)
class Comparison:
    """All layers and the end result; `top1_agreement` is None when no output tells a class.

    `max_difference` is infinite where an output has another shape than in float32.
    """

    inputs: int
    layers: tuple[LayerComparison, ...]
    hidden: HiddenComparison | None
    max_difference: float
    top1_agreement: float | None
    outputs: Mapping[str, Any] = field(repr=False)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON, without the outputs."""
        return {
            "inputs": self.inputs,
            "layers": [asdict(layer) for layer in self.layers],
            "hidden": None if self.hidden is None else asdict(self.hidden),
            "max_difference": self.max_difference,
            "top1_agreement": self.top1_agreement,
        }


def compare(
    plan: Plan,
    samples: Samples,
    *,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
    hidden: HiddenReference | None = None,
) -> Comparison:
    """Run inputs under the plan's arithmetic and in float32, and measure every linear layer.

    hidden   for a plan with a hidden part, which is measured too

    Raises PlanError when the plan has no fixed-point layer and no hidden part, or no float32
    weights any more.
    """
    if (hidden is None) != (not plan.modules):
        raise PlanError("hidden=: give the hidden part of a plan that has one, and of no other")
    if not plan.linear_nodes and hidden is None:
        raise PlanError(
            f"policy {plan.policy!r} computes everything in float32: nothing to compare"
        )
    if not plan.float_weights:
        raise PlanError("the plan has dropped its float32 weights; make it again to compare")
    feeds = as_samples(plan.template or plan.graph, samples)
    if plan.template is not None:
        plan = policies.for_sizes(plan, bound_sizes(plan.template, feeds))
    total = sample_count(plan.graph, feeds)
    reference = _Reference(plan, threads, hidden)
    tallies = {node.node: _Tally(node) for node in plan.linear_nodes}
    end = None if hidden is None else _HiddenTally(plan, hidden)
    simulation = _Simulation(plan, tallies, threads, hidden)
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    done = 0
    for part in cut(plan.graph, feeds, BATCH):
        exact = reference.run(part)
        found = simulation.run(part, exact)
        if end is not None:
            end.enter(part, exact)
        pairs.append((found, {name: exact[name] for name in plan.graph.outputs}))
        done += sample_count(plan.graph, part)
        if progress is not None:
            progress(done, total)
    layers = tuple(tally.layer for tally in tallies.values())
    return _summarise(plan.graph, total, layers, None if end is None else end.part, pairs)


class _Errors:
    """Largest and relative error of an output, over the batches."""

    def __init__(self) -> None:
        self.largest = 0.0
        self._error = 0.0
        self._size = 0.0

    def enter(self, found: np.ndarray, exact: np.ndarray) -> None:
        """Add one batch of outputs."""
        difference = found.astype(np.float64) - exact
        self.largest = max(self.largest, float(np.max(np.abs(difference), initial=0.0)))
        self._error += float(np.sum(difference**2))
        self._size += float(np.sum(exact.astype(np.float64) ** 2))

    @property
    def relative(self) -> float:
        """Euclidean norm of the error over that of the exact output."""
        return float(np.sqrt(self._error / self._size)) if self._size else 0.0


class _HiddenTally:
    """The module of a hidden part on the exact values that enter it."""

    def __init__(self, plan: Plan, hidden: HiddenReference) -> None:
        (self._node,) = (node for node in plan.graph.nodes if node.is_module)
        self._module = hidden.module
        self._errors = _Errors()
        self.part = HiddenComparison(self._node.name)

    def enter(self, feeds: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray]) -> None:
        """Add one batch."""
        known = {**feeds, **exact}
        found = self._module([known[name] for name in self._node.inputs])
        for name, array in zip(self._node.outputs, found, strict=True):
            if array.dtype.kind == "f":
                self._errors.enter(array, exact[name])
        self.part.max_error = self._errors.largest
        self.part.relative_error = self._errors.relative


class _Tally:
    """Sums over the batches for one layer."""

    def __init__(self, node: QuantisedLinear) -> None:
        self._errors = _Errors()
        self.layer = LayerComparison(
            node=node.node,
            weight_bits=node.weight_bits,
            activation_bits=node.activation_bits,
            bound=node.bound,
            headroom_bits=node.headroom_bits,
        )

    def output(self, found: np.ndarray, exact: np.ndarray) -> None:
        """Add one batch of outputs."""
        self._errors.enter(found, exact)
        self.layer.max_error = self._errors.largest
        self.layer.relative_error = self._errors.relative


class _Reference:
    """The model in float32, with the outputs of linear layers and what enters a hidden part."""

    def __init__(self, plan: Plan, threads: int, hidden: HiddenReference | None) -> None:
        graph = plan.graph if hidden is None else hidden.whole
        inner = [node.outputs[0] for node in plan.graph.nodes if node.name in plan.quantised]
        inner += [value for node in plan.graph.nodes if node.is_module for value in node.inputs]
        given = {*graph.inputs, *graph.outputs}
        self._wanted = [*graph.outputs, *dict.fromkeys(v for v in inner if v not in given)]
        model = model_bytes(graph, outputs=tuple(self._wanted))
        self._session = runtime_session(model, threads=threads, optimised=True)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._wanted, self._session.run(self._wanted, feeds), strict=True))


class _Simulation:
    """The plan's own arithmetic: its program without pads and checks, which change no number."""

    def __init__(
        self,
        plan: Plan,
        tallies: Mapping[str, _Tally],
        threads: int,
        hidden: HiddenReference | None,
    ) -> None:
        clear = {node.node: VERIFIED for node in plan.linear_nodes}
        protections = {**plan.protections, **clear}
        simulated = replace(plan, policy="simulated", protections=protections, split=None)
        program = compile_plan(simulated)
        self._graph = plan.graph
        self._tallies = tallies
        self._threads = threads
        self._numbers = plan.linear_nodes
        self._nodes = program.linear
        self._maps = {id(node.linear): RingMap(node.linear) for node in plan.linear_nodes}
        self._interpreter = Interpreter(
            program,
            worker=self._apply,
            modules={}
            if hidden is None
            else {module.node: hidden.module for module in plan.modules},
            threads=threads,
            watch=self._enter,
        )
        self._exact: Mapping[str, np.ndarray] = {}

    def run(
        self, feeds: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The outputs; every layer is compared with its exact output."""
        self._exact = exact
        made = self._interpreter.run(feeds)
        for index, clipped in made.clipped.items():
            self._tallies[self._numbers[index].node].layer.clipped += int(clipped.sum())
        return made.outputs

    def _apply(self, linear: LinearMap, message: np.ndarray) -> np.ndarray:
        return self._maps[id(linear)].apply(message, threads=self._threads)

    def _enter(self, crossed: Crossed) -> None:
        if crossed.target >= len(self._nodes):
            return  # an open segment
        node, numbers = self._nodes[crossed.target], self._numbers[crossed.target]
        (message,), (answer,) = crossed.sent, crossed.received
        y = from_channels_last(
            dequantise(answer, numbers.scale, numbers.bias),
            self._graph.types[node.outputs[0]].shape,
            channels_first=node.op not in LAST_AXIS_OPS,
        )
        self._tallies[node.name].layer.activations += message.size
        self._tallies[node.name].output(y, self._exact[node.outputs[0]])


def _summarise(
    graph: Graph,
    total: int,
    layers: tuple[LayerComparison, ...],
    hidden: HiddenComparison | None,
    pairs: list[tuple[dict[str, Any], dict[str, Any]]],
) -> Comparison:
    outputs = joined(graph, [pair[0] for pair in pairs])
    exactly = joined(graph, [pair[1] for pair in pairs])
    largest, agreement = 0.0, None
    axes = {name: batch_axis(graph, name) for name in graph.outputs}
    exact_arrays = flat_arrays(exactly)
    for name, found in flat_arrays(outputs).items():
        exact = exact_arrays.get(name)
        if exact is None or exact.shape != found.shape:
            largest = np.inf  # how many values there are depends on the values
            continue
        stated = found.dtype == np.int64 and found.ndim in (1, 2) and found.size > 0
        if agreement is None and stated and axes.get(name) == 0:
            labels = [array.reshape(len(array), -1)[:, 0] for array in (found, exact)]
            agreement = float(np.mean(labels[0] == labels[1]))
        if found.dtype.kind != "f":
            continue
        differs = (found != exact) & ~(np.isnan(found) & np.isnan(exact))
        difference = np.abs(found[differs].astype(np.float64) - exact[differs])
        largest = max(largest, float(np.max(difference, initial=0.0)))
        wide = [size for size in found.shape[1:] if size != 1]
        rows = axes.get(name) == 0 and found.ndim > 1
        if agreement is None and len(wide) == 1 and rows:
            best = [array.reshape(len(array), -1).argmax(axis=1) for array in (found, exact)]
            agreement = float(np.mean(best[0] == best[1]))
    return Comparison(total, layers, hidden, largest, agreement, outputs)
