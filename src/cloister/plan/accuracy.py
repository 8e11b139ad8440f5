"""Whether a plan's layers compute what the model's do, on the samples it was calibrated on."""

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from cloister.errors import PrecisionWarning, UnsupportedError
from cloister.graph.batch import cut
from cloister.graph.graph import Graph, Node
from cloister.graph.hidden import without_modules
from cloister.graph.layout import from_channels_last, to_channels_last
from cloister.graph.ops.linear_nodes import LAST_AXIS_OPS
from cloister.graph.weights_as_inputs import WeightsAsInputs
from cloister.plan.plan import Plan
from cloister.plan.quantised import QuantisedLinear, multiplied
from cloister.ring.ring_map import RingMap
from cloister.ring.rounding import dequantise, quantise

MAX_ERROR = 0.02
"""Bound of a layer's relative error: five real models reach 0.003 at 12 bits, and 0.04 at 8."""
SAMPLES = 4


def warn_of_errors(plan: Plan, samples: Mapping[str, np.ndarray]) -> None:
    """Warn (PrecisionWarning) of the layer with the largest error, if it exceeds MAX_ERROR.

    Cost   one run of the model and of each layer in float32, and one of each layer under the plan's
           arithmetic, on the first SAMPLES samples; on all of them if the batch cannot be cut
    """
    name, error = max(_errors(plan, samples), key=lambda found: found[1], default=("", 0.0))
    if error > MAX_ERROR:
        warnings.warn(
            f"node {name!r}: its fixed-point output is {error:.2g} away from float32 on the "
            f"calibration samples (relative L2 error, bound {MAX_ERROR}); show all layers with "
            "`cloister compare`; give more bits, other calibration samples than the inputs "
            "(channels get scales of their own then), or scale the inputs alike",
            PrecisionWarning,
            stacklevel=3,
        )


def _errors(plan: Plan, samples: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """Relative L2 error of every linear layer alone, on exact inputs."""
    graph = without_modules(plan.graph)
    nodes = [node for node in graph.nodes if node.name in plan.quantised]
    if not nodes:
        return
    values: dict[str, np.ndarray] = dict(next(cut(graph, samples, SAMPLES)))
    inner = sorted({node.inputs[0] for node in nodes} - set(values))
    session = WeightsAsInputs(graph, outputs=(*graph.outputs, *inner), threads=0, optimised=True)
    values.update(zip(inner, session.run(inner, values) if inner else (), strict=True))
    for node in nodes:
        x = values[node.inputs[0]]
        found = _in_fixed_point(graph, node, plan.quantised[node.name], x)
        exact = _alone(graph, node, x).astype(np.float64)
        if found.shape != exact.shape:
            raise UnsupportedError(
                f"node {node.name!r}: ONNX Runtime computes shape {exact.shape}, the plan "
                f"{found.shape}; use the enclave policy"
            )
        yield node.name, _distance(found, exact)


def _in_fixed_point(
    graph: Graph, node: Node, numbers: QuantisedLinear, x: np.ndarray
) -> np.ndarray:
    """A linear node's output under the plan's arithmetic, in ONNX's layout."""
    channels_first = node.op not in LAST_AXIS_OPS
    last = to_channels_last(x, channels_first=channels_first)
    shaped = multiplied(last.reshape(len(x), *numbers.linear.geometry.in_shape), numbers.x_factors)
    # Values beyond float32 are infinite, as in the native step.
    with np.errstate(over="ignore"):
        request = quantise(np.ascontiguousarray(shaped), numbers.inv_x_scale, numbers.x_qmax)
        z = RingMap(numbers.linear).apply(request, threads=os.cpu_count() or 1)
        y = dequantise(z, numbers.scale, numbers.bias)
    shape = graph.types[node.outputs[0]].shape
    return from_channels_last(y, shape, channels_first=channels_first)


def _distance(found: np.ndarray, exact: np.ndarray) -> float:
    """Relative L2 distance where float32 itself has a number."""
    finite = np.isfinite(exact)
    size = float(np.linalg.norm(exact[finite]))
    return float(np.linalg.norm(found[finite] - exact[finite])) / size if size else 0.0


def _alone(graph: Graph, node: Node, x: np.ndarray) -> np.ndarray:
    """One linear node's output in float32."""
    constants = {name: graph.constants[name] for name in node.inputs[1:] if name}
    part = replace(
        graph, nodes=(node,), inputs=node.inputs[:1], outputs=node.outputs, constants=constants
    )
    (found,) = WeightsAsInputs(part, threads=0, optimised=True).run(None, {node.inputs[0]: x})
    return found
