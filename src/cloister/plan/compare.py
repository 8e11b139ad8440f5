"""Where the accuracy goes: a plan's fixed-point arithmetic against plain float32, layer by layer.

No worker and no secrets are involved: blinding and checking do not change a result, so the plan's
numbers are computed here with the same ring map and the same rounding as in a session.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np

from cloister.errors import PlanError
from cloister.graph.batch import batch_axis, cut, joined, sample_count
from cloister.graph.captures import captured_values
from cloister.graph.graph import Graph, Node
from cloister.graph.interpreter import runtime_session
from cloister.graph.layout import from_channels_last, to_channels_last
from cloister.graph.onnx.export import to_model
from cloister.graph.ops.depthwise import Depthwise, depthwise
from cloister.graph.ops.linear_nodes import LAST_AXIS_OPS
from cloister.graph.ops.windows import pool_geometry
from cloister.plan.input_factors import multiplied
from cloister.plan.plan import Plan
from cloister.plan.quantise import QuantisedLinear
from cloister.plan.samples import Samples, as_samples
from cloister.ring.reference import depthwise as convolve_depthwise
from cloister.ring.reference import pool
from cloister.ring.ring_map import RingMap
from cloister.ring.rounding import clipped, dequantise, quantise

BATCH = 8
POOLS = ("AveragePool", "GlobalAveragePool")


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


@dataclass(frozen=True)
class Comparison:
    """All layers and the end result; `top1_agreement` is None when no output is a class vector."""

    inputs: int
    layers: tuple[LayerComparison, ...]
    max_difference: float
    top1_agreement: float | None
    outputs: Mapping[str, np.ndarray] = field(repr=False)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON, without the outputs."""
        return {
            "inputs": self.inputs,
            "layers": [asdict(layer) for layer in self.layers],
            "max_difference": self.max_difference,
            "top1_agreement": self.top1_agreement,
        }


def compare(
    plan: Plan,
    samples: Samples,
    *,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Run inputs under the plan's arithmetic and in float32, and measure every linear layer.

    Raises PlanError when the plan has no fixed-point layer, or no float32 weights any more.
    """
    if not plan.linear_nodes:
        raise PlanError(
            f"policy {plan.policy!r} computes everything in float32: nothing to compare"
        )
    if not plan.float_weights:
        raise PlanError("the plan has let go of its float32 weights; make it again to compare")
    feeds = as_samples(plan.graph, samples)
    total = sample_count(plan.graph, feeds)
    simulation = _Simulation(plan, threads)
    reference = _Reference(plan, threads)
    tallies = {node.node: _Tally(node) for node in plan.linear_nodes}
    pairs: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
    done = 0
    for part in cut(plan.graph, feeds, BATCH):
        exact = reference.run(part)
        found = simulation.run(part, tallies, exact)
        pairs.append((found, {name: exact[name] for name in plan.graph.outputs}))
        done += sample_count(plan.graph, part)
        if progress is not None:
            progress(done, total)
    return _summarise(plan.graph, total, tallies, pairs)


class _Tally:
    """Sums over the batches for one layer."""

    def __init__(self, node: QuantisedLinear) -> None:
        self.layer = LayerComparison(
            node=node.node,
            weight_bits=node.weight_bits,
            activation_bits=node.activation_bits,
            bound=node.bound,
            headroom_bits=node.headroom_bits,
        )
        self._node = node
        self._error = 0.0
        self._size = 0.0

    def activations(self, x: np.ndarray) -> None:
        """Count the activations that are clipped."""
        beyond = clipped(x, self._node.inv_x_scale, self._node.x_qmax)
        self.layer.clipped += int(np.count_nonzero(beyond))
        self.layer.activations += x.size

    def output(self, found: np.ndarray, exact: np.ndarray) -> None:
        """Add one batch of outputs."""
        difference = found.astype(np.float64) - exact
        peak = float(np.max(np.abs(difference), initial=0.0))
        self.layer.max_error = max(self.layer.max_error, peak)
        self._error += float(np.sum(difference**2))
        self._size += float(np.sum(exact.astype(np.float64) ** 2))
        self.layer.relative_error = float(np.sqrt(self._error / self._size)) if self._size else 0.0


class _Reference:
    """The model in float32 with the linear layers' outputs exposed."""

    def __init__(self, plan: Plan, threads: int) -> None:
        inner = [
            node.outputs[0]
            for node in plan.graph.nodes
            if node.name in plan.quantised and node.outputs[0] not in plan.graph.outputs
        ]
        self._wanted = [*plan.graph.outputs, *inner]
        model = to_model(plan.graph, outputs=tuple(self._wanted))
        self._session = runtime_session(model.SerializeToString(), threads=threads, optimised=True)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._wanted, self._session.run(self._wanted, feeds), strict=True))


class _Simulation:
    """The plan's own arithmetic, node by node."""

    def __init__(self, plan: Plan, threads: int) -> None:
        self._graph = plan.graph
        self._threads = threads
        self._quantised = plan.quantised
        self._maps = {node.node: RingMap(node.linear) for node in plan.linear_nodes}
        self._pools = {
            node.name: geometry
            for node in plan.graph.nodes
            if node.op in POOLS and (geometry := pool_geometry(plan.graph, node)) is not None
        }
        self._depthwise = {
            node.name: found
            for node in plan.graph.nodes
            if node.name not in self._maps and (found := depthwise(plan.graph, node)) is not None
        }
        ours = {*self._maps, *self._pools, *self._depthwise}
        self._local = {
            node.name: _LocalNode(plan.graph, node, threads)
            for node in plan.graph.nodes
            if node.name not in ours
        }
        self._last_use = _last_use(plan.graph)

    def run(
        self,
        feeds: Mapping[str, np.ndarray],
        tallies: Mapping[str, _Tally],
        exact: Mapping[str, np.ndarray],
    ) -> dict[str, np.ndarray]:
        values = dict(feeds)
        for position, node in enumerate(self._graph.nodes):
            if node.name in self._maps:
                tally = tallies[node.name]
                values[node.outputs[0]] = self._linear(node, values[node.inputs[0]], tally)
                tally.output(values[node.outputs[0]], exact[node.outputs[0]])
            elif node.name in self._pools:
                compute = partial(pool, window=self._pools[node.name])
                values[node.outputs[0]] = self._window(node, values[node.inputs[0]], compute)
            elif node.name in self._depthwise:
                compute = partial(_convolve, filters=self._depthwise[node.name])
                values[node.outputs[0]] = self._window(node, values[node.inputs[0]], compute)
            else:
                values.update(self._local[node.name].run(values))
            for dead in self._last_use.get(position, ()):
                values.pop(dead, None)
        return {name: self._value(values, name) for name in self._graph.outputs}

    def _value(self, values: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        return values[name] if name in values else self._graph.constants[name]

    def _linear(self, node: Node, x: np.ndarray, tally: _Tally) -> np.ndarray:
        numbers = self._quantised[node.name]
        shaped = layer_input(node, numbers, x)
        tally.activations(shaped)
        ring = self._maps[node.name]
        return layer_output(self._graph, node, numbers, ring, shaped, threads=self._threads)

    def _window(
        self, node: Node, x: np.ndarray, compute: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        last = np.ascontiguousarray(to_channels_last(x, channels_first=True))
        shape = self._graph.types[node.outputs[0]].shape
        return from_channels_last(compute(last), shape, channels_first=True)


def layer_input(node: Node, numbers: QuantisedLinear, x: np.ndarray) -> np.ndarray:
    """A linear node's input, channels-last, as it is quantised."""
    last = to_channels_last(x, channels_first=node.op not in LAST_AXIS_OPS)
    shaped = last.reshape(len(x), *numbers.linear.geometry.in_shape)
    return np.ascontiguousarray(multiplied(shaped, numbers.x_factors))


def layer_output(
    graph: Graph,
    node: Node,
    numbers: QuantisedLinear,
    ring: RingMap,
    shaped: np.ndarray,
    *,
    threads: int = 1,
) -> np.ndarray:
    """A linear node's output under the plan's arithmetic, in ONNX's layout."""
    # Beyond float32 is infinite, as in the fused step.
    with np.errstate(over="ignore"):
        request = quantise(shaped, numbers.inv_x_scale, numbers.x_qmax)
        y = dequantise(ring.apply(request, threads=threads), numbers.scale, numbers.bias)
    shape = graph.types[node.outputs[0]].shape
    return from_channels_last(y, shape, channels_first=node.op not in LAST_AXIS_OPS)


def _convolve(x: np.ndarray, *, filters: Depthwise) -> np.ndarray:
    return convolve_depthwise(x, filters.weights, filters.bias, filters.window, -np.inf, np.inf)


class _LocalNode:
    """One node in ONNX Runtime."""

    def __init__(self, graph: Graph, node: Node, threads: int) -> None:
        read = dict.fromkeys((*node.inputs, *sorted(captured_values(node))))
        self._inputs = [value for value in read if value and value not in graph.constants]
        self._outputs = [value for value in node.outputs if value]
        model = to_model(
            graph, nodes=(node,), inputs=tuple(self._inputs), outputs=tuple(self._outputs)
        )
        self._session = runtime_session(model.SerializeToString(), threads=threads, optimised=True)

    def run(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        feeds = {value: values[value] for value in self._inputs}
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))


def _last_use(graph: Graph) -> dict[int, list[str]]:
    """Values that nobody reads after a node, by the node's position."""
    last: dict[str, int] = {}
    for position, node in enumerate(graph.nodes):
        for value in (*node.inputs, *node.outputs, *captured_values(node)):
            last[value] = position
    dead: dict[int, list[str]] = {}
    for value, position in last.items():
        if value not in graph.outputs:
            dead.setdefault(position, []).append(value)
    return dead


def _summarise(
    graph: Graph,
    total: int,
    tallies: Mapping[str, _Tally],
    pairs: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]],
) -> Comparison:
    outputs = joined(graph, [pair[0] for pair in pairs])
    exactly = joined(graph, [pair[1] for pair in pairs])
    largest, agreement = 0.0, None
    for name, found in outputs.items():
        exact = exactly[name]
        if found.dtype.kind != "f":
            continue
        difference = np.abs(found.astype(np.float64) - exact)
        largest = max(largest, float(np.max(difference, initial=0.0)))
        wide = [size for size in found.shape[1:] if size != 1]
        rows = batch_axis(graph, name) == 0 and found.ndim > 1
        if agreement is None and len(wide) == 1 and rows:
            best = [array.reshape(len(array), -1).argmax(axis=1) for array in (found, exact)]
            agreement = float(np.mean(best[0] == best[1]))
    layers = tuple(tally.layer for tally in tallies.values())
    return Comparison(total, layers, largest, agreement, outputs)
