"""Passes that move scales, shifts and padding into the linear node they belong to."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cloister.graph.graph import Graph, Node
from cloister.graph.grid import holds_integers
from cloister.graph.ops.linear_nodes import (
    integers,
    is_linear,
    number,
    stated_pads,
    why_not_weighted,
)
from cloister.graph.passes.rewrite import Rewrite

CHANNELS_FIRST = ("Conv", "ConvTranspose")


def fold_batch_norm(graph: Graph) -> Graph:
    """Batch normalisation, and Mul, Div, Add, Sub by one number per channel, into linear nodes.

    Nothing is folded where a weight or bias would become NaN or infinite.

    Error   weights are multiplied in float64 and rounded to float32 once
    """
    while True:
        with np.errstate(all="ignore"):
            folded = _fold_one_scale(graph)
        if folded is None:
            return graph
        graph = folded


def _fold_one_scale(graph: Graph) -> Graph | None:
    """All linear nodes with one following node each; None when there is none left."""
    rewrite = Rewrite(graph)
    folded = False
    for follower in graph.nodes:
        for value in follower.inputs[:2]:
            node = rewrite.maker(value)
            if node is None or not rewrite.is_untouched(node):
                continue
            if not _scales(graph, node) or not rewrite.read_once(value):
                continue
            if holds_integers(graph, node):
                continue  # its sums are exact, and products of its weights would be rounded
            affine = _affine(graph, follower, value, node)
            if affine is None or not all(np.isfinite(numbers).all() for numbers in affine):
                continue  # a mask of -inf has no place among fixed-point numbers
            if _absorb(rewrite, node, follower, *affine):
                folded = True
                break
    return rewrite.finish() if folded else None


def _scales(graph: Graph, node: Node) -> bool:
    """Whether a node's weights and bias are constants that a scale can be moved into."""
    if is_linear(graph, node):
        return True
    # Convolutions over three axes become linear nodes later (volumes.py).
    return node.op in CHANNELS_FIRST and not why_not_weighted(graph, node)


def _affine(
    graph: Graph, follower: Node, value: str, linear: Node
) -> tuple[np.ndarray, np.ndarray] | None:
    """(scale, shift) per output channel in float64 that a node applies to `value`."""
    known = graph.types.get(value)
    if known is None or len(known.shape) < 2:
        return None
    shape = known.shape
    axis = 1 if linear.op in CHANNELS_FIRST or len(shape) == 2 else len(shape) - 1
    channels = shape[axis] or 1
    if follower.domain not in ("", "ai.onnx") or len([o for o in follower.outputs if o]) != 1:
        return None
    if follower.op == "BatchNormalization":
        return _batch_norm(graph, follower, value) if axis == 1 else None
    if follower.op not in ("Mul", "Div", "Add", "Sub") or len(follower.inputs) != 2:
        return None
    first = follower.inputs[0] == value
    other = graph.constants.get(follower.inputs[1 if first else 0])
    if other is None or graph.types.get(follower.outputs[0]) != known:
        return None
    per_channel = _per_channel(other, len(shape), axis, channels)
    if per_channel is None or (not first and follower.op == "Div"):
        return None
    one, none = np.ones(channels), np.zeros(channels)
    if follower.op == "Mul":
        return per_channel, none
    if follower.op == "Div":
        return (1.0 / per_channel, none) if np.all(per_channel != 0) else None
    if follower.op == "Add":
        return one, per_channel
    return (one, -per_channel) if first else (-one, per_channel)


def _per_channel(other: np.ndarray, rank: int, axis: int, channels: int) -> np.ndarray | None:
    if other.dtype != np.float32 or other.ndim > rank:
        return None
    padded = other.reshape((1,) * (rank - other.ndim) + other.shape)
    if any(size != 1 for i, size in enumerate(padded.shape) if i != axis):
        return None
    return np.broadcast_to(padded.reshape(-1).astype(np.float64), (channels,))


def _batch_norm(graph: Graph, node: Node, value: str) -> tuple[np.ndarray, np.ndarray] | None:
    if node.inputs[0] != value or node.attributes.get("training_mode", 0):
        return None
    found = [graph.constants.get(name) for name in node.inputs[1:5]]
    if any(array is None or array.dtype != np.float32 or array.ndim != 1 for array in found):
        return None
    scale, shift, mean, variance = (np.float64(array) for array in found if array is not None)
    factor = scale / np.sqrt(variance + number(node, "epsilon", 1e-5))
    return factor, shift - mean * factor


def _absorb(
    rewrite: Rewrite, node: Node, follower: Node, scale: np.ndarray, shift: np.ndarray
) -> bool:
    constants = rewrite.graph.constants
    weights = constants[node.inputs[1]].astype(np.float64)
    bias = None
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = constants[node.inputs[2]].astype(np.float64).reshape(-1)
    op, attributes = node.op, dict(node.attributes)
    if op == "MatMul":
        if np.any(shift):
            if len(rewrite.graph.types[node.outputs[0]].shape) != 2:
                return False
            op = "Gemm"
        weights = weights * scale
    elif op == "Gemm":
        rows = weights if attributes.pop("transB", 0) else weights.T
        weights = rows * number(node, "alpha", 1.0) * scale[:, None]
        bias = None if bias is None else bias * number(node, "beta", 1.0)
        attributes = {"transB": 1}
    elif op == "Conv":
        weights = weights * scale.reshape(-1, *(1,) * (weights.ndim - 1))
    else:
        weights = _scale_transposed(weights, scale)
    total = shift + (scale * bias if bias is not None else 0.0)
    folded = _in_float32(weights, np.broadcast_to(total, scale.shape))
    if folded is None:
        return False
    inputs = [node.inputs[0], rewrite.constant(f"{node.name}_weights", folded[0])]
    if op != "MatMul":
        inputs.append(rewrite.constant(f"{node.name}_bias", folded[1]))
    merged = replace(
        node, op=op, inputs=tuple(inputs), outputs=follower.outputs, attributes=attributes
    )
    rewrite.swap([node, follower], [merged])
    return True


def _scale_transposed(weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(C, O/g, kernel...) times one number per output channel, group by group."""
    groups = len(scale) // weights.shape[1]
    parts = weights.reshape(groups, -1, *weights.shape[1:])
    factor = scale.reshape(groups, 1, -1, *(1,) * (weights.ndim - 2))
    scaled: np.ndarray = (parts * factor).reshape(weights.shape)
    return scaled


def _in_float32(*arrays: np.ndarray) -> list[np.ndarray] | None:
    """The arrays rounded; None where one of their numbers is NaN or infinite then."""
    rounded = [array.astype(np.float32) for array in arrays]
    return rounded if all(np.isfinite(array).all() for array in rounded) else None


def fold_pads(graph: Graph) -> Graph:
    """Constant zero padding into the convolution or average pooling that follows."""
    rewrite = Rewrite(graph)
    for node in graph.nodes:
        apply = PADDED.get(node.op)
        pad = rewrite.maker(node.inputs[0]) if node.inputs else None
        if apply is None or pad is None or pad.op != "Pad" or pad.domain not in ("", "ai.onnx"):
            continue
        sizes = _zero_pads(graph, pad)
        if sizes is None or not rewrite.read_once(node.inputs[0]):
            continue
        attributes = apply(graph, node, sizes)
        if attributes is not None:
            merged = replace(node, inputs=(pad.inputs[0], *node.inputs[1:]), attributes=attributes)
            rewrite.swap([pad, node], [merged])
    return rewrite.finish()


def _zero_pads(graph: Graph, pad: Node) -> tuple[int, ...] | None:
    """Padding (before..., after...) of the axes behind the channels; None for any other Pad."""
    known = graph.types.get(pad.inputs[0])
    if known is None or len(known.shape) < 3 or known.dtype != np.float32:
        return None
    if pad.attributes.get("mode", "constant") != "constant" or any(pad.inputs[3:]):
        return None
    if len(pad.inputs) > 1:
        amounts = graph.constants.get(pad.inputs[1])
        value = graph.constants.get(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] else 0.0
    else:
        amounts, value = np.array(integers(pad, "pads")), number(pad, "value", 0.0)
    if amounts is None or value is None or np.any(value != 0):
        return None
    rank = len(known.shape)
    pads = [int(amount) for amount in amounts.reshape(-1)]
    fits = len(pads) == 2 * rank and min(pads) >= 0
    if not fits or any(pads[i] for i in (0, 1, rank, rank + 1)):
        return None
    return (*pads[2:rank], *pads[rank + 2 :])


def _pad_conv(graph: Graph, node: Node, sizes: tuple[int, ...]) -> dict[str, object] | None:
    own = stated_pads(node, len(sizes) // 2)
    if own is None:
        return None
    total = tuple(a + b for a, b in zip(own, sizes, strict=True))
    return {k: v for k, v in node.attributes.items() if k != "auto_pad"} | {"pads": total}


def _pad_average(graph: Graph, node: Node, sizes: tuple[int, ...]) -> dict[str, object] | None:
    """Padding counts as zeros, so it may only move into a pool that counts them too."""
    if node.attributes.get("ceil_mode", 0):
        return None
    own = stated_pads(node, len(sizes) // 2)
    if own is None or (any(own) and not node.attributes.get("count_include_pad", 0)):
        return None
    kernel = integers(node, "kernel_shape")
    total = tuple(a + b for a, b in zip(own, sizes, strict=True))
    if any(pad >= 1 and pad >= size for pad, size in zip(total, (*kernel, *kernel), strict=True)):
        return None  # ONNX Runtime refuses padding as large as the window
    kept = {k: v for k, v in node.attributes.items() if k != "auto_pad"}
    return kept | {"pads": total, "count_include_pad": 1}


PADDED: dict[str, Callable[[Graph, Node, tuple[int, ...]], dict[str, object] | None]] = {
    "Conv": _pad_conv,
    "AveragePool": _pad_average,
}
