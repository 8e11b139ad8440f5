"""Convolutions, dense layers and matrix products, with what follows them in the same pass."""

import math
from dataclasses import dataclass

import numpy as np

from cloister.codegen.loop_nest import nest
from cloister.codegen.lower_elementwise import clip_bounds, elementwise
from cloister.codegen.lowering import Layer, Lowering, literal, of_type, reshaped, words
from cloister.codegen.packing import (
    conv_scratch_floats,
    dense_scratch_floats,
    pack_conv,
    pack_dense,
    pack_depthwise,
)
from cloister.codegen.views import Shape, View, channels_last, dense, dense_steps
from cloister.errors import UnsupportedError
from cloister.graph.graph import Node
from cloister.graph.ops.linear_nodes import (
    STANDARD_DOMAINS,
    float_weights,
    geometry,
    integer,
    is_linear,
    number,
)
from cloister.ring.linear import Geometry


@dataclass(frozen=True)
class Tail:
    """What the layer of a linear node also computes: y = clamp(sum + residual, lo, hi)."""

    nodes: tuple[Node, ...]
    output: str
    residual: str = ""
    lo: float = -math.inf
    hi: float = math.inf


def convolution(low: Lowering, node: Node) -> None:
    """Conv with constant weights."""
    if not is_linear(low.graph, node):
        raise UnsupportedError(
            f"node {node.name!r} (Conv): not a float32 convolution over one or two axes with "
            "constant weights"
        )
    shape = geometry(low.graph, node)
    weights, bias = float_weights(low.graph, node)
    if shape.is_depthwise and shape.out_channels == shape.in_channels:
        _depthwise(low, node, shape, weights, bias)
    elif (
        shape.kernel == shape.in_size
        and shape.out_size == (1, 1)
        and shape.pad == (0, 0)
        and (shape.groups == 1 and shape.dilation == (1, 1))
    ):
        _whole_image(low, node, weights, bias)
    else:
        _conv2d(low, node, shape, weights, bias)


def gemm(low: Lowering, node: Node) -> None:
    """alpha A B + beta C."""
    if is_linear(low.graph, node):
        _dense(low, node)
        return
    a, b = (low.view(name) for name in node.inputs[:2])
    a = a.transposed((1, 0)) if integer(node, "transA", 0) else a
    b = b.transposed((1, 0)) if integer(node, "transB", 0) else b
    product = dense(np.dtype(np.float32), low.shape(node.outputs[0]))
    _product(low, node, a, b, product)
    alpha, beta = literal(number(node, "alpha", 1.0)), literal(number(node, "beta", 1.0))
    if len(node.inputs) > 2 and node.inputs[2]:
        scaled = f"MADD({{1}}, {beta}, {{0}} * {alpha})"
        elementwise(low, node, [product, low.view(node.inputs[2])], scaled)
    elif alpha == "1.0f":
        low.define(node.outputs[0], product)
    else:
        elementwise(low, node, [product], f"{{0}} * {alpha}")


def matmul(low: Lowering, node: Node) -> None:
    """Matrix product, of a constant matrix or of two computed values."""
    if is_linear(low.graph, node):
        _dense(low, node)
        return
    a, b = (of_type(node, low.view(name)) for name in node.inputs[:2])
    # A vector is a matrix of one row on the left, of one column on the right.
    a = reshaped(low, a, (1, *a.shape)) if len(a.shape) == 1 else a
    b = reshaped(low, b, (*b.shape, 1)) if len(b.shape) == 1 else b
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    product = dense(np.dtype(np.float32), (*batch, a.shape[-2], b.shape[-1]))
    _product(low, node, a, b, product)
    low.define(node.outputs[0], reshaped(low, product, low.shape(node.outputs[0])))


def _tail(low: Lowering, node: Node, *, with_residual: bool) -> Tail:
    """Add of a value that is already there, then Relu or Clip, if nothing else reads between."""
    tail = Tail((node,), node.outputs[0])
    follower = low.only_reader(tail.output)
    if with_residual and follower is not None and follower.op == "Add":
        other = next(name for name in follower.inputs if name != tail.output)
        known = low.graph.types.get(other)
        same = known == low.graph.types[tail.output] and not low.is_constant(other)
        if same and low.has(other) and follower.domain in STANDARD_DOMAINS:
            low.absorb(follower)
            tail = Tail((*tail.nodes, follower), follower.outputs[0], other)
            follower = low.only_reader(tail.output)
    bounds = None if follower is None else clip_bounds(low, follower)
    if follower is None or bounds is None:
        return tail
    low.absorb(follower)
    return Tail((*tail.nodes, follower), follower.outputs[0], tail.residual, *bounds)


def _conv2d(
    low: Lowering, node: Node, shape: Geometry, weights: np.ndarray, bias: np.ndarray
) -> None:
    rank = len(low.shape(node.inputs[0]))
    tail = _tail(low, node, with_residual=True)
    packed = low.weight(pack_conv(weights.transpose(0, 3, 1, 2), shape.groups))
    reads = {"x": low.image(node.inputs[0]), "packed": packed, "bias": low.weight(bias)}
    if tail.residual:
        reads["residual"] = low.image(tail.residual)
    writes = {"y": low.new(tail.output, channels_last(rank))}
    floats = conv_scratch_floats(
        channels=shape.in_channels,
        groups=shape.groups,
        out_size=shape.out_size,
        kernel=shape.kernel,
    )
    writes["scratch"] = dense(np.dtype(np.float32), (floats,))
    names = {
        "H": shape.in_size[0], "W": shape.in_size[1], "C": shape.in_channels,
        "OUT_H": shape.out_size[0], "OUT_W": shape.out_size[1], "OUT_C": shape.out_channels,
        "KERNEL_H": shape.kernel[0], "KERNEL_W": shape.kernel[1],
        "STRIDE_H": shape.stride[0], "STRIDE_W": shape.stride[1],
        "DILATION_H": shape.dilation[0], "DILATION_W": shape.dilation[1],
        "PAD_TOP": shape.pad[0], "PAD_LEFT": shape.pad[1], "GROUPS": shape.groups,
    }  # fmt: skip
    call = (
        f"conv2d(x, packed, bias, {'residual' if tail.residual else 'NULL'}, y, "
        f"scratch, {', '.join(names)}, {_limits(tail)});"
    )
    low.add(Layer(words(*tail.nodes), "conv", names, reads, writes, [call], ("conv2d.c",)))


def _depthwise(
    low: Lowering, node: Node, shape: Geometry, weights: np.ndarray, bias: np.ndarray
) -> None:
    rank = len(low.shape(node.inputs[0]))
    tail = _tail(low, node, with_residual=False)
    reads = {
        "x": low.image(node.inputs[0]),
        "packed": low.weight(pack_depthwise(weights[..., 0])),
        "bias": low.weight(bias),
    }
    writes = {"y": low.new(tail.output, channels_last(rank))}
    names = {
        "H": shape.in_size[0], "W": shape.in_size[1], "C": shape.in_channels,
        "OUT_H": shape.out_size[0], "OUT_W": shape.out_size[1],
        "KERNEL_H": shape.kernel[0], "KERNEL_W": shape.kernel[1],
        "STRIDE_H": shape.stride[0], "STRIDE_W": shape.stride[1],
        "DILATION_H": shape.dilation[0], "DILATION_W": shape.dilation[1],
        "PAD_TOP": shape.pad[0], "PAD_LEFT": shape.pad[1],
    }  # fmt: skip
    call = f"depthwise2d(x, packed, bias, y, {', '.join(names)}, {_limits(tail)});"
    low.add(
        Layer(words(*tail.nodes), "depthwise", names, reads, writes, [call], ("depthwise2d.c",))
    )


def _dense(low: Lowering, node: Node) -> None:
    shape = geometry(low.graph, node)
    weights, bias = float_weights(low.graph, node)
    matrix = weights.reshape(shape.out_channels, shape.in_channels).T
    tail = _tail(low, node, with_residual=True)
    reads = {"x": low.in_order(low.view(node.inputs[0]))}
    if tail.residual:
        reads["residual"] = low.in_order(low.view(tail.residual))
    with_bias = node.op == "Gemm" and len(node.inputs) > 2 and bool(node.inputs[2])
    _dense_layer(low, tail, reads, low.new(tail.output), matrix, bias if with_bias else None)


def _whole_image(low: Lowering, node: Node, weights: np.ndarray, bias: np.ndarray) -> None:
    """A convolution whose one window is the image: a dense layer on it as it lies in memory."""
    order = channels_last(len(low.shape(node.inputs[0])))
    tail = _tail(low, node, with_residual=True)
    reads = {"x": low.image(node.inputs[0])}
    if tail.residual:
        reads["residual"] = low.image(tail.residual)
    matrix = weights.reshape(len(weights), -1).T
    _dense_layer(low, tail, reads, low.new(tail.output, order), matrix, bias)


def _dense_layer(
    low: Lowering,
    tail: Tail,
    reads: dict[str, View],
    y: View,
    matrix: np.ndarray,
    bias: np.ndarray | None,
) -> None:
    rows, columns = matrix.shape
    reads["packed"] = low.weight(pack_dense(np.ascontiguousarray(matrix)))
    if bias is not None:
        reads["bias"] = low.weight(bias)
    names = {"ROWS": y.elements // columns, "IN": rows, "OUT": columns}
    writes = {"y": y}
    floats = dense_scratch_floats(rows=names["ROWS"], inputs=rows)
    if floats:
        writes["scratch"] = dense(np.dtype(np.float32), (floats,))
    call = (
        f"dense(x, packed, {'NULL' if bias is None else 'bias'}, "
        f"{'residual' if tail.residual else 'NULL'}, y, {'scratch' if floats else 'NULL'}, "
        f"ROWS, IN, OUT, {_limits(tail)});"
    )
    low.add(Layer(words(*tail.nodes), "dense", names, reads, writes, [call], ("dense.c",)))


def _product(low: Lowering, node: Node, a: View, b: View, y: View) -> None:
    """Products of all matrices of two values, whose first axes broadcast."""
    of_type(node, a)
    of_type(node, b)
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    batch = y.shape[:-2]
    a, b = low.in_order(a), low.in_order(b)
    outer = {
        "y": _matrices(y, batch),
        "a": _matrices(a, a.shape[:-2]).broadcast(batch),
        "b": _matrices(b, b.shape[:-2]).broadcast(batch),
    }
    loops = nest(outer)
    call = ", ".join(f"{name} + {loops.index(name)}" for name in ("a", "b", "y"))
    names = {"ROWS": m, "INNER": k, "COLUMNS": n, **loops.constants()}
    body = loops.wrap([f"matmul({call}, ROWS, INNER, COLUMNS);"])
    low.add(Layer(words(node), "matmul", names, {"a": a, "b": b}, {"y": y}, body, ("matmul.c",)))


def _matrices(view: View, batch: Shape) -> View:
    """The first element of each matrix."""
    return View(view.buffer, batch, dense_steps(view.shape)[:-2], view.start)


def _limits(tail: Tail) -> str:
    return f"{literal(tail.lo)}, {literal(tail.hi)}"


TABLE = {"Conv": convolution, "Gemm": gemm, "MatMul": matmul}
