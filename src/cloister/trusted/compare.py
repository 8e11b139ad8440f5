"""The error of a plan's fixed-point arithmetic against plain float32, layer by layer.

No worker and no secrets are involved: blinding and checking do not change a result, so the plan's
program is interpreted here without them.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from cloister.errors import PlanError
from cloister.graph.batch import batch_axis, cut, joined, sample_count
from cloister.graph.graph import Graph
from cloister.graph.layout import from_channels_last
from cloister.graph.onnx.export import model_bytes
from cloister.graph.ops.linear_nodes import LAST_AXIS_OPS
from cloister.graph.ort_session import runtime_session
from cloister.plan.plan import Plan
from cloister.plan.protection import VERIFIED
from cloister.plan.quantised import QuantisedLinear
from cloister.plan.samples import Samples, as_samples
from cloister.ring.linear import LinearMap
from cloister.ring.ring_map import RingMap
from cloister.ring.rounding import dequantise
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.step_interpreter import Crossed, Interpreter

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
        raise PlanError("the plan has dropped its float32 weights; make it again to compare")
    feeds = as_samples(plan.graph, samples)
    total = sample_count(plan.graph, feeds)
    reference = _Reference(plan, threads)
    tallies = {node.node: _Tally(node) for node in plan.linear_nodes}
    simulation = _Simulation(plan, tallies, threads)
    pairs: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
    done = 0
    for part in cut(plan.graph, feeds, BATCH):
        exact = reference.run(part)
        found = simulation.run(part, exact)
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
        self._error = 0.0
        self._size = 0.0

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
        model = model_bytes(plan.graph, outputs=tuple(self._wanted))
        self._session = runtime_session(model, threads=threads, optimised=True)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._wanted, self._session.run(self._wanted, feeds), strict=True))


class _Simulation:
    """The plan's own arithmetic: its program without pads and checks, which change no number."""

    def __init__(self, plan: Plan, tallies: Mapping[str, _Tally], threads: int) -> None:
        clear = {node.node: VERIFIED for node in plan.linear_nodes}
        protections = {**plan.protections, **clear}
        program = compile_plan(replace(plan, policy="simulated", protections=protections))
        self._graph = plan.graph
        self._tallies = tallies
        self._threads = threads
        self._numbers = plan.linear_nodes
        self._nodes = program.linear
        self._maps = {id(node.linear): RingMap(node.linear) for node in plan.linear_nodes}
        self._interpreter = Interpreter(
            program, worker=self._apply, threads=threads, watch=self._enter
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
