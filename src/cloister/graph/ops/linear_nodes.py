"""Linear ONNX nodes as linear maps: their geometry and their weights in channels-last order.

    Conv            (N, C, H, W), (N, C, L)   weights (O, C/g, kh, kw)
    ConvTranspose   the same                  weights (C, O/g, kh, kw); upsample = its stride,
                                              stride 1, flipped kernel, pad = dilation (k - 1) - pad
    Gemm            (N, K)                    a 1x1 kernel on a 1x1 image
    MatMul          (N, ..., K)               a 1x1 kernel on a 1xT image

Callers ask `is_linear` first.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from cloister.errors import ShapeError, UnsupportedError
from cloister.graph.batch import batch_factor
from cloister.graph.graph import LINEAR_OPS, Graph, Node
from cloister.graph.layout import channels_last_shape
from cloister.ring.linear import Geometry

Pair = tuple[int, int]
STANDARD_DOMAINS = ("", "ai.onnx")
LAST_AXIS_OPS = ("Gemm", "MatMul")
"""Linear operators whose channels are the last axis; those of the others are the second."""


def geometry(graph: Graph, node: Node) -> Geometry:
    """Shape of the linear map a linear node computes.

    Raises UnsupportedError for a node that is not linear or whose shapes are not known.
    """
    before, after = graph.types.get(node.inputs[0]), graph.types.get(node.outputs[0])
    weights = graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
    if before is None or after is None or weights is None:
        raise UnsupportedError(
            f"node {node.name!r} ({node.op}): shapes or weights are not known; keep it local"
        )
    try:
        if node.op in LAST_AXIS_OPS:
            h, w, c = channels_last_shape(before.shape, channels_first=False)
            oh, ow, oc = channels_last_shape(after.shape, channels_first=False)
            return Geometry((h, w), c, (oh, ow), oc)
        return _convolution(node, before.shape, after.shape, weights)
    except ShapeError as error:
        raise UnsupportedError(f"node {node.name!r} ({node.op}): {error}; keep it local") from error


def float_weights(
    graph: Graph, node: Node
) -> tuple[Float32[np.ndarray, "oc kh kw c"], Float32[np.ndarray, " oc"]]:
    """Weights in `LinearMap` order and one bias per output channel of a linear node.

    The weights are a view of the model's wherever their order allows it: they may be large.
    """
    shape = geometry(graph, node).weight_shape
    weights = graph.constants[node.inputs[1]]
    if node.op in LAST_AXIS_OPS:
        alpha = np.float32(number(node, "alpha", 1.0))
        rows = weights if integer(node, "transB", 0) and node.op == "Gemm" else weights.T
        ordered = (rows if alpha == 1 else rows * alpha).reshape(shape)
    elif node.op == "Conv":
        ordered = _as_2d(weights).transpose(0, 2, 3, 1)
    else:
        ordered = _flipped(_as_2d(weights), integer(node, "group", 1))
    return np.asarray(ordered, np.float32), _bias(graph, node, shape[0])


def has_finite_bias(graph: Graph, node: Node) -> bool:
    """Whether the bias of a linear node, if it has one, is all numbers: some are masks of -inf."""
    bias = graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
    return bias is None or bool(np.isfinite(bias).all())


def stated_pads(node: Node, axes: int) -> tuple[int, ...] | None:
    """Padding (before..., behind...) of a window; None where padding.py could not state it."""
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode not in ("NOTSET", "VALID") or "output_shape" in node.attributes:
        return None
    pads = () if mode == "VALID" else integers(node, "pads")
    return pads or (0,) * (2 * axes)


def integer(node: Node, name: str, default: int) -> int:
    """An integer attribute."""
    value = node.attributes.get(name, default)
    return value if isinstance(value, int) else default


def number(node: Node, name: str, default: float) -> float:
    """A number attribute."""
    value = node.attributes.get(name, default)
    return float(value) if isinstance(value, int | float) else default


def integers(node: Node, name: str) -> tuple[int, ...]:
    """A list of integers; empty when absent."""
    value = node.attributes.get(name, ())
    return tuple(int(v) for v in value) if isinstance(value, Sequence) else ()


def _convolution(
    node: Node,
    before: Sequence[int | None],
    after: Sequence[int | None],
    weights: np.ndarray,
) -> Geometry:
    h, w, c = channels_last_shape(before, channels_first=True)
    oh, ow, oc = channels_last_shape(after, channels_first=True)
    kh, kw = _as_2d(weights).shape[2:]
    stride, dilation = _pair(node, "strides", 1), _pair(node, "dilations", 1)
    pad = _begin_pads(node, len(before) - 2)
    upsample = (1, 1)
    if node.op == "ConvTranspose":
        pad = (dilation[0] * (kh - 1) - pad[0], dilation[1] * (kw - 1) - pad[1])
        stride, upsample = (1, 1), stride
    return Geometry(
        in_size=(h, w),
        in_channels=c,
        out_size=(oh, ow),
        out_channels=oc,
        kernel=(kh, kw),
        stride=stride,
        dilation=dilation,
        upsample=upsample,
        pad=pad,
        groups=integer(node, "group", 1),
    )


def _as_2d(weights: np.ndarray) -> np.ndarray:
    return weights[:, :, None, :] if weights.ndim == 3 else weights


def _flipped(weights: np.ndarray, groups: int) -> np.ndarray:
    """(C, O/g, kh, kw) to (O, kh, kw, C/g) with the kernel turned by 180 degrees."""
    c, oc, kh, kw = weights.shape
    parts = weights[:, :, ::-1, ::-1].reshape(groups, c // groups, oc, kh, kw)
    return parts.transpose(0, 2, 3, 4, 1).reshape(groups * oc, kh, kw, c // groups)


def _bias(graph: Graph, node: Node, channels: int) -> np.ndarray:
    if node.op == "MatMul" or len(node.inputs) < 3 or not node.inputs[2]:
        return np.zeros(channels, np.float32)
    bias = graph.constants[node.inputs[2]].astype(np.float32).reshape(-1)
    beta = np.float32(number(node, "beta", 1.0)) if node.op == "Gemm" else np.float32(1)
    return np.ascontiguousarray(np.broadcast_to(bias * beta, (channels,)))


def _begin_pads(node: Node, axes: int) -> Pair:
    pads = stated_pads(node, axes)
    if pads is None:
        raise ShapeError("its padding is not stated in numbers")
    return (0, pads[0]) if axes == 1 else (pads[0], pads[1])


def _pair(node: Node, name: str, default: int) -> Pair:
    values = integers(node, name)
    if not values:
        return default, default
    # One-dimensional attributes act on the width; the height is 1 and its default is neutral.
    return (default, values[0]) if len(values) == 1 else (values[0], values[1])


def rows_per_sample(graph: Graph, node: Node) -> int | None:
    """How many rows a linear operator takes for each row of the batch; None: no fixed number."""
    sizes = graph.sizes(node.inputs[0]) or ()
    rows = sizes[:-1] if node.op in LAST_AXIS_OPS else sizes[:1]
    total = math.prod(size if isinstance(size, int) else batch_factor(size) or 0 for size in rows)
    batches = sum(isinstance(size, str) for size in rows)
    each = graph.batch or 1
    if not total or total % each or batches != (graph.batch is None):
        return None
    return total // each


def is_linear(graph: Graph, node: Node) -> bool:
    """Whether a node computes a linear map with constant float32 weights over the batch."""
    return not why_inside(graph, node)


def why_inside(graph: Graph, node: Node) -> str:
    """The first reason why no worker can compute a node; empty for a linear node."""
    return why_not_weighted(graph, node) or _why_not_mapped(graph, node)


def why_not_weighted(graph: Graph, node: Node) -> str:
    """Why a node is no linear operator with constant float32 weights and bias; empty if it is."""
    if node.domain not in STANDARD_DOMAINS or node.op not in LINEAR_OPS or len(node.inputs) < 2:
        return "it is none of the operators that workers compute"
    for value in filter(None, node.inputs[1:3]):
        array = graph.constants.get(value)
        if array is None:
            return f"{value!r} is computed, not a constant"
        if array.dtype != np.float32:
            return f"{value!r} has elements of type {array.dtype}"
        if not array.size:
            return f"{value!r} is empty"
    return ""


def _why_not_mapped(graph: Graph, node: Node) -> str:
    """Why a node's shapes and attributes are not those of one linear map for each input."""
    why = _why_not_batch(graph, node.inputs[0]) or _why_not_batch(graph, node.outputs[0])
    if why:
        return why
    rank = len(graph.types[node.inputs[0]].shape)
    weights = graph.constants[node.inputs[1]]
    if node.op in ("Conv", "ConvTranspose"):
        if rank not in (3, 4) or weights.ndim != rank:
            return f"it convolves {rank - 2} axes, and workers at most 2"
        return "" if stated_pads(node, rank - 2) else "its padding is not stated in numbers"
    if weights.ndim != 2:
        return f"its weights have {weights.ndim} axes, and workers multiply a matrix"
    if node.op == "MatMul":
        return ""
    if rank != 2 or integer(node, "transA", 0):
        return "it multiplies transposed inputs"
    columns = weights.shape[0 if integer(node, "transB", 0) else 1]
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    if bias and not is_row(graph.constants[bias].shape, columns):
        return f"its bias has shape {graph.constants[bias].shape}, not one number per column"
    return ""


def _why_not_batch(graph: Graph, value: str) -> str:
    """Why a computed value is not one float32 array of known shape per input of the batch."""
    if value in graph.constants:
        return f"{value!r} is a constant"
    known = graph.types.get(value)
    if known is None:
        return f"the shape of {value!r} is not known"
    if known.dtype != np.float32:
        return f"{value!r} has elements of type {known.dtype}"
    if len(known.shape) < 2 or known.shape[0] != graph.batch:
        return f"the first axis of {value!r} is not the batch"
    return "" if all(known.shape[1:]) else f"{value!r} has another free or empty axis"


def is_row(shape: tuple[int, ...], columns: int) -> bool:
    """Whether a Gemm's bias of this shape adds one number to each column."""
    return shape in ((), (1,), (columns,), (1, 1), (1, columns))
