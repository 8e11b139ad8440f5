"""Fixed-point form of a model's linear nodes, with a proof that no result wraps.

Weights: one symmetric scale per output channel. Activations: one symmetric scale per tensor, from
calibration; values beyond it are clipped. Powers of two bring the channels of raw inputs to that
scale (input_factors.py). True results must fit the centred range of Z_2^32, so per output channel o

    qmax_x * sum |Wq[o]| < 2^31.

Rounding adds at most 1/2 per weight, so a weight scale of at least `l1 * qmax_x / (2^31 - 1 -
qmax_x * terms / 2)` proves it; only channels that need it are made coarser.

A node whose input is a dequantised integer (graph/grid.py), and whose weights are some as well, has
integers of its own: it gets these, and nothing is rounded or clipped (docs/adr/0020).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from cloister.errors import ModelError, PlanError, RangeError, UnsupportedError, one_line
from cloister.graph.batch import cut, where_not_finite
from cloister.graph.graph import Graph, Node
from cloister.graph.grid import grid_of
from cloister.graph.hidden import without_modules
from cloister.graph.layout import to_channels_last
from cloister.graph.ops.linear_nodes import LAST_AXIS_OPS, float_weights, geometry
from cloister.graph.ort_session import ORT_ERRORS
from cloister.graph.weights_as_inputs import WeightsAsInputs
from cloister.plan.input_factors import divisors, input_factors, largest
from cloister.plan.quantised import (
    WRAP_LIMIT,
    Precision,
    QuantisedLinear,
    Ranges,
    bound_and_bits,
    factor_shape,
    parts,
)
from cloister.plan.weight_steps import steps_of
from cloister.ring.linear import LinearMap
from cloister.ring.rounding import MAX_QMAX

CALIBRATION_BATCH = 8
MIN_ACTIVATION_BITS = 8
COMFORTABLE_WEIGHT_BITS = 8.0


def calibrate(
    graph: Graph,
    nodes: Sequence[Node],
    samples: Mapping[str, np.ndarray],
    *,
    by_channel: frozenset[str] = frozenset(),
) -> dict[str, Ranges]:
    """Largest magnitude of each node's input over the samples, in plain float32 arithmetic.

    Nodes in `by_channel` get one number per channel or element (`factor_shape`).
    """
    found: dict[str, np.ndarray] = {}
    values = sorted({node.inputs[0] for node in nodes})
    inner = [value for value in values if value not in graph.inputs]
    graph = without_modules(graph)
    for node in nodes:
        if node.inputs[0] not in graph.types:
            raise PlanError(
                f"node {node.name!r} reads what a hidden part makes, which calibration cannot "
                "compute; keep it inside"
            )
    session = _session(graph, inner)
    for batch in cut(graph, samples, CALIBRATION_BATCH):
        arrays = {**batch, **dict(zip(inner, _run(session, inner, batch), strict=True))}
        _require_shapes(graph, values, arrays)
        for node in nodes:
            peaks = _peaks(graph, node, arrays[node.inputs[0]], by_channel=node.name in by_channel)
            if not np.isfinite(peaks).all():
                raise RangeError(
                    f"calibration: value {node.inputs[0]!r} is NaN or infinite; check the samples"
                    f"{where_not_finite(graph, samples)}"
                )
            found[node.name] = np.maximum(found.get(node.name, peaks), peaks)
    return {name: tuple(map(float, peaks.reshape(-1))) for name, peaks in found.items()}


def _require_shapes(graph: Graph, values: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ModelError where a value has another shape than shape inference found."""
    for value in values:
        stated, found = graph.types[value].shape, arrays[value].shape
        sizes = zip(stated, found, strict=False)
        if len(stated) != len(found) or any(a not in (None, b) for a, b in sizes):
            raise ModelError(
                f"value {value!r}: shape inference says {stated}, but it has the shape {found}; "
                "keep the nodes that read it inside"
            )


def _peaks(graph: Graph, node: Node, x: np.ndarray, *, by_channel: bool) -> np.ndarray:
    if not by_channel:
        return np.asarray(np.max(np.abs(x), initial=0.0))
    shape = geometry(graph, node)
    ordered = to_channels_last(x, channels_first=node.op not in LAST_AXIS_OPS)
    return largest(ordered.reshape(len(x), *shape.in_shape), factor_shape(shape))


def _session(graph: Graph, inner: Sequence[str]) -> WeightsAsInputs:
    try:
        return WeightsAsInputs(graph, outputs=(*graph.outputs, *inner), threads=0, optimised=True)
    except ORT_ERRORS as error:
        raise UnsupportedError(
            "ONNX Runtime does not run the model; where sizes are free, give samples of others "
            f"(pictures: --resize H,W): {one_line(error)}"
        ) from None


def _run(
    session: WeightsAsInputs, wanted: list[str], batch: dict[str, np.ndarray]
) -> list[np.ndarray]:
    try:
        return session.run(wanted, batch) if wanted else []
    except ORT_ERRORS as error:
        raise RangeError(
            "calibration: ONNX Runtime cannot run the model on these samples "
            f"({type(error).__name__}); check their values and sizes"
        ) from None


def quantise_node(
    graph: Graph, node: Node, *, ranges: Ranges, precision: Precision
) -> QuantisedLinear:
    """Integer weights and scales of one linear node, whose input has these ranges.

    Error    weights round to half a step, activations to half a step and clip at the largest range;
             none where the node has integers of its own
    Raises   RangeError when no activation width of at least 8 bits admits a proof, PlanError when
             there are neither one range nor as many as channels
    """
    weights, bias = float_weights(graph, node)
    finite = all(np.isfinite(weights[part]).all() for part in parts(weights))
    if not (finite and np.isfinite(bias).all()):
        raise RangeError(f"node {node.name!r}: weights contain NaN or infinity; repair the model")
    own = _own_integers(graph, node, weights, bias, precision)
    if own is not None:
        return own
    factors = _factors(graph, node, weights, ranges)
    activation_bits = precision.activation_bits
    while True:
        quantised = None  # two widths of a large layer need not exist at once
        quantised = _at_width(
            graph, node, weights, bias, max(ranges), factors, activation_bits, precision
        )
        enough = min(COMFORTABLE_WEIGHT_BITS, precision.weight_bits)
        if quantised is not None and quantised.weight_bits >= enough:
            return quantised
        if activation_bits <= MIN_ACTIVATION_BITS:
            break
        activation_bits -= 1
    if quantised is None:
        raise RangeError(
            f"node {node.name!r}: its sums have too many terms to prove that they fit 32 bits; "
            "keep it inside the trusted runtime"
        )
    return quantised


def _own_integers(
    graph: Graph, node: Node, weights: np.ndarray, bias: np.ndarray, precision: Precision
) -> QuantisedLinear | None:
    """The integers of a node in a quantised model; None where there are none that fit 32 bits."""
    grid = grid_of(graph, node.inputs[0])
    if grid is None or grid.most > MAX_QMAX:
        return None
    integers = np.empty(weights.shape, np.int16)
    steps = np.empty(len(weights))
    for part in parts(weights):
        rows = weights[part].reshape(len(weights[part]), -1)
        found = steps_of(rows)
        if found is None:
            return None
        steps[part] = found
        integers[part] = np.rint(rows / found[:, None]).reshape(weights[part].shape)
    bound, weight_bits = bound_and_bits(integers, grid.most, precision)
    if bound >= WRAP_LIMIT:
        return None
    return QuantisedLinear(
        node=node.name,
        linear=LinearMap(geometry(graph, node), integers),
        scale=(steps * np.float64(grid.step)).astype(np.float32),
        bias=bias.astype(np.float32),
        x_scale=grid.step,
        x_qmax=grid.most,
        bound=bound,
        weight_bits=weight_bits,
    )


def _factors(
    graph: Graph, node: Node, weights: np.ndarray, ranges: Ranges
) -> Float32[np.ndarray, "fh fw c"] | None:
    if len(ranges) == 1:
        return None
    shape = geometry(graph, node)
    if len(ranges) != math.prod(factor_shape(shape)):
        raise PlanError(
            f"node {node.name!r} has {len(ranges)} ranges for {math.prod(factor_shape(shape))} "
            "input channels: the calibration belongs to another model"
        )
    return input_factors(weights, shape, np.reshape(ranges, factor_shape(shape)))


def _at_width(
    graph: Graph,
    node: Node,
    weights: np.ndarray,
    bias: np.ndarray,
    largest_input: float,
    factors: np.ndarray | None,
    activation_bits: int,
    precision: Precision,
) -> QuantisedLinear | None:
    qmax_x = 2 ** (activation_bits - 1) - 1
    qmax_w = 2 ** (precision.weight_bits - 1) - 1
    shape = geometry(graph, node)
    terms = weights[:1].size
    room = WRAP_LIMIT - 1 - qmax_x * terms / 2
    if room <= WRAP_LIMIT / 4:
        return None
    integers = np.empty(weights.shape, np.int16)
    w_scale = np.empty(len(weights))
    for part in parts(weights):
        rows = weights[part].astype(np.float64)
        if factors is not None:
            rows /= divisors(factors, shape, part)
        rows = rows.reshape(len(rows), -1)
        size = np.abs(rows)
        scale = np.maximum(size.max(axis=1) / qmax_w, size.sum(axis=1) * qmax_x / room)
        scale[scale == 0.0] = 1.0
        integers[part] = np.rint(rows / scale[:, None]).reshape(weights[part].shape)
        w_scale[part] = scale
    bound, weight_bits = bound_and_bits(integers, qmax_x, precision)
    if bound >= WRAP_LIMIT:
        raise RangeError(f"node {node.name!r}: static bound {bound} reaches 2^31")
    x_scale = np.float32(largest_input / qmax_x) if largest_input > 0 else np.float32(1.0)
    if not np.isfinite(np.float32(1.0) / x_scale):
        x_scale = np.float32(1.0)  # the input is zero up to denormals
    return QuantisedLinear(
        node=node.name,
        linear=LinearMap(shape, integers),
        scale=(w_scale * np.float64(x_scale)).astype(np.float32),
        bias=bias.astype(np.float32),
        x_scale=float(x_scale),
        x_qmax=qmax_x,
        bound=bound,
        weight_bits=weight_bits,
        x_factors=factors,
    )
